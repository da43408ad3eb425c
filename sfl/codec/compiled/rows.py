"""Sparse values, and rows of a table, compiled."""

from __future__ import annotations

import ctypes

import numpy as np
import torch
from torch import Tensor

from sfl.codec.arrays import Bytes, Floats, Longs, Words
from sfl.codec.compiled.calls import LONG, Core, at, fitting, of, threads


class CompiledRows(Core):
    """Sparse values, and rows of a table; see sfl.codec.kernel.Kernel."""

    def sparsify(self, values: Tensor, starts: Longs, keep: Longs) -> tuple[Bytes, Tensor]:
        """Mask and survivors."""
        mask = np.empty((values.numel() + 7) // 8, np.uint8)
        room = int(keep.sum())
        while True:  # once, and once more where there were ties
            kept = torch.empty(room)
            count: int = self._c.sfl_sparsify(
                of(values),
                at(starts),
                LONG(keep.size),
                at(keep),
                at(mask),
                of(kept),
                LONG(room),
                threads(),
            )
            if count < 0:
                raise MemoryError("sparsifying")
            if count <= room:
                return mask, kept[:count]
            room = count

    def expand(self, mask: Bytes, kept: Tensor, count: int) -> Tensor:
        """All values."""
        values = torch.empty(count)
        misfit = self._c.sfl_expand(
            at(mask),
            LONG(mask.size),
            of(kept),
            LONG(kept.numel()),
            LONG(count),
            of(values),
        )
        return fitting(values, misfit)

    def gather_rows(self, table: Words, slots: Longs) -> Tensor:
        """Rows."""
        rows = torch.empty(slots.size, table.shape[1])
        misfit = self._c.sfl_gather_rows(
            at(table),
            LONG(len(table)),
            at(slots),
            LONG(slots.size),
            LONG(table.shape[1]),
            of(rows),
        )
        return fitting(rows, misfit)

    def move_rows(
        self, table: Words, written: Floats, slots: Longs, values: Tensor, floor: float
    ) -> None:
        """In place."""
        failed = self._c.sfl_move_rows(
            at(table),
            at(written),
            LONG(len(table)),
            LONG(table.shape[1]),
            at(slots),
            of(values.contiguous()),
            LONG(slots.size),
            ctypes.c_float(floor),
        )
        fitting(None, failed)
        if failed:
            raise MemoryError("remembering rows")
