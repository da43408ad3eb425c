"""The files that stay of a run: written by its cloud, or in its place where it was killed."""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sfl.config import RunConfig, dump_toml, load_run
from sfl.errors import SflError
from sfl.node.causes import in_words
from sfl.node.files import write_atomic
from sfl.report.html import write_report
from sfl.report.kept import KeptAdapters
from sfl.report.killed import KilledRun, killed_run
from sfl.report.plans import complete_plans, plans_of
from sfl.report.records import NodeRecord, Record, RoundRecord, complete_records, read_records
from sfl.report.runs import stop_reason
from sfl.report.status import RunStatus
from sfl.report.step import StepTimeline, ordered, timelines_to_json
from sfl.report.summary import Fault, RunSummary, best_round, build_summary

RESERVE = ".reserve"
"""Room held back for these files, in a run's folder."""
WORKING = ("spool", "strategy")
MANIFEST = "manifest.json"
"""What the adapter consists of, as the run's edges said it."""
SECRET = ".secret"
"""What challenges to devices are made of; its owner's alone."""


def write_conclusion(
    folder: Path,
    summary: RunSummary,
    records: Sequence[Record],
    config: RunConfig,
    timelines: Mapping[str, StepTimeline],
) -> None:
    """`summary.json` first, then `report.html`, then `timeline.json`. Raises DiskError."""
    summary.write(folder / "summary.json")
    steps = ordered(timelines)
    write_report(folder / "report.html", summary, records, dump_toml(config), steps)
    write_atomic(folder / "timeline.json", timelines_to_json(steps))


def what_stays(folder: Path) -> list[tuple[str, str]]:
    """(name in a run's folder, what it is) of what somebody may want of a run, however it ended."""
    named = (
        ("adapter", "adapter of the last round that closed"),
        ("report.html", "report"),
    )
    return [(name, what) for name, what in named if (folder / name).exists()]


def can_go_on(folder: Path) -> bool:
    """Whether a run that was stopped has what it needs to be resumed."""
    return (folder / MANIFEST).exists()


def is_over(folder: Path, status: RunStatus | None) -> bool:
    """Whether a run has ended, by its last status; from its cloud's own end it can go on."""
    return status is not None and status.over and not can_go_on(folder)


def has_finished(folder: Path, status: RunStatus | None) -> bool:
    """Whether a run has reached its end and told of it, whatever became of its cloud after that."""
    told = status is not None and status.phase == "finished" and (folder / "summary.json").exists()
    return told and is_over(folder, status)


def conclude(folder: Path, config: RunConfig, reason: str, wall_seconds: float) -> None:
    """In the place of a cloud that left no summary: from its journal, which ends with `reason`.

    Where that is not there or cannot be read: from what the cloud wrote while it ran, if anything;
    only then the run took `wall_seconds`. Nothing where there is a summary. Raises DiskError.
    """
    if (folder / "summary.json").exists():
        return
    (folder / RESERVE).unlink(missing_ok=True)
    last = RunStatus.last(folder / "status.json")
    killed = killed_run(folder, config, reason)
    if killed is not None:
        _conclude_from_journal(folder, _in_effect(folder, config), killed, last)
    else:
        _conclude_from_records(folder, config, reason, wall_seconds, last)


def _conclude_from_journal(
    folder: Path, config: RunConfig, killed: KilledRun, last: RunStatus | None
) -> None:
    """All that a cloud writes at its end."""
    settings, told = config.settings, killed.told
    best = killed.keep_adapters(folder, config.run.keep_round_adapters)
    if killed.over and not config.cloud.artifacts:  # else its results are still to be published
        _drop(folder, config)
    summary = killed.summary(folder.name, settings, _adapter(folder), best)
    write_conclusion(folder, summary, told.records, config, told.rounds.steps)
    killed.status(folder.name, settings, last).write(folder / "status.json")
    complete_records(folder / "metrics.jsonl", told.records)
    complete_plans(folder, told.plans)


def _in_effect(folder: Path, config: RunConfig) -> RunConfig:
    """The settings as the cloud had them in the end, with what was `auto`."""
    try:
        written = load_run(folder / "config.toml")
    except SflError:
        return config
    return written.model_copy(update={"run": config.run})


def _drop(folder: Path, config: RunConfig) -> None:
    drop_working_files(folder)
    drop_rounds(folder, config.run.keep_round_adapters)


def drop_working_folders(folder: Path) -> None:
    """Remove what only a round that is still to be averaged needs."""
    for name in WORKING:
        shutil.rmtree(folder / name, ignore_errors=True)


def drop_working_files(folder: Path) -> None:
    """Remove what only a run that goes on needs."""
    drop_working_folders(folder)
    for name in (MANIFEST, SECRET):
        (folder / name).unlink(missing_ok=True)


def drop_rounds(folder: Path, every_round: bool) -> None:
    """Remove the adapters of rounds, once a run can't go on, unless they are wanted."""
    KeptAdapters(folder, every_round).drop_rounds()
    if not every_round:
        shutil.rmtree(folder / "base_updates", ignore_errors=True)


def _adapter(folder: Path) -> str | None:
    """Where the run's adapter is, as a user would write it."""
    return str(folder / "adapter") if (folder / "adapter").is_dir() else None


def _conclude_from_records(
    folder: Path, config: RunConfig, reason: str, wall_seconds: float, status: RunStatus | None
) -> None:
    """By `metrics.jsonl` and the last status."""
    records: list[Record] = []
    # A line that cannot be read hides no failure, nor does a cloud that had not written any.
    with contextlib.suppress(SflError, FileNotFoundError):
        records = read_records(folder / "metrics.jsonl")
    closed = [record for record in records if isinstance(record, NodeRecord)]
    closed = [record for record in closed if record.snapshot.kind == "cloud"]
    last = max((record.round for record in closed), default=0)
    # The cloud looks for the best adapter when a round closes, among those evaluated by then.
    seen = [r for r in records if isinstance(r, RoundRecord) and r.round < last]
    best = best_round(seen) if (folder / "adapter_best").is_dir() else None
    summary = build_summary(
        config.settings,
        folder.name,
        records,
        [],
        train_seconds=math.fsum(record.seconds for record in closed),
        wall_seconds=wall_seconds,
        faults=tuple(map(Fault.parse, status.faults)) if status is not None else (),
        failure=reason,
        adapter=_adapter(folder),
        best_round=best,
        plans=plans_of(folder),
    )
    if not config.cloud.journal:  # a server that does not answer now has where the run is
        _drop(folder, config)
    if status is not None:
        _last_word(status, reason).write(folder / "status.json")
    write_conclusion(folder, summary, records, config, {})


@contextlib.contextmanager
def concluded(folder: Path, config: RunConfig) -> Iterator[None]:
    """Whatever ends this leaves a summary, with its reason: also before a cloud writes its own."""
    began, reason = time.monotonic(), None
    try:
        yield
    except Exception as error:
        reason = in_words(error)
        raise
    finally:
        with contextlib.suppress(SflError):  # the disk is full: then it is the reason, too
            conclude(folder, config, reason or stop_reason(folder), time.monotonic() - began)


def _last_word(status: RunStatus, reason: str) -> RunStatus:
    devices = tuple(device.at_end(ok=False) for device in status.devices)
    return replace(
        status,
        phase="failed",
        message=reason,
        devices=devices,
        updated_at=time.time(),
        sequence=status.sequence + 1,
    )
