"""A real stage server behind TLS, and edges that come to it for their devices."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

from edge_server.base import load_base
from edge_server.stage import StageServer
from sfl.config import EdgeConfig, RunSettings
from sfl.config.node import StageConfig
from sfl.metrics.stats import NodeStats
from sfl.node.certificates.authority import Authority
from sfl.node.certificates.own import OwnCertificate, load_own, settings_in
from sfl.rounds.assignment import assign
from sfl.rounds.values import EdgeBase
from sfl.transport.device.tensor_work import Coders
from sfl.transport.security.credentials import open_aio_channel
from sfl.transport.stage.dialling import NextStage, RunHere
from sfl.transport.stage.link import NextLink
from tests.house.fleets import tiny
from tests.house.tls import give

BLOCKS = 3


class Staged:
    """One stage with a certificate, and what its edges need to come to it."""

    def __init__(
        self, folder: Path, count: int, edges: tuple[str, ...] = ("north", "south"), **stage: Any
    ) -> None:
        self.folder, self._edges = folder, edges
        self._authority, _ = Authority.init(folder / "ca")
        self._model = str(tiny("llama"))
        self.names = [f"d{number}" for number in range(count)]
        self.settings = self.of()
        values = {"name": "stage", "model": self._model, "cache_dir": folder / "cache", **stage}
        self.config = StageConfig.model_validate({"metrics": {"enabled": False}, **values})
        own = EdgeConfig(name="north", model=self._model)
        self._digest = load_base(own, self.settings, 1, NodeStats("north", "edge")).digest
        self.address = ""
        self._opened: list[NextLink] = []

    def of(self, **run: Any) -> RunSettings:
        """The run's settings, some of `[run]` its own."""
        return RunSettings.model_validate(
            {
                "run": {"topology": "three_tier", "edges": list(self._edges), **run},
                "stages": {"cuts": [2]},
                "model": {"path": self._model, "max_length": 24},
                "lora": {"rank": 2},
                "training": {"batch_size": 2, "local_steps": 2},
                "codec": {"activation": "none", "gradient": "none"},
                "devices": [{"name": name, "cut_layer": 1} for name in self.names],
            }
        )

    def own(self, name: str) -> OwnCertificate:
        """A certificate of role `edge`."""
        folder = self.folder / name
        give(self._authority, folder, "edge", name, "127.0.0.1")
        return load_own("tls", settings_in(folder, name), "edge", name)

    following: asyncio.Task[None]
    """The stage's run, to its end."""

    @contextlib.asynccontextmanager
    async def served(self) -> AsyncIterator[StageServer]:
        """The stage on a port, with its run followed."""
        server = StageServer(self.config, 1, False, self.own("stage"))
        async with server._port(None) as self.address:
            following = self.following = asyncio.create_task(server.follow())
            try:
                yield server
            finally:
                for link in self._opened:
                    await link.close()
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
        await server.close()

    def edge(self, name: str) -> NextStage:
        """An edge's way to the stage."""
        channel = partial(
            open_aio_channel, "edge.next", self.address, False, self.own(name), "edge", False
        )
        stats = NodeStats(name, "edge")
        return NextStage(self.address, name, "edge", stats, channel, Coders(), self.folder / name)

    async def opened(
        self, edge: NextStage, device: str, settings: RunSettings | None = None, key: str = "key"
    ) -> NextLink:
        """A stream that an edge has opened for a device. Raises what the stage refuses with."""
        run = RunHere(settings or self.settings, key, key, self._digest)
        joined = assign(run.settings, EdgeBase(BLOCKS), device, 0)
        link = await edge.open(device, joined, run, 32, 1 << 20)
        self._opened.append(link)
        return link
