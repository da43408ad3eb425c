"""Which devices share a stage's adapter in a round, as one device's stream at the stage knows them.

A round's beginning has the digest of their names. One stream of a server is asked for the names.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from sfl.config import RunSettings
from sfl.errors import ProtocolError
from sfl.metrics.waits import Waits
from sfl.rounds.values import Assignment
from sfl.transport.frames import words
from sfl.transport.stage.once import ReadOnce
from sfl.v1 import edge_pb2

Names = tuple[str, ...]


class Members:
    """One stream's; `known` has the names for all streams."""

    def __init__(
        self,
        server: str,
        settings: RunSettings,
        known: ReadOnce[Names],
        waits: Waits,
        put: Callable[[edge_pb2.EdgeMessage], None],
    ) -> None:
        """`server` has opened the stream, `put` sends it a message."""
        self._server = server
        self._settings = settings
        self._known = known
        self._waits = waits
        self._put = put
        self._asked: asyncio.Future[str] | None = None

    async def told(self, said: edge_pb2.Assignment) -> Assignment:
        """A round as the server has begun it. Raises ProtocolError."""
        told, digest = words.from_assignment(said), said.together_digest
        if not digest:
            return told
        names = await self._known.of(self._server, digest, partial(self._ask, digest))
        return replace(told, together=names)

    async def _ask(self, digest: bytes) -> str:
        self._asked = asyncio.get_running_loop().create_future()
        wanted = edge_pb2.TogetherWanted(digest=digest)
        self._put(edge_pb2.EdgeMessage(together_wanted=wanted))
        with self._waits.on(f"edge {self._server}", "orders", "the names of those who share"):
            return await self._asked

    def take(self, said: edge_pb2.Together) -> None:
        """The names have come. Raises ProtocolError where nobody asked, or for another's."""
        asked, names = self._asked, list(said.devices)
        if asked is None or asked.done():
            raise ProtocolError("names of devices came that were not asked for")
        if not set(names) <= set(self._settings.names):
            raise ProtocolError("devices are to share an adapter that are none of the run's")
        asked.set_result("\n".join(names))
