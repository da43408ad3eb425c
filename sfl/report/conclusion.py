"""The files that stay of a run: written by its cloud, or in its place where it was killed."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sfl.config import RunConfig, dump_toml
from sfl.errors import SflError
from sfl.node.causes import in_words
from sfl.node.files import write_atomic
from sfl.report.html import write_report
from sfl.report.records import NodeRecord, Record, RoundRecord, read_records
from sfl.report.runs import stop_reason
from sfl.report.status import RunStatus
from sfl.report.step import StepTimeline, ordered, timelines_to_json
from sfl.report.summary import Fault, RunSummary, best_round, build_summary

RESERVE = ".reserve"
"""Room held back for these files, in a run's folder."""

_PASSING = ("spool", "strategy", "adapters", "base_updates")


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


def conclude(folder: Path, config: RunConfig, reason: str, wall_seconds: float) -> None:
    """In the place of a cloud that left no summary: from what it wrote while it ran, if anything.

    Nothing where there is one. Raises DiskError.
    """
    if (folder / "summary.json").exists():
        return
    (folder / RESERVE).unlink(missing_ok=True)
    status = RunStatus.read(folder / "status.json")
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
        adapter=str(folder / "adapter") if (folder / "adapter").is_dir() else None,
        best_round=best,
    )
    for name in _PASSING:
        if name in ("spool", "strategy") or not config.run.keep_round_adapters:
            shutil.rmtree(folder / name, ignore_errors=True)
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
    return dataclasses.replace(
        status,
        phase="failed",
        message=reason,
        devices=devices,
        updated_at=time.time(),
        sequence=status.sequence + 1,
    )
