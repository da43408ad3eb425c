"""Conversations at an edge that trains: over the same base, on the same compute thread and port."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace

from edge_server.base import Base
from edge_server.serving import ServingHost, host_over, opened_adapters
from sfl.config.serving import ServeSettings
from sfl.metrics.said import DevicesSaid
from sfl.metrics.snapshot import NodeSnapshot
from sfl.metrics.stats import NodeStats
from sfl.models.memory.beside import SECTION
from sfl.stage.engine import Engine
from sfl.transport.serve.rows import serve_codec
from sfl.transport.serve.service import GenerateService


class Beside:
    """The door for devices that serve, and what is behind it once the run's base is loaded."""

    def __init__(self, serve: ServeSettings, engine: Engine, stats: NodeStats) -> None:
        """For a running event loop. Devices that come before `open` wait."""
        self._serve = serve
        self._engine = engine
        self._stats = stats
        self._own = NodeStats(stats.name, "edge")  # so that streams are not taken for the run's
        self._said = DevicesSaid()
        self._opened: asyncio.Future[ServingHost] = asyncio.get_running_loop().create_future()
        self.service = GenerateService(self._opened, self._said)

    async def open(self, base: Base) -> None:
        """Let devices in. Raises SflError where what is to be served cannot be."""
        host = await self._engine.run(self._host, base)
        self._stats.serving = host.count
        self._opened.set_result(host)

    def _host(self, base: Base) -> ServingHost:
        assert base.serving is not None
        adapters = opened_adapters(self._serve, SECTION)
        return host_over(
            self._own.name,
            self._serve,
            serve_codec(base.settings.codec.serve),
            base.folder,
            base.serving,
            adapters,
            self._engine,
            self._own,
            SECTION,
        )

    def devices(self, trained: Iterable[NodeSnapshot]) -> list[NodeSnapshot]:
        """What all devices have said last: one that also trains has one snapshot of both."""
        every = {snapshot.name: snapshot for snapshot in trained}
        for own in self._said.latest():
            found = every.get(own.name)
            every[own.name] = own if found is None else replace(found, serving=own.serving)
        return list(every.values())

    def hang_up(self) -> None:
        """End all streams: their devices dial again, here or elsewhere."""
        self.service.close()

    async def close(self) -> None:
        """Give back what conversations have; before the engine ends."""
        if self._opened.done():
            await self._engine.run(self._opened.result().conversations.close_all)
