"""A run that goes on: which it is, and with what settings."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from sfl.config import RunConfig
from sfl.errors import ConfigError
from sfl.node.files import on_disk
from sfl.node.lock import FolderLock
from sfl.report.journal import JournalReader
from sfl.report.projection import RunProjection
from sfl.report.runs import CONCLUSION, JOURNAL, LOCK, find_run, load_for_cloud
from sfl.report.status import RunStatus
from sfl.rounds import Phase

_ADDRESS = re.compile(r"(cloud|edge)\.(metrics\.)?listen\s*=")


def resumed(
    run: str, overrides: Iterable[str] = (), insecure: bool = False, output_dir: Path = Path("runs")
) -> tuple[Path, RunConfig]:
    """The folder of a run that was stopped, and its own settings.

    `run` is its path, its id, or the beginning of that; `overrides` may be of addresses alone.
    Raises ConfigError, also where it has ended, and DiskError where another process is at work on
    it.
    """
    for override in (given := list(overrides)):
        if not _ADDRESS.match(override):
            problem = "a run goes on with the settings that it has"
            fix = "Only cloud.listen and edge.listen may change, and those of metrics."
            raise ConfigError("--set", override, problem, fix)
    folder = find_run(run, output_dir, "--resume").resolve()
    own = [f"run.id={json.dumps(folder.name)}", f"run.output_dir={_quoted(folder.parent)}"]
    config = load_for_cloud(folder / "config.toml", [*given, *own], insecure)
    FolderLock(folder / LOCK).release()
    _require_open(folder, config)
    return folder, config


def reopened(folder: Path) -> Path:
    """The folder, without what its processes of before said to one another, and its conclusion.

    Raises DiskError.
    """
    with on_disk(folder):
        shutil.rmtree(folder / "nodes", ignore_errors=True)
        for name in CONCLUSION:
            (folder / name).unlink(missing_ok=True)
    if (last := RunStatus.last(folder / "status.json")) is not None:
        again = replace(last, phase="starting", message="", sequence=last.sequence + 1)
        again.write(folder / "status.json")
    return folder


def _require_open(folder: Path, config: RunConfig) -> None:
    """Raises ConfigError where the run has ended."""
    if not (folder / JOURNAL).exists():
        return  # its cloud was never up
    with contextlib.closing(JournalReader(folder)) as journal:
        if not journal.begun or journal.latest().state(config.settings).phase is not Phase.OVER:
            return
        told = RunProjection.of(journal.entries())
    problem = f"this run has ended: {told.message}"
    raise ConfigError("--resume", folder.name, problem, "Begin another run.")


def _quoted(path: Path) -> str:
    return json.dumps(str(path), ensure_ascii=False)
