"""Runs as operators are shown them: from the queue of a service, and from folders alone."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from sfl.errors import ConfigError
from sfl.jobs.rows import SILENT, RunRow
from sfl.jobs.values import Job
from sfl.report.status import RunStatus
from sfl.service.queue import JobQueue

STATUS = "status.json"
CLOUD_SILENT = 10.0
"""Seconds without a new status, after which a run waits for its cloud."""


def rows_of(output_dir: Path, queue: JobQueue | None) -> list[RunRow]:
    """All runs of a folder: those that have not ended first, then the latest first."""
    jobs = {job.run: job for job in (queue.all() if queue is not None else ())}
    served = queue is not None and queue.served
    rows = [row_of(output_dir, job, served) for job in jobs.values()]
    for path in output_dir.glob("*/config.toml"):
        if path.parent.name not in jobs:
            rows.append(_folder_row(path.parent))
    waiting = [row for row in rows if not row.ended_at]
    over = sorted((r for r in rows if r.ended_at), key=lambda row: row.ended_at, reverse=True)
    return [*waiting, *over]


def row_of(output_dir: Path, job: Job, served: bool = True) -> RunRow:
    """A run of the queue, with where its cloud says that it stands, and whether a service is."""
    status = RunStatus.last(output_dir / job.run / STATUS)
    waits, since, until = job.waits, job.waits_since, 0.0
    if status is not None and job.state == "running" and not waits:
        waits, since, until = _awaited(status, time.time())
    if not served and not job.over:
        waits = f"its service; to start one: sfl cloud --output-dir {output_dir}"
        since, until = job.submitted_at if status is None else status.updated_at, 0.0
    return RunRow(
        run=job.run,
        state=job.state,
        round=0 if status is None else status.round,
        rounds=0 if status is None else status.rounds,
        submitted_at=job.submitted_at,
        started_at=job.started_at,
        ended_at=job.ended_at,
        waits=waits,
        waits_since=since,
        waits_until=until,
        reason=job.reason,
    )


def status_text(output_dir: Path, run: str) -> str:
    """A run's status.json; empty where it has none, or it cannot be read."""
    try:
        text = (output_dir / run / STATUS).read_text(encoding="utf-8-sig")
        json.loads(text)
    except (OSError, ValueError):
        return ""
    return text.strip()


def one_of(rows: Sequence[RunRow], run: str) -> RunRow:
    """The run of that id, or the only one that begins so. Raises ConfigError."""
    if not run.strip():
        raise ConfigError("RUN", run, "is empty", "Name a run: sfl list.")
    found = [row for row in rows if row.run.startswith(run)]
    exact = [row for row in found if row.run == run]
    if len(exact or found) == 1:
        return (exact or found)[0]
    problem = "no such run" if not found else f"{len(found)} runs begin like this"
    known = ", ".join(row.run for row in rows[:5]) or "none"
    raise ConfigError("RUN", run, problem, f"See sfl list: {known}.")


def _folder_row(folder: Path) -> RunRow:
    """A run that no queue has, by what its cloud has written."""
    status = RunStatus.last(folder / STATUS)
    began = (folder / "config.toml").stat().st_mtime
    if status is None:
        return RunRow(folder.name, "unknown", submitted_at=began, ended_at=began)
    if _is_gone(status):
        ended, why = status.updated_at, f"its cloud is gone; to go on: sfl run --resume {folder}"
        rounds = (status.round, status.rounds)
        return RunRow(folder.name, "gone", *rounds, began, began, ended, reason=why)
    waits, since, until = _awaited(status, time.time())
    return RunRow(
        run=folder.name,
        state=status.phase if status.over else "running",
        round=status.round,
        rounds=status.rounds,
        submitted_at=began,
        started_at=began,
        ended_at=status.updated_at if status.over else 0.0,
        waits=waits,
        waits_since=since,
        waits_until=until,
        reason=status.message if status.over else "",
    )


def _is_gone(status: RunStatus) -> bool:
    """Whether the process that wrote it is not there any more, on this machine, and said no end."""
    here = status.host == socket.gethostname()
    return here and not status.over and not psutil.pid_exists(status.pid)


def _awaited(status: RunStatus, now: float) -> tuple[str, float, float]:
    """For whom its cloud waits, since when, and until when; 0 where nothing is said of that."""
    if status.over:
        return "", 0.0, 0.0
    if _is_silent(status, now):
        return SILENT, status.updated_at, 0.0
    wait = next((wait for wait in status.waits if wait.who == "cloud"), None)
    if wait is None:
        return "", 0.0, 0.0
    until = 0.0 if wait.seconds_left is None else status.updated_at + wait.seconds_left
    return f"{wait.whom}: {wait.what}", status.updated_at - wait.seconds, until


def _is_silent(status: RunStatus, now: float) -> bool:
    """Whether its cloud, on this machine, has written nothing for long: it may be stopped."""
    here = status.host == socket.gethostname()
    return here and 0.0 < status.updated_at < now - CLOUD_SILENT
