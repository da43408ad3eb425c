"""Entropy coding by rANS (Duda, 1311.2540): symbols at their own entropy, below one bit if so.

Tables are static, one for each of up to eight contexts. A context is a class of rows, or of
columns, of like magnitude: gradients differ by row, hidden states by column. Which of the two, or
neither, is what costs least. Huffman codes cannot go below a bit a symbol, packing several into a
byte only halves that loss: see benchmarks/codec.py.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sfl.codec.kernel import kernel
from sfl.codec.packet import Bytes, Form, Symbols, read_varint, varint
from sfl.codec.spec import Argument, at_most
from sfl.codec.zstd import Zstd
from sfl.errors import ProtocolError
from sfl.node.buffers import Raw

RANS = 3
_PROB = 1 << 12
_CONTEXTS = 8
_COUNTED = 1 << 16  # symbols enough to choose a model by
_SPLIT = 1 << 17  # symbols from which on several threads decode
_HEADER = struct.Struct("<BBBB")  # contexts, by row, lanes, segments

Words = npt.NDArray[np.uint16]
Longs = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Contexts:
    """A class for each row or column."""

    of: Bytes
    by_row: bool
    count: int


@dataclass(frozen=True, slots=True)
class Rans:
    """Symbols by rANS, plain bytes by zstd."""

    name: str = "rans"
    needs_kernel: bool = True

    def compress(self, body: Raw | Symbols) -> tuple[int, Raw] | None:
        """The shortest of what was tried, None where plain is no longer."""
        if not isinstance(body, Symbols):
            return Zstd().compress(body)
        contexts, frequencies = _model(body)
        size, columns = body.codes.size, body.columns
        segments = 4 if size >= _SPLIT and size // columns >= 4 else 1
        lanes = 32 if size >= _SPLIT else 8 if size >= 1 << 12 else 2
        words = kernel().rans_encode(
            body.codes, columns, contexts.of, contexts.by_row, frequencies, lanes, segments
        )
        parts = [_HEADER.pack(contexts.count, contexts.by_row, lanes, segments)]
        if contexts.count > 1:
            parts.append(kernel().pack_bits(contexts.of, 3).tobytes())
        parts.append(_pack_tables(frequencies))
        parts += [varint(own.size) for own in words]
        parts += [own.astype("<u2", copy=False).tobytes() for own in words]
        data = b"".join(parts)
        straight = (size * max(1, (body.levels - 1).bit_length()) + 7) // 8
        return (RANS, data) if len(data) < straight else None


def _model(body: Symbols) -> tuple[Contexts, Words]:
    """The cheapest of three: classes of rows, of columns, none; by rows evenly spaced."""
    codes, columns = body.codes, body.columns
    rows = codes.size // columns
    chosen = Contexts(np.zeros(rows, np.uint8), True, 1)
    if columns > 1 and rows > 1:
        by_row, by_column = kernel().magnitudes(codes, columns, body.centre)
        row_wise = Contexts(_classes(by_row, columns), True, _CONTEXTS)
        column_wise = Contexts(_classes(by_column, rows), False, _CONTEXTS)
        stride = max(1, codes.size // _COUNTED)
        some = np.ascontiguousarray(codes.reshape(rows, columns)[::stride])
        some_rows = Contexts(np.ascontiguousarray(row_wise.of[::stride]), True, _CONTEXTS)
        counts = _counts(some, columns, some_rows)
        # Each class costs its number, its table, and its symbols at their entropy.
        costs = {
            chosen: _cost(counts.sum(0, keepdims=True), stride),
            row_wise: _cost(counts, stride) + 3 * rows,
            column_wise: _cost(_counts(some, columns, column_wise), stride) + 3 * columns,
        }
        chosen = min(costs, key=lambda contexts: costs[contexts])
    return chosen, frequencies_of(_counts(codes, columns, chosen))


def _counts(codes: Bytes, columns: int, contexts: Contexts) -> npt.NDArray[np.uint32]:
    return kernel().counts(codes, columns, contexts.of, contexts.by_row, contexts.count)


def _classes(magnitudes: Longs, others: int) -> Bytes:
    """0..7 by powers of two of the mean magnitude, the largest 7."""
    scaled = magnitudes * 16 // others
    octave = np.zeros(scaled.size, np.int64)
    for power in range(12):  # mean magnitudes reach 128: sixteenths of it 2^11
        octave += scaled >= 1 << power
    return np.maximum(0, octave - max(0, int(octave.max()) - (_CONTEXTS - 1))).astype(np.uint8)


def _cost(counts: npt.NDArray[np.generic], stride: int) -> float:
    """Bits of the symbols at their entropy, and of the tables, of which `stride` rows count one."""
    exact = counts.astype(np.float64)
    totals = exact.sum(1, keepdims=True)
    share = np.divide(exact, totals, out=np.ones_like(exact), where=exact > 0)
    return stride * float(-(exact * np.log2(share)).sum()) + 10.0 * np.count_nonzero(exact)


def frequencies_of(counts: npt.NDArray[np.uint32]) -> Words:
    """Counts `[contexts, 256]` scaled to sums of 4096, at least 1 for whatever occurs."""
    frequencies = np.zeros(counts.shape, np.uint16)
    for own, given in zip(frequencies, counts.astype(np.int64), strict=True):
        total = int(given.sum())
        if total == 0:
            own[0] = _PROB
            continue
        scaled = np.where(given > 0, np.maximum(1, given * _PROB // total), 0)
        excess = int(scaled.sum()) - _PROB
        # Off the largest, where one more or less matters least; there is always room.
        while excess:
            largest = int(scaled.argmax())
            change = min(excess, int(scaled[largest]) - 1) if excess > 0 else excess
            scaled[largest] -= max(1, change // 2) if change > 1 else change
            excess = int(scaled.sum()) - _PROB
        own[:] = scaled
    return frequencies


def _pack_tables(frequencies: Words) -> bytes:
    """First and last symbol of each table, then a varint for each between them."""
    out = bytearray()
    for own in frequencies:
        used = np.flatnonzero(own)
        first, last = int(used[0]), int(used[-1])
        out += bytes((first, last))
        for frequency in own[first : last + 1].tolist():
            out += varint(frequency)
    return bytes(out)


def _read_tables(data: memoryview, at: int, contexts: int, levels: int) -> tuple[Words, int]:
    frequencies = np.zeros((contexts, 256), np.uint16)
    for own in frequencies:
        if at + 2 > len(data) or not data[at] <= data[at + 1] < levels:
            raise ProtocolError("codec rans: a table is not one")
        first, last = data[at], data[at + 1]
        at += 2
        for symbol in range(first, last + 1):
            frequency, at = read_varint(data, at)
            if frequency > _PROB:
                raise ProtocolError("codec rans: a frequency is out of range")
            own[symbol] = frequency
        if int(own.sum(dtype=np.int64)) != _PROB:
            raise ProtocolError(f"codec rans: frequencies do not sum to {_PROB}")
    return frequencies, at


def decompress_symbols(data: bytes | memoryview, form: Form) -> Bytes:
    """The symbols. Raises ProtocolError."""
    view = memoryview(data)
    if len(view) < _HEADER.size:
        raise ProtocolError("codec rans: the header is missing")
    count, by_row, lanes, segments = _HEADER.unpack_from(view)
    rows = form.count // form.columns
    if not 1 <= count <= _CONTEXTS or lanes not in (2, 8, 32) or not 1 <= segments <= 4:
        raise ProtocolError("codec rans: the header is out of range")
    at = _HEADER.size
    of = np.zeros(rows if by_row else form.columns, np.uint8)
    if count > 1:
        size = (3 * of.size + 7) // 8
        packed = np.frombuffer(view[at : at + size], np.uint8)
        if packed.size != size:
            raise ProtocolError("codec rans: the contexts are missing")
        of, at = kernel().unpack_bits(packed, of.size, 3), at + size
        if of.size and int(of.max()) >= count:
            raise ProtocolError("codec rans: a context is out of range")
    frequencies, at = _read_tables(view, at, count, form.levels)
    starts = np.zeros(segments + 1, np.int64)
    for segment in range(segments):
        used, at = read_varint(view, at)
        starts[segment + 1] = starts[segment] + min(used, len(view))  # more than there are anyway
    if len(view) - at != 2 * int(starts[-1]):
        raise ProtocolError("codec rans: words are missing")
    words = np.frombuffer(bytes(view[at:]), "<u2").astype(np.uint16, copy=False)
    codes = kernel().rans_decode(
        words, starts, form.count, form.columns, of, bool(by_row), frequencies, lanes
    )
    if codes is None:
        raise ProtocolError("codec rans: the words do not decode")
    return codes


def make_rans(arguments: tuple[Argument, ...]) -> Rans:
    """`rans`."""
    at_most(arguments, 0)
    return Rans()
