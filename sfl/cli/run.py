"""`sfl run`, as a person sees it: a live view, then a table of what came of it."""

from __future__ import annotations

import logging
import signal
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

from sfl.cli import interrupt
from sfl.cli.launch import run_on_this_machine
from sfl.cli.launch.nearby import pointed
from sfl.config import RunConfig
from sfl.config.load import load_planned
from sfl.errors import SflError
from sfl.node.options import folder_of_runs, require_both, require_one
from sfl.node.swallowed import heard
from sfl.report.conclusion import can_go_on, what_stays
from sfl.report.final import print_final
from sfl.report.live import LiveView
from sfl.report.resume import resumed, resumed_elsewhere
from sfl.report.runs import load_for_cloud
from sfl.report.summary import RunSummary


@dataclass(frozen=True, slots=True)
class Asked:
    """What a user asks for: a run's file, or a run to go on with."""

    path: Path | None
    overrides: tuple[str, ...] = ()
    insecure: bool = False
    tls: bool = False
    resume: str | None = None
    output_dir: Path | None = None
    journal: str | None = None
    artifacts: str | None = None

    def load(self) -> tuple[Path | None, RunConfig]:
        """The folder of a run that goes on, and the settings. Raises ConfigError, DiskError."""
        require_one(self.path, self.resume)
        require_both(self.path, self.journal, self.artifacts)
        runs = folder_of_runs(self.path, self.output_dir)
        if self.resume is not None:
            given = (self.overrides, self.insecure, runs)
            if self.journal is None or self.artifacts is None:
                return resumed(self.resume, *given)
            return resumed_elsewhere(self.resume, self.journal, self.artifacts, *given)
        assert self.path is not None, "one of both is given"
        return None, load_for_cloud(self.path, self.overrides, self.insecure, load_planned)

    @property
    def beside(self) -> Path:
        """Where files may be that a message speaks of."""
        return Path.cwd() if self.path is None else self.path.resolve().parent


def run_and_show(asked: Asked) -> int:
    """Run a configuration on this machine, or go on with a run; the exit code."""
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
        resumed_folder, config = asked.load()
        config = _with_cuts(config, console)
        with heard(), LiveView(console) as view:
            run_on_this_machine(config, view.update, started, asked.tls, view.note, resumed_folder)
    except KeyboardInterrupt:
        errors.print("interrupted: everything is stopped")
        _say_what_stays(console, folder)
        return 130
    except SflError as error:
        said = pointed(error, [asked.beside, Path.cwd()])
        errors.print(f"error: {said}", style="red", markup=False, highlight=False, soft_wrap=True)
        _say_what_stays(console, folder)
        return error.exit_code
    print_final(console, RunSummary.read(folder[0] / "summary.json"))
    return 0


def _with_cuts(config: RunConfig, console: Console) -> RunConfig:
    """With cuts that a planner chooses before the run. Raises SflError."""
    if not (config.is_tiered and config.planner.moves):
        return config
    from sfl.cli.plan.once import chosen_once  # with torch, only where somebody asks for it

    config, said = chosen_once(config)
    console.print(said, markup=False, highlight=False, soft_wrap=True)
    return config


def _say_what_stays(console: Console, folder: list[Path]) -> None:
    """Where a run that did not reach its end has left what there is of it."""
    for where in folder:
        for name, what in what_stays(where):
            console.print(f"{what}: {where / name}", markup=False, highlight=False, soft_wrap=True)
        if can_go_on(where):
            line = f"to go on: sfl run --resume {where}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
