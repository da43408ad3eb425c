"""Where runs are looked at: a service, or a folder of this machine; both answer alike."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from sfl.jobs.rows import RunRow, Standing

LOOK = 0.5


class Source(Protocol):
    """Runs, and what can be done with them. Everything raises SflError."""

    def submit(self, settings: str) -> str:
        """Queue a run; its id."""

    def rows(self) -> list[RunRow]:
        """All runs, the open ones first."""

    def standing(self, run: str) -> Standing:
        """All that has not ended, or one run."""

    def watch(self, run: str) -> Iterator[Standing]:
        """The same each time that it changes, to the end of the run."""

    def logs(self, run: str, node: str, follow: bool) -> Iterator[tuple[str, bytes]]:
        """A node's name, and the next of its log."""

    def stop(self, run: str, reason: str) -> Standing:
        """End a run."""

    def now(self) -> float:
        """Unix seconds, by the clock that the times of runs and agents are of."""

    def close(self) -> None:
        """Let go of it."""


class Folder:
    """Runs in a folder: those of its queue, and those that `sfl run` and `sfl cloud` left there."""

    def __init__(self, output_dir: Path) -> None:
        from sfl.errors import ConfigError
        from sfl.node.paths import amiss, nothing_there
        from sfl.service.queue import existing

        if not nothing_there(output_dir) and (wrong := amiss(output_dir, "folder")):
            fix = "Name the folder with the runs."
            raise ConfigError("--output-dir", str(output_dir), wrong, fix)
        self._output_dir = output_dir
        self._queue = existing(output_dir)

    def submit(self, settings: str) -> str:
        """Queue a run for the service of this folder, whether it is at work or not."""
        from sfl.node.files import writable_folder
        from sfl.service.accept import accept
        from sfl.service.queue import JobQueue

        folder = writable_folder(self._output_dir, "--output-dir").resolve()
        self._queue = self._queue or JobQueue(folder)
        return accept(self._queue, folder, settings, secrets.token_hex(16), "").run

    def rows(self) -> list[RunRow]:
        """All runs, the open ones first."""
        from sfl.service.listing import rows_of

        return rows_of(self._output_dir, self._queue)

    def standing(self, run: str) -> Standing:
        """All that has not ended, or one run."""
        from sfl.service.listing import one_of, status_text

        rows = self.rows()
        if not run:
            return Standing(tuple(row for row in rows if not row.ended_at))
        row = one_of(rows, run)
        return Standing((row,), status=status_text(self._output_dir, row.run))

    def watch(self, run: str) -> Iterator[Standing]:
        """The same each time that it changes, to the end of the run."""
        name = self._row(run).run
        standing = self.standing(name)
        yield standing
        while not standing.runs[0].ended_at:
            time.sleep(LOOK)
            before, standing = standing, self.standing(name)
            if standing != before:
                yield standing

    def logs(self, run: str, node: str, follow: bool) -> Iterator[tuple[str, bytes]]:
        """A node's name, and the next of its log."""
        from sfl.service.operators import tails_of

        row = self._row(run)
        tails = tails_of(self._output_dir, row, node, follow)
        while True:
            over = not follow or bool(self.standing(row.run).runs[0].ended_at)
            while found := tails.next(over):
                yield from found
            if over:
                return
            time.sleep(LOOK)

    def stop(self, run: str, reason: str) -> Standing:
        """End a run of the queue; the service of this folder sees to it."""
        from sfl.service.operators import end_run

        row = self._row(run)
        end_run(self._queue, row, reason or "stopped by an operator")
        return self.standing(row.run)

    def now(self) -> float:
        """This machine's."""
        return time.time()

    def close(self) -> None:
        """Nothing is held."""

    def _row(self, run: str) -> RunRow:
        """One run. Raises ConfigError, also for no name at all."""
        from sfl.service.listing import one_of

        return one_of(self.rows(), run)


def open_source(
    service: str | None, output_dir: Path, certs: Path | None, insecure: bool, timeout: float
) -> Source:
    """The service at that address, or the folder. Raises ConfigError."""
    if not service:
        return Folder(output_dir)
    from sfl.node.certificates.own import own_in
    from sfl.transport.jobs.client import ServiceClient

    own = None if certs is None else own_in(certs)
    return ServiceClient(service, insecure, own, timeout)
