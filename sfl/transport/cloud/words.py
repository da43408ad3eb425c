"""What an edge and the cloud tell each other, as values and as the wire's messages.

Adapters are apart: they travel in frames (`chunks`), so one value is several messages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import assert_never

from sfl.errors import Elsewhere, ProtocolError
from sfl.rounds.messages import DeviceLost, Evict, FinishRun
from sfl.rounds.values import (
    BEGINNING,
    Admission,
    DeviceFacts,
    EdgeFacts,
    EdgeOrders,
    EdgeWelcome,
    HeldUpdate,
    Point,
    Proof,
    RoundReport,
    RoundTrips,
    SumOrder,
)
from sfl.transport.cloud import sums
from sfl.transport.cloud.blame import cause_told, on_the_wire
from sfl.transport.frames import contract, words
from sfl.transport.frames.chunks import Buffer, adapter_frames
from sfl.transport.frames.whereabouts import (
    address_of,
    from_edges,
    from_elsewhere,
    to_edges,
    to_elsewhere,
    to_round_trips,
)
from sfl.transport.frames.wire import BASE_UPDATE
from sfl.v1 import cloud_pb2, edge_pb2, tensor_pb2


@dataclass(frozen=True, slots=True)
class DeviceJoin:
    """A device asks to take part."""

    device: str
    proof: Proof
    round_trips: RoundTrips = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GoElsewhere:
    """A device of this edge is to go to another one."""

    device: str
    to: Elsewhere


@dataclass(frozen=True, slots=True)
class DeviceIsReady:
    """A device has its span and its data."""

    device: str
    facts: DeviceFacts
    points: tuple[Point, ...] = ()
    """What its edge has snapshots of, for this device."""
    begun: Point = BEGINNING
    """Of the round that its edge has begun for it and keeps, if it does: before its first step."""


@dataclass(frozen=True, slots=True)
class Beat:
    """Statistics of an edge and of its devices, as JSON."""

    snapshot: str
    devices: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class EdgeFailed:
    """An edge can't go on."""

    reason: str


@dataclass(frozen=True, slots=True)
class EdgeStopped:
    """The edge is stopped, and may come back."""

    reason: str


EdgeWord = (
    DeviceJoin
    | EdgeFacts
    | DeviceIsReady
    | DeviceLost
    | RoundReport
    | HeldUpdate
    | Beat
    | EdgeFailed
    | EdgeStopped
)
"""What an edge tells the cloud, beside its hello and parts of updates."""


@dataclass(frozen=True, slots=True)
class GlobalPart:
    """The adapter that a round begins with, as a safetensors file.

    `base_update`: it is what `round` gave, to be added to the base for good.
    """

    round: int
    payload: Buffer
    base_update: bool = False


CloudWord = (
    EdgeWelcome | Admission | EdgeOrders | GlobalPart | SumOrder | Evict | GoElsewhere | FinishRun
)
"""What the cloud tells an edge, beside that it is alive."""


def to_edge_report(word: EdgeWord) -> cloud_pb2.EdgeReportMessage:
    """What an edge tells, as the wire has it."""
    match word:
        case DeviceJoin():
            trips = to_round_trips(word.round_trips)
            join = cloud_pb2.DeviceJoin(
                device=word.device, proof=words.to_proof(word.proof), round_trips=trips
            )
            return cloud_pb2.EdgeReportMessage(join=join)
        case EdgeFacts():
            return cloud_pb2.EdgeReportMessage(ready=to_edge_facts(word))
        case DeviceIsReady():
            ready = words.to_device_facts(word.facts)
            points = map(words.to_point, word.points)
            begun = None if word.begun == BEGINNING else words.to_point(word.begun)
            said = cloud_pb2.DeviceIsReady(
                device=word.device, ready=ready, points=points, begun=begun
            )
            return cloud_pb2.EdgeReportMessage(device_ready=said)
        case DeviceLost():
            return cloud_pb2.EdgeReportMessage(left=to_left(word))
        case RoundReport():
            return cloud_pb2.EdgeReportMessage(report=words.to_report(word))
        case HeldUpdate():
            return cloud_pb2.EdgeReportMessage(held=sums.to_held(word))
        case Beat():
            beat = tensor_pb2.Heartbeat(snapshot=word.snapshot, devices=word.devices)
            return cloud_pb2.EdgeReportMessage(heartbeat=beat)
        case EdgeFailed():
            return cloud_pb2.EdgeReportMessage(failure=word.reason)
        case EdgeStopped():
            return cloud_pb2.EdgeReportMessage(goodbye=word.reason)
        case unknown:
            assert_never(unknown)


