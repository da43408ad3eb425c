"""What operators ask a service for (`OperatorsDoor`'s host)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from sfl.errors import ConfigError
from sfl.jobs.rows import RunRow, Standing
from sfl.node.text import plain
from sfl.service.accept import accept
from sfl.service.listing import one_of, row_of, rows_of, status_text
from sfl.service.logs import Tails
from sfl.service.nodes import Nodes
from sfl.service.queue import JobQueue
from sfl.service.roster import Roster

log = logging.getLogger("sfl.service")

LOOK = 0.5
"""Seconds between two looks at what somebody watches."""
LAST_WORDS = 10.0
"""Seconds after a run's end in which its agents send the last of their logs."""


class Operators:
    """Looks at the queue and the folders of runs, and changes the queue alone."""

    def __init__(
        self, queue: JobQueue, output_dir: Path, roster: Roster, nodes: Nodes, max_runs: int
    ) -> None:
        self._queue = queue
        self._output_dir = output_dir
        self._roster = roster
        self._nodes = nodes
        self._max_runs = max_runs

    def submit(self, settings: str, key: str, by: str) -> str:
        """Queue a run; its id. Raises ConfigError, DiskError."""
        job = accept(self._queue, self._output_dir, settings, key, by)
        log.info("run %s is submitted%s", job.run, f" by {by}" if by else "")
        return job.run

    def rows(self) -> Sequence[RunRow]:
        """All runs, the open ones first."""
        return rows_of(self._output_dir, self._queue)

    def standing(self, run: str) -> Standing:
        """Where the service stands, or one run. Raises ConfigError."""
        agents = self._roster.rows()
        if not run:
            rows = tuple(row_of(self._output_dir, job) for job in self._queue.open())
            return Standing(rows, agents, self._max_runs)
        row = one_of(self.rows(), run)
        status = status_text(self._output_dir, row.run)
        return Standing((row,), agents, self._max_runs, status)

    async def watch(self, run: str) -> AsyncIterator[Standing]:
        """The same each time that it changes, to the end of the run. Raises ConfigError."""
        name = one_of(self.rows(), run).run
        shown: tuple[RunRow, str] | None = None
        while True:
            standing = self.standing(name)
            now = (standing.runs[0], standing.status)
            if now != shown:
                shown = now
                yield standing
            if standing.runs[0].ended_at:
                return
            await asyncio.sleep(LOOK)

    async def logs(self, run: str, node: str, follow: bool) -> AsyncIterator[tuple[str, bytes]]:
        """What a run's nodes have written, and go on to write. Raises ConfigError."""
        row = one_of(self.rows(), run)
        tails = tails_of(self._output_dir, row, node, follow)
        ended_at: float | None = None
        while True:
            over = not follow or self._said_all(row.run, ended_at)
            while found := tails.next(over):
                for name, data in found:
                    yield name, data
            if over:
                return
            if ended_at is None and one_of(self.rows(), row.run).ended_at:
                ended_at = time.monotonic()
            await asyncio.sleep(LOOK)

    def stop(self, run: str, reason: str, by: str) -> Standing:
        """End a run. Raises ConfigError, DiskError."""
        row = one_of(self.rows(), run)
        end_run(self._queue, row, plain(reason) or f"stopped by {by or 'an operator'}")
        return self.standing(row.run)

    def _said_all(self, run: str, ended_at: float | None) -> bool:
        """Whether a run is over, and nothing more of it will come."""
        if ended_at is None:
            return False
        return not self._nodes.leaving(run) or time.monotonic() > ended_at + LAST_WORDS


def end_run(queue: JobQueue | None, row: RunRow, reason: str) -> None:
    """Note that a run is to end; the service sees to it. Raises ConfigError, DiskError."""
    if row.ended_at:
        raise ConfigError("RUN", row.run, f"it has ended: {row.state}", "There is nothing to stop.")
    if queue is not None:
        now = time.time()
        ended: dict[str, Any] = {"waits": "", "waits_since": 0.0, "reason": reason}
        if queue.change(row.run, only=("queued",), state="stopped", ended_at=now, **ended):
            return
        if queue.change(row.run, only=("running",), state="stopping", **ended):
            return
        if queue.get(row.run) is not None:
            return
    fix = "End the command that runs it, with Ctrl-C."
    raise ConfigError("RUN", row.run, "no service runs it", fix)


def tails_of(output_dir: Path, row: RunRow, node: str, follow: bool) -> Tails:
    """The logs of a run, or of one of its nodes. Raises ConfigError."""
    folder = output_dir / row.run / "logs"
    names = sorted(path.stem for path in folder.glob("*.log"))
    if node and node not in names and (not follow or row.ended_at or "/" in node or "*" in node):
        fix = f"It has: {', '.join(names) or 'none yet'}."
        raise ConfigError("NODE", node, "no such log", fix)
    return Tails(folder, node)
