"""Tensors <-> frames of at most 1 MiB.

Only real rows travel, as a packet of the codec; the bytes that arrive are copied into memory of
torch's own when decoded, since an unaligned tensor gives other bits.
"""

from __future__ import annotations

import numpy as np

from sfl.codec import Codec, Packet, decode
from sfl.errors import ProtocolError
from sfl.stage.loss import Score
from sfl.stage.messages import Key, Kind, Purpose, TensorMessage
from sfl.transport.chunks import pieces
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
        for first, data, last in pieces(packet.payload, header.ByteSize())
    ]


def decode_tensor(
    header: tensor_pb2.TensorHeader, payload: bytes, hidden: int | None = None
) -> TensorMessage:
    """The message that frames carried, its rows `hidden` wide where that is given.

    Raises ProtocolError on anything that does not fit, before it allocates.
    """
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
        due = (shape[0], shape[1] if hidden is None else hidden)
        rows = decode(Packet(header.codec, header.dtype, shape, payload), due)
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