def to_edge_facts(facts: EdgeFacts) -> cloud_pb2.EdgeReady:
    """What an edge brings as the wire has it."""
    return cloud_pb2.EdgeReady(
        manifest=facts.manifest,
        address=facts.address,
        given=facts.given,
        credits=facts.credits,
        keeps=sums.to_kept(facts.keeps),
        store=facts.store,
    )


def from_edge_facts(said: cloud_pb2.EdgeReady) -> EdgeFacts:
    """What an edge brings from the wire. Raises ProtocolError."""
    address_of(said.address)
    if len(said.store) > LONGEST_LABEL:
        raise ProtocolError(f"store = {said.store!r:.80}: it is no label")
    keeps = sums.from_kept(said.keeps)
    return EdgeFacts(said.manifest, said.address, said.given, said.credits, keeps, said.store)


def to_left(lost: DeviceLost) -> cloud_pb2.DeviceLeft:
    """A device that is gone as the wire has it."""
    return cloud_pb2.DeviceLeft(
        device=lost.device, reason=lost.reason, cause=on_the_wire(lost.cause)
    )


def from_left(said: cloud_pb2.DeviceLeft) -> DeviceLost:
    """A device that is gone from the wire."""
    return DeviceLost(said.device, contract.reason(said.reason), cause_told(said.cause))


def to_cloud_messages(word: CloudWord) -> Iterator[cloud_pb2.CloudMessage]:
    """What the cloud tells, as the wire has it: one message, or an adapter's frames."""
    if isinstance(word, GlobalPart):
        header = tensor_pb2.AdapterHeader(
            round=word.round, side=BASE_UPDATE if word.base_update else ""
        )
        for frame in adapter_frames(header, word.payload):
            yield cloud_pb2.CloudMessage(adapter=frame)
    else:
        yield _to_cloud_message(word)


def _to_cloud_message(
    word: EdgeWelcome | Admission | EdgeOrders | SumOrder | Evict | GoElsewhere | FinishRun,
) -> cloud_pb2.CloudMessage:
    match word:
        case EdgeWelcome():
            return cloud_pb2.CloudMessage(settings=to_edge_welcome(word))
        case Admission():
            return cloud_pb2.CloudMessage(admission=to_admission(word))
        case EdgeOrders():
            return cloud_pb2.CloudMessage(start=to_orders(word))
        case SumOrder():
            return cloud_pb2.CloudMessage(reduce=sums.to_order(word))
        case Evict():
            return cloud_pb2.CloudMessage(evict=to_evict(word))
        case GoElsewhere():
            return cloud_pb2.CloudMessage(hand_over=to_hand_over(word))
        case FinishRun():
            finish = edge_pb2.Finish(ok=word.ok, reason=word.reason, goes_on=word.goes_on)
            return cloud_pb2.CloudMessage(finish=finish)
        case unknown:
            assert_never(unknown)


