"""Statistics and entropy codes of symbols in numpy, the same bytes as the compiled core's."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from sfl.codec.arrays import Bytes, Longs, Words

_PROB_BITS = 12
_LOWER = 1 << 15


class TorchSymbols:
    """Statistics and entropy codes of symbols; see sfl.codec.kernel.Kernel."""

    def magnitudes(self, codes: Bytes, columns: int, centre: int) -> tuple[Longs, Longs]:
        """Sums by row and by column."""
        distance = np.abs(codes.reshape(-1, columns).astype(np.int16) - centre)
        return distance.sum(1, dtype=np.int64), distance.sum(0, dtype=np.int64)

    def counts(
        self, codes: Bytes, columns: int, context_of: Bytes, by_row: bool, contexts: int
    ) -> npt.NDArray[np.uint32]:
        """Histograms."""
        shape = (codes.size // columns, columns)
        context = context_of[:, None] if by_row else context_of[None, :]
        joint = codes.reshape(shape) + (context.astype(np.int32) << 8)
        counts = np.bincount(joint.reshape(-1), minlength=contexts * 256)
        return counts.reshape(contexts, 256).astype(np.uint32)

    def rans_encode(
        self,
        codes: Bytes,
        columns: int,
        context_of: Bytes,
        by_row: bool,
        frequencies: Words,
        lanes: int,
        segments: int,
    ) -> list[Words]:
        """Words of each segment."""
        rows = codes.size // columns
        starts = np.cumsum(frequencies, axis=1, dtype=np.int64) - frequencies
        result = []
        for begin, end in _segments(rows, columns, segments):
            context = _contexts(context_of, by_row, columns, begin, end)
            own = codes[begin:end]
            result.append(
                _encode(frequencies[context, own].astype(np.int64), starts[context, own], lanes)
            )
        return result

    def rans_decode(
        self,
        words: Words,
        word_start: Longs,
        count: int,
        columns: int,
        context_of: Bytes,
        by_row: bool,
        frequencies: Words,
        lanes: int,
    ) -> Bytes | None:
        """Codes."""
        starts = np.cumsum(frequencies, axis=1, dtype=np.int64) - frequencies
        order = np.arange(256, dtype=np.uint8)
        slots = np.stack([np.repeat(order, own) for own in frequencies])
        pieces = []
        segments = word_start.size - 1
        for number, (begin, end) in enumerate(_segments(count // columns, columns, segments)):
            own = words[word_start[number] : word_start[number + 1]].astype(np.int64)
            context = _contexts(context_of, by_row, columns, begin, end)
            piece = _decode(own, context, slots, frequencies.astype(np.int64), starts, lanes)
            if piece is None:
                return None
            pieces.append(piece)
        return np.concatenate(pieces)


def _segments(rows: int, columns: int, segments: int) -> list[tuple[int, int]]:
    edges = [rows * s // segments * columns for s in range(segments + 1)]
    return list(itertools.pairwise(edges))


def _contexts(
    context_of: Bytes, by_row: bool, columns: int, begin: int, end: int
) -> npt.NDArray[np.int64]:
    """The context of each code of a segment, which holds whole rows."""
    places = np.arange(begin, end)
    return context_of[places // columns if by_row else places % columns].astype(np.int64)


def _encode(frequency: Longs, start: Longs, lanes: int) -> Words:
    """One segment, a block of `lanes` codes at a time, the last block first."""
    state = np.full(lanes, _LOWER, np.int64)
    pieces: list[Words] = []
    count = frequency.size
    for first in range((count - 1) // lanes * lanes, -1, -lanes):
        f, c = frequency[first : first + lanes], start[first : first + lanes]
        x = state[: f.size]
        full = x >= f << 19
        pieces.append((x[full] & 0xFFFF).astype(np.uint16))
        x = np.where(full, x >> 16, x)
        state[: f.size] = (x // f << _PROB_BITS) + x % f + c
    pieces.append(np.stack([state & 0xFFFF, state >> 16], 1).reshape(-1).astype(np.uint16))
    return np.concatenate(pieces[::-1])


def _decode(
    words: Longs,
    context: Longs,
    slots: Bytes,
    frequency: Longs,
    start: Longs,
    lanes: int,
) -> Bytes | None:
    if words.size < 2 * lanes:
        return None
    state = words[: 2 * lanes : 2] | words[1 : 2 * lanes : 2] << 16
    at, count = 2 * lanes, context.size
    codes = np.empty(count, np.uint8)
    for first in range(0, count, lanes):
        k = context[first : first + lanes]
        x = state[: k.size]
        slot = x & ((1 << _PROB_BITS) - 1)
        code = slots[k, slot]
        codes[first : first + lanes] = code
        x = frequency[k, code] * (x >> _PROB_BITS) + slot - start[k, code]
        short = x < _LOWER
        needed = int(short.sum())
        if at + needed > words.size:
            return None
        x[short] = x[short] << 16 | words[at : at + needed]
        at += needed
        state[: k.size] = x
    return codes if at == words.size and bool((state == _LOWER).all()) else None
