"""What an edge does for its devices' streams once its base is loaded."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from edge_server.beats import Beats
from edge_server.deliveries import Deliveries
from edge_server.floor import Floor
from edge_server.kept import KeptUpdates
from sfl.aggregation.contribution import Contribution
from sfl.config import RunSettings
from sfl.errors import Elsewhere, LinkLost, NameInUse, ProtocolError, Refused, SflError
from sfl.metrics.snapshot import NodeSnapshot
from sfl.metrics.stats import NodeStats
from sfl.plan import TWO_TIERS
from sfl.rounds.messages import DeviceLost
from sfl.rounds.values import (
    BEGINNING,
    NO_TRIPS,
    Admission,
    Assignment,
    DeviceFacts,
    DeviceWelcome,
    Point,
    Proof,
    RoundReport,
    RoundTrips,
    SumOrder,
    UpdateHeader,
)
from sfl.stage.distil.lessons import School
from sfl.stage.training import TrainingSession
from sfl.transport.bulk.files import FileEntry
from sfl.transport.cloud.blame import blamed
from sfl.transport.cloud.link import CloudLink, sum_messages
from sfl.transport.cloud.words import DeviceIsReady, DeviceJoin, EdgeFailed
from sfl.transport.device import checked
from sfl.transport.device.lanes import Declared
from sfl.transport.device.onward import as_allowed
from sfl.transport.device.served import Admitted
from sfl.transport.device.teaching import teaching_tensors
from sfl.transport.device.training import Training
from sfl.transport.frames import contract
from sfl.transport.frames.chunks import Buffer
from sfl.transport.group import watched
from sfl.transport.stage.dialling import NextStage, RunHere
from sfl.transport.stage.link import NextLink

log = logging.getLogger("sfl.edge")

JOINING = 1.0, 600
"""Twice in so many seconds a device may join in the long run, and so often at once. All names that
the run does not know count as one."""


class JoinPace:
    """How often each device may join: each time costs cloud and edge work and lines."""

    def __init__(self, settings: RunSettings) -> None:
        self._known = set(settings.names)
        self._paces: dict[str, contract.Pace] = {}

    def take(self, device: str, now: float) -> None:
        """A device joins at `now` seconds. Raises NameInUse where that is too often."""
        name = device if device in self._known else ""
        pace = self._paces.setdefault(name, contract.Pace(*JOINING))
        try:
            pace.take("join", now)
        except ProtocolError as error:
            raise NameInUse(f"device {device!r}: {error}; try again in a moment") from None


@dataclass(slots=True)
class Here:
    """What the cloud is told of a device that is here, again on each new stream."""

    proof: Proof
    facts: DeviceFacts | None = None
    """Once it is ready."""
    points: tuple[Point, ...] = ()
    """What this edge had snapshots of, for it, by then."""
    confirmed: bool = False
    """Whether the cloud has answered on the stream in use."""
    refused: SflError | None = None
    left: Left | None = None
    """It is gone, and the cloud is still to be told what it has delivered."""


@dataclass(frozen=True, slots=True)
class Left:
    """A device that was gone before the cloud could be told what it has delivered."""

    word: DeviceLost
    told: asyncio.Future[None]
    """Done once the cloud knows both: who has come in its place is presented then."""


class DeviceHost:
    """Admits devices where the cloud says so, and passes on what they say."""

    def __init__(
        self,
        floor: Floor[TrainingSession],
        cloud: CloudLink,
        beats: Beats,
        stats: NodeStats,
        run_id: str,
        run_key: str = "",
        following: NextStage | None = None,
        school: School | None = None,
    ) -> None:
        """`following` is the stage behind this edge, where plans have one; a `school` teaches."""
        self._school = school
        self._following = following
        self._onward: dict[str, NextLink] = {}
        self.floor = floor
        self.stats = stats
        self.engine = floor.engine
        self.slots = floor.slots
        self.adapter_limit = floor.base.adapter_limit
        self._cloud = cloud
        self._beats = beats
        beats.listen(self._last_heard_behind)
        self._run_id = run_id
        self._run_key = run_key
        self._joins = JoinPace(floor.base.settings)
        self._admissions: dict[str, asyncio.Future[Admission]] = {}
        self._here: dict[str, Here] = {}
        settings = floor.base.settings
        self.kept = KeptUpdates(settings) if settings.sums_at_edges else None
        """Updates that stay here, if they do."""
        self.deliveries = Deliveries(cloud, stats.waits, self.kept)
        self._adding: set[asyncio.Task[None]] = set()

    async def admit(
        self, device: str, proof: Proof, round_trips: RoundTrips = NO_TRIPS
    ) -> Admitted[Training]:
        """Ask the cloud, make a session. Raises Refused where the cloud says no, Elsewhere where
        it has another edge for the device."""
        self._joins.take(device, time.monotonic())
        words = f"its word on device {device}"
        with self.stats.waits.on(self._cloud.peer, "admission", words):
            before = self._here.get(device)
            if before is not None and before.left is not None:
                await asyncio.shield(before.left.told)
            admission = await self._asked(device, proof, round_trips)
        if (refused := _refusal(admission)) is not None:
            self._here.pop(device, None)
            raise refused
        own, base = admission.assignment, self.floor.base
        assert own is not None, "who is not refused has one"
        checked.assignment(own, base.settings, base.folder.num_layers)
        session = await self.floor.open(device, own)
        try:
            behind = await self._way_on(device, own)
        except Refused as error:  # the cloud has let it in, and is to hear that it left again
            log.warning("device %s has no way on: %s", device, error, extra={"device": device})
            await self.left(device, error)
            raise
        log.info("device %s joined", device, extra={"device": device})
        welcome = DeviceWelcome(
            base.settings,
            self._run_id,
            as_allowed(own, behind),
            run_key=self._run_key,
            edge=self.stats.name,
            edges=admission.edges,
            taught_tokens=self._taught_tokens,
        )
        serve = partial(Training, device, session, base.settings, self, behind=behind)
        return Admitted(welcome, base.model.hidden_size, serve, self._named)

    @property
    def _taught_tokens(self) -> int:
        return 0 if self._school is None else self._school.teacher.tokens

    @property
    def _named(self) -> tuple[Declared, ...]:
        """What travels beside rows."""
        if self._school is None:
            return ()
        width = self._school.teacher.model.hidden_size
        return teaching_tensors(self.floor.base.settings, width, self._taught_tokens)

    async def _way_on(self, device: str, own: Assignment) -> NextLink | None:
        """A stream to the stage behind this edge, where the device's plan has one."""
        if own.plan.next_of("edge") is None:
            return None
        if self._following is None:
            raise Refused(
                "the run has a stage behind this edge, and the edge does not know where: set "
                "edge.next to its address"
            )
        base = self.floor.base
        run = RunHere(base.settings, self._run_id, self._run_key, base.digest)
        hidden, limit = base.model.hidden_size, base.adapter_limit
        behind = await self._following.open(device, own, run, hidden, limit)
        self._onward[device] = behind
        return behind

    def _last_heard_behind(self) -> Iterator[tuple[str, float]]:
        for link in self._onward.values():
            yield link.peer, link.stream.last_heard

    def stage_heard(self, snapshot: NodeSnapshot) -> None:
        """Keep a stage's latest statistics."""
        self._beats.stage_heard(snapshot)

    async def _asked(self, device: str, proof: Proof, round_trips: RoundTrips) -> Admission:
        answer: asyncio.Future[Admission] = asyncio.get_running_loop().create_future()
        self._admissions[device] = answer
        self._here[device] = Here(proof)
        self._cloud.post(DeviceJoin(device, proof, round_trips))
        try:
            return await answer
        finally:
            self._admissions.pop(device, None)

    def answer(self, admission: Admission) -> SflError | None:
        """The cloud has said whether a device is let in, or stays; why not, where its stream is to
        end over that."""
        device = admission.device
        here = self._here.get(device)
        if here is not None:
            here.confirmed = not admission.refusal
        if (future := self._admissions.pop(device, None)) is not None:
            if not future.done():
                future.set_result(admission)
            return None
        if here is None:  # it has left since it was presented
            return None
        here.refused = _refusal(admission)
        if isinstance(here.refused, Elsewhere):  # it is told so when it asks
            here.refused = LinkLost(str(here.refused))
        if here.refused is not None:
            self.forget(device)
        self._tell_ready(device, here)
        return here.refused

    def present(self) -> None:
        """Tell the cloud, on a new stream, who is here; who waits to be let in is asked about."""
        for device, here in self._here.items():
            here.confirmed = False
            self._cloud.post(DeviceJoin(device, here.proof))

    def turn_back(self, reason: LinkLost) -> None:
        """Nobody who waits is let in: they are to dial again. Who has left is not spoken of."""
        for future in self._admissions.values():
            if not future.done():
                future.set_exception(reason)
        for device in list(self._here):
            self.forget(device, reason)

    def ready(self, device: str, facts: DeviceFacts, points: tuple[Point, ...]) -> None:
        """The device has its span and its data; `points` are what there are snapshots of here.

        Raises why the cloud no longer lets it in.
        """
        here = self._here[device]
        if here.refused is not None:
            raise here.refused
        here.facts, here.points = facts, points
        self._tell_ready(device, here)

    def _tell_ready(self, device: str, here: Here) -> None:
        if here.facts is None or not here.confirmed:
            return
        facts, points, begun = here.facts, here.points, BEGINNING
        if (delivery := self.deliveries.of(device)) is not None:
            # Its stream lives, so that both ends have in memory what they have come to since; or
            # it has delivered all, and there is nothing that it would go on from.
            points, begun = delivery.points, delivery.told.point(0)
            facts = replace(facts, points=points)
        self._cloud.post(DeviceIsReady(device, facts, points, begun))

    async def left(self, device: str, reason: SflError) -> None:
        """The device was admitted, and is gone; its session is given back, where it has one."""
        # Cut: it may repeat the device's own words, and a message to the cloud has a bound.
        why = contract.reason(str(reason))
        log.info("device %s left: %s", device, why, extra={"device": device})
        self._beats.left(device)
        lost, here = DeviceLost(device, why, blamed(reason)), self._here.get(device)
        if here is not None and here.left is not None:
            return  # it waited behind the process before it, and was nobody yet
        if here is not None and here.refused is None and self.deliveries.is_due(device):
            here.left = Left(lost, asyncio.get_running_loop().create_future())
        else:
            self._here.pop(device, None)
            self.deliveries.forget(device)
            self._cloud.post(lost)
        if (behind := self._onward.pop(device, None)) is not None:
            await behind.close()
        await self.floor.close(device)

    async def tell_again_of(self, device: str, asked: bool) -> None:
        """One that has left is in the cloud's orders: tell what it has delivered, where that is
        `asked` for, and that it is gone."""
        left = self._left(device)
        if left is None:
            return
        if asked:
            await self.deliveries.tell_again(device)
        if self._left(device) is left:
            self._cloud.post(left.word)
            self.forget(device)

    def forget(self, device: str, reason: SflError | None = None) -> None:
        """Speak no more of one that has left; who waits behind it is let through, or told why."""
        if (left := self._left(device)) is None:
            return
        del self._here[device]
        self.deliveries.forget(device)
        if reason is None:
            left.told.set_result(None)
        else:
            left.told.set_exception(reason)
            left.told.exception()  # there may be nobody who waits

    def _left(self, device: str) -> Left | None:
        here = self._here.get(device)
        return None if here is None else here.left

    async def relay_adapter(self, header: UpdateHeader, payload: Buffer) -> None:
        """Pass a part on to the cloud; a stage's with what that stage has counted by then."""
        if header.side not in TWO_TIERS:
            self._beats.send_stages()
        await self.deliveries.part(header, payload)

    def add_up(self, order: SumOrder) -> None:
        """Have the sum sent that the cloud asks for. Raises ProtocolError where nothing of it is
        here."""
        if self.kept is None:
            raise ProtocolError("the cloud asked for a sum, and the run has none")
        adding = self._add_up(order, self.kept, self.kept.asked(order))
        task = watched(adding, lambda error: self._cloud.post(EdgeFailed(str(error))))
        self._adding.add(task)
        task.add_done_callback(self._adding.discard)

    async def _add_up(
        self, order: SumOrder, kept: KeptUpdates, devices: Sequence[Contribution]
    ) -> None:
        stream = self._cloud.stream
        payload = await asyncio.to_thread(kept.add_up, devices)
        messages = await asyncio.to_thread(sum_messages, order.round, order.number, payload)
        if stream is self._cloud.stream:  # else the cloud asks again
            self._cloud.post_messages(messages)

    @property
    def keeps(self) -> Mapping[str, int]:
        """Of which devices and rounds updates stay here."""
        return {} if self.kept is None else self.kept.rounds

    def relay_report(self, report: RoundReport) -> None:
        """Pass a report on to the cloud, and what this edge has counted by then.

        A summary would else have it as of the last heartbeat, and a short run's as next to nothing.
        """
        self._beats.send()
        self.deliveries.report(report)

    def heard(self, device: str, snapshot: NodeSnapshot) -> None:
        """Keep a device's latest statistics."""
        self._beats.heard(device, snapshot)

    async def files(self, device: str) -> Sequence[FileEntry]:
        """The files of a device's span."""
        files = await asyncio.to_thread(self.floor.files, device)
        return await asyncio.to_thread(files.listing)

    async def read_file(self, device: str, name: str, offset: int) -> AsyncIterator[bytes]:
        """One of them from `offset` on, in chunks. Raises Refused."""
        files = await asyncio.to_thread(self.floor.files, device)
        for piece in files.pieces(name, offset):
            yield await asyncio.to_thread(piece)


def _refusal(admission: Admission) -> Refused | None:
    """Why a device is not let in, if it is not."""
    if not admission.refusal:
        return None
    if admission.edges:
        return Elsewhere(admission.refusal, admission.edges)
    return (NameInUse if admission.in_use else Refused)(admission.refusal)
