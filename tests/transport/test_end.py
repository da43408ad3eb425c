"""Both ends of a device's stream in memory: what one sends the other takes, without I/O."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
import torch

from sfl.codec.transform import RowContext
from sfl.config import RunSettings
from sfl.config.codec import RoleCodecs
from sfl.errors import AdapterRefused, ProtocolError
from sfl.metrics.stats import PhaseTimes
from sfl.plan import Plan
from sfl.rounds.assignment import assign
from sfl.rounds.values import Assignment, EdgeBase, Point, Steps
from sfl.stage.messages import (
    BaseUpdate,
    GradientNorm,
    Key,
    Kind,
    Purpose,
    RoundOrder,
    TensorMessage,
)
from sfl.transport.device.end import DeviceEnd, EdgeEnd, End
from sfl.transport.frames.chunks import adapter_bytes, adapter_frames, decode_adapter
from sfl.transport.frames.envelope import Frame
from sfl.transport.frames.tensors import held_of
from sfl.transport.frames.wire import BASE_UPDATE, EDGE_SESSION
from sfl.v1 import edge_pb2, tensor_pb2

HIDDEN, TOKENS = 32, 12
SHAPES = {"front.lora_A": (4, HIDDEN), "front.lora_B": (HIDDEN, 4)}
EXACT = ("none", "none | zstd", "none | rans")
CODECS = (
    *EXACT,
    "bf16",
    "int8",
    "int(4) | zstd",
    "stochastic(4)",
    "topk(0.25) | int8",
    "delta(bigram) | uniform(0.25, dither) | rans",
    "delta(sample) | int8",
)


def settings(**training: object) -> RunSettings:
    return RunSettings.model_validate(
        {
            "model": {"path": "m", "max_length": TOKENS},
            "run": {"topology": "u_shaped"},
            "training": {"batch_size": 4, **training},
            "network": {"credits": 2},
            "devices": [{"name": "d", "tail_layers": 1}],
        }
    )


def codecs(tensors: str = "none", adapter: str = "none") -> RoleCodecs:
    gradient = tensors if "delta" not in tensors and "topk" not in tensors else "int8"
    return RoleCodecs(
        activation=tensors,
        hidden=gradient,
        tail_gradient=gradient,
        gradient=gradient,
        evaluation="none",
        adapter=adapter,
    )


def start(round_codecs: RoleCodecs | None = None, round_: int = 1, credits_: int = 2) -> Assignment:
    own = assign(settings(), EdgeBase(3, credits_), "d", round_, steps=Steps(2, 0, 2))
    return replace(own, codecs=round_codecs or codecs())


def ends(round_codecs: RoleCodecs | None = None) -> tuple[DeviceEnd, EdgeEnd]:
    """A device's end and its edge's, in the first round."""
    device = DeviceEnd("d", start(), settings(), PhaseTimes(), peer_compiled=True)
    device.expect(lambda told: list(SHAPES.values()), HIDDEN)
    edge = EdgeEnd("d", start(), settings(), PhaseTimes(), peer_compiled=True)
    edge.allow(HIDDEN, 1 << 20)
    edge.begin_round(start(round_codecs))
    device.begin_round(start(round_codecs))
    return device, edge


def tensor(kind: Kind = Kind.ACTIVATION, micro: int = 0, step: int = 0) -> TensorMessage:
    generator = torch.Generator().manual_seed(17 * micro + step)
    rows = torch.randn(TOKENS, HIDDEN, generator=generator)
    key = Key(Purpose.TRAINING, 1, step, micro)
    if kind is not Kind.ACTIVATION:
        return TensorMessage(kind, key, 4, (TOKENS // 2, TOKENS // 2), rows)
    columns = [np.arange(TOKENS, dtype=np.int64) for _ in range(4)]
    context = RowContext(*columns)
    return TensorMessage(kind, key, 4, (TOKENS // 2, TOKENS // 2), rows, context=context)


def parsed(frames: Iterable[Frame]) -> list[Frame]:
    """Frames as they come out of gRPC at the other side."""
    serialize, parse = EDGE_SESSION._codec(1)
    arrived = [parse(serialize(frame)) for frame in frames]
    assert all(isinstance(frame, Frame) for frame in arrived)
    return arrived


def carried(message: TensorMessage, sender: End, receiver: End, now: float = 0.0) -> TensorMessage:
    frames = parsed(sender.encode(message))
    *early, arrival = [receiver.take_frame(frame, now) for frame in frames]
    assert arrival is not None and early == [None] * len(early)
    return receiver.decode(arrival)


def values(seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        name: generator.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()
    }


def moved(cut_layer: int) -> Assignment:
    """The first round's, at another cut."""
    return replace(start(), plan=Plan.split(3, cut_layer, 1, "u_shaped"))


