"""`sfl privacy`: attacks on one's own model, cut, codec and data, and their table."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import sfl
from sfl.cli.launch.run import bounded
from sfl.config.load import load_planned
from sfl.data.unread import check_all_read
from sfl.errors import ConfigError
from sfl.models.folder import open_model
from sfl.plan import U_SHAPED
from sfl.report.text import percent

if TYPE_CHECKING:
    from sfl.cli.privacy import Finding, Findings

HEADINGS = (
    "device",
    "cut",
    "codec",
    "guess",
    "nearest",
    "cosine",
    "linear",
    "MLP",
    "words",
    "whole",
    "random",
)


def read_cuts(text: str) -> tuple[int, ...]:
    """Cut layers as `0,1,2`. Raises ConfigError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ConfigError("--cuts", text, "is not a list of cut layers", "Write 0,1,2.")
    return tuple(int(part) for part in parts)


def measure_and_show(
    config: Path, overrides: Iterable[str], cuts: tuple[int, ...], as_json: bool
) -> None:
    """Attack every cut and codec of a run's file; print what was read."""
    settings = load_planned(config, overrides)
    settings = bounded(settings, open_model(settings.model.path, weights=False).context_length)
    check_all_read(settings.settings)
    errors = Console(stderr=True)
    with errors.status("loading torch and transformers ..."):
        from sfl.cli.privacy import measure, plan

        planned = plan(settings, cuts)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=errors,
        transient=True,
    ) as progress:  # fmt: skip
        task = progress.add_task("reading data")

        def tell(what: str, done: int, total: int) -> None:
            progress.update(task, description=escape(what), completed=done, total=total)

        findings = measure(planned, tell)
    if as_json:
        typer.echo(json.dumps({"sfl": sfl.__version__, **findings.to_dict()}, indent=2))
        return
    show(findings, Console(highlight=False))


def show(findings: Findings, console: Console) -> None:
    """The table at its full width, whatever the terminal's: a number is whole or is none."""
    table = _table(findings)
    whole = console.measure(table, options=console.options.update_width(1000)).maximum
    console.width = max(console.width, whole)
    console.print(table)
    for line in sentences(findings):
        console.print(line, soft_wrap=True)


def _table(findings: Findings) -> Table:
    most = max(finding.sequences for finding in findings.findings)
    table = Table(
        title=f"Tokens that an edge names right, in up to {most} sequences of a device",
        title_justify="left",
        box=None,
        padding=(0, 1),
    )
    for heading in HEADINGS:
        table.add_column(
            heading, justify="left" if heading in ("device", "codec") else "right", no_wrap=True
        )
    for finding in findings.findings:
        table.add_row(*_cells(finding))
    return table


def _cells(finding: Finding) -> tuple[str, ...]:
    shares = (
        finding.guess,
        finding.nearest,
        finding.cosine,
        finding.linear,
        finding.mlp,
        finding.words,
        finding.whole,
        finding.random_only,
    )
    place = (escape(finding.device), str(finding.cut_layer), escape(finding.codec))
    return (*place, *map(percent, shares))


def sentences(findings: Findings) -> list[str]:
    """What the table means, and what the topology sends besides."""
    whose = "of the run's other devices" if findings.from_others else "of the same device"
    lines = [
        f"The attacker knows the base and text {whose}; last column: random tokens only.",
        "guess: the most frequent token. words: MLP, tokens with a letter or a digit. "
        "whole: sequences without a mistake.",
    ]
    causal = findings.task == "causal_lm"
    if findings.topology not in U_SHAPED:
        what = "completions" if causal else "classes"
        lines.append(f"Besides, {what} are sent as labels: run.topology is {findings.topology}.")
    elif causal:
        lines.append(
            "Labels stay on the device, but completions are part of the input, and are read there."
        )
    else:
        lines.append("Labels stay on the device. Their gradients hint at them: docs/privacy.md.")
    return lines
