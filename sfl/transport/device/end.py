"""The two ends of a device's stream without I/O: values become frames, and frames values.

No socket, no thread and no clock in here: who drives an end says when a frame came. One thread may
encode, one decode and one take frames. The two ends of a stream hold the same codecs, the same
memory of what was sent, and the same adapter; what one sends, the other takes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sfl.adapters.names import belongs_to, is_lora_a
from sfl.config import RunSettings
from sfl.config.ranges import plans_of
from sfl.errors import ProtocolError
from sfl.metrics.costs import Work
from sfl.metrics.stats import PhaseTimes
from sfl.metrics.transfers import TIMED_FRAME_BYTES, Held
from sfl.plan import Holder, Moves, Plan, Span, moves, taken_by
from sfl.rounds.values import Assignment, Point
from sfl.stage.messages import (
    BaseUpdate,
    BlockMoments,
    GradientNorm,
    Kind,
    RoundOrder,
    TensorMessage,
    begins_step,
)
from sfl.stage.remembered import (
    IN_MEMORY,
    GoOn,
    Moments,
    Remembered,
    Within,
    as_arrays,
    as_moments,
)
from sfl.stage.snapshots import Snapshot, Snapshots, under
from sfl.transport.device import checked
from sfl.transport.device.credits import Credits
from sfl.transport.device.lanes import SLACK, Declared
from sfl.transport.device.stream_codecs import StreamCodecs
from sfl.transport.device.updates import AdapterChanges, Part
from sfl.transport.frames import contract
from sfl.transport.frames.chunks import (
    AdapterAssembly,
    Buffer,
    TensorAssembly,
    adapter_bytes,
    adapter_frames,
    decode_adapter,
)
from sfl.transport.frames.envelope import Frame
from sfl.transport.frames.tensors import decode_tensor, encode_tensor
from sfl.transport.frames.wire import BASE_UPDATE, MOMENTS
from sfl.v1 import tensor_pb2

CUT_DTYPES = ("float32", "bfloat16")
"""What hidden states may come in; a device's own dtype may be another than the edge's."""

CUT = "cut"
"""The fact of a snapshot that says how many blocks the device had before and after the edge's."""

ShapesOf = Callable[[Assignment], Sequence[Sequence[int]]]
"""Of the tensors of the adapter that a round of an assignment sends a device."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A tensor's bytes, whole: its first frame came at `began`, its last at `ended`, in seconds.

    `num_bytes` are those of its messages on the wire.
    """

    header: tensor_pb2.TensorHeader
    payload: Buffer
    began: float
    ended: float
    num_bytes: int

    @property
    def kind(self) -> Kind:
        """What the tensor is."""
        return Kind(self.header.kind)