def given(
    frames: Iterable[tensor_pb2.AdapterFrame], device: DeviceEnd
) -> RoundOrder | BaseUpdate | None:
    *early, last = [device.take_adapter(frame) for frame in frames]
    assert early == [None] * len(early)
    return last


def same(some: object, others: dict[str, np.ndarray]) -> bool:
    assert isinstance(some, dict)
    return some.keys() == others.keys() and all(
        np.array_equal(some[name], others[name]) for name in others
    )


# -- tensors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", CODECS)
def test_what_one_end_sends_the_other_takes(spec: str) -> None:
    device, edge = ends(codecs(spec))
    for step in range(3):
        sent = tensor(step=step)
        arrived = carried(sent, device, edge)
        assert replace(arrived, rows=None, arrived=None) == replace(sent, rows=None, context=None)
        assert arrived.rows is not None and sent.rows is not None
        assert torch.equal(arrived.rows, sent.rows) == (spec in EXACT)
        edge.credits.computed()
        hidden = carried(replace(sent, kind=Kind.ACTIVATION), edge, device)
        assert hidden.kind is Kind.ACTIVATION and hidden.rows is not None
        back = carried(tensor(Kind.GRADIENT, step=step), device, edge)
        assert back.rows is not None and back.rows.shape == (TOKENS, HIDDEN)
        edge.credits.computed()
        edge.answered([tensor(Kind.GRADIENT, step=step)])
        edge.credits.sent()


def test_a_tensor_of_several_frames_is_timed_from_the_first_to_the_last() -> None:
    device, edge = ends()
    frames = parsed(device.encode(tensor()))
    (frame,) = frames
    half = len(frame.data) // 2
    first = replace(frame, data=frame.data.cut(0, half), last=False, wire_bytes=0)
    second = Frame(None, frame.data.cut(half, len(frame.data)), True, frame.kind)
    assert edge.take_frame(first, 2.0) is None
    assert edge.header_of(second) is not None
    arrival = edge.take_frame(second, 5.0)
    assert arrival is not None and (arrival.began, arrival.ended) == (2.0, 5.0)
    assert edge.decode(arrival).rows is not None


def test_a_device_may_send_nothing_without_its_values() -> None:
    device, edge = ends()
    with pytest.raises(ProtocolError, match="ACTIVATION tensor came without its values"):
        carried(replace(tensor(), rows=None), device, edge)
    answer = replace(tensor(Kind.GRADIENT), rows=None)
    assert carried(answer, edge, device) == answer


@pytest.mark.parametrize("side", ["device", "edge"])
def test_neither_end_takes_tensors_of_another_width_codec_or_length(side: str) -> None:
    pair = dict(zip(("device", "edge"), ends(), strict=True))
    receiver = pair.pop(side)
    (sender,) = pair.values()
    for wrong, words in (
        (replace(tensor(), rows=torch.zeros(TOKENS, HIDDEN - 1)), "shape"),
        (replace(tensor(), lengths=(TOKENS + 1,), rows=torch.zeros(TOKENS + 1, HIDDEN)), "13"),
        (replace(tensor(), rows=torch.zeros(TOKENS, HIDDEN, dtype=torch.float16)), "float16"),
    ):
        frames = sender.encode(wrong)
        if isinstance(receiver, EdgeEnd):
            receiver.credits.begin_round(2)
        with pytest.raises(ProtocolError, match=words):
            for frame in parsed(frames):
                arrival = receiver.take_frame(frame, 0.0)
            assert arrival is not None
            receiver.decode(arrival)
    sender.codecs.begin_round(codecs("int8"), 1)
    with pytest.raises(ProtocolError, match="codec 'int8' was not expected"):
        carried(tensor(), sender, receiver)


