"""Tensors <-> frames of at most 1 MiB.

Only real rows travel, as a packet of the codec; the bytes that arrive are copied into memory of
torch's own when decoded, since an unaligned tensor gives other bits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from sfl.codec.integers import num_labels, pack_labels, unpack_labels
from sfl.codec.packet import Packet
from sfl.errors import ProtocolError
from sfl.metrics.transfers import Held
from sfl.node.buffers import Chunks
from sfl.rounds.values import NO_SCORE
from sfl.stage.layout import IGNORED
from sfl.stage.messages import Key, Kind, Purpose, TensorMessage
from sfl.transport.frames.chunks import Buffer, pieces
from sfl.transport.frames.envelope import Frame
from sfl.transport.frames.words import from_score, to_score
from sfl.v1 import tensor_pb2

NAME = re.compile("[a-z][a-z0-9_]{0,31}")
MOST_NAMED = 16
"""Tensors that one message may have beside its rows."""

KEY_BYTES = 16
"""Of what tells a sequence from all others."""

ALONE: Mapping[str, Packet] = MappingProxyType({})
"""No tensor beside the rows."""


def encode_tensor(
    message: TensorMessage,
    packet: Packet | None,
    named: Mapping[str, Packet] = ALONE,
    held: Held | None = None,
) -> list[Frame]:
    """A tensor message as frames; the first has the header, all look at the packets' payloads.

    The packets of `named` tensors follow the one of its rows. `held` is for an answer.
    """
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
        ids=b"" if message.ids is None else pack_labels(message.ids, IGNORED),
        sequence_keys=message.sequence_keys,
    )
    if held is not None:
        header.arrived_us = round(1e6 * held.arrived)
        # Of a fixed width, and never 0: what a run sends does not depend on how quick it is.
        header.held_us = min(max(1, round(1e6 * (held.ready - held.arrived))), (1 << 32) - 1)
    if message.score != NO_SCORE:
        header.score.CopyFrom(to_score(message.score))
    if packet is None:
        return [Frame(header, Chunks([]), True, kind, key=message.key)]
    header.codec, header.dtype = packet.codec, packet.dtype
    header.shape.extend(packet.shape)
    for name, one in named.items():
        header.named.add(
            name=name,
            codec=one.codec,
            dtype=one.dtype,
            shape=one.shape,
            num_bytes=len(one.payload),
        )
    payload = _joined([packet.payload, *(one.payload for one in named.values())])
    header.num_bytes = len(payload)
    return [
        Frame(header if first else None, data, last, kind, key=message.key)
        for first, data, last in pieces(payload, header.ByteSize())
    ]


def _joined(payloads: Sequence[Buffer]) -> Buffer:
    """One behind the other, without copies."""
    if len(payloads) == 1:
        return payloads[0]
    whole = [one if isinstance(one, Chunks) else Chunks([one]) for one in payloads]
    return Chunks([piece for one in whole for piece in one.pieces])


def decode_tensor(
    header: tensor_pb2.TensorHeader, payload: Buffer
) -> tuple[TensorMessage, Packet | None, dict[str, Packet]]:
    """What frames carried: the message without its tensors, and their packets.

    Raises ProtocolError on anything that does not fit, before it allocates.
    """
    lengths = tuple(header.lengths)
    if not lengths or min(lengths) < 1:
        raise ProtocolError("a tensor needs the length of each sequence, at least 1")
    if header.num_micro_batches < 1 or header.micro_batch >= header.num_micro_batches:
        raise ProtocolError(
            f"micro-batch {header.micro_batch} of {header.num_micro_batches} does not exist"
        )
    packet: Packet | None = None
    named: dict[str, Packet] = {}
    if header.codec:
        shape = tuple(header.shape)
        if len(shape) != 2 or shape[0] != sum(lengths):
            raise ProtocolError(f"shape {list(shape)} does not fit {sum(lengths)} tokens")
        payload, named = _named(header, payload)
        packet = Packet(header.codec, header.dtype, shape, payload)
    elif header.named:
        raise ProtocolError("named tensors came without the rows that they travel beside")
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
        ids=_labels(header.ids, lengths) if header.ids else None,
        sequence_keys=_sequence_keys(header),
    )
    return message, packet, named


def _named(header: tensor_pb2.TensorHeader, payload: Buffer) -> tuple[Buffer, dict[str, Packet]]:
    """The payload of the header's own tensor, and the packets behind it. Raises ProtocolError."""
    if not header.named:
        return payload, {}
    if len(header.named) > MOST_NAMED:
        raise ProtocolError(f"{len(header.named)} named tensors; {MOST_NAMED} are allowed")
    whole = payload if isinstance(payload, Chunks) else Chunks([payload])
    at = len(whole) - sum(entry.num_bytes for entry in header.named)
    if at < 0:
        raise ProtocolError(f"named tensors of more than the {len(whole)} bytes that came")
    own = whole.cut(0, at)
    packets: dict[str, Packet] = {}
    for entry in header.named:
        if not NAME.fullmatch(entry.name) or entry.name in packets:
            raise ProtocolError(f"{entry.name!r:.40} is no name of a tensor, or comes twice")
        if len(entry.shape) != 2:
            raise ProtocolError(f"tensor {entry.name!r} has {len(entry.shape)} dimensions, not 2")
        data = whole.cut(at, entry.num_bytes)
        packets[entry.name] = Packet(entry.codec, entry.dtype, tuple(entry.shape), data)
        at += entry.num_bytes
    return own, packets


def _sequence_keys(header: tensor_pb2.TensorHeader) -> tuple[bytes, ...]:
    """One a sequence, or none."""
    keys = tuple(header.sequence_keys)
    if keys and (len(keys) != len(header.lengths) or {len(key) for key in keys} != {KEY_BYTES}):
        raise ProtocolError(f"keys of {len(keys)} sequences, where {len(header.lengths)} have come")
    return keys


def _labels(data: bytes, lengths: tuple[int, ...]) -> npt.NDArray[np.int32]:
    """One a token, or one a sequence: as many as there are, and no more than tokens."""
    count = num_labels(data)
    if count not in (sum(lengths), len(lengths)):
        raise ProtocolError(f"{count} labels for {sum(lengths)} tokens, {len(lengths)} sequences")
    return unpack_labels(data, count, IGNORED)


def held_of(header: tensor_pb2.TensorHeader) -> Held | None:
    """How long an edge had what this answers; None where it does not say."""
    if not header.arrived_us:
        return None
    arrived = 1e-6 * header.arrived_us
    return Held(arrived, arrived + 1e-6 * header.held_us)


def raw_bytes(header: tensor_pb2.TensorHeader) -> int:
    """Four bytes a value of the tensor's real tokens, and of what travels beside it."""
    if not header.codec:
        return 0
    shapes = [header.shape, *(entry.shape for entry in header.named[:MOST_NAMED])]
    return 4 * sum(math.prod(shape) for shape in shapes if len(shape) == 2)
