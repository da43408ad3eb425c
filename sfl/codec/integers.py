"""Small non-negative integers, each in as many bits as the largest needs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sfl.codec.packet import read_varint, varint
from sfl.errors import ProtocolError

Longs = npt.NDArray[np.int64]


def pack_integers(values: Longs) -> bytes:
    """Width, count, bits; the lowest bit of the first value first. Values are in 0..2^32 - 1."""
    width = int(values.max()).bit_length() if values.size else 0
    words = values.astype("<u4").view(np.uint8).reshape(-1, 4)
    bits = np.unpackbits(words, axis=1, count=width, bitorder="little")
    return bytes([width]) + varint(values.size) + np.packbits(bits, bitorder="little").tobytes()


def unpack_integers(data: bytes, count: int, exactly: bool = True) -> Longs:
    """The values, `count` of them (or at most so many). Raises ProtocolError."""
    if not data or data[0] > 32:
        raise ProtocolError("packed integers without a width")
    width = data[0]
    size, at = read_varint(data, 1)
    if size > count or (exactly and size != count) or len(data) - at != (size * width + 7) // 8:
        raise ProtocolError(f"{size} packed integers of {width} bits in {len(data)} bytes")
    if width == 0:
        return np.zeros(size, np.int64)
    packed = np.frombuffer(data, np.uint8, offset=at)
    bits = np.zeros((size, 32), np.uint8)
    bits[:, :width] = np.unpackbits(packed, count=size * width, bitorder="little").reshape(
        size, width
    )
    words = np.packbits(bits, axis=1, bitorder="little").view("<u4")
    return words.reshape(size).astype(np.int64)


def pack_labels(labels: npt.NDArray[np.int32], ignored: int) -> bytes:
    """Labels that come in long runs of `ignored`: the runs' lengths, then the rest in bits."""
    kept = labels != ignored
    edges = np.flatnonzero(np.diff(kept, prepend=False))  # ignored first, then in turn
    runs = np.diff(edges, prepend=0)
    packed = pack_integers(runs) + pack_integers(labels[kept].astype(np.int64))
    return varint(labels.size) + packed


def num_labels(data: bytes) -> int:
    """How many labels were packed. Raises ProtocolError."""
    return read_varint(data, 0)[0]


def unpack_labels(data: bytes, count: int, ignored: int) -> npt.NDArray[np.int32]:
    """`count` labels. Raises ProtocolError."""
    runs, rest = _split(data[read_varint(data, 0)[1] :])
    edges = np.cumsum(unpack_integers(runs, count, exactly=False))
    if edges.size and int(edges[-1]) > count:
        raise ProtocolError(f"runs of labels reach beyond {count}")
    turns = np.zeros(count + 1, np.int64)
    np.add.at(turns, edges, 1)
    kept = np.cumsum(turns)[:count] % 2 == 1
    labels = np.full(count, ignored, np.int32)
    labels[kept] = unpack_integers(rest, int(kept.sum()))
    return labels


def _split(data: bytes) -> tuple[bytes, bytes]:
    if not data or data[0] > 32:
        raise ProtocolError("packed labels without a width")
    size, at = read_varint(data, 1)
    end = at + (size * data[0] + 7) // 8
    return data[:end], data[end:]
