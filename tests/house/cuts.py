"""An edge's streams to the cloud, in this process, that break at a message of their run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sfl.transport.inproc import AioChannel
from tests.house.twin import CLOUD, Twin

LAST = ("finish", "left")
"""After these nothing is lost any more."""


class Cuts:
    """Counts the messages of all streams of an edge, heartbeats apart, and breaks the link."""

    def __init__(
        self, at: Callable[[int], bool] = lambda number: False, later: bool = False
    ) -> None:
        """`at`: whether the link breaks at a message of that number. With `later` what was just
        said still arrives; else nothing does that the other side has not read."""
        self.at, self.later = at, later
        self.bodies: list[str] = []
        self.done: list[str] = []
        """Bodies of the messages at which it broke."""

    def heard(self, message: Any, channel: AioChannel) -> None:
        body = message.WhichOneof("body")
        if body == "heartbeat":
            return
        self.bodies.append(body)
        if self.at(len(self.bodies)) and body not in LAST:
            self.done.append(body)
            if self.later:
                asyncio.get_running_loop().call_later(0.005, channel.cut)
            else:
                channel.cut()


class CutChannel(AioChannel):
    """One connection of it."""

    def __init__(self, twin: Twin, cuts: Cuts) -> None:
        super().__init__(twin.services, CLOUD)
        self._cuts = cuts

    def stream_stream(
        self, path: str, request_serializer: Any, response_deserializer: Any
    ) -> Callable[..., Any]:
        def serialize(message: Any) -> bytes:
            data: bytes = request_serializer(message)
            self._cuts.heard(message, self)
            return data

        def parse(data: bytes) -> Any:
            message = response_deserializer(data)
            self._cuts.heard(message, self)
            return message

        return super().stream_stream(path, serialize, parse)


class CutTwin(Twin):
    """A run whose edges have such streams."""

    def __init__(
        self,
        folder: Path,
        values: dict[str, Any],
        cuts: Cuts,
        edges: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        super().__init__(folder, values, edges)
        self.cuts = cuts

    def _dial_cloud(self, name: str) -> AioChannel:
        self.channels[name] = CutChannel(self, self.cuts)
        return self.channels[name]
