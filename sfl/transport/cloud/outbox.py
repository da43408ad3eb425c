"""What waits to be sent to an edge, within bounds that no edge that reads comes near."""

from __future__ import annotations

import asyncio
from collections import deque

from sfl.errors import ProtocolError
from sfl.transport.frames.wire import wire_bytes
from sfl.v1 import cloud_pb2

MOST_MESSAGES = 4096
"""Messages beside adapters that may wait, and as many again for each device of the run as it may
be spoken of in a round."""
A_DEVICE = 16
MOST_BYTES = 64 << 20
"""Bytes of those messages that may wait."""


class Outbox:
    """Messages to one edge, in order.

    Adapters have a bound of their own, whatever their size: when a round begins, the one before it
    may wait with the sums that go ahead of it, and nothing older. Once a bound is passed nothing is
    kept, and `watch` says so.
    """

    def __init__(self, num_devices: int = 0) -> None:
        self._most = MOST_MESSAGES + A_DEVICE * num_devices
        self._waiting: deque[tuple[cloud_pb2.CloudMessage, int]] = deque()
        self._there = asyncio.Event()
        self._full = asyncio.Event()
        self._words = self._word_bytes = 0  # messages beside adapters
        self._bulk = 0  # bytes of adapters that wait
        self._since = self._before = 0  # that came since a round began, and since the one before
        self._reason = ""

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, message: cloud_pb2.CloudMessage) -> None:
        """Queue one message, unless a bound was passed."""
        if self._full.is_set():
            return
        self._count(message, wire_bytes(message))
        if self._reason:
            self._waiting.clear()
            self._full.set()
            return
        self._there.set()

    async def get(self) -> cloud_pb2.CloudMessage:
        """The next message, once there is one."""
        while not self._waiting:
            self._there.clear()
            await self._there.wait()
        message, size = self._waiting.popleft()
        if message.WhichOneof("body") == "adapter":
            self._bulk -= size
        else:
            self._words -= 1
            self._word_bytes -= size
        return message

    async def watch(self) -> None:
        """Raise ProtocolError once more waits than may."""
        await self._full.wait()
        raise ProtocolError(self._reason)

    def _count(self, message: cloud_pb2.CloudMessage, size: int) -> None:
        body = message.WhichOneof("body")
        if body == "adapter":
            self._bulk += size
            self._since += size
        else:
            self._words += 1
            self._word_bytes += size
        self._waiting.append((message, size))
        if self._words > self._most or self._word_bytes > MOST_BYTES:
            self._reason = (
                f"it does not read what it is sent: {self._words} messages of "
                f"{self._word_bytes} bytes wait"
            )
        elif body == "start":
            if self._bulk > self._since + self._before:
                self._reason = (
                    "it does not read what it is sent: an adapter waits that was sent two rounds "
                    "ago"
                )
            self._before, self._since = self._since, 0
