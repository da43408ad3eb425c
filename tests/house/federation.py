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

from sfl.plan import TIERED
from tests.house.forks import fork, fresh

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
    """A run's file in `folder`, its runs beside it; a stage has one thread, as all nodes."""
    run = {"id": "t", "output_dir": str(folder / "runs"), **values.pop("run", {})}
    if run.get("topology") in TIERED:
        values = {**values, "stage": {"threads": 1, **values.get("stage", {})}}
    path = folder / "run.toml"
    path.write_text(tomli_w.dumps({"run": run, **values}))
    return path


def sfl(
    *arguments: str | Path, timeout: float = 300.0, alone: bool = False, module: str = "sfl.cli"
) -> subprocess.CompletedProcess[str]:
    """The `sfl` command, as a user calls it; `alone` with an interpreter of its own.

    `module` is another program than the command's.
    """
    words = [str(argument) for argument in arguments]
    process = (fresh if alone else fork)(words, surroundings(), module=module)
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return subprocess.CompletedProcess(words, process.returncode, output, errors)


def surroundings(**more: str) -> dict[str, str]:
    """This process's environment, for a command that prints to a wide terminal."""
    return {**os.environ, "COLUMNS": "200", "HF_HUB_OFFLINE": "1", **more}


def run(
    folder: Path,
    values: dict[str, Any],
    *options: str,
    timeout: float = 300.0,
    alone: bool = False,
) -> Outcome:
    """`sfl run` on a configuration, to its end; `alone` as a user's: with a nursery of its own."""
    config = write_config(folder, values)
    done = sfl("run", config, *options, timeout=timeout, alone=alone)
    return Outcome(done.returncode, done.stdout + done.stderr, folder / "runs" / "t")


def finished(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.output + outcome.logs()
    return outcome
