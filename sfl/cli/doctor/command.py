"""`sfl doctor`, as a person or a program sees it."""

from __future__ import annotations

import json
import logging
import sys
from typing import Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import sfl
from sfl.cli.doctor.question import Question
from sfl.cli.doctor.report import Check, Report
from sfl.config.size import size
from sfl.node import machine

MARKS = {"ok": "[green]✓[/]", "warning": "[yellow]![/]", "problem": "[red]✗[/]"}
NAME_WIDTH = 14
Format = Literal["text", "json"]


def examine_and_show(question: Question, format_: Format) -> int:
    """Print what is found as it is found (JSON: at the end); the exit code."""
    # Its log lines would tear the report; what matters in them is in the checks.
    logging.basicConfig(level="ERROR", stream=sys.stderr, format="%(message)s")
    console, errors = Console(highlight=False, soft_wrap=True), Console(stderr=True)
    memory = machine.memory()
    with errors.status("loading torch and transformers ...") as status:
        from sfl.cli.doctor.examine import examine  # seconds, hence behind the status line

        report = examine(
            question,
            memory,
            lambda what: status.update(f"{what} ..."),
            (lambda check: _print(console, check)) if format_ == "text" else lambda check: None,
        )
    if format_ == "json":
        typer.echo(json.dumps({"sfl": sfl.__version__, **report.to_json()}, indent=2))
    else:
        _conclude(console, report)
    return 0 if report.ok else 1


def _print(console: Console, check: Check) -> None:
    console.print(f"{MARKS[check.mark]} {check.name:<{NAME_WIDTH}} {escape(check.text)}")
    if check.fix:
        console.print(f"{'':<{NAME_WIDTH + 2}} [dim]{escape(check.fix)}[/]")


def _conclude(console: Console, report: Report) -> None:
    if report.cut_layers:
        console.print(_table(report), soft_wrap=False)
    count = {mark: sum(check.mark == mark for check in report.checks) for mark in MARKS}
    words = [f"{count[mark]} {mark}{'s' * (count[mark] != 1)}" for mark in ("problem", "warning")]
    console.print(", ".join(words))


def _table(report: Report) -> Table:
    """Cuts by memory; the columns add up to the total."""
    table = Table(box=None, padding=(0, 1))
    for heading in ("cut_layer", "process", "weights", "adapter", "activations", "total", "fits"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report.cut_layers:
        parts = row.footprint
        table.add_row(
            str(row.cut_layer),
            size(parts.base),
            size(parts.weights),
            size(parts.adapter + parts.optimizer),
            size(parts.activations + parts.messages),
            size(parts.total),
            "[green]yes[/]" if row.fits else "[red]no[/]",
        )
    return table