def from_cloud_message(
    message: cloud_pb2.CloudMessage,
) -> EdgeWelcome | Admission | EdgeOrders | SumOrder | Evict | GoElsewhere | FinishRun:
    """What the cloud tells from the wire, all but adapters and heartbeats. Raises ProtocolError."""
    match message.WhichOneof("body"):
        case "settings":
            return from_edge_welcome(message.settings)
        case "admission":
            return from_admission(message.admission)
        case "start":
            return from_orders(message.start)
        case "reduce":
            return sums.from_order(message.reduce)
        case "evict":
            return from_evict(message.evict)
        case "hand_over":
            return from_hand_over(message.hand_over)
        case "finish":
            said = message.finish
            return FinishRun(said.ok, contract.reason(said.reason), said.goes_on)
        case other:
            raise ProtocolError(f"{other or 'an empty message'} from the cloud was not expected")


def to_edge_welcome(welcome: EdgeWelcome) -> cloud_pb2.Settings:
    """What an edge is told first as the wire has it."""
    return cloud_pb2.Settings(
        settings=words.to_settings(welcome.settings),
        run_id=welcome.run_id,
        run_key=welcome.run_key,
        challenge=welcome.challenge,
    )


def from_edge_welcome(said: cloud_pb2.Settings) -> EdgeWelcome:
    """What an edge is told first from the wire. Raises ProtocolError."""
    settings = contract.run_settings(said.settings)
    return EdgeWelcome(settings, said.run_id, said.challenge, said.run_key)


def to_admission(admission: Admission) -> cloud_pb2.Admission:
    """The answer to a device that joins as the wire has it."""
    own = admission.assignment
    return cloud_pb2.Admission(
        device=admission.device,
        refusal=admission.refusal,
        in_use=admission.in_use,
        assignment=None if own is None else words.to_assignment(own),
        edges=to_edges(admission.edges),
    )


def from_admission(said: cloud_pb2.Admission) -> Admission:
    """The answer to a device that joins from the wire. Raises ProtocolError."""
    edges = from_edges(said.edges)
    if said.refusal:
        return Admission(said.device, contract.reason(said.refusal), said.in_use, edges=edges)
    return Admission(said.device, assignment=words.from_assignment(said.assignment), edges=edges)


def to_orders(orders: EdgeOrders) -> cloud_pb2.EdgeRoundStart:
    """A round for an edge as the wire has it: who share an adapter are named once, not for each."""
    common = {own.together for own in orders.devices.values()}
    together = common.pop() if len(common) == 1 else ()
    devices = [
        cloud_pb2.DeviceStart(
            device=device,
            start=words.to_assignment(replace(own, together=()) if together else own),
        )
        for device, own in orders.devices.items()
    ]
    return cloud_pb2.EdgeRoundStart(
        round=orders.round,
        devices=devices,
        begun=orders.begun,
        order=orders.order,
        edges=to_edges(orders.edges),
        together=together,
    )


def from_orders(said: cloud_pb2.EdgeRoundStart) -> EdgeOrders:
    """A round for an edge from the wire. Raises ProtocolError."""
    devices = {entry.device: words.from_assignment(entry.start) for entry in said.devices}
    if together := tuple(said.together):
        devices = {name: replace(own, together=together) for name, own in devices.items()}
    edges = from_edges(said.edges)
    return EdgeOrders(said.round, devices, said.begun, tuple(said.order), edges)


def to_evict(evict: Evict) -> cloud_pb2.Evict:
    """Whose stream is to be closed as the wire has it."""
    return cloud_pb2.Evict(device=evict.device, reason=evict.reason, final=evict.final)


def from_evict(said: cloud_pb2.Evict) -> Evict:
    """Whose stream is to be closed from the wire."""
    return Evict(said.device, contract.reason(said.reason), said.final)


def to_hand_over(word: GoElsewhere) -> cloud_pb2.HandOver:
    """Who is to go to another edge, as the wire has it."""
    return cloud_pb2.HandOver(device=word.device, elsewhere=to_elsewhere(word.to))


def from_hand_over(said: cloud_pb2.HandOver) -> GoElsewhere:
    """The same from the wire. Raises ProtocolError."""
    return GoElsewhere(said.device, from_elsewhere(said.elsewhere))


LONGEST_LABEL = 64
"""Characters of what tells stores apart."""
