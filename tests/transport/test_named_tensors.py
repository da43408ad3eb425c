"""Tensors that travel beside the rows of a message: each by itself, and all held to their sum."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sfl.codec.packet import DTYPES, Packet
from sfl.codec.pipeline import Decoder, Encoder, parse
from sfl.config import RunSettings
from sfl.config.codec import DOWN, UP, RoleCodecs
from sfl.errors import AdapterRefused, ProtocolError
from sfl.keys import derive_seed
from sfl.metrics.stats import NodeStats, PhaseTimes
from sfl.plan import Toward
from sfl.rounds.assignment import assign
from sfl.rounds.values import EdgeBase, Score, Steps
from sfl.stage.messages import Key, Kind, Outgoing, Purpose, TensorMessage
from sfl.stage.session import Session
from sfl.transport.device.end import DeviceEnd, EdgeEnd, End
from sfl.transport.device.inproc import InProcessLink
from sfl.transport.device.lanes import SLACK, Declared, Lane
from sfl.transport.frames.envelope import Frame
from sfl.transport.frames.tensors import MOST_NAMED, encode_tensor, raw_bytes
from sfl.transport.frames.wire import EDGE_SESSION
from sfl.v1 import tensor_pb2
from tests.house.alone import NAME, PATIENCE, Alone, OneEdge
from tests.house.links import joined
from tests.house.tiny_models import LAYERS

HIDDEN, TOKENS, BATCH, SEED = 32, 12, 4, 5
FORWARD, BACKWARD = Lane(UP, Toward.LOSS, False), Lane(UP, Toward.INPUT, False)
EVALUATED = Lane(UP, Toward.LOSS, True)


def run_settings(**sections: Any) -> RunSettings:
    return RunSettings.model_validate(
        {
            "run": {"seed": SEED},
            "model": {"path": "m", "max_length": TOKENS},
            "training": {"batch_size": BATCH},
            "network": {"credits": 2},
            "devices": [{"name": "d"}],
            **sections,
        }
    )


def round_codecs(spec: str = "none") -> RoleCodecs:
    return RoleCodecs.model_validate(dict.fromkeys(RoleCodecs.model_fields, spec))


def edges(most_rows: int = 40, forward: str = "int8", backward: str = "none") -> Declared:
    """A graph's edges: 8 wide, in both directions."""
    return Declared("edges", 8, most_rows, "float32", {FORWARD: forward, BACKWARD: backward})


def teacher(most_rows: int = TOKENS) -> Declared:
    """A teacher's rows: they go towards the loss only, and in evaluations too."""
    return Declared("teacher", 16, most_rows, "bfloat16", {FORWARD: "none", EVALUATED: "none"})


def ends(*declared: Declared, spec: str = "none") -> tuple[DeviceEnd, EdgeEnd]:
    """Both ends of a stream that know of these tensors, in the first round."""
    own = assign(run_settings(), EdgeBase(3), "d", 1, steps=Steps(2, 0, 2))
    own = replace(own, codecs=round_codecs(spec))
    device = DeviceEnd("d", own, run_settings(), PhaseTimes(), peer_compiled=True)
    device.expect(lambda told: [], HIDDEN, declared)
    edge = EdgeEnd("d", own, run_settings(), PhaseTimes(), peer_compiled=True)
    edge.allow(HIDDEN, 0, declared)
    edge.begin_round(own)
    device.begin_round(own)
    return device, edge


def values(rows: int, width: int, dtype: str = "float32", seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=generator).to(DTYPES[dtype])


def message(micro: int = 0, **named: Tensor) -> TensorMessage:
    key = Key(Purpose.TRAINING, 1, 0, micro)
    return TensorMessage(Kind.ACTIVATION, key, 4, (7, 5), values(TOKENS, HIDDEN), named=named)


def both(micro: int = 0) -> TensorMessage:
    return message(micro, edges=values(30, 8), teacher=values(9, 16, "bfloat16"))


