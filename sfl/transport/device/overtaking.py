"""What waits to be sent to a device: what is urgent overtakes."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field

from sfl.transport.stream import Sendable, Stream


@dataclass(frozen=True, slots=True, order=True)
class Queued:
    """In a queue where what is urgent overtakes; what is equally urgent keeps its order.

    An error in it ends the stream.
    """

    late: bool
    number: int
    item: Sendable | BaseException = field(compare=False)


class Overtaking:
    """Messages to one device, what is urgent first."""

    def __init__(self) -> None:
        self._queue: asyncio.PriorityQueue[Queued] = asyncio.PriorityQueue()
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return self._queue.qsize()

    def put(self, message: Sendable, urgent: bool = False) -> None:
        """Queue one message."""
        self._queue.put_nowait(Queued(not urgent, next(self._numbers), message))

    def fail(self, error: BaseException) -> None:
        """End the stream with an error, before anything that waits to be sent."""
        self._queue.put_nowait(Queued(False, next(self._numbers), error))

    async def get(self) -> Sendable:
        """The next message, once there is one. Raises an error that was queued."""
        item = (await self._queue.get()).item
        if isinstance(item, BaseException):
            raise item
        return item


DeviceStream = Stream[Overtaking]
