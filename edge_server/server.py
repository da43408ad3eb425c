"""The edge process: one frozen base for all its devices, between them and the cloud.

    Base        the blocks, once they are loaded
    Floor       compute thread, sessions, slots for what waits decoded
    DeviceHost  what devices' streams ask for; EdgeService (transport) is the door they come in by
    Beats       statistics to the cloud
    Follower    does what the cloud says
    Beside      conversations over the same blocks, where it serves as well

None of them knows EdgeServer, which opens ports, wires them together and takes them down.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edge_server.alive import forget_given_up, stay_alive
from edge_server.base import Base, load_base
from edge_server.beats import Beats
from edge_server.floor import Floor
from edge_server.follower import Follower
from edge_server.host import DeviceHost
from edge_server.joining import Joining
from edge_server.onward import following
from edge_server.residence import residence_of
from edge_server.teaching import load_school
from edge_server.training import new_session
from sfl.config import EdgeConfig, RunSettings
from sfl.errors import LinkLost, RunFailed, SflError
from sfl.metrics.prometheus import NodeCollector, serve_as_set
from sfl.metrics.snapshot import NodeSnapshot
from sfl.metrics.stats import NodeStats
from sfl.node.board import board_root
from sfl.node.causes import another_may_help, cause_of
from sfl.node.certificates.own import OwnCertificate
from sfl.node.energy import EnergyMeter, no_gpus, nvidia_gpus
from sfl.node.files import write_atomic
from sfl.node.logs import describe_node
from sfl.rounds.values import Challenge, EdgeFacts, EdgeWelcome
from sfl.stage.distil.lessons import School
from sfl.stage.engine import Engine
from sfl.stage.orders import ORDERS
from sfl.stage.snapshots import forget_old_runs, forget_run
from sfl.transport.cloud.link import Channel, CloudLink, CloudStream
from sfl.transport.cloud.words import EdgeFailed, EdgeStopped
from sfl.transport.device.decode_slots import DecodeSlots
from sfl.transport.device.service import EdgeService
from sfl.transport.device.training import Training
from sfl.transport.security.addresses import for_others
from sfl.transport.security.credentials import bind, new_server
from sfl.transport.security.door import Door

if TYPE_CHECKING:
    from edge_server.beside import Beside
    from sfl.store.shared import SharedSnapshots

log = logging.getLogger("sfl.edge")


class EdgeServer:
    """Relays between the cloud and its devices, and computes the blocks in between."""

    def __init__(
        self,
        config: EdgeConfig,
        threads: int,
        insecure: bool,
        own: OwnCertificate | None = None,
        new_channel: Callable[[], Channel] | None = None,
        new_stage_channel: Callable[[], Channel] | None = None,
    ) -> None:
        """Raises ConfigError. For a running event loop.

        `new_channel` makes what it calls the cloud by; without, one to the address in `config`.
        `new_stage_channel` is the same for the stage behind it.
        """
        self.config = config
        self.own = own
        self.insecure = insecure
        self.threads = threads
        self.run_id = self.run_key = ""
        self.stats = stats = NodeStats(config.name, "edge")
        stats.threads = threads
        gpus = any(device != "cpu" for device in config.devices)
        stats.meter = EnergyMeter(board_root(), nvidia_gpus() if gpus else no_gpus)
        stats.certificate_expiry = None if own is None else own.not_after
        self._school: School | None = None
        self._residence = residence_of(config, stats)
        order = ORDERS[config.order]
        self.engine = Engine(
            threads,
            order,
            together=config.batch_devices,
            phases=stats.phases,
            answering=1 if config.serve is None else config.serve.batch,
        )
        self.beside = _beside(config, self.engine, stats)
        self.cloud = CloudLink(
            config.cloud, config.name, stats, insecure, own, config.proxy, new_channel
        )
        self._joining = Joining(self.cloud, stats.waits)
        self._opened: asyncio.Future[DeviceHost] = asyncio.get_running_loop().create_future()
        self.shared = _shared_snapshots(config)
        shelf = None if self.shared is None else self.shared.of
        self.service: EdgeService[Training] = EdgeService(
            stats, self._opened, config.cache_dir, shelf
        )
        self._following = following(
            config, "edge", stats, self.service.coders, own, insecure, new_stage_channel, shelf
        )
        self.beats = Beats(stats, self.cloud, self.service)
        self.beats.listen(self.cloud.last_heard)
        self.follower = Follower(self.service, self._opened, self.cloud, stats)
        self.follower.following = self._following
        describe_node(self._log_fields)

    async def run(self, connect_timeout: float, address_file: Path | None) -> None:
        """Serve one run on a port, to its end. Raises SflError where it ends badly."""
        config = self.config
        await asyncio.to_thread(forget_old_runs, config.cache_dir, config.name, time.time())
        if self.shared is not None:
            await asyncio.to_thread(self.shared.check)
            await asyncio.to_thread(forget_given_up, self.shared, time.time())
        try:
            async with self._port(address_file) as address:
                await self.follow(connect_timeout, address)
        finally:
            await self.close()

    @contextlib.asynccontextmanager
    async def _port(self, address_file: Path | None) -> AsyncIterator[str]:
        """Where devices dial. Raises ConfigError."""
        door = Door()
        server = new_server(self.own, door)
        server.add_generic_rpc_handlers((self.service.handler(),))
        if self.beside is not None:
            server.add_generic_rpc_handlers((self.beside.service.handler(),))
        # The port is open before the model is loaded, so that devices need not wait to dial.
        address = bind(server, "edge.listen", self.config.listen, self.insecure, self.own)
        await server.start()
        if address_file is not None:
            write_atomic(address_file, address)
        log.info("edge %s listens on %s", self.config.name, address)
        try:
            with door.watched(address):
                yield address
        finally:
            if self.beside is not None:
                self.beside.hang_up()
            await server.stop(grace=1.0)

    async def follow(self, connect_timeout: float, address: str) -> None:
        """Do what the cloud says while its service is served, until the run is over.

        Raises SflError where it ends badly.
        """
        with self._metrics():
            await self._follow_cloud(connect_timeout, address)

    async def close(self) -> None:
        """Give back what it holds, once no device can dial any more."""
        await self.service.drain()
        self.service.close()
        if self.beside is not None:
            await self.beside.close()
        self.engine.close()
        if self._school is not None:
            self._school.close()
        if self._residence is not None:
            self._residence.close()
        await self.cloud.close()

    def _forget_run(self) -> None:
        """The run has ended well: nobody goes on from anything."""
        key = self.run_key or self.run_id
        forget_run(self.config.cache_dir, key, self.config.name)
        if self.shared is not None:
            self.shared.forget_run(key)

    def _metrics(self) -> contextlib.AbstractContextManager[object]:
        metrics = self.config.metrics
        if not metrics.enabled:
            return contextlib.nullcontext()
        return serve_as_set(metrics, NodeCollector(self.stats, self._devices))

    def _devices(self) -> list[NodeSnapshot]:
        trained = self.beats.devices()
        return trained if self.beside is None else self.beside.devices(trained)

    def _log_fields(self) -> dict[str, object]:
        stats = self.stats
        return {"kind": stats.kind, "node": stats.name, "run": self.run_id, "round": stats.round}

    async def _follow_cloud(self, connect_timeout: float, address: str) -> None:
        """Do what the cloud says until it says that the run is over, over however many streams."""
        stream = await self._joining.first(connect_timeout)
        welcome = stream.welcome
        self.run_id, self.run_key = welcome.run_id, welcome.run_key
        self.follower.run_key = self.run_key or self.run_id
        self._ask_for(welcome.challenge)
        self.cloud.use(stream)
        opening = asyncio.create_task(self._open(welcome, address))
        network = welcome.settings.network
        beats = self.beats.run(network.heartbeat_interval, network.idle_timeout)
        beat = asyncio.create_task(beats)
        following = asyncio.create_task(self._follow_streams(stream))
        alive = asyncio.create_task(stay_alive(self.shared, self.follower.run_key, self.stats.name))
        try:
            await asyncio.wait({following, beat}, return_when=asyncio.FIRST_COMPLETED)
            for task in (following, beat):
                if task.done():
                    task.result()
            await asyncio.to_thread(self._forget_run)
        except asyncio.CancelledError:
            await self._stopped(following, welcome.settings.network.rejoin_timeout > 0)
            raise
        except Exception as error:  # noqa: BLE001 - devices are told first, then it is raised
            cause = cause_of(error)
            await self._failed(cause, welcome.settings)
            raise cause from None
        finally:
            await _end(opening, following, beat, alive)

    async def _follow_streams(self, stream: CloudStream) -> None:
        """Follow one stream, and the next where it breaks, until the run is over."""
        while (lost := await self._follow(stream)) is not None:
            if isinstance(lost, RunFailed):
                raise lost  # and let the cloud see that it has been heard
            self.cloud.lost()
            before = stream.welcome
            stream = await self._joining.again(lost, before, self.stats.round)
            self._present(stream, before.challenge == stream.welcome.challenge)

    async def _follow(self, stream: CloudStream) -> SflError | None:
        """Do what the cloud says on one stream; what ended it, or None once the run is over."""
        network = stream.welcome.settings.network
        follow = asyncio.create_task(self.follower.follow(stream.words()))
        watch = asyncio.create_task(stream.watch(network.heartbeat_interval, network.idle_timeout))
        try:
            await asyncio.wait({follow, watch}, return_when=asyncio.FIRST_COMPLETED)
            if self.follower.is_over:  # nothing more is to be heard, however long others take
                await follow
                return None
            for task in (follow, watch):
                if task.done():
                    task.result()
        except SflError as error:
            return error
        finally:
            await _end(follow, watch)
        return None

    def _ask_for(self, challenge: bytes) -> None:
        """What devices sign when they join, where the cloud asks for that."""
        if challenge:
            asked = Challenge(self.run_id, self.config.name, challenge)
            self.service.entrance.challenge = asked

    def _present(self, stream: CloudStream, same: bool) -> None:
        """Tell the cloud on a new stream who is here; with no await, so that nothing goes ahead.

        Devices join again where it has not the `same` challenge: what they signed counts no more.
        """
        self._ask_for(stream.welcome.challenge)
        self.cloud.use(stream)
        self.beats.send()
        opened = self._opened
        self.cloud.stand_by_it(opened.result().keeps if opened.done() else {})
        if not same:
            self.follower.send_off(LinkLost("the cloud asks for another signature"))
        elif self._opened.done():
            self._opened.result().present()

    async def _stopped(self, following: asyncio.Task[None], returns: bool) -> None:
        """Tell cloud and devices that this edge is stopped; whoever does that waits a moment."""
        reason = f"edge {self.config.name} was stopped"
        if returns:
            self._hang_up("it was stopped", reason)
        else:
            self.cloud.post(EdgeFailed("it was stopped"))
            await self.follower.dismiss(False, reason)
        if self.cloud.stream is not None:
            await asyncio.wait({following}, timeout=1.0)  # the cloud's answer: it has heard

    async def _failed(self, cause: SflError, settings: RunSettings) -> None:
        """Tell devices why this edge ends, and whether another process of it may be back, or other
        edges may serve them."""
        waits = settings.network.rejoin_timeout > 0
        if self.follower.has_left:
            return
        if waits and another_may_help(cause):
            self._hang_up(str(cause), f"edge {self.config.name} failed, and may be back: {cause}")
        elif waits and len(settings.run.edges) > 1 and not isinstance(cause, RunFailed):
            self.cloud.post(EdgeStopped(str(cause)))
            self.follower.leave(str(cause))
        else:
            await self.follower.dismiss(False, str(cause))

    def _hang_up(self, cause: str, reason: str) -> None:
        """Have cloud and devices wait for another process."""
        self.cloud.post(EdgeStopped(cause))
        self.service.finish(LinkLost(reason))
        self.follower.send_off(LinkLost(reason))

    async def _open(self, welcome: EdgeWelcome, address: str) -> None:
        """Load the base, let devices in, and tell the cloud what an adapter consists of."""
        try:
            base = await self.engine.run(
                load_base, self.config, welcome.settings, self.threads, self.stats
            )
            school = await self.engine.run(load_school, base, self.config, self.threads)
            self._school = school
            host = self._host(base, school)
            if self.beside is not None:
                await self.beside.open(base)
            self.cloud.expect(base.global_limit)
            # Ahead of being ready, so that the cloud knows what changes arithmetic here.
            self.beats.send()
            self.cloud.post(
                EdgeFacts(
                    base.manifest.to_json(),
                    self.config.advertise or for_others(address),
                    base.given,
                    base.choice.credits,
                    store="" if self.shared is None else self.shared.label,
                )
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, the cloud is to know
            self.cloud.post(EdgeFailed(str(cause_of(error))))
        else:
            self._opened.set_result(host)

    def _host(self, base: Base, school: School | None) -> DeviceHost:
        order = ORDERS[self.config.order]
        slots = DecodeSlots(base.choice.in_flight, order)
        session = partial(new_session, base, self.stats, self._residence, school=school)
        floor = Floor(base, self.engine, slots, session, order)
        return DeviceHost(
            floor,
            self.cloud,
            self.beats,
            self.stats,
            self.run_id,
            self.run_key,
            self._following,
            school,
        )


async def _end(*tasks: asyncio.Task[None]) -> None:
    """Cancel tasks, and wait for that."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _beside(config: EdgeConfig, engine: Engine, stats: NodeStats) -> Beside | None:
    """What serves conversations, where this edge does."""
    if config.serve is None:
        return None
    from edge_server.beside import Beside  # with all that answers, only where it is asked for

    return Beside(config.serve, engine, stats)


def _shared_snapshots(config: EdgeConfig) -> SharedSnapshots | None:
    """The store that edges share, where they share one. Raises ConfigError."""
    if not config.snapshots:
        return None
    from sfl.store.shared import SharedSnapshots  # with fsspec, only where it is asked for

    return SharedSnapshots(config.snapshots)