def test_frames_in_the_wrong_order_end_it() -> None:
    device, edge = ends()
    (frame,) = device.encode(tensor())
    with pytest.raises(ProtocolError, match="without a header"):
        edge.take_frame(Frame(None, frame.data, True, frame.kind), 0.0)
    edge.take_frame(replace(frame, last=False), 0.0)
    with pytest.raises(ProtocolError, match="a new header before the last frame"):
        edge.take_frame(frame, 0.0)


def test_no_end_takes_tensors_before_it_knows_how_wide_they_are() -> None:
    device, _ = ends()
    edge = EdgeEnd("d", start(), settings(), PhaseTimes(), peer_compiled=True)
    edge.begin_round(start())
    with pytest.raises(ProtocolError, match="0 are allowed"):
        carried(tensor(), device, edge)


# -- credits ---------------------------------------------------------------------------------------


def test_more_micro_batches_than_allowed_end_it() -> None:
    device, edge = ends()
    for micro in range(2):
        carried(tensor(micro=micro), device, edge)
    with pytest.raises(ProtocolError, match=r"3 micro-batches in flight, 2 are allowed \(network"):
        carried(tensor(micro=2), device, edge)


def test_an_edge_may_allow_fewer_than_the_run() -> None:
    device, _ = ends()
    edge = EdgeEnd("d", start(), settings(), PhaseTimes(), peer_compiled=True)
    edge.allow(HIDDEN, 0)
    edge.begin_round(start(credits_=1))
    carried(tensor(), device, edge)
    with pytest.raises(ProtocolError, match="2 micro-batches in flight, 1 are allowed"):
        carried(tensor(micro=1), device, edge)


def test_only_the_last_answer_of_a_micro_batch_makes_room() -> None:
    device, edge = ends()
    carried(tensor(), device, edge)
    edge.answered([tensor(Kind.ACTIVATION)])
    assert edge.credits.in_flight == 1
    edge.answered([tensor(Kind.GRADIENT), GradientNorm(1, 0, 1.0)])
    assert (edge.credits.in_flight, edge.credits.unsent) == (0, 2)
    carried(tensor(), device, edge)
    evaluated = Key(Purpose.EVALUATION, 1, 0, 0)
    edge.answered([replace(tensor(Kind.ACTIVATION), key=evaluated)])
    assert edge.credits.in_flight == 0
    carried(tensor(), device, edge)
    edge.begin_round(start(round_=2))
    assert edge.credits.in_flight == 0


def test_answers_that_nobody_takes_and_tensors_that_wait_are_bounded() -> None:
    device, edge = ends()
    for micro in range(2):
        carried(tensor(Kind.GRADIENT, micro), device, edge)
        carried(tensor(Kind.GRADIENT, micro), device, edge)
    with pytest.raises(ProtocolError, match="4 tensors wait, and each of 2 micro-batches"):
        carried(tensor(Kind.GRADIENT), device, edge)
    for _ in range(4):
        edge.credits.computed()
    edge.answered([tensor(Kind.GRADIENT)] * 5)
    with pytest.raises(ProtocolError, match="5 answers are not read, and 2 micro-batches"):
        carried(tensor(Kind.GRADIENT), device, edge)
    edge.credits.sent()
    carried(tensor(Kind.GRADIENT), device, edge)


