"""What is kept of a teacher, and used of it: hidden states in 8 bits, logits of classes in full.

A row of hidden states costs H bytes and two more for each group of 64: 594 at a width of 576.
Whoever keeps rows uses them as they are kept, from the first time on: so it changes no bit whether
they were kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

GROUP = 64
"""Values that share a scale."""
_MOST = 127.0


@dataclass(frozen=True, slots=True)
class Keeping:
    """Rows of this width as bytes, and back; `exact` in float32."""

    width: int
    exact: bool

    def as_bytes(self, rows: Tensor) -> bytes:
        """Rows `[m, width]`, as they are kept."""
        return rows.float().cpu().numpy().tobytes() if self.exact else packed(rows)

    def num_bytes(self, rows: int) -> int:
        """Of so many rows, as they are kept."""
        return rows * (4 * self.width if self.exact else row_bytes(self.width))

    def as_rows(self, data: bytes) -> Tensor:
        """What is kept, as float32 rows."""
        if not self.exact:
            return unpacked(data, self.width)
        return torch.from_numpy(np.frombuffer(data, np.float32).reshape(-1, self.width).copy())


def packed(rows: Tensor) -> bytes:
    """Rows `[m, H]` as bytes: scales in float16, one for each group of a row, then the values."""
    count, width = rows.shape
    groups = _grouped(rows.float().cpu())
    scales = (groups.abs().amax(-1, keepdim=True) / _MOST).clamp(_LEAST, _LARGEST).half()
    values = (groups / scales.float()).round().clamp(-_MOST, _MOST).to(torch.int8)
    kept = values.reshape(count, -1)[:, :width].contiguous()
    return scales.numpy().tobytes() + kept.numpy().tobytes()


def unpacked(data: bytes, width: int) -> Tensor:
    """The inverse of `packed`: float32 `[m, width]`."""
    groups = -(-width // GROUP)
    count = len(data) // (width + 2 * groups)
    scales = np.frombuffer(data, np.float16, count * groups).reshape(count, groups, 1)
    values = np.frombuffer(data, np.int8, count * width, scales.nbytes).reshape(count, width)
    spread = np.repeat(scales.astype(np.float32)[..., 0], GROUP, axis=1)[:, :width]
    return torch.from_numpy(values.astype(np.float32) * spread)


def row_bytes(width: int) -> int:
    """Of one row."""
    return width + 2 * -(-width // GROUP)


_LEAST, _LARGEST = 2.0**-24, 65504.0
"""What float16 holds."""


def _grouped(rows: Tensor) -> Tensor:
    """`[m, H]` -> `[m, groups, GROUP]`, with zeros behind a row."""
    count, width = rows.shape
    missing = -width % GROUP
    return torch.nn.functional.pad(rows, (0, missing)).reshape(count, -1, GROUP)
