"""A stage server: the deeper tiers of a run, behind its edges.

    StageService (transport)  the door that servers before it come in by
    StageHost                 what their streams ask for
    Base, Floor               the same as an edge's

A stage has no stream to the cloud. The servers before it say which run they are in and relay its
part of the adapter and its statistics.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from edge_server.onward import following
from edge_server.residence import residence_of
from edge_server.stage_host import StageRun
from sfl.config.node import StageConfig
from sfl.errors import LinkLost, RunFailed
from sfl.metrics.prometheus import NodeCollector, serve_as_set
from sfl.metrics.stats import NodeStats
from sfl.metrics.waits import silences
from sfl.node.board import board_root
from sfl.node.certificates.own import OwnCertificate
from sfl.node.energy import EnergyMeter, no_gpus, nvidia_gpus
from sfl.node.files import write_atomic
from sfl.node.logs import describe_node
from sfl.plan import Holder
from sfl.stage.engine import Engine
from sfl.stage.messages import Finish
from sfl.stage.orders import ORDERS
from sfl.stage.snapshots import forget_old_runs
from sfl.transport.cloud.link import Channel
from sfl.transport.frames.wire import STAGE_SESSION
from sfl.transport.security.credentials import bind, new_server
from sfl.transport.security.door import Door
from sfl.transport.stage.dialling import NextStage
from sfl.transport.stage.service import StageService

log = logging.getLogger("sfl.stage")

LAST_WORD = 8.0
"""Seconds that servers before this one have for the end of the run."""
BEAT = 1.0
"""Seconds between two words of how this stage is."""


class StageServer:
    """Computes blocks behind an edge, for the devices of one run."""

    def __init__(
        self,
        config: StageConfig,
        threads: int,
        insecure: bool,
        own: OwnCertificate | None = None,
        new_stage_channel: Callable[[], Channel] | None = None,
    ) -> None:
        """Raises ConfigError. For a running event loop."""
        self.config = config
        self.own = own
        self.insecure = insecure
        self.stats = stats = NodeStats(config.name, "stage")
        stats.threads = threads
        gpus = any(device != "cpu" for device in config.devices)
        stats.meter = EnergyMeter(board_root(), nvidia_gpus() if gpus else no_gpus)
        stats.certificate_expiry = None if own is None else own.not_after
        self._residence = residence_of(config, stats)
        order = ORDERS[config.order]
        self.engine = Engine(threads, order, together=config.batch_devices, phases=stats.phases)
        self.service = StageService(stats, config.cache_dir)

        def behind(holder: Holder) -> NextStage | None:
            return following(
                config, holder, stats, self.service.coders, own, insecure, new_stage_channel
            )

        self.host = StageRun(config, threads, stats, self.engine, self._residence, behind)
        self.service.use(self.host)
        describe_node(self._log_fields)

    async def run(self, address_file: Path | None) -> None:
        """Serve one run on a port, to its end. Raises SflError where it ends badly."""
        config = self.config
        await asyncio.to_thread(forget_old_runs, config.cache_dir, config.name, time.time())
        try:
            async with self._port(address_file):
                await self.follow()
        finally:
            await self.close()

    async def follow(self) -> None:
        """Until servers before this one say that the run is over.

        Raises RunFailed where it ended badly, NotYet where another run has begun.
        """
        with self._metrics():
            beats = asyncio.create_task(self._beat())
            waited: set[asyncio.Future[Any]] = {beats, self.host.before.first_word}
            try:
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                if beats.done():
                    beats.result()
                self.host.before.first_word.result()
                await self._last_word()
                await self.host.tell_end(self.host.before.end)
            finally:
                beats.cancel()
                await asyncio.gather(beats, return_exceptions=True)
        self._conclude(self.host.before.end)

    async def close(self) -> None:
        """Give back what it holds, once nobody can dial any more."""
        self.service.send_off(LinkLost(f"stage {self.config.name} was stopped"))
        await self.service.drain()
        self.service.close()
        self.host.close()
        self.engine.close()
        if self._residence is not None:
            self._residence.close()

    @contextlib.asynccontextmanager
    async def _port(self, address_file: Path | None) -> AsyncIterator[str]:
        """Where servers before this one dial. Raises ConfigError."""
        door = Door({STAGE_SESSION.path: lambda: self.host.most_sessions})
        server = new_server(self.own, door)
        server.add_generic_rpc_handlers((self.service.handler(),))
        address = bind(server, "stage.listen", self.config.listen, self.insecure, self.own)
        await server.start()
        if address_file is not None:
            write_atomic(address_file, address)
        log.info("stage %s listens on %s", self.config.name, address)
        try:
            with door.watched(address):
                yield address
        finally:
            await server.stop(grace=1.0)

    async def _last_word(self) -> None:
        """The other servers before this one may be about to say the same, or to come back: who has
        devices here is served on until it does."""
        until = time.monotonic() + LAST_WORD
        while self.service.streams or self.host.before.awaited:
            if self.host.is_awaited:
                until = time.monotonic() + LAST_WORD
            if time.monotonic() >= until:
                return
            await asyncio.sleep(0.05)

    def _conclude(self, end: Finish) -> None:
        if not end.ok:
            raise RunFailed(end.reason)
        self.host.forget()

    async def _beat(self) -> None:
        """Tell each server before this one how it is, on one of its streams."""
        while True:
            await asyncio.sleep(BEAT)
            self._show_silences()
            self.stats.waits.say()
            self.host.tell(self.service.streams.values())

    def _show_silences(self) -> None:
        heard, limit = self.host.last_heard(), self.host.idle_timeout
        self.stats.waits.derive(silences(heard, limit, time.monotonic(), time.time()))

    def _metrics(self) -> contextlib.AbstractContextManager[object]:
        metrics = self.config.metrics
        if not metrics.enabled:
            return contextlib.nullcontext()
        return serve_as_set(metrics, NodeCollector(self.stats))

    def _log_fields(self) -> dict[str, object]:
        stats = self.stats
        return {
            "kind": stats.kind,
            "node": stats.name,
            "run": self.host.run_id,
            "round": stats.round,
        }