# -- adapters --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec", ["none", "none | zstd", "int8", "stochastic(4) | zstd", "topk(0.1) | fp16"]
)
def test_adapters_go_whole_first_and_then_as_changes_both_ways(spec: str) -> None:
    device, edge = ends(codecs(adapter=spec))
    exact = spec in EXACT
    seen: list[str] = []
    for round_ in range(1, 5):
        own = replace(start(codecs(adapter=spec), round_), after=Point(round_ - 1))
        edge.begin_round(own)
        device.begin_round(own)
        frames = list(edge.round_frames(values(round_), round_))
        seen.append(frames[0].header.codec)
        order = given(frames, device)
        assert isinstance(order, RoundOrder) and order.assignment.round == round_
        assert same(dict(order.values), values(round_)) == (exact or round_ == 1)
        if spec != "none":
            assert same(dict(device.changes.held), dict(edge.changes.held))
            assert same(dict(order.values), dict(edge.changes.held))
        trained = {name: array + 0.01 * round_ for name, array in order.values.items()}
        part = device.update(trained, round_)
        whole = decode_adapter(edge.whole_update(part.codec, part.payload, lambda name: True))
        assert same(whole, dict(part.arrived))
        assert same(whole, trained) == exact
        for end in (device, edge):
            end.reached(Point(round_), {})
    assert seen == ["", *[spec if spec != "none" else ""] * 3]


def test_what_a_device_lost_of_one_update_goes_with_the_next() -> None:
    spec = "topk(0.1) | fp16"
    device, edge = ends(codecs(adapter=spec))
    given(edge.round_frames(values(1), 1), device)
    trained = {name: array + 1.0 for name, array in values(1).items()}
    sums = dict.fromkeys(SHAPES, 0.0)
    for round_ in range(1, 20):
        part = device.update(trained, round_)
        arrived = decode_adapter(edge.whole_update(part.codec, part.payload, lambda name: True))
        for name in SHAPES:
            sums[name] += float((arrived[name] - values(1)[name]).sum())
    for name, array in values(1).items():
        assert sums[name] > 10 * array.size  # a tenth of it goes at a time, and the rest is owed


def test_frozen_parts_are_no_part_of_a_coded_update() -> None:
    device, edge = ends(codecs(adapter="int8"))
    given(edge.round_frames(values(1), 1), device)
    trained = {"front.lora_B": values(2)["front.lora_B"]}
    part = device.update(trained, 1)
    whole = edge.whole_update(part.codec, part.payload, lambda name: name.endswith("lora_B"))
    assert same(decode_adapter(whole), dict(part.arrived))


def test_an_end_keeps_an_adapter_only_where_changes_of_it_are_coded() -> None:
    for spec in ("none", "int8"):
        device, edge = ends(codecs(adapter=spec))
        given(edge.round_frames(values(1), 1), device)
        assert bool(device.changes.held) == bool(edge.changes.held) == (spec != "none")


def test_what_the_base_gets_changes_nothing_of_what_is_held() -> None:
    device, edge = ends(codecs(adapter="int8"))
    given(edge.round_frames(values(1), 1), device)
    base_update = given(edge.base_update_frames(values(2), 1), device)
    assert isinstance(base_update, BaseUpdate) and same(dict(base_update.values), values(2))
    assert same(dict(device.changes.held), values(1))


def test_adapters_out_of_turn_end_it() -> None:
    device = DeviceEnd("d", start(), settings(), PhaseTimes(), peer_compiled=True)
    device.expect(lambda told: list(SHAPES.values()), HIDDEN)
    _, edge = ends(codecs(adapter="int8"))
    frames = list(edge.round_frames(values(1), 1))
    with pytest.raises(ProtocolError, match="before its round was announced"):
        given(frames, device)
    device.begin_round(start(codecs(adapter="int8")))
    change = list(edge.round_frames(values(2), 2))
    with pytest.raises(ProtocolError, match="codec 'int8' was not expected"):
        given(change, device)  # nothing is held yet
    header = tensor_pb2.AdapterHeader(round=1, codec="nf4")
    given(frames, device)
    with pytest.raises(ProtocolError, match="codec 'nf4' was not expected"):
        given(adapter_frames(header, b""), device)
    with pytest.raises(ProtocolError, match="d: an adapter in codec 'nf4' was not expected"):
        edge.whole_update("nf4", b"", lambda name: True)