class End:
    """What both ends of a stream do alike: tensors out, tensors in, adapters put together."""

    def __init__(
        self,
        side: Holder,
        device: str,
        joined: Assignment,
        settings: RunSettings,
        phases: PhaseTimes,
        peer_compiled: bool,
        folder: Path | None = None,
        snapshots: Snapshots | None = None,
        peer: Holder | None = None,
    ) -> None:
        """Until a round has others, the codecs are those of `joined`.

        `phases` times what is coded; what is remembered of samples is under `folder`. What both
        ends remember at a round's end is kept in `snapshots`. `peer` is who is at the other end; by
        default the other one of device and edge.
        """
        seed = settings.run.seed
        self.side: Holder = side
        self.device = device
        self.settings = settings
        self.phases = phases
        self.codecs = StreamCodecs(side, device, seed, peer_compiled, folder, peer)
        self.codecs.begin_round(joined.codecs, joined.round)
        self.changes = AdapterChanges(side, device, seed)
        self.remembered = Remembered(snapshots)
        self._before: Mapping[str, np.ndarray] = {}  # of the round's adapter: what changes had
        self._hidden = 0
        self._most_rows = 0
        self._plan = joined.plan  # that what is remembered is of
        self._moved: Moves = ()
        self._tensors = TensorAssembly(0)  # none is due before both sides know how wide
        self._adapter, self._moments = AdapterAssembly(0), AdapterAssembly(0)
        self._assembly = self._adapter  # of the two, the one that frames are of
        self._began: dict[int, float] = {}
        self._came: dict[int, int] = {}

    def allow(self, hidden: int, adapter_bytes: int, named: Sequence[Declared] = ()) -> None:
        """From now on take rows `hidden` wide, of a full batch at most, and adapters.

        `named` are the tensors that travel beside rows, either way. Raises ConfigError.
        """
        self.codecs.declare(named)
        self._hidden = hidden
        self._most_rows = 4 * contract.batch_tokens(self.settings) * hidden + SLACK
        self._tensors.limit = self._most_rows + sum(one.most_bytes for one in named)
        self._allow_adapter(adapter_bytes)

    def _allow_adapter(self, most: int) -> None:
        """Moments are two values for each of the adapter's, and their steps."""
        self._adapter.limit, self._moments.limit = most, 3 * most

    def go_on(self, told: Assignment) -> GoOn:
        """Take the round's codecs, and go on from the point that it names; nothing is in flight.

        What else is of that point, and not in memory. Raises SnapshotMissing.
        """
        trains = told.steps.count > 0
        found = self.remembered.go_on_from(told.after, trains)
        self.codecs.begin_round(told.codecs, told.round)
        before = self._plan if found is None else _plan_of(found, told.plan)
        self._plan = told.plan
        moved = self._moved = moves(before, told.plan)
        if found is not None:
            self.changes.take_back(found.of("adapter"))
        self._before = self.changes.remembered()
        if found is None:
            return self._go_on_in_memory(moved, trains)
        # Rows of another cut have nothing in common with those that codecs remember.
        same = not moved and found.facts.get("codecs") == self.codecs.specs
        self.codecs.take_back(found.of("codecs") if same else {})
        moments = as_moments(found.of("moments"))
        if not found.point.step or found.point.round != told.round:
            return GoOn(moments, moves=moved if trains else ())
        so_far = found.facts.get("so_far", {})
        return GoOn(moments, found.point.step, found.of("values"), so_far)

    def _go_on_in_memory(self, moved: Moves, trains: bool) -> GoOn:
        if not moved:
            return IN_MEMORY
        self.codecs.take_back({})
        if trains:
            return GoOn(moves=moved)
        self.remembered.leave()  # what is only evaluated takes no moments along
        return IN_MEMORY

    def reached(self, point: Point, moments: Moments) -> None:
        """A round is over, with these moments: keep what there is to go on from."""
        arrays = {
            **under("moments", as_arrays(moments)),
            **under("adapter", self.changes.remembered()),
            **under("codecs", self.codecs.held()),
        }
        self.remembered.reached(point, arrays, {"codecs": self.codecs.specs, **self._cut})

    def passed(self, within: Within) -> None:
        """Keep what there is after some steps of the round; nothing of the next one is coded yet.

        What is `within` is the caller's no more.

        The round's adapter travels again when it is gone on with, so changes are as before that.
        """
        arrays = {
            **under("moments", as_arrays(within.moments)),
            **under("values", within.values),
            **under("adapter", self._before),
            **under("codecs", {name: array.copy() for name, array in self.tables().items()}),
        }
        facts = {"codecs": self.codecs.specs, "so_far": dict(within.facts), **self._cut}
        self.remembered.passed(within.point, arrays, facts)

    @property
    def _cut(self) -> dict[str, object]:
        return {CUT: [self._plan.cut_layer, self._plan.tail_layers]}

    def tables(self) -> Mapping[str, np.ndarray]:
        """What codecs remember after the last step."""
        return self.codecs.held()

    def moments_frames(self, message: BlockMoments) -> Iterator[tensor_pb2.AdapterFrame]:
        """Moments of blocks that the other side gets."""
        header = tensor_pb2.AdapterHeader(round=message.round, side=MOMENTS)
        return adapter_frames(header, adapter_bytes(as_arrays(message.moments)))

    def put_together(
        self, frame: tensor_pb2.AdapterFrame
    ) -> tuple[tensor_pb2.AdapterHeader, Buffer] | None:
        """Keep a frame; header and payload with the last of an adapter's, or of moments'.

        Raises ProtocolError.
        """
        if frame.HasField("header"):
            self._assembly = self._moments if frame.header.side == MOMENTS else self._adapter
        return self._assembly.add(frame)

    def moments_of(self, header: tensor_pb2.AdapterHeader, payload: Buffer) -> BlockMoments:
        """Moments that have come. Raises ProtocolError where they are of other blocks than due."""
        arrays = decode_adapter(payload)
        blocks = taken_by(self.side, self._moved)
        return BlockMoments(header.round, checked.moments(arrays, blocks))

    def encode(self, message: TensorMessage) -> list[Frame]:
        """A tensor as frames. Raises AdapterRefused where its values are none to send."""
        work = Work(sum(message.lengths))
        with self.phases.measure("encode", message.key, self.device, work):
            packet, named = self.codecs.encode(message), self.codecs.encode_named(message)
        return encode_tensor(message, packet, named, self._held(message))

    def _held(self, message: TensorMessage) -> Held | None:
        """What is said with an answer of how long it took here."""
        return None

    def header_of(self, frame: Frame) -> tensor_pb2.TensorHeader | None:
        """The header of the tensor that a frame is of, if it came."""
        return self._tensors.header(frame)

    def take_frame(self, frame: Frame, now: float) -> Arrival | None:
        """Keep a frame that came at `now`; the tensor that it ends. Raises ProtocolError."""
        kind = frame.kind
        if frame.header is not None:
            self._began[kind], self._came[kind] = now, 0
        whole = self._tensors.add(frame)
        self._came[kind] = self._came.get(kind, 0) + frame.wire_bytes
        return None if whole is None else Arrival(*whole, self._began[kind], now, self._came[kind])

    def about_to_decode(self, message: TensorMessage) -> None:
        """A tensor has come that codecs have not seen yet."""

    def decode(self, arrival: Arrival) -> TensorMessage:
        """The tensor, validated. Raises ProtocolError."""
        message, packet, named = decode_tensor(arrival.header, arrival.payload)
        checked.tensor(message, self.settings)
        self.about_to_decode(message)
        if packet is not None:
            _expect_dtype(packet.dtype)
            contract.whole("bytes of rows", len(packet.payload), 0, self._most_rows)
            work = Work(sum(message.lengths))
            with self.phases.measure("decode", message.key, self.device, work):
                message = self.codecs.decode(packet, message, self._hidden, named)
        began, ended = arrival.began, arrival.ended
        self.phases.share("receive", message.key, self.device, began, ended, lane="link-receiver")
        return message


