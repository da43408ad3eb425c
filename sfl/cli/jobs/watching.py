"""A run that is watched: the live view of `sfl run`, wherever the run is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from rich.console import Console

from sfl.cli.jobs.shown import status_of
from sfl.jobs.rows import SILENT, Standing
from sfl.report.live import LiveView
from sfl.report.status import RunStatus


def watch_live(console: Console, standings: Iterator[Standing]) -> Standing | None:
    """Show each of them in the place of the one before; the last one."""
    last: Standing | None = None
    with LiveView(console) as view:
        for last in standings:
            view.update(_as_status(last))
    if last is not None and (row := last.runs[0]).ended_at:
        said = f"{row.run}: {row.state}" + (f": {row.reason}" if row.reason else "")
        console.print(said, markup=False, highlight=False, soft_wrap=True)
    return last


def _as_status(standing: Standing) -> RunStatus:
    """What its cloud says, or what it waits for that its cloud does not say."""
    row = standing.runs[0]
    message = f"{row.state}: waits for {row.waits}" if row.waits else row.state
    if not standing.status:
        return RunStatus(row.run, "starting", row.round, row.rounds, message=message)
    status = status_of(standing)
    if not row.waits or row.waits in {f"{wait.whom}: {wait.what}" for wait in status.waits}:
        return status
    if row.waits == SILENT:
        return replace(status, message=message)
    return replace(status, phase="starting", message=message)  # its cloud does not know of that