def test_an_adapter_is_bounded_by_what_the_span_asks_for() -> None:
    device, _ = ends()
    header = tensor_pb2.AdapterHeader(round=1)
    big = adapter_bytes({"a": np.zeros(1 << 20, np.float32)})
    with pytest.raises(ProtocolError, match="bytes announced"):
        given(adapter_frames(header, big), device)


def test_a_round_is_bounded_by_what_its_own_assignment_asks_for() -> None:
    """A cut that leaves 0 brings blocks of any size, whatever was loaded first."""
    wide = {"a": np.zeros((1024, 1024), np.float32)}
    device = DeviceEnd("d", moved(0), settings(), PhaseTimes(), peer_compiled=True)
    device.expect(lambda told: [a.shape for a in wide.values()] * told.plan.cut_layer, HIDDEN)
    frames = list(adapter_frames(tensor_pb2.AdapterHeader(round=1), adapter_bytes(wide)))
    device.begin_round(moved(0))
    with pytest.raises(ProtocolError, match="bytes announced"):
        given(frames, device)
    device.begin_round(moved(1))
    assert isinstance(given(frames, device), RoundOrder)


def test_a_sum_has_the_ranks_of_all_devices_at_any_cut() -> None:
    said = settings().model_dump() | {
        "aggregation": {"strategy": "flora"},
        "devices": [{"name": "d"}, {"name": "e"}],
        "run": {},
    }
    run = RunSettings.model_validate(said)
    device = DeviceEnd("d", moved(0), run, PhaseTimes(), peer_compiled=True)
    device.expect(lambda told: [(told.rank, 1 << 16)] * told.plan.cut_layer, HIDDEN)
    device.begin_round(replace(moved(1), rank=8))
    most = len(run.names) * run.lora.rank
    whole = {"a": np.zeros((most, 1 << 16), np.float32)}
    header = tensor_pb2.AdapterHeader(round=1, side=BASE_UPDATE)
    assert isinstance(given(adapter_frames(header, adapter_bytes(whole)), device), BaseUpdate)
    more = {"a": np.zeros((2 * most, 1 << 16), np.float32)}
    with pytest.raises(ProtocolError, match="bytes announced"):
        given(adapter_frames(header, adapter_bytes(more)), device)


def test_what_a_codec_cannot_hold_is_the_adapters_fault() -> None:
    device, _ = ends()
    broken = tensor()
    assert broken.rows is not None
    broken.rows[0, 0] = float("inf")
    with pytest.raises(AdapterRefused, match=r"d, activation of round 1.*codec\.activation"):
        device.encode(broken)


def test_a_round_that_is_not_agreed_to_leaves_the_codecs_as_they_are() -> None:
    device, _ = ends(codecs("int8", adapter="int8"))
    device.begin_round(start(round_=2), agreed=False)
    assert device.codecs.adapter_codec.spec == "int8"
    fresh = DeviceEnd("d", start(), settings(), PhaseTimes(), peer_compiled=True)
    fresh.begin_round(start(), agreed=False)
    assert fresh.codecs.adapter_codec.spec == "none"


def test_messages_of_the_wire_say_the_same_as_ends() -> None:
    """A frame of an adapter is protobuf's own, and comes out as it went in."""
    device, edge = ends()
    serialize, parse = EDGE_SESSION._codec(1)
    for frame in edge.round_frames(values(1), 1):
        message = parse(serialize(edge_pb2.EdgeMessage(adapter=frame)))
        order = device.take_adapter(message.adapter)
    assert isinstance(order, RoundOrder) and same(dict(order.values), values(1))


def test_an_answer_says_how_long_the_edge_had_what_it_answers() -> None:
    device, edge = ends(codecs("none"))
    message = carried(tensor(), device, edge)
    answer = replace(message, arrived=12.5, kind=Kind.GRADIENT, labels=None)
    held = held_of(edge.encode(answer)[0].header or tensor_pb2.TensorHeader())
    assert held is not None and held.arrived == 12.5 and held.ready >= 12.5
    assert held_of(device.encode(tensor())[0].header or tensor_pb2.TensorHeader()) is None