class DeviceEnd(End):
    """The device's: it takes rounds and sums, and sends what it trained."""

    def __init__(
        self,
        device: str,
        joined: Assignment,
        settings: RunSettings,
        phases: PhaseTimes,
        peer_compiled: bool,
        folder: Path | None = None,
        snapshots: Snapshots | None = None,
    ) -> None:
        """`joined` is what the device has loaded when its first round comes."""
        super().__init__(
            "device", device, joined, settings, phases, peer_compiled, folder, snapshots
        )
        self._joined = joined
        self._told: Assignment | None = None
        self._go_on = IN_MEMORY
        self._values: Mapping[str, np.ndarray] | None = None  # of a round whose moments are due
        self._most_bytes: Callable[[Assignment], int] = _none_yet

    @property
    def most_waiting(self) -> int:
        """Answers, and sums of the rounds before, that may be due to a device at once."""
        folds, rounds = self.settings.aggregation.traits.folds, self.settings.run.rounds
        return 2 * self.settings.network.credits + folds * rounds

    @property
    def num_layers(self) -> int:
        """Blocks of the whole model."""
        return self._joined.plan.num_layers

    @property
    def assignment(self) -> Assignment:
        """The round's; before the first, what it has loaded."""
        return self._told or self._joined

    @property
    def scaling(self) -> float:
        """What this device's B A are multiplied by."""
        return self.assignment.scaling

    def point(self, step: int) -> Point:
        """Where both ends are after so many steps of the round."""
        return self.assignment.point(step)

    def expect(self, shapes: ShapesOf, hidden: int, named: Sequence[Declared] = ()) -> None:
        """What the device takes: the parameters of an assignment's adapter, the width of rows.

        `named` as in `allow`.
        """
        self._most_bytes = functools.partial(_most_bytes, self.settings, self.device, shapes)
        self.allow(hidden, self._most_bytes(self._joined), named)

    def begin_round(self, told: Assignment, agreed: bool = True) -> None:
        """A round is announced; unless its codecs are `agreed` those of the one before stay."""
        if agreed:
            self._go_on = self.go_on(told)
        self._told, self._values = told, None
        self._allow_adapter(self._most_bytes(told))

    def take_adapter(self, frame: tensor_pb2.AdapterFrame) -> RoundOrder | BaseUpdate | None:
        """Keep a frame; the round, or the sum, that it completes. Raises ProtocolError."""
        whole = self.put_together(frame)
        if whole is None:
            return None
        header, payload = whole
        if header.side == MOMENTS:
            return self._completed(self.moments_of(header, payload))
        if header.side == BASE_UPDATE:
            return BaseUpdate(decode_adapter(payload), header.round)
        if self._told is None:
            raise ProtocolError("an adapter came before its round was announced")
        codec = self.codecs.adapter_codec
        values = self.changes.take_round(codec, payload, header.codec)
        if taken_by("device", self._go_on.moves):
            self._values = values  # moments come next
            return None
        return RoundOrder(self._told, values, self._go_on)

    def _completed(self, message: BlockMoments) -> RoundOrder:
        told, values, self._values = self._told, self._values, None
        if told is None or values is None or message.round != told.round:
            raise ProtocolError(f"moments for round {message.round} came that were not due")
        return RoundOrder(told, values, self._go_on, message.moments)

    def update(self, values: Mapping[str, np.ndarray], round_: int) -> Part:
        """What this device trained in a round. Raises AdapterRefused."""
        return self.changes.send_update(self.codecs.adapter_codec, values, round_)


