"""The devices whose streams are open at an edge."""

from __future__ import annotations

import asyncio
import time
from typing import Generic

from sfl.errors import LinkLost, NameInUse, SflError
from sfl.metrics.stats import NodeStats
from sfl.transport.device.served import V

CAME_BACK = "the device came back on a new stream"


class Connected(Generic[V]):
    """Their streams by name, each with the task that runs it."""

    def __init__(self, stats: NodeStats) -> None:
        self.streams: dict[str, V] = {}
        self._groups: dict[str, asyncio.Task[None]] = {}
        self._left: dict[str, asyncio.Future[None]] = {}
        self._stats = stats

    def enter(self, stream: V, group: asyncio.Task[None]) -> None:
        """`group` is what runs while the stream is open."""
        self.streams[stream.device], self._groups[stream.device] = stream, group
        self._left[stream.device] = asyncio.get_running_loop().create_future()
        self._stats.connected = len(self.streams)

    def leave(self, device: str) -> None:
        """Its stream is over."""
        del self.streams[device], self._groups[device]
        self._left.pop(device).set_result(None)
        self._stats.connected = len(self.streams)

    def evict(self, device: str, error: SflError) -> None:
        """Close a device's stream, if it has one, with a status that says why."""
        if device in self.streams:
            self.streams[device].ended = error
            self._groups[device].cancel()

    def end(self, device: str, error: SflError) -> asyncio.Future[None] | None:
        """As `evict`; what is done once its stream has left, None where it has none."""
        self.evict(device, error)
        return self._left.get(device)

    def left(self, device: str) -> asyncio.Future[None]:
        """What is done once the device's open stream has left."""
        return self._left[device]

    def is_alive(self, device: str) -> bool:
        """Whether it has an open stream on which something was heard lately."""
        stream = self.streams.get(device)
        if stream is None:
            return False
        silent = time.monotonic() - stream.last_heard
        return silent <= 5 * stream.settings.network.heartbeat_interval

    def supersede(self, device: str) -> None:
        """Refuse a name that is in use; a stream that is not alive any more is closed for it."""
        if device not in self.streams:
            return
        if not self.is_alive(device):
            self.evict(device, LinkLost(CAME_BACK))
        raise NameInUse(f"a device named {device!r} is connected already; try again in a moment")

    def cancel(self) -> None:
        """End every stream."""
        for group in self._groups.values():
            group.cancel()
