"""`sfl run`, as a person sees it: a live view, then a table of what came of it."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

from sfl.cli import interrupt
from sfl.cli.launch import run_on_this_machine
from sfl.cli.launch.nearby import pointed
from sfl.config import RunConfig, load_run
from sfl.errors import SflError
from sfl.report.conclusion import what_stays
from sfl.report.final import print_final
from sfl.report.live import LiveView
from sfl.report.summary import RunSummary


def run_and_show(path: Path, overrides: Iterable[str], insecure: bool, tls: bool = False) -> int:
    """Run a configuration on this machine; the exit code."""
    console = Console()
    errors = Console(stderr=True)
    logging.basicConfig(
        level="WARNING", format="%(message)s", handlers=[RichHandler(console=errors)]
    )
    signal.signal(signal.SIGTERM, interrupt)
    folder: list[Path] = []

    def started(where: Path) -> None:
        folder.append(where)
        console.print(f"run [bold]{where.name}[/] -> {escape(str(where))}")

    try:
        config = _load(path, overrides, insecure)
        with LiveView(console) as view:
            run_on_this_machine(config, view.update, started, tls, view.note)
    except KeyboardInterrupt:
        errors.print("interrupted: everything is stopped")
        _say_what_stays(console, folder)
        return 130
    except SflError as error:
        said = pointed(error, [path.resolve().parent, Path.cwd()])
        errors.print(f"error: {said}", style="red", markup=False, highlight=False, soft_wrap=True)
        _say_what_stays(console, folder)
        return error.exit_code
    print_final(console, RunSummary.read(folder[0] / "summary.json"))
    return 0


def _say_what_stays(console: Console, folder: list[Path]) -> None:
    """Where a run that did not reach its end has left what there is of it."""
    for where in folder:
        for name, what in what_stays(where):
            console.print(f"{what}: {where / name}", markup=False, highlight=False, soft_wrap=True)


def _load(path: Path, overrides: Iterable[str], insecure: bool) -> RunConfig:
    config = load_run(path, overrides)
    if not insecure:
        return config
    network = config.network.model_copy(update={"insecure": True})
    return config.model_copy(update={"network": network})