class ServingEnd(End):
    """A stage server's, towards the input: it holds a device to its credits."""

    def __init__(
        self,
        side: Holder,
        device: str,
        joined: Assignment,
        settings: RunSettings,
        phases: PhaseTimes,
        peer_compiled: bool,
        folder: Path | None = None,
        snapshots: Snapshots | None = None,
        peer: Holder | None = None,
    ) -> None:
        """`joined` is what the device was told to load."""
        super().__init__(
            side, device, joined, settings, phases, peer_compiled, folder, snapshots, peer
        )
        self.credits = Credits(joined.credits)
        self._tables: Mapping[str, np.ndarray] = {}
        self._step = 0
        self.round = joined.round
        """The one that was begun last."""

    def begin_round(self, told: Assignment) -> GoOn:
        """A round begins; the device is told after this. As `go_on`."""
        self.credits.begin_round(told.credits)
        self.round = told.round
        go_on = self.go_on(told)
        self._step, self._tables = go_on.step, self.codecs.held() if go_on.step else {}
        return go_on

    def tables(self) -> Mapping[str, np.ndarray]:
        """As they were when the first tensor of the step came that is under way."""
        return self._tables

    def about_to_decode(self, message: TensorMessage) -> None:
        """The next step's tensors may be here before the last one is taken: hold on to tables."""
        step = message.key.step
        if begins_step(message) and step != self._step and self.settings.recovery.due(step):
            self._step, self._tables = step, self.codecs.held()

    def take_frame(self, frame: Frame, now: float) -> Arrival | None:
        """As of any end, within the device's credits."""
        arrival = super().take_frame(frame, now)
        if arrival is not None:
            self.credits.arrived(arrival.kind)
        return arrival

    def decode(self, arrival: Arrival) -> TensorMessage:
        """As of any end; a device sends nothing without values."""
        message = super().decode(arrival)
        if message.rows is None:
            raise ProtocolError(f"a {message.kind.name} tensor came without its values")
        return replace(message, arrived=arrival.ended)

    def _held(self, message: TensorMessage) -> Held | None:
        """Until now: what comes after this is the way back."""
        if message.arrived is None:
            return None
        return Held(message.arrived, self.phases.now())

    def answered(self, answers: Sequence[TensorMessage | GradientNorm]) -> None:
        """These go to the device next."""
        for answer in answers:
            self.credits.answered(answer)