def arrive(frames: Iterable[Frame], receiver: End) -> TensorMessage:
    """What an end makes of frames that have crossed the wire."""
    arrival = None
    for frame in frames:
        arrival = receiver.take_frame(EDGE_SESSION.carried(frame, 0), 0.0)
    assert arrival is not None
    return receiver.decode(arrival)


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return list(one) == list(other) and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


# -- there and back --------------------------------------------------------------------------------


SPECS = (
    "none",
    "none | zstd",
    "bf16",
    "int8",
    "int(4) | zstd",
    "stochastic(4)",
    "topk(0.25) | int8",
    "uniform(0.25, dither) | rans",
)


class Echo:
    """Sends the tensors of an activation back as gradients, upside down."""

    device = NAME
    is_open = False
    steps_left = 1
    plan = SimpleNamespace(num_layers=LAYERS)
    step = 0
    served_seconds = 0.0
    lessons = None

    def __init__(self, hidden: int) -> None:
        self.model = SimpleNamespace(hidden_size=hidden)
        self.taken: list[TensorMessage] = []

    def group(self, sent: TensorMessage) -> None:
        return None

    def begin_round(self, start: Any, part: Any, go_on: Any = None) -> None:
        """Nothing to load."""

    def handle(self, sent: TensorMessage) -> list[Outgoing]:
        self.taken.append(sent)
        assert sent.rows is not None
        named = {name: one.flip(0) for name, one in sent.named.items()}
        answer = replace(sent, kind=Kind.GRADIENT, rows=sent.rows.flip(0), named=named)
        return [Outgoing(Toward.INPUT, answer)]


def alone(spec: str, tensor: Tensor, sent: TensorMessage, draws: str, *name: str) -> Tensor:
    """What a tensor would come out as, were it the only one of its stream."""
    key = sent.key
    parts = (key.round, key.step, key.micro_batch, draws, key.purpose.name, *name)
    seed = derive_seed(SEED, "d", *parts) & 0xFFFFFFFF
    gradient = draws == "GRADIENT"
    groups = () if name else sent.lengths
    encoder = Encoder(parse(spec, gradient=gradient))
    return Decoder().decode(encoder.encode(tensor, seed, groups))


tensors = st.tuples(
    st.integers(1, 60), st.integers(1, 40), st.sampled_from(sorted(DTYPES)), st.sampled_from(SPECS)
)


@settings(max_examples=60, deadline=None)
@given(first=tensors, second=tensors, main=st.sampled_from(SPECS), seed=st.integers(0, 1000))
def test_each_tensor_comes_out_as_it_would_alone(
    first: tuple[int, int, str, str], second: tuple[int, int, str, str], main: str, seed: int
) -> None:
    """Over both ends in one process, there and back; rows are as they are without the others."""
    made = dict(zip(("a", "b"), (first, second), strict=True))
    declared = [
        Declared(name, width, rows, dtype, {FORWARD: spec, BACKWARD: "none"})
        for name, (rows, width, dtype, spec) in made.items()
    ]
    device, edge = ends(*declared, spec=main)
    session = Echo(HIDDEN)
    link = InProcessLink(device, edge, cast(Session, session))
    sent = message(
        **{
            name: values(rows, width, dtype, seed + number)
            for number, (name, (rows, width, dtype, _)) in enumerate(made.items())
        }
    )
    link.send(sent)
    (taken,), answer = session.taken, link.receive()
    assert isinstance(answer, TensorMessage) and sent.rows is not None and taken.rows is not None
    assert torch.equal(taken.rows, alone(main, sent.rows, sent, "ACTIVATION"))
    wanted = {
        name: alone(spec, sent.named[name], sent, "ACTIVATION", name)
        for name, (_, _, _, spec) in made.items()
    }
    assert same(taken.named, wanted)
    for name, (_, _, _, spec) in made.items():
        back = wanted[name].flip(0)
        if spec.startswith("topk"):  # the derivative of leaving values out, of this tensor
            back = back * (wanted[name] != 0)
        assert torch.equal(answer.named[name], back)


