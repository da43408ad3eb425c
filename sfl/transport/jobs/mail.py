"""Messages on their way to one peer, so many at most, and how both ends know that they live."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

from sfl.errors import LinkLost, SflError
from sfl.transport.group import Writer, Writes
from sfl.transport.stream import Silence

M = TypeVar("M")

INTERVAL = 2.0
"""Seconds between two heartbeats of an agent, and of its service."""
SILENT = 30.0
"""Seconds without a byte after which either takes the other for gone."""
MOST = 256
"""Messages that may wait for one peer; half of them by whoever waits for room."""


class Mail(Generic[M]):
    """What one peer is told, in order; it ends with an error."""

    def __init__(self, most: int = MOST) -> None:
        self._waiting: asyncio.Queue[M | SflError] = asyncio.Queue(most)
        self._most_put = most // 2
        self._taken = asyncio.Event()
        self._closed = False

    def post(self, message: M) -> None:
        """Queue a message; a peer that takes none any more is given up."""
        try:
            self._waiting.put_nowait(message)
        except asyncio.QueueFull:
            self.end(LinkLost(f"it takes nothing any more: {MOST} messages wait for it"))

    async def put(self, message: M) -> None:
        """Queue a message once there is room, so that whoever sends more has to wait.

        It leaves places to those who do not wait. Once nobody takes any more it goes nowhere.
        """
        while not self._closed and self._waiting.qsize() >= self._most_put:
            self._taken.clear()
            await self._taken.wait()
        if not self._closed:
            self._waiting.put_nowait(message)

    def close(self) -> None:
        """Nobody takes messages any more: whoever waits for room goes on."""
        self._closed = True
        self._taken.set()

    def end(self, error: SflError) -> None:
        """Nothing more is to be said; what waits before may be lost."""
        self.close()
        while self._waiting.full():
            self._waiting.get_nowait()
        self._waiting.put_nowait(error)

    async def messages(self) -> AsyncIterator[M]:
        """What is queued, as it comes. Raises the error that ends it."""
        while True:
            item = await self._waiting.get()
            self._taken.set()
            if isinstance(item, SflError):
                raise item
            yield item


async def write(mail: Mail[M], context: Writer) -> None:
    """Write what is queued to a stream. Raises the error that ends it."""
    writes = Writes()

    async def work() -> None:
        async for message in mail.messages():
            await writes.one(context, message)

    await writes.whole(work)


async def beat(mail: Mail[M], alive: M, silence: Silence, peer: str) -> None:
    """Keep a peer told that this side lives. Raises FellSilent where it is silent for too long."""
    while True:
        await asyncio.sleep(INTERVAL)
        silence.expect_bytes(SILENT, peer)
        mail.post(alive)