class EdgeEnd(ServingEnd):
    """The edge's: it sends rounds and sums, and takes updates."""

    def __init__(
        self,
        device: str,
        joined: Assignment,
        settings: RunSettings,
        phases: PhaseTimes,
        peer_compiled: bool,
        folder: Path | None = None,
        snapshots: Snapshots | None = None,
    ) -> None:
        """`joined` is what the device was told to load."""
        super().__init__("edge", device, joined, settings, phases, peer_compiled, folder, snapshots)

    def round_frames(
        self, values: Mapping[str, np.ndarray], round_: int
    ) -> Iterator[tensor_pb2.AdapterFrame]:
        """The device's part of the adapter that a round begins with."""
        part = self.changes.send_round(self.codecs.adapter_codec, values, round_)
        header = tensor_pb2.AdapterHeader(round=round_, codec=part.codec)
        return adapter_frames(header, part.payload, TIMED_FRAME_BYTES)

    def sends_whole(self) -> None:
        """A round's adapter goes out as it is for every device that gets the same of it."""
        self.changes.send_whole()

    def base_update_frames(
        self, values: Mapping[str, np.ndarray], round_: int
    ) -> Iterator[tensor_pb2.AdapterFrame]:
        """What the device is to add to its base, of `round_`."""
        header = tensor_pb2.AdapterHeader(round=round_, side=BASE_UPDATE)
        return adapter_frames(header, adapter_bytes(values), TIMED_FRAME_BYTES)

    def whole_update(self, coded_as: str, payload: Buffer, trains: Callable[[str], bool]) -> Buffer:
        """An update as a whole adapter's bytes; `trains` tells which names are the device's."""
        return self.changes.take_update(self.codecs.adapter_codec, payload, coded_as, trains)


def whole_frames(
    values: Mapping[str, np.ndarray], round_: int
) -> Iterator[tensor_pb2.AdapterFrame]:
    """A part of a round's adapter that is not coded: it says nothing of whose it is."""
    return adapter_frames(
        tensor_pb2.AdapterHeader(round=round_), adapter_bytes(values), TIMED_FRAME_BYTES
    )


def trained_by(spans: Iterable[Span], settings: RunSettings) -> Callable[[str], bool]:
    """Which parameters, by name, a device of these spans trains."""
    own, frozen = tuple(spans), settings.aggregation.traits.freezes_a
    return lambda name: (
        any(belongs_to(name, span) for span in own) and not (frozen and is_lora_a(name))
    )


def _plan_of(found: Snapshot, told: Plan) -> Plan:
    """How the model was cut at a snapshot's point; the beginning has no cut of its own."""
    return told.at(*found.facts[CUT]) if CUT in found.facts else told


def _none_yet(told: Assignment) -> int:
    """No adapter is due before the device knows its shapes."""
    return 0


def _most_bytes(settings: RunSettings, device: str, shapes: ShapesOf, told: Assignment) -> int:
    """Of an adapter for one device; where rounds fold, a sum has the ranks of all devices.

    It is of all blocks that the device may have, then.
    """
    if not settings.aggregation.traits.folds:
        return contract.adapter_limit(shapes(told))
    ranks = len(settings.names) * settings.lora.rank / told.rank
    own = {told.plan}
    if settings.planner.moves:
        plans = plans_of(settings, device, told.plan.num_layers)
        deepest = max(plans, key=lambda plan: plan.cut_layer)
        own = {deepest, max(plans, key=lambda plan: plan.tail_layers)}
    return sum(contract.adapter_limit(shapes(replace(told, plan=one)), ranks) for one in own)


def _expect_dtype(dtype: str) -> None:
    if dtype not in CUT_DTYPES:
        raise ProtocolError(f"dtype {dtype} came; hidden states are {' or '.join(CUT_DTYPES)}")
