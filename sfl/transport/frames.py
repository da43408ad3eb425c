"""Tensors and adapters <-> frames of at most 1 MiB.

Only real rows travel, as a packet of the codec; the bytes that arrive are copied into memory of
torch's own when decoded, since an unaligned tensor gives other bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import safetensors
import safetensors.numpy

from sfl.codec import Codec, Packet, decode
from sfl.errors import ProtocolError
from sfl.stage.loss import Score
from sfl.stage.messages import Key, Kind, Purpose, TensorMessage
from sfl.transport.wire import FRAME_BYTES
from sfl.v1 import tensor_pb2


def encode_tensor(message: TensorMessage, codec: Codec) -> list[tensor_pb2.TensorFrame]:
    """A tensor message as frames; the first has the header."""
    packet = None if message.rows is None else codec.encode(message.rows)
    header = tensor_pb2.TensorHeader(
        kind=int(message.kind),  # type: ignore[arg-type]
        purpose=int(message.key.purpose),  # type: ignore[arg-type]
        round=message.key.round,
        step=message.key.step,
        micro_batch=message.key.micro_batch,
        num_micro_batches=message.num_micro_batches,
        lengths=message.lengths,
        labels=b"" if message.labels is None else message.labels.astype("<i4").tobytes(),
        normalizer=message.normalizer,
        loss=message.loss,
        score=to_score(message.score),
    )
    if packet is None:
        return [tensor_pb2.TensorFrame(header=header, last=True)]
    header.codec, header.dtype = packet.codec, packet.dtype
    header.shape.extend(packet.shape)
    header.num_bytes = len(packet.payload)
    return [
        tensor_pb2.TensorFrame(header=header if first else None, data=data, last=last)
        for first, data, last in _pieces(packet.payload)
    ]


def decode_tensor(header: tensor_pb2.TensorHeader, payload: bytes) -> TensorMessage:
    """The message that frames carried. Raises ProtocolError on anything that does not fit."""
    lengths = tuple(header.lengths)
    if not lengths or min(lengths) < 1:
        raise ProtocolError("a tensor needs the length of each sequence, at least 1")
    if header.num_micro_batches < 1 or header.micro_batch >= header.num_micro_batches:
        raise ProtocolError(
            f"micro-batch {header.micro_batch} of {header.num_micro_batches} does not exist"
        )
    rows = None
    if header.codec:
        shape = tuple(header.shape)
        if len(shape) != 2 or shape[0] != sum(lengths):
            raise ProtocolError(f"shape {list(shape)} does not fit {sum(lengths)} tokens")
        rows = decode(Packet(header.codec, header.dtype, shape, payload))
    if len(header.labels) % 4:
        raise ProtocolError("labels are not a whole number of int32")
    try:
        kind, purpose = Kind(header.kind), Purpose(header.purpose)
    except ValueError as error:
        raise ProtocolError(str(error)) from None
    return TensorMessage(
        kind=kind,
        key=Key(purpose, header.round, header.step, header.micro_batch),
        num_micro_batches=header.num_micro_batches,
        lengths=lengths,
        rows=rows,
        labels=np.frombuffer(header.labels, "<i4") if header.labels else None,
        normalizer=header.normalizer,
        loss=header.loss,
        score=from_score(header.score),
    )


def raw_bytes(header: tensor_pb2.TensorHeader) -> int:
    """Four bytes a value of the tensor's real tokens."""
    return 4 * int(np.prod(header.shape, dtype=np.int64)) if header.codec else 0


def encode_adapter(
    header: tensor_pb2.AdapterHeader, values: Mapping[str, np.ndarray]
) -> list[tensor_pb2.AdapterFrame]:
    """An adapter's part as frames of one safetensors file."""
    return list(adapter_frames(header, adapter_bytes(values)))


def adapter_bytes(values: Mapping[str, np.ndarray]) -> bytes:
    """An adapter's part as a safetensors file."""
    return safetensors.numpy.save(dict(values))


def adapter_frames(
    header: tensor_pb2.AdapterHeader, payload: bytes
) -> Iterator[tensor_pb2.AdapterFrame]:
    """A safetensors file as frames; the first has the header."""
    header.num_bytes = len(payload)
    for first, data, last in _pieces(payload):
        yield tensor_pb2.AdapterFrame(header=header if first else None, data=data, last=last)


def decode_adapter(payload: bytes) -> dict[str, np.ndarray]:
    """The values of a safetensors file. Raises ProtocolError."""
    try:
        return safetensors.numpy.load(payload)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ProtocolError(f"an adapter is not a safetensors file: {error}") from None


def to_score(score: Score) -> tensor_pb2.Score:
    """A score as the wire has it."""
    return tensor_pb2.Score(
        loss_sum=score.loss_sum,
        num_targets=score.num_targets,
        num_correct=score.num_correct,
        num_examples=score.num_examples,
    )


def from_score(score: tensor_pb2.Score) -> Score:
    """A score from the wire."""
    return Score(score.loss_sum, score.num_targets, score.num_correct, score.num_examples)


Header = tensor_pb2.TensorHeader | tensor_pb2.AdapterHeader
Frame = tensor_pb2.TensorFrame | tensor_pb2.AdapterFrame


@dataclass(slots=True)
class Assembly:
    """Puts one kind of frames together; a stream has one for each kind."""

    limit: int
    header: Header | None = None
    data: bytearray = field(default_factory=bytearray)

    def add(self, frame: Frame) -> tuple[Header, bytes] | None:
        """Take a frame; the header and the whole payload with the last one.

        Raises ProtocolError on frames out of order and on more bytes than announced or allowed.
        """
        if frame.HasField("header"):
            self._begin(frame.header)
        if self.header is None:
            raise ProtocolError("a frame without a header before it")
        self.data += frame.data
        if len(self.data) > self.header.num_bytes:
            raise ProtocolError(f"more than the announced {self.header.num_bytes} bytes")
        if not frame.last:
            return None
        header, payload = self.header, bytes(self.data)
        self.header, self.data = None, bytearray()
        if len(payload) != header.num_bytes:
            raise ProtocolError(f"{len(payload)} bytes came, {header.num_bytes} were announced")
        return header, payload

    def _begin(self, header: Header) -> None:
        if self.header is not None:
            raise ProtocolError("a new header before the last frame of the one before")
        if header.num_bytes > self.limit:
            raise ProtocolError(f"{header.num_bytes} bytes announced, {self.limit} are allowed")
        self.header = header


def _pieces(payload: bytes) -> Iterator[tuple[bool, bytes, bool]]:
    """(first, data, last) of each frame; an empty payload is one empty frame."""
    starts = range(0, len(payload), FRAME_BYTES) or range(1)
    for start in starts:
        data = payload[start : start + FRAME_BYTES]
        yield start == 0, data, start + FRAME_BYTES >= len(payload)
