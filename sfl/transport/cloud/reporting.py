"""An edge at the cloud: what the messages of its stream mean."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Protocol

from sfl.config import RunSettings
from sfl.errors import Goodbye, LinkLost, ProtocolError, SflError
from sfl.metrics.snapshot import NodeSnapshot
from sfl.metrics.stats import NodeStats
from sfl.node.causes import cause_of, foreseen
from sfl.node.logs import Sparing
from sfl.rounds.messages import DeviceLost
from sfl.rounds.values import (
    DeviceFacts,
    EdgeFacts,
    EdgeOrders,
    EdgeWelcome,
    HeldUpdate,
    Point,
    RoundReport,
    RoundTrips,
    SumOrder,
    UpdateHeader,
)
from sfl.transport.cloud.intake import Intake, SumIntake
from sfl.transport.cloud.outbox import Outbox
from sfl.transport.cloud.spool import Spool
from sfl.transport.cloud.sums import from_held
from sfl.transport.cloud.words import CloudWord, from_edge_facts, from_left, to_cloud_messages
from sfl.transport.frames import contract, words
from sfl.transport.frames.contract import DeviceContract
from sfl.transport.frames.whereabouts import from_round_trips
from sfl.transport.security.signed import NotSigned, SignatureCheck
from sfl.transport.stream import Context, Heartbeats, Stream
from sfl.v1 import cloud_pb2, tensor_pb2

log = logging.getLogger(__name__)
sparing = Sparing(log)

ALIVE = cloud_pb2.CloudMessage(heartbeat=tensor_pb2.Heartbeat())

MOMENT = 0.05
"""Seconds in which gRPC cancels a stream whose connection broke, after its requests have ended."""

SPOKEN_FOR = ("device_ready", "left", "adapter", "held", "report")
"""What an edge says on behalf of one of its devices."""


def _device_of(message: cloud_pb2.EdgeReportMessage) -> str | None:
    """The device that a message is about; None for a further frame of an adapter."""
    body = message.WhichOneof("body")
    if body == "adapter":
        return message.adapter.header.device if message.adapter.HasField("header") else None
    device: str = getattr(message, body or "").device
    return device


def _outbox(settings: RunSettings) -> Outbox:
    """For an edge that all devices may be at, each in a round of its own where that may be."""
    devices = len(settings.names)
    return Outbox(devices, devices + 1 if settings.is_asynchronous else 2)


class Host(Protocol):
    """What the cloud's shell does for an edge's stream."""

    stats: NodeStats
    idle_timeout: float
    heartbeat_interval: float
    spool: Spool
    edges: tuple[str, ...]
    """Names of the edges that may take part."""

    def signatures(self, edge: str) -> SignatureCheck:
        """What checks the signatures of an edge's devices."""

    @property
    def run_settings(self) -> RunSettings:
        """What every node knows of the run."""

    @property
    def adapter_limit(self) -> int:
        """Most bytes of one part of an update."""

    def welcome(self) -> EdgeWelcome:
        """What an edge is told first; its challenge is the stream's."""

    def not_joined(self, edge: str, device: str, reason: str) -> None:
        """An edge says that a device joins, and the device did not say so."""

    def not_signed(self, edge: str, device: str, reason: str) -> None:
        """An edge says something of a device that the device did not say."""

    def edge_ready(self, edge: str, facts: EdgeFacts) -> None:
        """An edge has its base."""

    def edge_lost(self, edge: str, reason: str) -> None:
        """An edge's stream is closed."""

    def edge_failed(self, edge: str, reason: str) -> None:
        """An edge can't go on."""

    def failed(self, error: SflError) -> None:
        """The cloud itself can't go on."""

    def device_joined(self, edge: str, device: str, round_trips: RoundTrips) -> None:
        """A device asks to take part; `round_trips` are those that it has measured."""

    def device_ready(
        self, device: str, facts: DeviceFacts, points: tuple[Point, ...], begun: Point
    ) -> None:
        """A device has its span and its data; `points` are those that its edge has as well.

        The edge has `begun` that round for it, if any.
        """

    def device_left(self, lost: DeviceLost) -> None:
        """A device's stream is closed."""

    def device_broke(self, device: str, reason: str) -> None:
        """A device broke the contract, and is left out."""

    def update_received(self, header: UpdateHeader) -> None:
        """One side's part of an update is in the spool."""

    def update_held(self, held: HeldUpdate) -> None:
        """A device's update is whole, and stays at its edge."""

    def sum_received(self, edge: str, round_: int, number: int) -> None:
        """An edge's sum is in the spool."""

    def reported(self, report: RoundReport) -> None:
        """A device tells how its round went."""

    def heard(self, snapshot: NodeSnapshot) -> None:
        """Statistics of an edge or of one of its devices, which they are."""

    def stage_heard(self, edge: str, snapshot: NodeSnapshot) -> None:
        """Statistics of a stage behind an edge, as the edge says."""


