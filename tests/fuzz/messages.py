"""Frames and whole messages for the ends that take them apart: mutated, and put out of order."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import numpy as np
from google.protobuf.message import DecodeError, Message

from sfl.codec.pipeline import Decoder
from sfl.errors import ProtocolError
from sfl.metrics.snapshot import NodeSnapshot
from sfl.metrics.timeline import spans_from_json
from sfl.stage.messages import Key, Kind, Purpose, TensorMessage
from sfl.transport.frames.chunks import Assembly, adapter_bytes, adapter_frames, decode_adapter
from sfl.transport.frames.envelope import Envelope, Frame
from sfl.transport.frames.seal import SEAL_BYTES, seal
from sfl.transport.frames.tensors import decode_tensor, encode_tensor
from sfl.v1 import cloud_pb2, edge_pb2, tensor_pb2
from tests.fuzz import packets
from tests.fuzz.mutate import mutated

LIMIT = 1 << 24
DEVICE = Envelope(edge_pb2.DeviceMessage, edge_pb2.DeviceMessage.TENSOR_FIELD_NUMBER)
EDGE = Envelope(edge_pb2.EdgeMessage, edge_pb2.EdgeMessage.TENSOR_FIELD_NUMBER)


def tensors(seed: int) -> list[bytes]:
    """Tensor messages as their bytes: every codec, with labels and without, alone and several."""
    made, generator = [], np.random.default_rng(seed)
    cases = list(packets.cases(seed))
    for number, case in enumerate(cases):
        rows = len(case.rows)
        labels = generator.integers(-1, 40, rows).astype(np.int32) if number % 2 else None
        key = Key(Purpose.TRAINING, 1, number, 0)
        message = TensorMessage(Kind.ACTIVATION, key, 1, (rows,), labels=labels)
        beside = {f"x{n}": cases[number - n].packet() for n in range(number % 3)}
        made += [DEVICE.serialize(frame) for frame in encode_tensor(message, case.packet(), beside)]
    return made


def fuzz_frames(inputs: int, seed: int) -> Iterator[bool]:
    """Whether each mutated tensor message, alone or behind an honest one, gave a tensor.

    Most have the checksum of what they became, as a hostile peer would send them.
    """
    rng, honest = random.Random(seed), tensors(seed)
    for _ in range(inputs):
        data = mutated(rng.choice(honest)[:-SEAL_BYTES], rng, rng.choice(honest))
        if rng.random() < 0.97:
            data = seal(data)
        before = [rng.choice(honest)] if rng.random() < 0.2 else []
        yield _decoded([*before, data])


def _decoded(messages: Sequence[bytes]) -> bool:
    assembly: Assembly[tensor_pb2.TensorHeader] = Assembly(LIMIT)
    decoder, taken = Decoder(), False
    for data in messages:
        try:
            frame = DEVICE.parse(data)
            if not isinstance(frame, Frame):
                return False
            whole = assembly.add(frame)
            if whole is None:
                continue
            message, packet, named = decode_tensor(*whole)
            assert packet is not None or not named
            assert sum(len(one.payload) for one in named.values()) <= len(whole[1])
            for one in named.values():
                assert bool(Decoder().decode(one).isfinite().all())
            assert sum(message.lengths) > 0
            if packet is not None:
                rows = decoder.decode(packet)
                assert rows.shape[0] == sum(message.lengths) and bool(rows.isfinite().all())
            taken = True
        except (DecodeError, ProtocolError):
            return False
    return taken


def whole_messages() -> list[tuple[type[Message], bytes]]:
    """One of every kind of message that crosses either hop."""
    adapter = {"a": np.ones((2, 3), np.float32), "b": np.zeros((3, 2), np.float32)}
    header = tensor_pb2.AdapterHeader(round=1, device="d", side="device", scaling=2.0)
    frames = list(adapter_frames(header, adapter_bytes(adapter)))
    snapshot = NodeSnapshot("d", "device").to_json()
    report = tensor_pb2.RoundReport(
        round=1, device="d", num_steps=2, train_loss=1.0, snapshot=snapshot, spans="[]"
    )
    ready = edge_pb2.DeviceReady(num_examples=9, num_eval_examples=2, snapshot=snapshot)
    plan = [
        edge_pb2.HeldSpan(last=1, embedding=True, holder=edge_pb2.HOLDER_DEVICE),
        edge_pb2.HeldSpan(first=1, last=4, head=True, holder=edge_pb2.HOLDER_EDGE),
    ]
    start = edge_pb2.Assignment(
        round=1, num_steps=2, total_steps=4, codecs="{}", micro_batches=1, plan=plan, rank=8,
        scaling=2.0, credits=4,
    )  # fmt: skip
    device = [
        edge_pb2.DeviceMessage(hello=edge_pb2.DeviceHello(device="d", wire_version=1)),
        edge_pb2.DeviceMessage(ready=ready),
        edge_pb2.DeviceMessage(norm=edge_pb2.GradientNorm(round=1, squared=2.0)),
        edge_pb2.DeviceMessage(report=report),
        edge_pb2.DeviceMessage(heartbeat=tensor_pb2.Heartbeat(snapshot=snapshot)),
        edge_pb2.DeviceMessage(goodbye="done"),
        *(edge_pb2.DeviceMessage(adapter=frame) for frame in frames),
    ]
    edge = [
        edge_pb2.EdgeMessage(welcome=edge_pb2.Welcome(settings="{}", run_id="r", assignment=start)),
        edge_pb2.EdgeMessage(start=start),
        edge_pb2.EdgeMessage(finish=edge_pb2.Finish(ok=True)),
        *(edge_pb2.EdgeMessage(adapter=frame) for frame in frames),
    ]
    to_cloud = [
        cloud_pb2.EdgeReportMessage(hello=cloud_pb2.EdgeHello(edge="e", wire_version=1)),
        cloud_pb2.EdgeReportMessage(report=report),
        cloud_pb2.EdgeReportMessage(failure="no"),
        *(cloud_pb2.EdgeReportMessage(adapter=frame) for frame in frames),
    ]
    return [(type(m), m.SerializeToString()) for m in (*device, *edge, *to_cloud)]


def fuzz_messages(inputs: int, seed: int) -> Iterator[bool]:
    """Whether each mutated message of any kind, read as deep as it goes, held what it should."""
    rng, honest = random.Random(seed), whole_messages()
    for _ in range(inputs):
        kind, data = rng.choice(honest)
        yield _read(kind, mutated(data, rng, rng.choice(honest)[1]), rng)


def _read(kind: type[Message], data: bytes, rng: random.Random) -> bool:
    try:
        message = kind.FromString(data)
        body = message.WhichOneof("body")
        if body == "adapter":
            frame = message.adapter  # type: ignore[attr-defined]
            whole = Assembly(LIMIT).add(frame)
            if whole is not None:
                decode_adapter(whole[1])
        elif body is not None and hasattr(inner := getattr(message, body), "snapshot"):
            NodeSnapshot.from_json(inner.snapshot)
            spans_from_json(mutated(b'[["d",1,0.5,2.5]]', rng).decode("utf-8", "replace"))
    except (DecodeError, ProtocolError):
        return False
    return True
