"""An open stream as coroutines that move bytes, on either hop; what messages mean stands beside it.

    read    takes what the peer sends, and knows when that was
    write   sends what is queued, at the link's pace where it has one
    deliver a delay line, where the link is to be slower than it is
    beat    keeps the peer told that this side lives, and ends a stream that fell silent

What the outbox gives first is the hop's own business.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import grpc.aio
from google.protobuf.message import Message

from sfl.errors import FellSilent
from sfl.metrics.stats import PhaseTimes
from sfl.metrics.timeline import TimedKey
from sfl.transport.frames.wire import wire_bytes
from sfl.transport.group import Writer, Writes
from sfl.transport.shaper import Shaper

M = TypeVar("M")

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class Ready:
    """A message's bytes as gRPC takes them, and whose tensor's they are, if any's."""

    data: bytes
    key: TimedKey | None = None
    sent: Callable[[], None] | None = None
    """Called once gRPC has taken it."""


Sendable = Message | Ready


class Outbox(Protocol):
    """Messages that wait to be sent."""

    def put(self, message: Any) -> None:
        """Queue a message."""

    async def get(self) -> Sendable:
        """The next one, once there is one. Raises an error that ends the stream."""

    def __len__(self) -> int:
        """How many wait."""


O = TypeVar("O", bound=Outbox)  # noqa: E741 - an outbox


@dataclass(frozen=True, slots=True)
class Heartbeats:
    """How two ends know that the other one lives; all in seconds."""

    alive: Message
    interval: float
    idle_timeout: float
    enough: int
    """So many waiting messages tell the peer that this side lives as well as a heartbeat would."""


class Silence:
    """When a peer was last heard of."""

    def __init__(self) -> None:
        self.last_heard = time.monotonic()

    def heard(self) -> None:
        """It was now."""
        self.last_heard = time.monotonic()

    def expect_bytes(self, within: float, peer: str = "") -> None:
        """Raise FellSilent where not one has come for so many seconds; it names the peer."""
        silent = time.monotonic() - self.last_heard
        if silent > within:
            raise FellSilent(f"{peer}: not a byte for {silent:.0f} s".removeprefix(": "))


class Stream(Generic[O]):
    """Moves one peer's messages in both directions, and knows how many."""

    def __init__(
        self,
        peer: str,
        outbox: O,
        heartbeats: Heartbeats,
        phases: PhaseTimes,
        shaper: Shaper | None = None,
    ) -> None:
        """`phases` has what sending a tensor took."""
        self.peer = peer
        self.outbox = outbox
        self.phases = phases
        self.moved = 0
        """Messages from the peer, and to it as the link took them, heartbeats apart."""
        self._heartbeats = heartbeats
        self._silence = Silence()
        self._writes = Writes()
        self._shaper = shaper
        self._travelling: asyncio.Queue[tuple[float, Sendable]] = asyncio.Queue()

    @property
    def last_heard(self) -> float:
        """When the peer last sent a byte, in seconds of `time.monotonic`."""
        return self._silence.last_heard

    def coroutines(self, context: Writer) -> tuple[Coroutine[Any, Any, None], ...]:
        """What sends, to be run beside what reads."""
        whole = self._writes.whole
        write, deliver = partial(self.write, context), partial(self.deliver, context)
        return whole(write), whole(deliver), self.beat()

    async def read(self, messages: AsyncIterator[M], take: Callable[[M], None]) -> None:
        """Hand on what the peer sends, to the end of that. Raises what `take` raises."""
        async for message in messages:
            self._silence.heard()
            self.moved += not _is_heartbeat(message)
            take(message)

    async def write(self, context: Writer) -> None:
        """Send what is queued; at the link's pace where it has one.

        Raises an error that was queued.
        """
        while True:
            await self._write(await self.outbox.get(), context)

    async def _write(self, message: Sendable, context: Writer) -> None:
        begin = self.phases.now()
        if self._shaper is None:
            await self._put(message, context)
        else:
            await self._pace(message, self._shaper)
        if isinstance(message, Ready) and message.key is not None:
            self.phases.interval("send", message.key, self.peer, begin, "link-writer")

    def share(self, share: float) -> None:
        """Take so much of the link's own limit from now on, where it has one."""
        if self._shaper is not None:
            self._shaper.share = share

    async def _pace(self, message: Sendable, shaper: Shaper) -> None:
        size = len(message.data) if isinstance(message, Ready) else wire_bytes(message)
        free, arrives = shaper.admit(time.monotonic(), size)
        self._travelling.put_nowait((arrives, message))
        await asyncio.sleep(free - time.monotonic())

    async def deliver(self, context: Writer) -> None:
        """A shaped link's delay line."""
        while True:
            arrives, message = await self._travelling.get()
            await asyncio.sleep(arrives - time.monotonic())
            await self._put(message, context)

    async def _put(self, message: Sendable, context: Writer) -> None:
        await self._writes.one(context, message.data if isinstance(message, Ready) else message)
        self.moved += not _is_heartbeat(message)
        if isinstance(message, Ready) and message.sent is not None:
            message.sent()

    async def beat(self) -> None:
        """Heartbeats out; too long a silence ends the stream."""
        while True:
            await asyncio.sleep(self._heartbeats.interval)
            self._silence.expect_bytes(self._heartbeats.idle_timeout)
            if len(self.outbox) + self._travelling.qsize() < self._heartbeats.enough:
                self.outbox.put(self._heartbeats.alive)


def _is_heartbeat(message: object) -> bool:
    return isinstance(message, Message) and message.WhichOneof("body") == "heartbeat"
