"""One open stream as a group of coroutines that move bytes; what they mean is somebody else's.

read     takes messages and hands each on
write    sends what is ready, frame by frame; what is urgent overtakes
deliver  on a shaped link, sends what has travelled
beat     tells the peer that this side lives, and watches the idle timeout
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc.aio
from google.protobuf.message import Message

from sfl.config.run import NetworkSettings
from sfl.errors import FellSilent
from sfl.metrics.stats import PhaseTimes
from sfl.stage.messages import Key
from sfl.transport.device.shaper import Shaper
from sfl.transport.frames.wire import wire_bytes

M = TypeVar("M")

Context = grpc.aio.ServicerContext[Any, Any]

FEW_WAITING = 16
"""Messages that tell the peer that this side lives as well as a heartbeat would."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A message's bytes as gRPC takes them, and whose tensor's they are, if any's."""

    data: bytes
    key: Key | None = None
    sent: Callable[[], None] | None = None
    """Called once gRPC has taken it."""


Outgoing = Message | Ready


class Stream:
    """Moves one peer's messages in both directions, and knows how many."""

    def __init__(
        self,
        peer: str,
        network: NetworkSettings,
        alive: Message,
        phases: PhaseTimes,
        shaper: Shaper | None = None,
    ) -> None:
        """`alive` is the heartbeat; `phases` has what sending a tensor took."""
        self.peer = peer
        self.network = network
        self.phases = phases
        self.last_heard = time.monotonic()
        self.moved = 0
        """Messages from the peer, and to it as the link took them, heartbeats apart."""
        self._alive = alive
        self._shaper = shaper
        self._outbox: asyncio.PriorityQueue[Queued] = asyncio.PriorityQueue()
        self._number = itertools.count()
        self._travelling: asyncio.Queue[tuple[float, Outgoing]] = asyncio.Queue()

    def post(self, message: Outgoing, urgent: bool = False) -> None:
        """Queue one message for the peer."""
        self._outbox.put_nowait(Queued(not urgent, next(self._number), message))

    def fail(self, error: BaseException) -> None:
        """End the stream with an error, before anything that waits to be sent."""
        self._outbox.put_nowait(Queued(False, next(self._number), error))

    def coroutines(self, context: Context) -> tuple[Coroutine[Any, Any, None], ...]:
        """What sends, to be run beside what reads."""
        return self.write(context), self.deliver(context), self.beat()

    async def read(self, messages: AsyncIterator[M], take: Callable[[M], None]) -> None:
        """Hand on what the peer sends, to the end of that. Raises what `take` raises."""
        async for message in messages:
            self.last_heard = time.monotonic()
            self.moved += not _is_heartbeat(message)
            take(message)

    async def write(self, context: Context) -> None:
        """Send what is ready, in order, what is urgent first; at the link's pace where it has one.

        Raises an error that was queued.
        """
        while True:
            item = (await self._outbox.get()).item
            if isinstance(item, BaseException):
                raise item
            await self._write(item, context)

    async def _write(self, message: Outgoing, context: Context) -> None:
        begin = self.phases.now()
        if self._shaper is None:
            await self._put(message, context)
        else:
            await self._pace(message, self._shaper)
        if isinstance(message, Ready) and message.key is not None:
            self.phases.interval("send", message.key, self.peer, begin, "link-writer")

    async def _pace(self, message: Outgoing, shaper: Shaper) -> None:
        size = len(message.data) if isinstance(message, Ready) else wire_bytes(message)
        free, arrives = shaper.admit(time.monotonic(), size)
        self._travelling.put_nowait((arrives, message))
        await asyncio.sleep(free - time.monotonic())

    async def deliver(self, context: Context) -> None:
        """A shaped link's delay line."""
        while True:
            arrives, message = await self._travelling.get()
            await asyncio.sleep(arrives - time.monotonic())
            await self._put(message, context)

    async def _put(self, message: Outgoing, context: Context) -> None:
        await context.write(message.data if isinstance(message, Ready) else message)
        self.moved += not _is_heartbeat(message)
        if isinstance(message, Ready) and message.sent is not None:
            message.sent()

    async def beat(self) -> None:
        """Heartbeats out; too long a silence ends the stream."""
        while True:
            await asyncio.sleep(self.network.heartbeat_interval)
            silent = time.monotonic() - self.last_heard
            if silent > self.network.idle_timeout:
                raise FellSilent(f"not a byte for {silent:.0f} s")
            if self._outbox.qsize() + self._travelling.qsize() < FEW_WAITING:
                self.post(self._alive)


@dataclass(frozen=True, slots=True, order=True)
class Queued:
    """In a queue where what is urgent overtakes; what is equally urgent keeps its order.

    An error in it ends the stream.
    """

    late: bool
    number: int
    item: Outgoing | BaseException = field(compare=False)


def _is_heartbeat(message: object) -> bool:
    return isinstance(message, Message) and message.WhichOneof("body") == "heartbeat"
