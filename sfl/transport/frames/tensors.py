"""Tensors <-> frames of at most 1 MiB.

Only real rows travel, as a packet of the codec; the bytes that arrive are copied into memory of
torch's own when decoded, since an unaligned tensor gives other bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sfl.codec.integers import num_labels, pack_labels, unpack_labels
from sfl.codec.packet import Packet
from sfl.errors import ProtocolError
from sfl.node.buffers import Chunks
from sfl.rounds.values import NO_SCORE
from sfl.stage.layout import IGNORED
from sfl.stage.messages import Key, Kind, Purpose, TensorMessage
from sfl.transport.frames.chunks import Buffer, pieces
from sfl.transport.frames.envelope import Frame
from sfl.transport.frames.words import from_score, to_score
from sfl.v1 import tensor_pb2


def encode_tensor(message: TensorMessage, packet: Packet | None) -> list[Frame]:
    """A tensor message as frames; the first has the header, all look at the packet's payload."""
    kind: Any = int(message.kind)
    header = tensor_pb2.TensorHeader(
        kind=kind,
        purpose=int(message.key.purpose),  # type: ignore[arg-type]
        round=message.key.round,
        step=message.key.step,
        micro_batch=message.key.micro_batch,
        num_micro_batches=message.num_micro_batches,
        lengths=message.lengths,
        labels=b"" if message.labels is None else pack_labels(message.labels, IGNORED),
        normalizer=message.normalizer,
        loss=message.loss,
    )
    if message.score != NO_SCORE:
        header.score.CopyFrom(to_score(message.score))
    if packet is None:
        return [Frame(header, Chunks([]), True, kind, key=message.key)]
    header.codec, header.dtype = packet.codec, packet.dtype
    header.shape.extend(packet.shape)
    header.num_bytes = len(packet.payload)
    return [
        Frame(header if first else None, data, last, kind, key=message.key)
        for first, data, last in pieces(packet.payload, header.ByteSize())
    ]


def decode_tensor(
    header: tensor_pb2.TensorHeader, payload: Buffer
) -> tuple[TensorMessage, Packet | None]:
    """What frames carried: the message without its rows, and their packet.

    Raises ProtocolError on anything that does not fit, before it allocates.
    """
    lengths = tuple(header.lengths)
    if not lengths or min(lengths) < 1:
        raise ProtocolError("a tensor needs the length of each sequence, at least 1")
    if header.num_micro_batches < 1 or header.micro_batch >= header.num_micro_batches:
        raise ProtocolError(
            f"micro-batch {header.micro_batch} of {header.num_micro_batches} does not exist"
        )
    packet = None
    if header.codec:
        shape = tuple(header.shape)
        if len(shape) != 2 or shape[0] != sum(lengths):
            raise ProtocolError(f"shape {list(shape)} does not fit {sum(lengths)} tokens")
        packet = Packet(header.codec, header.dtype, shape, payload)
    try:
        kind, purpose = Kind(header.kind), Purpose(header.purpose)
    except ValueError as error:
        raise ProtocolError(str(error)) from None
    message = TensorMessage(
        kind=kind,
        key=Key(purpose, header.round, header.step, header.micro_batch),
        num_micro_batches=header.num_micro_batches,
        lengths=lengths,
        labels=_labels(header.labels, lengths) if header.labels else None,
        normalizer=header.normalizer,
        loss=header.loss,
        score=from_score(header.score),
    )
    return message, packet


def _labels(data: bytes, lengths: tuple[int, ...]) -> npt.NDArray[np.int32]:
    """One a token, or one a sequence: as many as there are, and no more than tokens."""
    count = num_labels(data)
    if count not in (sum(lengths), len(lengths)):
        raise ProtocolError(f"{count} labels for {sum(lengths)} tokens, {len(lengths)} sequences")
    return unpack_labels(data, count, IGNORED)


def raw_bytes(header: tensor_pb2.TensorHeader) -> int:
    """Four bytes a value of the tensor's real tokens."""
    return 4 * int(np.prod(header.shape, dtype=np.int64)) if header.codec else 0
