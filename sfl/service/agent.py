"""An agent: an edge or a device that stays attached to a service, and computes its runs.

Each run is computed by a process of its own, `sfl edge` or `sfl device` as anybody would start it,
with this machine's own file: data, consent and keys stay what they are. The service decides who is
started again; an agent reports, and does as it is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sfl.config.base import RUN_ID
from sfl.errors import SflError
from sfl.jobs.rows import HeldRun
from sfl.node.notify import notifier
from sfl.service.child import Child, Ending, Files
from sfl.transport.jobs.attaching import Attaching

log = logging.getLogger("sfl.agent")

POLL = 0.2
"""Seconds between two looks at processes and their logs."""
LOG_BYTES = 1 << 16
"""Of a log, in one message; at most so many of each run in each look."""

Dial = Callable[[str, str], list[str]]
"""Arguments of a node for a run, by the address that it dials and the one that it listens on."""


@dataclass(slots=True)
class Held:
    """A run that this agent computes, and the process that does it."""

    run: str
    dials: str
    files: Files
    child: Child | None = None
    listens: str = ""
    """An edge's own address, the same for each of its processes."""
    ending: Ending | None = None
    leaves: bool = False
    """The service has said that it is over."""
    told: Literal["nothing", "up", "ended"] = "nothing"
    """What the service knows of its process."""
    known: int = 0
    """Bytes of the log here that the service has."""
    before: int = 0
    """Bytes that it has of a log which is here no more."""

    def known_to_service(self, offset: int) -> None:
        """So much of its log the service has."""
        there = self.files.log.stat().st_size if self.files.log.exists() else 0
        self.before = max(self.before, offset - there)
        self.known = offset - self.before


class Agent:
    """Computes the runs that its service gives it."""

    def __init__(
        self, module: str, folder: Path, arguments: Dial, attaching: Attaching, listens: bool
    ) -> None:
        """`folder` is its own, for logs; `listens`: its nodes have an address of their own."""
        self._module = module
        self._folder = folder
        self._arguments = arguments
        self._attaching = attaching
        self._listens = listens
        self._manager = notifier()
        self.via = ""
        """The edge that relays it, if one does."""
        self._runs: dict[str, Held] = {}

    async def serve(self) -> None:
        """Stay attached until this is cancelled; no node outlives it."""
        self._manager.ready()
        self._manager.status("dialling its service")
        attaching = asyncio.create_task(self._attaching.run(self))
        looking = asyncio.create_task(self._look_on())
        try:
            await asyncio.wait({attaching, looking}, return_when=asyncio.FIRST_COMPLETED)
            for task in (attaching, looking):
                if task.done():
                    task.result()
        finally:
            for task in (attaching, looking):
                task.cancel()
            await asyncio.gather(attaching, looking, return_exceptions=True)
            await self._end_all()

    # -- the service's word -----------------------------------------------------------------------

    def held(self) -> Iterator[HeldRun]:
        """The runs that it computes."""
        for held in self._runs.values():
            if held.child is not None and held.child.exit_code() is None and not held.leaves:
                yield HeldRun(held.run, held.listens if self._listens else held.dials)

    def welcomed(self, via: str) -> None:
        """It is attached, and says again what may not have been heard."""
        self.via = via
        self._manager.status("attached to its service")
        for held in self._runs.values():
            held.told = "nothing"

    def detached(self) -> None:
        """It goes on with what it computes."""
        self._manager.status("not attached to its service, and dialling it")

    def start(self, run: str, address: str, log_offset: int) -> None:
        """Compute a run, unless that is done already."""
        if not re.fullmatch(RUN_ID, run) or not run:
            log.warning("the service asks for a run that cannot be: %r", run)
            return
        held = self._runs.get(run)
        if held is None:
            files = Files.within(self._folder / run)
            held = self._runs[run] = Held(run, address, files)
        held.known_to_service(log_offset)
        held.leaves = False
        running = held.child is not None and held.child.exit_code() is None
        if running and held.dials == address and held.ending is None:
            held.told = "nothing"
            return
        held.dials = address
        if running:  # its address has changed: another process takes its place
            assert held.child is not None
            held.ending = held.ending or Ending(held.child, time.monotonic(), leave=0.0)
        else:
            self._begin(held)

    def stop(self, run: str, reason: str) -> None:
        """Leave a run."""
        if (held := self._runs.get(run)) is None:
            self._attaching.ended(run, 0, "it is not computed here")
            return
        log.info("run %s is over here: %s", run, reason)
        held.leaves = True
        if held.child is not None and held.ending is None:
            held.ending = Ending(held.child, time.monotonic())

    # -- its processes ----------------------------------------------------------------------------

    async def _look_on(self) -> None:
        while True:
            self._manager.alive()
            for held in list(self._runs.values()):
                self._look(held, time.monotonic())
                await self._tell_log(held)
                if held.leaves and self._ended(held):
                    self._forget(held)
            await asyncio.sleep(POLL)

    def _look(self, held: Held, now: float) -> None:
        if held.ending is not None and held.ending.look(now):
            held.ending = None
            if not held.leaves:
                self._begin(held)
        if held.child is None or not self._attaching.attached:
            return
        if held.child.exit_code() is None:
            self._tell_address(held)
        elif held.told != "ended" and not held.leaves and held.ending is None:
            held.told = "ended"
            code = held.child.exit_code()
            log.info("run %s has ended here: %s", held.run, held.child.failure() if code else "ok")
            self._attaching.ended(held.run, code or 0, held.child.failure() if code else "")

    def _tell_address(self, held: Held) -> None:
        """That the node is up; an edge's address, once it has one."""
        assert held.child is not None
        if self._listens:
            held.listens = held.child.address() or held.listens
        if held.told != "up" and (held.listens or not self._listens):
            held.told = "up"
            self._attaching.started(held.run, held.listens)

    async def _tell_log(self, held: Held) -> None:
        if not self._attaching.attached or held.child is None:
            return
        data = _read(held.files.log, held.known)
        if data:
            await self._attaching.logged(held.run, held.before + held.known, data)
            held.known += len(data)

    def _begin(self, held: Held) -> None:
        """Start a process for it; where that fails, the service is told."""
        held.ending, held.told = None, "nothing"
        try:
            arguments = self._arguments(held.dials, held.listens)
            held.child = Child(self._module, arguments, held.files)
        except (SflError, OSError) as error:
            log.error("run %s cannot be started here: %s", held.run, error)
            self._attaching.ended(held.run, 1, str(error))
            self._runs.pop(held.run, None)
            return
        log.info("run %s: computing, by process %d", held.run, held.child.pid)

    def _ended(self, held: Held) -> bool:
        if held.child is not None and held.child.exit_code() is None:
            return False
        there = held.files.log.stat().st_size if held.files.log.exists() else 0
        return held.known >= there or not self._attaching.attached

    def _forget(self, held: Held) -> None:
        code = 0 if held.child is None else held.child.exit_code() or 0
        self._attaching.ended(held.run, code, "")
        del self._runs[held.run]
        shutil.rmtree(held.files.log.parent, ignore_errors=True)

    async def _end_all(self) -> None:
        """Ask all processes to stop, and wait for that."""
        children = [held.child for held in self._runs.values() if held.child is not None]
        endings = [Ending(child, time.monotonic(), leave=0.0) for child in children]
        with contextlib.suppress(asyncio.CancelledError):
            while endings := [e for e in endings if not e.look(time.monotonic())]:
                await asyncio.sleep(0.05)
        for child in children:
            child.kill()


def _read(path: Path, offset: int) -> bytes:
    """The next of a log."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(LOG_BYTES)
    except OSError:
        return b""
