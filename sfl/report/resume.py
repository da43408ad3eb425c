"""A run that goes on: which it is, and with what settings."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from sfl.config import RunConfig, dump_toml
from sfl.errors import ConfigError, Damaged, NoAnswer
from sfl.node.files import on_disk, write_atomic
from sfl.node.lock import FolderLock
from sfl.report.asked import require_same_run
from sfl.report.conclusion import can_go_on
from sfl.report.elsewhere import check_storage, fetched
from sfl.report.journal import read_journal
from sfl.report.projection import RunProjection
from sfl.report.runs import (
    CONCLUSION,
    LOCK,
    find_run,
    load_for_cloud,
    open_run_folder,
)
from sfl.report.status import RunStatus
from sfl.rounds import Phase

log = logging.getLogger("sfl.cloud")

AUTO = "auto"
"""In the place of a run: the one that was stopped, or else a new one."""
ASKED = "asked.toml"

_OF_THE_MACHINE = re.compile(r"(cloud|edge)\.(listen|(tls|metrics)\.\w+)\s*=")
"""What a node has of its machine: it may be told anew each time that a run goes on."""


def resumed(
    run: str, overrides: Iterable[str] = (), insecure: bool = False, output_dir: Path = Path("runs")
) -> tuple[Path, RunConfig]:
    """The folder of a run that was stopped, and its own settings.

    `run` is its path, its id, or the beginning of that; `overrides` may be of addresses and
    certificates alone.
    Raises ConfigError, also where it has ended, and DiskError where another process is at work on
    it.
    """
    given = _of_the_machine(overrides)
    return _open(find_run(run, output_dir, "--resume").resolve(), given, insecure)


def resumed_elsewhere(
    run: str,
    journal: str,
    artifacts: str,
    overrides: Iterable[str] = (),
    insecure: bool = False,
    output_dir: Path = Path("runs"),
) -> tuple[Path, RunConfig]:
    """The same for a run whose folder is gone: its files are fetched first.

    Raises ConfigError, DiskError.
    """
    given = _of_the_machine(overrides)
    folder = fetched(run, journal, artifacts, output_dir)
    where = [
        f"cloud.journal={json.dumps(journal)}",
        f"cloud.artifacts={json.dumps(artifacts)}",
    ]
    return _open(folder, [*given, *where], insecure)


def _of_the_machine(overrides: Iterable[str]) -> list[str]:
    """Overrides of addresses and certificates alone. Raises ConfigError for any other."""
    for override in (given := list(overrides)):
        if not _OF_THE_MACHINE.match(override):
            problem = "a run goes on with the settings that it has"
            fix = "Only listen, tls and metrics of cloud and edge may change."
            raise ConfigError("--set", override, problem, fix)
    return given


def _open(folder: Path, given: Iterable[str], insecure: bool) -> tuple[Path, RunConfig]:
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


def resumed_or_new(config: RunConfig) -> tuple[Path, RunConfig]:
    """The latest run of these settings that was stopped, or a new one: the folder and its settings.

    For a cloud that somebody starts again whenever it dies. Raises ConfigError, DiskError.
    """
    asked = _asked(config)
    for folder in _of_settings(config.run.output_dir, asked):
        FolderLock(folder / LOCK).release()  # who is at work on it is no reason for another run
        try:
            own = load_for_cloud(folder / "config.toml", [], config.network.insecure)
            if not _has_ended(folder, own):
                found = _open(folder.resolve(), [], config.network.insecure)
                log.info("run %s was stopped, and goes on", folder.name)
                return found
        except NoAnswer:
            raise  # the run may be there: another one in its place would be its end
        except (ConfigError, Damaged) as error:  # what may be otherwise later begins no other run
            log.warning("run %s cannot go on: %s", folder.name, error)
    check_storage(config)
    folder = open_run_folder(config)
    write_atomic(folder / ASKED, asked)
    return folder, config


def _asked(config: RunConfig) -> str:
    """Settings as they were asked for: two runs of the same text are one, stopped or not."""
    header = (
        "# The settings as they were given. `sfl cloud --resume auto` goes on with these only.\n"
    )
    return header + dump_toml(config)


def _of_settings(output_dir: Path, asked: str) -> list[Path]:
    """Folders of runs that were asked for like this, the latest first."""
    same = [path for path in output_dir.glob(f"*/{ASKED}") if path.read_text("utf-8") == asked]
    latest = sorted(same, key=lambda path: path.stat().st_mtime_ns, reverse=True)
    return [path.parent for path in latest]


def _require_open(folder: Path, config: RunConfig) -> None:
    """Raises ConfigError where the run has ended, or is not the one that its settings say."""
    if (journal := read_journal(config, folder, waits=True)) is None:
        if (folder / "metrics.jsonl").exists() and (folder / "adapter").is_dir():
            problem = "its journal is gone, and with it where the run was"
            raise ConfigError("--resume", folder.name, problem, "Begin another run.")
        return
    with contextlib.closing(journal):
        require_same_run(journal, config)
    if _has_ended(folder, config):
        problem = f"this run has ended: {how_ended(folder, config)}"
        raise ConfigError("--resume", folder.name, problem, "Begin another run.")


def _has_ended(folder: Path, config: RunConfig) -> bool:
    """Whether nothing is left to do: one that is over but not concluded has that to come."""
    concluded = (folder / "summary.json").exists() and not can_go_on(folder)
    return concluded and how_ended(folder, config) is not None


def how_ended(folder: Path, config: RunConfig) -> str | None:
    """What a run came to, in words; None for one that can go on."""
    if (journal := read_journal(config, folder, waits=True)) is None:
        return None  # its cloud was never up
    with contextlib.closing(journal):
        state = journal.latest().state(config.settings)
        if state.phase is not Phase.OVER:
            return None
        if state.end is not None:
            return state.end.reason
        return RunProjection.of(journal.entries()).message


def _quoted(path: Path) -> str:
    return json.dumps(str(path), ensure_ascii=False)
