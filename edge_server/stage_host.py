"""The run that a stage is in: its base, a session for each device, its ways to the stage behind."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence

from edge_server.base import Base, load_base
from edge_server.before import ServersBefore
from edge_server.floor import Floor
from edge_server.sharing import Sharing
from edge_server.training import new_session
from sfl.config.node import StageConfig
from sfl.errors import LinkLost, Refused, SflError
from sfl.metrics.snapshot import NodeSnapshot
from sfl.metrics.stages import StagesSaid
from sfl.metrics.stats import NodeStats
from sfl.plan import Holder
from sfl.rounds.values import Assignment, UpdateHeader
from sfl.stage.engine import Engine
from sfl.stage.messages import Finish, TensorMessage
from sfl.stage.orders import ORDERS
from sfl.stage.snapshots import forget_run
from sfl.stage.swapping import Residence
from sfl.stage.training import SharedSession, Team, TrainingSession, new_team
from sfl.stage.training.shared import team_snapshots
from sfl.transport.bulk.files import FileEntry
from sfl.transport.device import checked
from sfl.transport.device.decode_slots import DecodeSlots
from sfl.transport.device.end import ServingEnd
from sfl.transport.device.tensor_work import Coders
from sfl.transport.frames.chunks import Buffer
from sfl.transport.security.door import CALLS, most_connections
from sfl.transport.shaper import Shaper, shaper
from sfl.transport.stage.dialling import NextStage, RunHere, hop_link
from sfl.transport.stage.link import NextLink
from sfl.transport.stage.once import members_read
from sfl.transport.stage.served import Carried
from sfl.transport.stage.service import Arriving

log = logging.getLogger("sfl.stage")


class StageRun:
    """What a stage does for its devices' streams; it is in the first run that it hears of."""

    def __init__(
        self,
        config: StageConfig,
        threads: int,
        stats: NodeStats,
        engine: Engine,
        residence: Residence | None,
        following: Callable[[Holder], NextStage | None],
    ) -> None:
        """`following` makes the way to the stage behind, once it is known which one this is."""
        self.stats = stats
        self.engine = engine
        self.before = ServersBefore(config.name, config.before)
        order = ORDERS[config.order]
        self.slots = DecodeSlots(config.in_flight, order)
        """For the activations that may be decoded here, over all devices."""
        self.adapter_limit = 0
        """Most bytes of an adapter; 0 before the base is loaded."""
        self._config = config
        self._threads = threads
        self._residence = residence
        self._following = following
        self._behind: NextStage | None = None
        self._first: Arriving | None = None
        self._loading: asyncio.Task[Floor[TrainingSession]] | None = None
        self._streams: dict[str, Carried] = {}
        self._onward: dict[str, NextLink] = {}
        self._servers: dict[str, str] = {}  # by device
        self._down: dict[str, Shaper | None] = {}  # by server
        self._stages = StagesSaid()
        self._members = members_read()
        self._sharing: Sharing | None = None

    @property
    def run_id(self) -> str:
        """The run's; empty before one is known."""
        return "" if self._first is None else self._first.run_id

    @property
    def idle_timeout(self) -> float:
        """The run's, in seconds; 0 before one is known."""
        return 0.0 if self._first is None else self._first.settings.network.idle_timeout

    @property
    def most_sessions(self) -> int:
        """How many streams a server before this one may have open: one for each of its devices,
        one that is about to end for each, and a few. Before the run is known, all there is room
        for."""
        if self._first is None:
            return most_connections()
        return 2 * len(self._first.settings.names) + CALLS

    @property
    def credits(self) -> int:
        """Micro-batches of one device that this stage's settings and memory allow."""
        return self._floor.base.choice.credits

    # -- arriving -------------------------------------------------------------------------------

    async def ready(self, arriving: Arriving) -> tuple[int, int]:
        """Have the base loaded. Raises Refused where this stage is in another run."""
        self._check_same(arriving)
        if self._loading is None or _failed(self._loading):
            self._first = arriving
            self._loading = asyncio.create_task(self._load(arriving))
        base = (await asyncio.shield(self._loading)).base
        return base.model.hidden_size, base.adapter_limit

    async def open(self, arriving: Arriving, coders: Coders, end: ServingEnd) -> Carried:
        """A session for a device, and its way to the stage behind."""
        device, own, base = arriving.device, arriving.joined, self._floor.base
        checked.assignment(own, arriving.settings, base.folder.num_layers)
        if arriving.model != base.digest:
            raise Refused(
                f"stage.model of stage {self._config.name} is another model than edge "
                f"{arriving.server} has: give both the same files"
            )
        session = await self._floor.open(device, own)
        behind = await self._way_on(arriving)
        settings = arriving.settings
        if arriving.server not in self._down:
            self._down[arriving.server] = shaper(hop_link(settings), "down")
        down = self._down[arriving.server]
        stream = Carried(
            device,
            session,
            settings,
            self,
            behind,
            coders,
            end,
            down,
            arriving.server,
            self._members,
        )
        self._streams[device], self._servers[device] = stream, arriving.server
        self.before.came(device, arriving.server)
        log.info("device %s came by edge %s", device, arriving.server, extra={"device": device})
        return stream

    async def left(self, device: str, reason: SflError) -> None:
        """The device's stream is over; its session is given back, where it has one."""
        log.info("device %s left: %s", device, reason, extra={"device": device})
        self._streams.pop(device, None)
        self._servers.pop(device, None)
        if self._sharing is not None:
            self._sharing.left(device)
        if (behind := self._onward.pop(device, None)) is not None:
            await behind.close()
        if self._loading is not None and self._loading.done() and not _failed(self._loading):
            await self._floor.close(device)

    def _check_same(self, arriving: Arriving) -> None:
        first = self._first
        if first is None or (self._loading is not None and _failed(self._loading)):
            self.before.check(arriving, None)
            return
        another = first.key != arriving.key and not self._streams
        self.before.check(arriving, None if another else first)
        if another:
            self.before.another_run(first, arriving.run_id)
            raise LinkLost(f"this stage was of run {first.run_id}, and ends; start it again")
        if (first.key, first.holder) != (arriving.key, arriving.holder):
            raise Refused(
                f"this stage is the {first.holder} of run {first.run_id}, and edge "
                f"{arriving.server} asks for the {arriving.holder} of {arriving.run_id}: start "
                "another one for that"
            )

    async def _load(self, arriving: Arriving) -> Floor[TrainingSession]:
        settings, holder = arriving.settings, arriving.holder
        base: Base = await self.engine.run(
            load_base, self._config, settings, self._threads, self.stats, holder
        )
        self._behind = self._following(holder)
        order, team = ORDERS[self._config.order], None
        count = base.choice.in_flight
        if settings.stages.adapters == "shared" and arriving.joined.plan.next_of(holder) is None:
            team = await self.engine.run(self._team, base, arriving)
            waits, streams = self.stats.waits, self._streams.items
            self._sharing = Sharing(team, self.engine, waits, settings.network, streams)
            # Who waits for others holds what has arrived; who is waited for needs a slot, too.
            count = max(count, len(settings.names) * base.choice.credits)
        self.slots = DecodeSlots(count, order)
        self.adapter_limit = base.adapter_limit

        def session(device: str, own: Assignment) -> TrainingSession:
            return new_session(base, self.stats, self._residence, device, own, team)

        return Floor(base, self.engine, self.slots, session, order)

    def _team(self, base: Base, arriving: Arriving) -> Team:
        settings, own = arriving.settings, arriving.joined
        cache = self._config.cache_dir if settings.recovery.snapshots else None
        kept = team_snapshots(cache, arriving.key, self._config.name, self.stats)
        return new_team(own, base.model, base.bank, settings, kept, base.holder)

    def began(self, device: str, round_: int) -> None:
        """A device has begun a round here."""
        if self._sharing is not None:
            self._sharing.began(device, round_)

    async def turn(self, session: TrainingSession, message: TensorMessage) -> None:
        """Wait for others, where a step depends on theirs."""
        if self._sharing is not None and isinstance(session, SharedSession):
            await self._sharing.turn(session, message)

    async def stepped(self, session: TrainingSession) -> bool:
        """A job is done; whether the session has taken all of its round's steps."""
        if self._sharing is not None and isinstance(session, SharedSession):
            return await self._sharing.stepped(session)
        return session.steps_left == 0

    async def _way_on(self, arriving: Arriving) -> NextLink | None:
        own, base = arriving.joined, self._floor.base
        if own.plan.next_of(arriving.holder) is None:
            return None
        if self._behind is None:
            raise Refused(
                f"the run has a stage behind the {arriving.holder}, and this one does not know "
                "where: set stage.next to its address"
            )
        run = RunHere(arriving.settings, arriving.run_id, arriving.run_key, base.digest)
        hidden, limit = base.model.hidden_size, base.adapter_limit
        behind = await self._behind.open(arriving.device, own, run, hidden, limit)
        self._onward[arriving.device] = behind
        return behind

    @property
    def _floor(self) -> Floor[TrainingSession]:
        assert self._loading is not None, "nobody arrives before the base is loaded"
        return self._loading.result()

    # -- what streams ask for ---------------------------------------------------------------------

    def heard(self, device: str, snapshot: NodeSnapshot) -> None:
        """The server before this one keeps a device's statistics."""

    def stage_heard(self, snapshot: NodeSnapshot) -> None:
        """Keep the latest statistics of a stage behind, for those before."""
        self._stages.heard(snapshot)

    async def relay_adapter(self, header: UpdateHeader, payload: Buffer) -> None:
        """A part of this stage, or of one behind it, goes to the server before, with what all of
        them have counted by then: a short run may end before that is told again."""
        if (stream := self._streams.get(header.device)) is not None:
            for snapshot in self._said():
                stream.tell(snapshot)
            stream.send_part(header, payload)

    async def files(self, device: str) -> Sequence[FileEntry]:
        """Devices get their files from their edge."""
        raise Refused("a stage has no files for devices")

    async def read_file(self, device: str, name: str, offset: int) -> AsyncIterator[bytes]:
        """As `files`."""
        raise Refused("a stage has no files for devices")
        yield b""

    def run_is_over(self, server: str, end: Finish) -> None:
        """A server before this one says so, of the run that this stage is in."""
        if self._first is not None and end.run_key == self._first.key:
            self.before.say(server, end)

    @property
    def is_awaited(self) -> bool:
        """Whether a server has devices here that has not said that the run is over."""
        return not self.before.awaited.isdisjoint(self._servers.values())

    async def tell_end(self, end: Finish) -> None:
        """The stage behind this one is to know, too."""
        if self._behind is not None:
            await self._behind.tell_end(end)

    # -- what it tells ----------------------------------------------------------------------------

    def last_heard(self) -> Iterator[tuple[str, float]]:
        """Servers before this stage and the stage behind it, once for each device's stream, and
        when it last sent a byte there (`time.monotonic`)."""
        for device, stream in self._streams.items():
            yield f"edge {self._servers[device]}", stream.last_heard
        for link in self._onward.values():
            yield link.peer, link.stream.last_heard

    def tell(self, streams: Iterable[Carried]) -> None:
        """How this stage and those behind it are: once to each server before it."""
        told: set[str] = set()
        snapshots = self._said()
        for stream in streams:
            server = self._servers.get(stream.device)
            if server is None or server in told or stream.has_enough_to_send:
                continue
            told.add(server)
            for snapshot in snapshots:
                stream.tell(snapshot)

    def _said(self) -> list[NodeSnapshot]:
        return [self.stats.snapshot(costs=True), *self._stages.latest(self.idle_timeout)]

    def close(self) -> None:
        """Nobody waits for anybody any more."""
        if self._sharing is not None:
            self._sharing.close()

    def forget(self) -> None:
        """The run has ended well, as all say who had devices here: no process goes on with it."""
        if self._first is not None and not self.before.awaited:
            forget_run(self._config.cache_dir, self._first.key, self._config.name)


def _failed(task: asyncio.Task[Floor[TrainingSession]]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)
