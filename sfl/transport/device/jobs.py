"""What a device has asked of its edge, done in the order it came in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any

from sfl.errors import ProtocolError


class Jobs:
    """Two lanes of coroutines: gradients wait for no activation. Both end with their stream."""

    def __init__(self, most: int) -> None:
        """`most`: jobs that may wait when a device asks for another."""
        self._most = most
        self._lane: asyncio.Queue[Awaitable[None]] = asyncio.Queue()
        self._gradients: asyncio.Queue[Awaitable[None]] = asyncio.Queue()
        self._is_over = False

    def put(self, job: Awaitable[None], at_once: bool = False) -> None:
        """Queue a job; `at_once`: in the lane of gradients. Once the stream is over nothing is
        done."""
        self._of(at_once).put_nowait(job)
        if self._is_over:
            self.clear()

    def ask(self, job: Coroutine[Any, Any, None], at_once: bool = False) -> None:
        """Queue what a peer asked for. Raises ProtocolError where it asks faster than it is
        served."""
        waiting = self._of(at_once).qsize()
        if waiting > self._most:
            job.close()
            raise ProtocolError(f"{waiting} messages wait to be served")
        self.put(job, at_once)

    def _of(self, at_once: bool) -> asyncio.Queue[Awaitable[None]]:
        return self._gradients if at_once else self._lane

    async def work(self) -> None:
        """Do jobs in the order they came."""
        while True:
            await (await self._lane.get())

    async def land(self) -> None:
        """The same for gradients, beside all others."""
        while True:
            await (await self._gradients.get())

    def clear(self) -> None:
        """The stream is over: what waits is not done any more."""
        self._is_over = True
        for lane in (self._lane, self._gradients):
            while not lane.empty():
                job = lane.get_nowait()
                if asyncio.iscoroutine(job):
                    job.close()
