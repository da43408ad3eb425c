"""What waits to be sent to an edge, within bounds that no edge that reads comes near."""

from __future__ import annotations

import asyncio
from collections import deque

from sfl.errors import ProtocolError
from sfl.transport.frames.wire import BASE_UPDATE, wire_bytes
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
    may wait with the sums that go ahead of it, and nothing older. Orders of one round, as of
    devices that are back, go out as one with those that still wait, and so with one adapter. Once
    a bound is passed nothing is kept, and `watch` says so.
    """

    def __init__(self, num_devices: int = 0, most_rounds: int = 2) -> None:
        """Adapters of `most_rounds` may wait: two where all devices are in the same round."""
        self._most = MOST_MESSAGES + A_DEVICE * num_devices
        self._waiting: deque[tuple[cloud_pb2.CloudMessage, int]] = deque()
        self._there = asyncio.Event()
        self._full = asyncio.Event()
        self._words = self._word_bytes = 0  # messages beside adapters
        self._bulk = 0  # bytes of adapters that wait
        self._most_rounds = most_rounds
        self._round = -1  # that began last
        self._came = {self._round: 0}  # bytes of adapters since the latest rounds began, by round
        self._reason = ""

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, message: cloud_pb2.CloudMessage) -> None:
        """Queue one message, unless a bound was passed."""
        if self._full.is_set():
            return
        if _brings_adapter(message):
            self._join_waiting(message.start)
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
            self._came[self._round] += size
        else:
            self._words += 1
            self._word_bytes += size
        self._waiting.append((message, size))
        if self._words > self._most or self._word_bytes > MOST_BYTES:
            self._reason = (
                f"it does not read what it is sent: {self._words} messages of "
                f"{self._word_bytes} bytes wait"
            )
        elif _brings_adapter(message):
            self._begin(message.start.round)

    def _begin(self, round_: int) -> None:
        if self._bulk > sum(self._came.values()):
            self._reason = (
                "it does not read what it is sent: an adapter waits that was sent "
                f"{self._most_rounds} rounds ago"
            )
        self._round, self._came[round_] = round_, self._came.pop(round_, 0)
        for old in list(self._came)[: -self._most_rounds]:
            del self._came[old]

    def _join_waiting(self, start: cloud_pb2.EdgeRoundStart) -> None:
        """Take orders of the same round that wait, with their adapter, into these: it comes again.

        Who was admitted again or sent away since is in them no more.
        """
        waiting = list(self._waiting)
        same = (number for number, (one, _) in enumerate(waiting) if _is_of(one, start.round))
        begin = next(same, None)
        if begin is None:
            return
        end = begin + 1
        while end < len(waiting) and _is_global(waiting[end][0]):
            end += 1
        later = [one for one, _ in waiting[end:]]
        newer = {entry.device for entry in start.devices}.union(map(_about, later))
        old = waiting[begin][0].start.devices
        start.devices.extend(entry for entry in old if entry.device not in newer)
        self._waiting = deque([*waiting[:begin], *waiting[end:]])
        self._words -= 1
        self._word_bytes -= waiting[begin][1]
        adapter = sum(size for _, size in waiting[begin + 1 : end])
        self._bulk -= adapter
        if start.round in self._came:
            self._came[start.round] -= adapter


def _brings_adapter(message: cloud_pb2.CloudMessage) -> bool:
    """Whether these are orders that an adapter follows."""
    return message.WhichOneof("body") == "start" and not message.start.begun


def _is_of(message: cloud_pb2.CloudMessage, round_: int) -> bool:
    return _brings_adapter(message) and message.start.round == round_


def _is_global(message: cloud_pb2.CloudMessage) -> bool:
    """Whether it is a frame of a round's adapter; behind orders only sums can be meant else."""
    is_sum = message.adapter.HasField("header") and message.adapter.header.side == BASE_UPDATE
    return message.WhichOneof("body") == "adapter" and not is_sum


def _about(message: cloud_pb2.CloudMessage) -> str:
    """Who is let in again, or sent away, so that orders from before are void."""
    match message.WhichOneof("body"):
        case "admission" if not message.admission.refusal:
            return message.admission.device
        case "evict":
            return message.evict.device
        case _:
            return ""
