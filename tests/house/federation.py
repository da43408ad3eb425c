"""Starting real runs for tests: configurations, processes, and what they leave behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from tests.house.launcher import Launcher
from tests.house.paths import ROOT

SFL = [sys.executable, "-m", "sfl.cli"]


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    code: int
    output: str
    folder: Path

    @property
    def summary(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads((self.folder / "summary.json").read_text())
        return values

    def logs(self) -> str:
        return "\n".join(
            f"--- {log.name}\n{log.read_text()}" for log in sorted(self.folder.glob("logs/*.log"))
        )


def write_config(folder: Path, values: dict[str, Any]) -> Path:
    """A run's file in `folder`, its runs beside it."""
    run = {"id": "t", "output_dir": str(folder / "runs"), **values.pop("run", {})}
    path = folder / "run.toml"
    path.write_text(tomli_w.dumps({"run": run, **values}))
    return path


def sfl(*arguments: str | Path, timeout: float = 300.0) -> subprocess.CompletedProcess[str]:
    """The `sfl` command, as a user calls it."""
    return subprocess.run(
        [*SFL, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        env=_environment(),
    )


def _environment() -> dict[str, str]:
    return {**os.environ, "COLUMNS": "200", "HF_HUB_OFFLINE": "1"}


_launchers: list[Launcher] = []


def launch(config: Path, timeout: float = 300.0) -> subprocess.CompletedProcess[str]:
    """`sfl run` without options, which spares itself the imports of the runs before."""
    environment = _environment()
    environment.pop("PYTEST_CURRENT_TEST", None)
    # Nodes inherit the environment that their launcher began with.
    if not _launchers or not _launchers[0].alive() or _launchers[0].environment != environment:
        for launcher in _launchers:
            launcher.close()
        _launchers[:] = [Launcher(ROOT, environment)]
    return _launchers[0].run(["run", str(config)], timeout)


def run(
    folder: Path,
    values: dict[str, Any],
    *options: str,
    timeout: float = 300.0,
    alone: bool = False,
) -> Outcome:
    """`sfl run` on a configuration, to its end; `alone` as a user's: with a nursery of its own."""
    config = write_config(folder, values)
    if alone or options:
        done = sfl("run", config, *options, timeout=timeout)
    else:
        done = launch(config, timeout)
    return Outcome(done.returncode, done.stdout + done.stderr, folder / "runs" / "t")


def finished(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.output + outcome.logs()
    return outcome