class Reporting:
    """One edge's part in a run, while its stream is open."""

    def __init__(
        self,
        edge: str,
        host: Host,
        signatures: SignatureCheck | None = None,
        incarnation: bytes = b"",
    ) -> None:
        """`signatures` checks that devices said what the edge says; without it nobody is asked.

        `incarnation` is the edge's process.
        """
        self.edge = edge
        self.host = host
        self.incarnation = incarnation
        self.over = asyncio.Event()
        """Set once the edge counts as lost."""
        self.hung_up = False
        """Whether it was the edge that closed the stream."""
        self.signatures = SignatureCheck("", "", None) if signatures is None else signatures
        self.devices: dict[str, DeviceContract] = {}
        """The devices that were admitted through this edge: the only ones it can speak for."""
        self.is_ready = False
        """Whether the edge has its base."""
        beats = Heartbeats(ALIVE, host.heartbeat_interval, host.idle_timeout, enough=1)
        self.stream = Stream(edge, _outbox(host.run_settings), beats, host.stats.phases)
        self._intake = Intake(host, self.signatures, self.devices)
        self._sums = SumIntake(edge, host)
        self._pace = contract.Pace(host.heartbeat_interval)
        self._to_end = asyncio.Event()
        self._why = ""

    def admitted(self, device: str) -> None:
        """From now on this edge speaks for the device."""
        self.devices[device] = DeviceContract(device, self.host.run_settings)

    def post(self, word: CloudWord) -> None:
        """Queue what the edge is told."""
        if isinstance(word, EdgeOrders):
            for device, start in word.devices.items():
                if device in self.devices:
                    self.devices[device].begin(start)
        elif isinstance(word, SumOrder):
            self._sums.ask(word.round, word.number)
        for message in to_cloud_messages(word):
            self.stream.outbox.put(message)

    # -- its life ---------------------------------------------------------------------------------

    def coroutines(
        self, requests: AsyncIterator[cloud_pb2.EdgeReportMessage], context: Context
    ) -> tuple[Coroutine[Any, Any, None], ...]:
        """What is to run while the stream is open."""
        return (
            self.read(requests),
            self.stream.outbox.watch(),
            self._until_ended(),
            *self.stream.coroutines(context),
        )

    async def end(self, reason: str) -> None:
        """End it: the edge may have another stream; returns once that is done."""
        self._why = reason
        self._to_end.set()
        await self.over.wait()

    async def _until_ended(self) -> None:
        await self._to_end.wait()
        raise LinkLost(self._why)

    async def read(self, requests: AsyncIterator[cloud_pb2.EdgeReportMessage]) -> None:
        """Take what the edge sends."""
        try:
            await self.stream.read(requests, self._take)
            await asyncio.sleep(MOMENT)  # a connection that broke ends in the same way at first
            self.hung_up = True
        finally:
            self._intake.drop()
            self._sums.drop()
        raise LinkLost("the edge closed the stream")

    # -- messages ---------------------------------------------------------------------------------

    def _take(self, message: cloud_pb2.EdgeReportMessage) -> None:
        takers: dict[str, Callable[[], None]] = {
            "ready": lambda: self._ready(message.ready),
            "join": lambda: self._join(message.join),
            "device_ready": lambda: self._device_ready(message.device_ready),
            "left": lambda: self._left(message.left),
            "adapter": lambda: self._intake.take(message.adapter),
            "held": lambda: self._held(message.held),
            "sum": lambda: self._sums.take(message.sum),
            "report": lambda: self._report(message.report),
            "heartbeat": lambda: self._hear(message.heartbeat),
            "failure": lambda: self._failed(message.failure),
            "goodbye": lambda: self._stopped(message.goodbye),
        }
        body = message.WhichOneof("body") or ""
        if body not in takers:
            raise ProtocolError(f"{body or 'an empty message'} was not expected")
        device = _device_of(message) if body in SPOKEN_FOR else None
        if device is not None and device not in self.devices:
            # May also come late, of a device that another edge has since: no reason to hang up.
            sparing.warning(
                body, "edge %s: %s of device %r, which is not its own", self.edge, body, device
            )
            self._intake.pass_over(body == "adapter")
            return
        if body == "adapter":
            device = device or self._intake.device
        try:
            takers[body]()
        except NotSigned as error:
            self._intake.drop()
            tell = self.host.not_joined if body == "join" else self.host.not_signed
            tell(self.edge, error.device, str(error))
        except Exception as error:
            foreign = isinstance(error, ProtocolError) or foreseen(error) is None
            if device is None or not foreign:
                raise
            # What nobody foresaw is a bug, and still of that device's words alone.
            self._break_with(device, str(cause_of(error)))

    def _break_with(self, device: str, reason: str) -> None:
        """What is wrong with one device's own words costs that device, and nobody else."""
        self._intake.drop()
        self._intake.pass_over()
        self.devices.pop(device, None)
        self.host.device_broke(device, reason)

    def _ready(self, message: cloud_pb2.EdgeReady) -> None:
        if self.is_ready:
            raise ProtocolError("ready was said twice")
        self.host.edge_ready(self.edge, from_edge_facts(message))
        self.is_ready = True

    def _join(self, join: cloud_pb2.DeviceJoin) -> None:
        contract.name("device", join.device)
        contract.sized("a proof", join.proof, contract.MOST_BESIDE)
        self.signatures.join(join)
        trips = from_round_trips(join.round_trips)
        self.host.device_joined(self.edge, join.device, trips)

    def _left(self, left: cloud_pb2.DeviceLeft) -> None:
        self.host.device_left(from_left(left))

    def _stopped(self, words: str) -> None:
        self.hung_up = True
        raise Goodbye(contract.reason(words), returns=True)

    def _failed(self, words: str) -> None:
        self.host.edge_failed(self.edge, contract.reason(words))

    def _hear(self, beat: tensor_pb2.Heartbeat) -> None:
        """Pass on statistics of the edge itself and of those that it can speak for."""
        self._pace.take("heartbeat", self.stream.last_heard)
        self.host.heard(contract.statistics(beat.snapshot, "edge", self.edge))
        for text in beat.devices:
            snapshot = NodeSnapshot.from_json(text)
            # A device may not be admitted yet, or another edge may have it since.
            if snapshot.kind == "device" and snapshot.name in self.devices:
                self.host.heard(snapshot)
            elif snapshot.kind == "stage":
                self.host.stage_heard(self.edge, contract.stage_statistics(text))

    def _device_ready(self, message: cloud_pb2.DeviceIsReady) -> None:
        self.signatures.ready(message.device, message.ready)
        if not self.is_ready:
            raise ProtocolError("a device was ready before its edge was")
        self.devices[message.device].ready(message.ready)
        facts = words.from_device_facts(message.ready)
        begun = words.from_point(message.begun)
        common = set(facts.points).intersection(words.from_points(message.points))
        self.host.device_ready(message.device, facts, tuple(sorted(common)), begun)

    def _held(self, message: cloud_pb2.HeldUpdate) -> None:
        for part in message.parts:
            if part.device != message.device:
                raise ProtocolError(f"a part of device {part.device!r:.80} in place of its own")
            self.devices[message.device].part(part, part.side, self.host.adapter_limit)
            self.signatures.held(part, message.digest)
        self.host.update_held(from_held(message))

    def _report(self, report: tensor_pb2.RoundReport) -> None:
        self.signatures.report(report)
        self.devices[report.device].report(report)
        self._pace.grant()  # an edge says how it is with every report
        self.host.reported(words.from_report(report))