@pytest.mark.process
def test_tensors_of_two_dtypes_shapes_and_codecs_cross_grpc() -> None:
    """The real service, stream and link, over several messages of several frames."""
    codecs = {"activation": "none", "gradient": "none"}
    declared = (
        Declared("edges", 64, 9000, "float32", {FORWARD: "none", BACKWARD: "int8"}),
        Declared("teacher", 16, 40, "bfloat16", {FORWARD: "none | zstd", BACKWARD: "none"}),
    )

    class Run(Alone):
        def session(self) -> Any:
            echo: Any = Echo(HIDDEN)
            echo.stats = NodeStats("edge", "edge")
            return echo

    class Edge(OneEdge):
        def ready(self, device: str, facts: Any, points: Any) -> None:
            self.service.streams[device].end.allow(HIDDEN, 0, declared)
            super().ready(device, facts, points)

    run = Run("vanilla", codecs)
    edge = Edge(run)
    with edge.serving() as address:
        link = joined(address, NAME, PATIENCE)
        try:
            link.expect(lambda told: [], HIDDEN, declared)
            link.ready(run.data)
            assert edge.is_ready.wait(PATIENCE)
            edge.begin_round(run.start(1), {})
            next(link.orders())
            for micro, rows in enumerate((1, 30, 9000)):
                sent = message(
                    micro, edges=values(rows, 64, seed=micro), teacher=values(40, 16, "bfloat16")
                )
                link.send(sent)
                answer = link.receive()
                taken = edge.session.taken[-1]  # type: ignore[attr-defined]
                assert isinstance(answer, TensorMessage) and sent.rows is not None
                assert same(taken.tensors, sent.tensors)
                assert answer.rows is not None and torch.equal(answer.rows, sent.rows.flip(0))
                assert torch.equal(answer.named["teacher"], sent.named["teacher"].flip(0))
                wanted = parse("int8").encode(sent.named["edges"].flip(0))
                assert torch.equal(answer.named["edges"], Decoder().decode(wanted))
        finally:
            link.close()


def test_a_tensor_travels_in_its_own_lanes_only() -> None:
    device, edge = ends(edges(), teacher())
    taken = arrive(device.encode(both()), edge)
    assert set(taken.named) == {"edges", "teacher"}
    edge.credits.computed()
    answer = replace(message(edges=values(30, 8)), kind=Kind.GRADIENT)
    assert set(arrive(edge.encode(answer), device).named) == {"edges"}
    scored = replace(
        message(teacher=values(9, 16, "bfloat16")), key=Key(Purpose.EVALUATION, 1, 0, 0)
    )
    assert set(arrive(device.encode(scored), edge).named) == {"teacher"}
    nothing = replace(message(), kind=Kind.GRADIENT, rows=None)  # where nobody waits for it
    assert arrive(edge.encode(nothing), device).tensors == {}


def test_what_a_codec_remembers_is_each_tensors_own() -> None:
    """Masks too: two gradients of one message are each multiplied by their own."""
    spec = {FORWARD: "topk(0.25) | int8", BACKWARD: "none"}
    device, edge = ends(*(Declared(name, 8, 6, "float32", spec) for name in ("a", "b")))
    sent = message(a=values(6, 8, seed=1), b=values(6, 8, seed=2))
    taken = arrive(device.encode(sent), edge)
    ones = {name: torch.ones(6, 8) for name in ("a", "b")}
    back = arrive(edge.encode(replace(sent, kind=Kind.GRADIENT, named=ones)), device)
    for name in ("a", "b"):
        assert torch.equal(back.named[name] != 0, taken.named[name] != 0)
    assert not torch.equal(back.named["a"], back.named["b"])


