"""Symmetric 8-bit quantisation with one scale a row: `x ~ code * absmax(row) / 127`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfl.codec.packet import from_bytes, to_bytes
from sfl.errors import ProtocolError

_SCALE = torch.float32


@dataclass(frozen=True, slots=True)
class Int8:
    """Payload: all rows' scales (fp32), then all codes (int8). Error at most half a scale."""

    name: str = "int8"

    def num_bytes(self, rows: int, hidden: int, dtype: torch.dtype) -> int:
        """Size of the payload in bytes."""
        return rows * (_SCALE.itemsize + hidden)

    def encode(self, values: Tensor) -> bytes:
        """Round to the nearest of 255 levels. Raises ProtocolError on NaN or infinity."""
        exact = values.detach().to(_SCALE)
        largest = exact.abs().amax(dim=1, keepdim=True)  # [rows, 1]
        if not bool(largest.isfinite().all()):
            raise ProtocolError("codec int8: a value is NaN or infinite")
        # The floor serves rows of zeros, and keeps codes within 127 where absmax is denormal.
        scale = (largest / 127).clamp_(min=torch.finfo(_SCALE).tiny)
        codes = (exact / scale).round_().to(torch.int8)
        return to_bytes(scale) + to_bytes(codes)

    def decode(self, payload: bytes, rows: int, hidden: int, dtype: torch.dtype) -> Tensor:
        """`code * scale`, in `dtype`."""
        view = memoryview(payload)
        split = rows * _SCALE.itemsize
        scale = from_bytes(view[:split], (rows, 1), _SCALE)
        codes = from_bytes(view[split:], (rows, hidden), torch.int8)
        return codes.to(_SCALE).mul_(scale).to(dtype)


INT8 = Int8()
