"""Frames, layouts and schedules: what crosses the cut comes out as it went in, or is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sfl.codec.pipeline import decode, parse
from sfl.codec.transform import RowContext
from sfl.config import TrainingSettings
from sfl.config.codec import RoleCodecs
from sfl.config.devices import LinkSettings
from sfl.errors import ConfigError, Corrupted, LinkLost, ProtocolError, Refused, RunFailed, SflError
from sfl.keys import derive_seed
from sfl.rounds.values import Score
from sfl.stage.layout import pack_labels, pack_rows, unpack_labels, unpack_rows
from sfl.stage.messages import Key, Kind, Purpose, TensorMessage
from sfl.stage.optimizer import learning_rate_factor
from sfl.transport.device.stream_codecs import StreamCodecs
from sfl.transport.frames.chunks import (
    AdapterAssembly,
    TensorAssembly,
    adapter_bytes,
    adapter_frames,
    decode_adapter,
    pieces,
)
from sfl.transport.frames.envelope import Envelope, Frame
from sfl.transport.frames.seal import Unreadable, seal, sound
from sfl.transport.frames.tensors import decode_tensor, encode_tensor, raw_bytes
from sfl.transport.frames.wire import FRAME_BYTES, wire_bytes
from sfl.transport.security.credentials import check_exposure, split_address
from sfl.transport.shaper import shaper
from sfl.transport.status import error_of, status_of
from sfl.v1 import cloud_pb2, edge_pb2, tensor_pb2


def message(rows: torch.Tensor, lengths: tuple[int, ...]) -> TensorMessage:
    return TensorMessage(
        kind=Kind.ACTIVATION,
        key=Key(Purpose.TRAINING, 3, 5, 1),
        num_micro_batches=2,
        lengths=lengths,
        rows=rows,
        labels=np.arange(sum(lengths), dtype=np.int32),
        normalizer=7,
        loss=0.25,
        score=Score(1.5, 2, 1, 2),
    )


def reassembled(sent: TensorMessage, codec: str = "none") -> TensorMessage:
    assembly = TensorAssembly(1 << 24)
    *more, last = [assembly.add(frame) for frame in frames_of(sent, codec)]
    assert not any(more)
    assert last is not None
    message, packet, _ = decode_tensor(*last)
    return message if packet is None else replace(message, rows=decode(packet))


def frames_of(sent: TensorMessage, codec: str = "none") -> list[Frame]:
    return encode_tensor(sent, None if sent.rows is None else parse(codec).encode(sent.rows))


@pytest.mark.parametrize("tokens", [3, 3000])
def test_a_tensor_survives_its_frames(tokens: int) -> None:
    sent = message(torch.randn(tokens, 256), (tokens - 1, 1))
    frames = frames_of(sent)
    assert len(frames) == (1 if tokens == 3 else 3)
    assert max(frame.wire_bytes for frame in frames) <= 1 << 20
    assert frames[0].header is not None
    assert raw_bytes(frames[0].header) == tokens * 1024
    back = reassembled(sent)
    assert sent.rows is not None and back.rows is not None and back.labels is not None
    assert torch.equal(back.rows, sent.rows)
    assert np.array_equal(back.labels, sent.labels)
    assert back.rows.data_ptr() % 64 == 0
    fields = ("kind", "key", "num_micro_batches", "lengths", "normalizer", "loss", "score")
    assert all(getattr(back, name) == getattr(sent, name) for name in fields)


@pytest.mark.parametrize("tokens", [3, 3000])
def test_a_frame_is_the_protobuf_message_it_says_it_is(tokens: int) -> None:
    envelope = Envelope(edge_pb2.DeviceMessage, edge_pb2.DeviceMessage.TENSOR_FIELD_NUMBER)
    sent = message(torch.randn(tokens, 256), (tokens - 1, 1))
    for frame in frames_of(sent):
        data = envelope.serialize(frame)
        assert len(data) == frame.wire_bytes
        by_protobuf = edge_pb2.DeviceMessage.FromString(data)
        by_protobuf.ClearField("checksum")
        assert by_protobuf == edge_pb2.DeviceMessage(tensor=frame.message())
        # And what protobuf itself writes, its fields in another order, reads as the same frame.
        for theirs in (data, seal(by_protobuf.SerializeToString())):
            back = envelope.parse(theirs)
            assert isinstance(back, Frame)
            assert (back.header, back.last, back.kind) == (frame.header, frame.last, frame.kind)
            assert bytes(back.data) == bytes(frame.data)


def test_other_messages_and_unknown_fields_go_through_protobuf() -> None:
    envelope = Envelope(edge_pb2.DeviceMessage, edge_pb2.DeviceMessage.TENSOR_FIELD_NUMBER)
    goodbye = edge_pb2.DeviceMessage(goodbye="done")
    assert envelope.parse(envelope.serialize(goodbye)) == goodbye
    (frame,) = frames_of(message(torch.randn(3, 4), (3,)))
    inner = frame.message().SerializeToString() + b"\x98\x06\x01"  # field 99 of a later version
    assert len(inner) < 128 + 128 * 128
    outer = b"\x1a" + bytes((len(inner) & 127 | 128, len(inner) >> 7)) + inner
    back = envelope.parse(seal(outer))
    assert (
        isinstance(back, Frame)
        and bytes(back.data) == bytes(frame.data)
        and back.header == frame.header
    )


@pytest.mark.parametrize("data", [b"\x1a", b"\x1a\x05\x12\x09", b"\x1a\x02\x0a\x7f", b"\x1a\xff"])
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    envelope = Envelope(edge_pb2.DeviceMessage, edge_pb2.DeviceMessage.TENSOR_FIELD_NUMBER)
    with pytest.raises(ProtocolError, match="is not protobuf"):
        sound(envelope.parse(seal(data)))


ENVELOPES = {
    "device": Envelope(edge_pb2.DeviceMessage, edge_pb2.DeviceMessage.TENSOR_FIELD_NUMBER),
    "edge": Envelope(cloud_pb2.EdgeReportMessage),
    "file": Envelope(edge_pb2.FileChunk),
}


def one_of(kind: str) -> Any:
    if kind == "file":
        return "file", edge_pb2.FileChunk(data=b"weights" * 9)
    if kind in ("labels", "score"):
        rows = torch.randn(4, 8) if kind == "labels" else None
        what = Kind.ACTIVATION if kind == "labels" else Kind.SCORE
        key = Key(Purpose.EVALUATION, 1, 0, 0)
        (frame,) = frames_of(
            TensorMessage(what, key, 1, (3, 1), rows=rows, labels=np.array([1, 2, 3, 4], np.int32))
        )
        return "device", frame
    header = tensor_pb2.AdapterHeader(round=1, device="d", side="edge", num_bytes=9, scaling=2.0)
    adapter = tensor_pb2.AdapterFrame(header=header, data=b"123456789", last=True)
    bodies: dict[str, Any] = {
        "norm": edge_pb2.DeviceMessage(norm=edge_pb2.GradientNorm(round=1, step=2, squared=3.0)),
        "report": cloud_pb2.EdgeReportMessage(report=tensor_pb2.RoundReport(round=1, device="d")),
        "adapter": cloud_pb2.EdgeReportMessage(adapter=adapter),
        "hello": edge_pb2.DeviceMessage(hello=edge_pb2.DeviceHello(device="d", wire_version=5)),
    }
    return "device" if kind in ("norm", "hello") else "edge", bodies[kind]


@pytest.mark.parametrize("kind", ["file", "labels", "score", "norm", "report", "adapter", "hello"])
def test_no_bit_of_a_message_flips_unnoticed(kind: str) -> None:
    name, sent = one_of(kind)
    envelope: Any = ENVELOPES[name]
    data = envelope.serialize(sent)
    assert len(data) == wire_bytes(sent)
    sound(envelope.parse(data))
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        back = envelope.parse(bytes(flipped))
        if kind == "hello" and not isinstance(back, Unreadable):
            assert back.hello == sent.hello  # only what says that there is a checksum was hit
            continue
        with pytest.raises(Corrupted, match="bytes changed on the way"):
            sound(back)
    for cut in range(len(data)):
        assert isinstance(envelope.parse(data[:cut]), Unreadable) or kind == "hello"


def test_a_hello_of_an_older_sfl_is_understood() -> None:
    old = edge_pb2.DeviceMessage(hello=edge_pb2.DeviceHello(device="d", wire_version=4))
    back = ENVELOPES["device"].parse(old.SerializeToString())
    assert back == old
    other = edge_pb2.DeviceMessage(goodbye="done").SerializeToString()
    assert isinstance(ENVELOPES["device"].parse(other), Unreadable)


def test_a_message_without_a_payload_survives_too() -> None:
    sent = TensorMessage(Kind.SCORE, Key(Purpose.EVALUATION, 1, 0, 0), 1, (2,))
    assert reassembled(sent) == sent


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lengths": []}, "length of each sequence"),
        ({"lengths": [3, 0]}, "at least 1"),
        ({"lengths": [9]}, "does not fit 9 tokens"),
        ({"micro_batch": 2}, "does not exist"),
        ({"num_micro_batches": 0}, "does not exist"),
        ({"labels": b"\x03123"}, "3 labels for 4 tokens"),
        ({"labels": b"\x04\x63"}, "packed labels without a width"),
        ({"kind": 0}, "not a valid Kind"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(change: dict[str, object], words: str) -> None:
    (frame,) = frames_of(message(torch.randn(4, 8), (3, 1)))
    header = frame.header
    assert header is not None
    for name, value in change.items():
        header.ClearField(name)  # type: ignore[arg-type]
        header.MergeFrom(tensor_pb2.TensorHeader(**{name: value}))  # type: ignore[arg-type]
    with pytest.raises(ProtocolError, match=words):
        decode_tensor(header, frame.data)


def cuts(codec: str, gradient: str = "none") -> tuple[StreamCodecs, StreamCodecs]:
    """Both ends of one stream."""
    roles = RoleCodecs(
        activation=codec,
        gradient=gradient,
        hidden=codec,
        tail_gradient=gradient,
        evaluation="fp16",
    )
    ends = StreamCodecs("device", "d", 0, True), StreamCodecs("edge", "d", 0, True)
    for end in ends:
        end.begin_round(roles, 2)
    return ends


@pytest.mark.parametrize(
    ("sender", "kind", "drawn_by"),
    [
        ("device", Kind.ACTIVATION, "ACTIVATION"),
        ("edge", Kind.ACTIVATION, "HIDDEN"),
        ("edge", Kind.GRADIENT, "GRADIENT"),
        ("device", Kind.GRADIENT, "GRADIENT"),
    ],
)
@pytest.mark.parametrize("purpose", list(Purpose))
def test_random_bits_are_drawn_by_words_that_stay(
    sender: str, kind: Kind, drawn_by: str, purpose: Purpose
) -> None:
    """Another word would give every seed another adapter."""
    roles = RoleCodecs.model_validate(dict.fromkeys(RoleCodecs.model_fields, "stochastic(4)"))
    end = dict(zip(("device", "edge"), cuts("none"), strict=True))[sender]
    end.begin_round(roles, 1)
    sent = replace(message(torch.randn(4, 8), (3, 1)), kind=kind, key=Key(purpose, 3, 5, 1))
    packet = end.encode(sent)
    seed = derive_seed(0, "d", 3, 5, 1, drawn_by, purpose.name) & 0xFFFFFFFF
    assert packet is not None and sent.rows is not None
    wanted = parse("stochastic(4)").encode(sent.rows, seed, sent.lengths)
    assert bytes(packet.payload) == bytes(wanted.payload)


def test_a_score_has_no_tensor() -> None:
    _, edge = cuts("none")
    packet = parse("none").encode(torch.ones(4, 8))
    with pytest.raises(ProtocolError, match="a SCORE has no tensor"):
        edge.decode(packet, replace(message(torch.ones(4, 8), (3, 1)), kind=Kind.SCORE), 8)


def test_rows_of_another_width_are_refused_before_they_are_decoded() -> None:
    device, edge = cuts("none")
    sent = message(torch.randn(4, 8), (3, 1))
    packet = device.encode(sent)
    assert packet is not None
    with pytest.raises(ProtocolError, match=r"d, activation of round 3, step 5.*shape"):
        edge.decode(packet, sent, 16)


@pytest.mark.parametrize("codec", ["none", "int8", "uniform(1)"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_by_name(codec: str, bad: float) -> None:
    device, edge = cuts(codec)
    rows = torch.randn(4, 8)
    rows[2, 3] = bad
    sent = message(rows, (3, 1))
    with pytest.raises(ProtocolError, match=r"d, activation of round 3, step 5.*(NaN|finite)"):
        packet = device.encode(sent)
        assert packet is not None
        edge.decode(packet, sent, 8)


def test_the_gradient_of_what_was_left_out_is_zero() -> None:
    device, edge = cuts("topk(0.25) | fp16")
    sent = message(torch.randn(4, 8), (3, 1))
    packet = device.encode(sent)
    assert packet is not None
    arrived = edge.decode(packet, sent, 8).rows
    gradient = replace(sent, kind=Kind.GRADIENT, rows=torch.ones(4, 8))
    back = edge.encode(gradient)
    assert back is not None and arrived is not None
    landed = device.decode(back, gradient, 8).rows
    assert landed is not None and torch.equal(landed != 0, arrived != 0)


def test_a_change_of_codec_forgets_what_delta_remembered() -> None:
    rows = torch.randn(6, 8).repeat(2, 1)
    own = np.arange(12) % 6
    sent = replace(message(rows, (6, 6)), context=RowContext(own, own, np.zeros(12, np.int64), own))
    device, edge = cuts("delta(token) | int(8)")

    def pass_on() -> int:
        packet = device.encode(sent)
        assert packet is not None
        arrived = edge.decode(packet, sent, 8).rows
        assert arrived is not None
        assert float((arrived - rows).abs().max()) < 0.02
        return len(packet.payload)

    roles = RoleCodecs(
        activation="delta(token) | int(8)",
        gradient="none",
        hidden="none",
        tail_gradient="none",
        evaluation="none",
    )
    pass_on()
    for activation in ("fp16", "delta(token) | int(8)"):
        for end in (device, edge):
            end.begin_round(roles.model_copy(update={"activation": activation}), 2)
        pass_on()


def test_a_codec_that_is_not_due_is_refused_before_it_may_allocate() -> None:
    _, edge = cuts("int8")
    sent = message(torch.randn(4, 8), (3, 1))
    for spec in ("none", "delta(sample, 16777216) | int8"):
        packet = replace(parse("int8").encode(torch.ones(4, 8)), codec=spec)
        with pytest.raises(ProtocolError, match="was not expected"):
            edge.decode(packet, sent, 8)


def test_evaluation_has_a_codec_of_its_own() -> None:
    device, edge = cuts("int(2)")
    sent = replace(message(torch.randn(4, 8), (3, 1)), key=Key(Purpose.EVALUATION, 3, 0, 0))
    packet = device.encode(sent)
    assert packet is not None and packet.codec == "fp16"
    arrived = edge.decode(packet, sent, 8).rows
    assert arrived is not None and sent.rows is not None
    assert torch.equal(arrived, sent.rows.half().float())


def test_kinds_of_tensors_may_alternate_on_a_stream() -> None:
    large = message(torch.randn(3000, 256), (2999, 1))
    gradient = replace(large, kind=Kind.GRADIENT, labels=None)
    assembly = TensorAssembly(1 << 24)
    first, *rest = frames_of(large)
    assert assembly.add(first) is None
    whole = [assembly.add(frame) for frame in frames_of(gradient)]
    assert whole[-1] is not None and whole[-1][0].kind == Kind.GRADIENT
    done = [assembly.add(frame) for frame in rest][-1]
    assert done is not None and done[0].kind == Kind.ACTIVATION


def test_a_shaped_link_serves_one_message_after_the_other() -> None:
    line = shaper(LinkSettings(up_mbit=8.0, delay_ms=50.0), "up")
    assert line is not None
    assert line.admit(0.0, 1_000_000) == pytest.approx((1.0, 1.05))
    assert line.admit(0.2, 500_000) == pytest.approx((1.5, 1.55))
    assert line.admit(9.0, 0) == pytest.approx((9.0, 9.05))
    assert shaper(LinkSettings(up_mbit=8.0), "down") is None
    assert shaper(LinkSettings(), "up") is None


def test_frames_out_of_order_are_refused() -> None:
    first, *_, last = frames_of(message(torch.randn(3000, 256), (2999, 1)))
    with pytest.raises(ProtocolError, match="without a header"):
        TensorAssembly(1 << 24).add(last)
    assembly = TensorAssembly(1 << 24)
    assembly.add(first)
    with pytest.raises(ProtocolError, match="new header"):
        assembly.add(first)
    with pytest.raises(ProtocolError, match="allowed"):
        TensorAssembly(100).add(first)
    assembly = TensorAssembly(1 << 24)
    assembly.add(first)
    with pytest.raises(ProtocolError, match="announced"):
        assembly.add(last)


def test_an_adapter_survives_its_frames() -> None:
    values = {"b": np.ones((2, 3), np.float32), "a": np.full((700, 700), 0.5, np.float32)}
    header = tensor_pb2.AdapterHeader(round=1, device="d", side="edge")
    frames = list(adapter_frames(header, adapter_bytes(values)))
    assembly = AdapterAssembly(1 << 24)
    whole = [assembly.add(frame) for frame in frames][-1]
    assert whole is not None
    back = decode_adapter(whole[1])
    assert {name: array.tolist() for name, array in back.items()} == {
        name: array.tolist() for name, array in values.items()
    }
    with pytest.raises(ProtocolError, match="safetensors"):
        decode_adapter(b"nonsense")


@pytest.mark.parametrize("size", [0, 1, FRAME_BYTES, FRAME_BYTES + 1, 3 * FRAME_BYTES])
def test_pieces_are_whole_and_marked(size: int) -> None:
    parts = list(pieces(bytes(size)))
    assert sum(len(data) for _, data, _ in parts) == size
    assert [first for first, _, _ in parts] == [True] + [False] * (len(parts) - 1)
    assert [last for _, _, last in parts] == [False] * (len(parts) - 1) + [True]


@pytest.mark.parametrize("lengths", [(4, 4), (4, 2), (1, 4, 3)])
def test_only_real_rows_travel_and_padding_comes_back_as_zeros(lengths: tuple[int, ...]) -> None:
    padded = torch.randn(len(lengths), max(lengths), 5)
    rows = pack_rows(padded, lengths)
    assert rows.shape == (sum(lengths), 5)
    back = unpack_rows(rows, lengths)
    for row, length in enumerate(lengths):
        assert torch.equal(back[row, :length], padded[row, :length])
        assert not back[row, length:].any()
    labels = torch.randint(0, 9, padded.shape[:2])
    again = unpack_labels(pack_labels(labels, lengths), lengths, per_token=True)
    for row, length in enumerate(lengths):
        assert torch.equal(again[row, :length], labels[row, :length])
        assert (again[row, length:] == -100).all()
    classes = torch.arange(len(lengths))
    assert torch.equal(unpack_labels(pack_labels(classes, lengths), lengths, False), classes)


@pytest.mark.parametrize("warmup", [0, 3])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_schedules_are_those_of_transformers(schedule: str, warmup: int) -> None:
    from transformers.optimization import get_scheduler

    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=1.0)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    theirs = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=10)
    settings = TrainingSettings(schedule=schedule, warmup_steps=warmup)  # type: ignore[arg-type]
    for step in range(10):
        assert learning_rate_factor(settings, step, 10) == theirs.get_last_lr()[0]
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("address", ["", "localhost", "h:x", "h:70000", ":1"])
def test_addresses_are_checked(address: str) -> None:
    with pytest.raises(ConfigError, match="host:port"):
        split_address("edge.listen", address)


@pytest.mark.parametrize("address", ["127.0.0.1:0", "localhost:1", "[::1]:5"])
def test_loopback_needs_no_flag(address: str) -> None:
    check_exposure("edge.listen", address, insecure=False)


@pytest.mark.parametrize("address", ["0.0.0.0:1", "192.168.0.2:1", "example.org:1", "[::]:1"])
def test_other_addresses_need_insecure_and_warn(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError, match="--insecure"):
        check_exposure("edge.listen", address, insecure=False)
    check_exposure("edge.listen", address, insecure=True)
    assert "NOT encrypted" in caplog.text


class Failure:
    """A failed call of gRPC, as far as it is looked at."""

    def __init__(self, error: SflError) -> None:
        self._error = error

    def code(self) -> object:
        return status_of(self._error)

    def details(self) -> str:
        return str(self._error)


@pytest.mark.parametrize("kind", [ProtocolError, Refused, RunFailed, LinkLost])
def test_errors_cross_the_wire_as_what_they_are(kind: type[SflError]) -> None:
    back = error_of(Failure(kind("why")), "edge")  # type: ignore[arg-type]
    assert type(back) is kind
    assert "why" in str(back)


def test_a_setting_that_fails_at_the_peer_is_a_refusal_with_its_words() -> None:
    own = ConfigError("edge.cache_dir", "/nowhere", "cannot be written", "Name another folder.")
    back = error_of(Failure(own), "edge at [::1]:9")  # type: ignore[arg-type]
    assert type(back) is Refused
    assert str(back) == f"edge at [::1]:9: {own}"
