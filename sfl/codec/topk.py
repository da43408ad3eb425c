"""Sparsification: only the values of largest magnitude travel, and a mask that says which.

`topk(rho)` keeps ceil(rho n) of each sequence's n values, `topk(rho, row)` of each token's (SFT,
2501.09237). The true derivative of this is the mask itself: the gradient that comes back is
multiplied by it. The mask travels as bits. Were its ones anywhere alike no coding could need less
than H2(rho) bits a value; real masks repeat, and zstd brings them below that, where Elias-Fano or
entropy coding of each bit win nothing worth their time (benchmarks/codec.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sfl.codec.kernel import kernel, kernel_for
from sfl.codec.sections import Reader, Writer
from sfl.codec.spec import Argument, at_most, number, word
from sfl.codec.transform import Back, Shape, Signal, Transform
from sfl.errors import ProtocolError


@dataclass(frozen=True, slots=True)
class Mask:
    """Which of `rows` x `hidden` values travelled, in bits for the rows `sent` (None: for all)."""

    bits: np.ndarray
    rows: int
    hidden: int
    sent: Tensor | None

    def dense(self) -> Tensor:
        """`[rows, H]`, True where a value travelled."""
        count = (self.rows if self.sent is None else int(self.sent.sum())) * self.hidden
        ones = np.unpackbits(self.bits, count=count, bitorder="little")
        values = torch.from_numpy(ones).view(torch.bool).view(-1, self.hidden)
        if self.sent is None:
            return values
        whole = torch.zeros(self.rows, self.hidden, dtype=torch.bool)
        whole[self.sent] = values
        return whole


@dataclass(frozen=True)
class TopK(Transform):
    """Keeps a share of each group of rows; a group is a sequence or a single row.

    It remembers nothing, so that it is both of its ends itself.
    """

    name: str
    share: float
    by_row: bool
    keeps_rows = False

    def sender(self, hidden: int, folder: Path | None, setting: str) -> TopK:
        """Itself."""
        return self

    def receiver(self, hidden: int, folder: Path | None, setting: str) -> TopK:
        """Itself."""
        return self

    def encode(self, signal: Signal, write: Writer) -> tuple[Signal, Back]:
        """The survivors, `[n, 1]`; writes the mask."""
        rows = signal.values
        hidden = rows.shape[1]
        sizes = np.asarray([1] * len(rows) if self.by_row else signal.groups, np.int64) * hidden
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
        keep = np.asarray([math.ceil(self.share * size) for size in sizes.tolist()], np.int64)
        mask, kept = kernel_for(rows).sparsify(rows.reshape(-1), starts, keep)
        write.add(mask.data)
        kept = kept[:, None]
        back = partial(_expanded, mask=mask, count=rows.numel())
        return Signal(kept, kept, (len(kept),), signal.context, mask), back

    def decode(self, shape: Shape, read: Reader) -> tuple[Shape, Back]:
        """As many values as the mask has ones."""
        count = shape[0] * shape[1]
        mask = np.frombuffer(read.bytes((count + 7) // 8), np.uint8)
        if count % 8 and mask[-1] >> count % 8:
            raise ProtocolError("a mask has ones behind its last value")
        ones = int(np.bitwise_count(mask).sum())
        return (ones, 1), partial(_expanded, mask=mask, count=count)


def _expanded(kept: Tensor, *, mask: np.ndarray, count: int) -> Tensor:
    """All `count` values."""
    return kernel().expand(mask, kept, count)


def make_topk(arguments: tuple[Argument, ...]) -> TopK:
    """`topk(share[, row])`."""
    if not arguments:
        raise ValueError("needs the share of values to keep, e.g. 0.3")
    at_most(arguments, 2)
    share = number(arguments[0], 0.0, 1.0)
    by_row = len(arguments) > 1 and word(arguments[1], "row", "sample") == "row"
    return TopK(f"topk({share:g}{', row' if by_row else ''})", share, by_row)