def test_bits_a_value_are_of_all_tensors() -> None:
    device, _ = ends(edges(forward="int(4)"), spec="none")
    sent = message(edges=values(TOKENS * HIDDEN // 8, 8))
    assert device.codecs.value_bits(sent) == pytest.approx((32 + 4 + 16 / 64) / 2)


# -- the short form --------------------------------------------------------------------------------


def test_a_message_of_one_tensor_takes_no_more_bytes_than_before_there_were_several() -> None:
    """Counted with the version before; a named tensor costs its header only."""
    key, rows = Key(Purpose.TRAINING, 3, 5, 1), torch.full((600, 1024), 1.5)
    score = Score(1.5, 2, 1, 2)
    large = TensorMessage(
        Kind.ACTIVATION, key, 2, (300, 300), rows, np.arange(600, dtype=np.int32), 7, 0.25, score
    )
    small = TensorMessage(Kind.GRADIENT, key, 2, (3, 1), rows[:4, :8])
    scored = TensorMessage(Kind.SCORE, key, 2, (3, 1), score=score)

    def sizes(sent: TensorMessage, packet: Packet | None, **named: Packet) -> list[int]:
        return [frame.wire_bytes for frame in encode_tensor(sent, packet, named)]

    exact = parse("none")
    assert sizes(large, exact.encode(rows)) == BEFORE["large"]
    assert sizes(small, exact.encode(rows[:4, :8])) == BEFORE["small"]
    assert sizes(scored, None) == BEFORE["score"]
    (more,) = sizes(small, exact.encode(rows[:4, :8]), edges=exact.encode(rows[:4, :8]))
    payload = len(exact.encode(rows[:4, :8]).payload)
    assert more - BEFORE["small"][0] - payload < 48


BEFORE = {"large": [1044502, 1044499, 369501], "small": [193], "score": [50]}


def test_raw_bytes_are_of_all_tensors() -> None:
    device, _ = ends(edges(), teacher())
    header = device.encode(both())[0].header
    assert header is not None
    assert raw_bytes(header) == 4 * (TOKENS * HIDDEN + 30 * 8 + 9 * 16)
    for _ in range(40):  # of a peer that lies
        header.named.add(name="x", shape=[2**32 - 1] * 500)
    assert raw_bytes(header) == 4 * (TOKENS * HIDDEN + 30 * 8 + 9 * 16)


# -- what is no honest message ---------------------------------------------------------------------


def first(**fields: Any) -> Callable[[tensor_pb2.TensorHeader], None]:
    """The first named tensor says something else."""

    def change(header: tensor_pb2.TensorHeader) -> None:
        for name, value in fields.items():
            header.named[0].ClearField(name)  # type: ignore[arg-type]
            header.named[0].MergeFrom(tensor_pb2.NamedTensor(**{name: value}))

    return change


def twice(header: tensor_pb2.TensorHeader) -> None:
    header.named[1].name = header.named[0].name


def missing(header: tensor_pb2.TensorHeader) -> None:
    header.named[0].num_bytes += header.named[1].num_bytes
    del header.named[1]


def too_many(header: tensor_pb2.TensorHeader) -> None:
    for number in range(MOST_NAMED):
        header.named.add(name=f"x{number}", codec="none", dtype="float32", shape=[1, 1])


def stranger(header: tensor_pb2.TensorHeader) -> None:
    header.named.add(name="x", codec="none", dtype="float32", shape=[1, 1])


def no_rows(header: tensor_pb2.TensorHeader) -> None:
    header.codec = ""


def swapped(header: tensor_pb2.TensorHeader) -> None:
    one, other = header.named[0].num_bytes, header.named[1].num_bytes
    header.named[0].num_bytes, header.named[1].num_bytes = other, one


LIES: dict[str, tuple[Callable[[tensor_pb2.TensorHeader], None], str]] = {
    "a name twice": (twice, "comes twice"),
    "too many": (too_many, f"{MOST_NAMED + 2} named tensors; {MOST_NAMED} are allowed"),
    "one that nobody declared": (stranger, "tensor 'x' was not expected"),
    "one of them missing": (missing, "tensor 'teacher' is missing"),
    "none but the rows' own": (no_rows, "without the rows"),
    "no name": (first(name=""), "'' is no name"),
    "a name with a line in it": (first(name="a\nb"), r"'a\\nb' is no name"),
    "a name without end": (first(name="a" * 100000), "is no name"),
    "another codec": (first(codec="none"), "codec 'none' was not expected"),
    "a codec that remembers": (first(codec="delta(sample, 16777216) | int8"), "not expected"),
    "another dtype": (first(dtype="bfloat16"), "dtype 'bfloat16' where float32"),
    "a dtype that is none": (first(dtype="object"), "dtype 'object' where float32"),
    "another width": (first(shape=[30, 9]), r"shape \[30, 9\]; 1 to 40 rows of 8"),
    "more rows": (first(shape=[41, 8]), r"shape \[41, 8\]; 1 to 40 rows of 8"),
    "fewer rows than came": (first(shape=[29, 8]), "edges"),
    "no rows of it": (first(shape=[0, 8]), r"shape \[0, 8\]"),
    "a shape of one": (first(shape=[240]), "1 dimensions"),
    "a shape without end": (first(shape=[1] * 1000), "1000 dimensions"),
    "more bytes than came": (first(num_bytes=2**63), "more than the"),
    "bytes that come round": (first(num_bytes=2**64 - 1), "more than the"),
    "the bytes of another": (swapped, "edges|teacher|packet"),
    "none of its bytes": (first(num_bytes=0), "edges|bytes|section"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused_in_words(lie: str) -> None:
    change, words = LIES[lie]
    device, edge = ends(edges(), teacher())
    (frame,) = device.encode(both())
    assert frame.header is not None
    change(frame.header)
    with pytest.raises(ProtocolError, match=words) as caught:
        arrive([replace(frame, wire_bytes=0)], edge)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_more_bytes_in_all_than_what_is_declared_are_never_held() -> None:
    device, edge = ends(edges(), teacher())
    (frame,) = device.encode(both())
    most = 4 * (BATCH * TOKENS * HIDDEN + 40 * 8 + TOKENS * 16) + 3 * SLACK
    assert frame.header is not None
    frame.header.num_bytes = most + 1
    with pytest.raises(ProtocolError, match=f"{most + 1} bytes announced, {most} are allowed"):
        edge.take_frame(frame, 0.0)
    (plain,) = ends()[0].encode(message())
    assert plain.header is not None
    plain.header.num_bytes = 4 * BATCH * TOKENS * HIDDEN + SLACK + 1
    with pytest.raises(ProtocolError, match="are allowed"):
        ends()[1].take_frame(plain, 0.0)


@pytest.mark.parametrize("fat", ["rows", "edges"])
def test_no_tensor_takes_the_room_of_another(fat: str) -> None:
    """The sum would be within its bound."""
    wide = Declared("edges", 8, 1 << 16, "float32", {FORWARD: "none"})
    thin = Declared("thin", 8, 2, "float32", {FORWARD: "none"})
    device, edge = ends(wide, thin)
    (frame,) = device.encode(message(edges=values(1, 8), thin=values(1, 8)))
    assert frame.header is not None
    entry = frame.header.named[1]
    data, room = bytes(frame.data), bytes(1 << 18)
    own = len(data) - sum(one.num_bytes for one in frame.header.named)
    if fat == "rows":
        data = data[:own] + room + data[own:]
    else:
        data, entry.num_bytes = data + room, entry.num_bytes + len(room)
    frame.header.num_bytes = len(data)
    sent = replace(frame, data=type(frame.data)([data]), wire_bytes=0)
    with pytest.raises(ProtocolError, match="allowed"):
        arrive([sent], edge)


def test_what_all_tensors_take_decoded_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    device, edge = ends(edges(), teacher())
    frames = device.encode(both())
    monkeypatch.setattr(
        "sfl.transport.device.stream_codecs.MAX_TENSOR_BYTES", 4 * (TOKENS * HIDDEN + 30 * 8)
    )
    with pytest.raises(ProtocolError, match="the limit"):
        arrive(frames, edge)


@pytest.mark.parametrize("name", ["edges", "teacher"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_none_is_refused_at_either_end(name: str, bad: float) -> None:
    declared = (edges(forward="none"), teacher())
    device, edge = ends(*declared)
    sent = both()
    sent.named[name][0, 3] = bad
    with pytest.raises(AdapterRefused, match=f"step 0.*tensor '{name}'"):
        device.encode(sent)
    lying = {one: parse("none").encode(tensor) for one, tensor in sent.named.items()}
    assert sent.rows is not None
    frames = encode_tensor(sent, parse("none").encode(sent.rows), lying)
    with pytest.raises(ProtocolError, match=f"tensor '{name}'"):
        arrive(frames, edge)


def test_an_end_sends_what_is_declared_and_nothing_else() -> None:
    device, _ = ends(edges(), teacher())
    with pytest.raises(ProtocolError, match="tensor 'teacher' is missing"):
        device.encode(message(edges=values(30, 8)))
    with pytest.raises(ProtocolError, match="tensor 'x' was not expected"):
        device.encode(replace(both(), named={**both().named, "x": values(1, 1)}))
    device, edge = ends()
    with pytest.raises(ProtocolError, match="tensor 'x' was not expected"):
        device.encode(message(x=values(1, 1)))
    sneaked = parse("none").encode(values(1, 1))
    rows = message().rows
    assert rows is not None
    with pytest.raises(ProtocolError, match="tensor 'x' was not expected"):
        arrive(encode_tensor(message(), parse("none").encode(rows), {"x": sneaked}), edge)


def test_a_message_of_several_tensors_takes_one_credit() -> None:
    device, edge = ends(edges(), teacher())
    for micro in range(2):
        arrive(device.encode(both(micro)), edge)
    assert (edge.credits.in_flight, edge.credits.waiting) == (2, 2)
    with pytest.raises(ProtocolError, match="3 micro-batches in flight"):
        arrive(device.encode(both(2)), edge)


def test_a_gradient_of_another_shape_than_what_was_sparse_is_refused() -> None:
    spec = {FORWARD: "topk(0.25) | int8", BACKWARD: "none"}
    device, edge = ends(Declared("a", 8, 6, "float32", spec))
    sent = message(a=values(6, 8))
    arrive(device.encode(sent), edge)
    answer = replace(sent, kind=Kind.GRADIENT, named={"a": values(5, 8)})
    with pytest.raises(ProtocolError, match=r"tensor 'a'.*shape \[5, 8\] of the gradient of \[6"):
        arrive(edge.encode(answer), device)


def test_the_same_of_rows() -> None:
    """Its lengths may be another's, and masks are of what was sent."""
    device, edge = ends(spec="topk(0.25) | int8")
    sent: Sequence[TensorMessage] = [message(), replace(message(), lengths=(7, 4))]
    arrive(device.encode(sent[0]), edge)
    answer = replace(sent[1], kind=Kind.GRADIENT, rows=values(11, HIDDEN))
    with pytest.raises(ProtocolError, match=r"shape \[11, 32\] of the gradient of \[12, 32\]"):
        arrive(edge.encode(answer), device)


def test_down_is_another_hop_with_tensors_of_its_own() -> None:
    back = Declared("edges", 8, 4, "float32", {Lane(DOWN, Toward.LOSS, False): "none"})
    device, edge = ends(back)
    arrive(device.encode(message()), edge)
    down = arrive(edge.encode(message(edges=values(4, 8))), device)
    assert set(down.named) == {"edges"}


def test_a_tensor_called_as_a_setting_is_coded_as_any_other() -> None:
    named = Declared("activation", 8, 40, "float32", {FORWARD: "delta(bigram) | int8"})
    device, _ = ends(named)
    codec = device.codecs._codec(FORWARD, "activation")
    assert codec is not None and codec.spec == "int8"
