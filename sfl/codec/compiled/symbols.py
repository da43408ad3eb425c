"""Statistics and entropy codes of symbols, compiled."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sfl.codec.arrays import Bytes, Longs, Words
from sfl.codec.compiled.calls import INT, LONG, Core, at, fitting, threads


class CompiledSymbols(Core):
    """Statistics and entropy codes of symbols; see sfl.codec.kernel.Kernel."""

    def magnitudes(self, codes: Bytes, columns: int, centre: int) -> tuple[Longs, Longs]:
        """Sums by row and by column."""
        rows = codes.size // columns
        by_row, by_column = np.empty(rows, np.int64), np.empty(columns, np.uint32)
        self._c.sfl_magnitudes(
            at(codes), LONG(rows), LONG(columns), INT(centre), at(by_row), at(by_column)
        )
        return by_row, by_column.astype(np.int64)

    def counts(
        self, codes: Bytes, columns: int, context_of: Bytes, by_row: bool, contexts: int
    ) -> npt.NDArray[np.uint32]:
        """Histograms."""
        counts = np.empty((contexts, 256), np.uint32)
        failed = self._c.sfl_counts(
            at(codes),
            LONG(codes.size // columns),
            LONG(columns),
            at(context_of),
            INT(by_row),
            INT(contexts),
            at(counts),
            threads(),
        )
        if failed:
            raise MemoryError("counting symbols")
        return counts

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
        capacity = -(-rows // segments) * columns + 2 * lanes + 1
        words, used = np.empty((segments, capacity), np.uint16), np.empty(segments, np.int64)
        failed = self._c.sfl_rans_encode(
            at(codes),
            LONG(rows),
            LONG(columns),
            at(context_of),
            INT(by_row),
            INT(len(frequencies)),
            at(frequencies),
            INT(lanes),
            INT(segments),
            at(words),
            LONG(capacity),
            at(used),
            threads(),
        )
        if failed:
            raise MemoryError("entropy coding")
        return [own[:count] for own, count in zip(words, used, strict=True)]

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
        codes = np.empty(count, np.uint8)
        failed = self._c.sfl_rans_decode(
            at(words),
            LONG(words.size),
            at(word_start),
            LONG(count // columns),
            LONG(columns),
            at(context_of),
            LONG(context_of.size),
            INT(by_row),
            INT(len(frequencies)),
            at(frequencies),
            INT(lanes),
            INT(word_start.size - 1),
            at(codes),
            threads(),
        )
        if failed < 0:
            raise MemoryError("entropy decoding")
        fitting(None, failed)
        return None if failed else codes
