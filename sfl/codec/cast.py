"""Codecs that store every value as one number: as it is, or as a 16-bit float."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfl.codec.packet import from_bytes, is_finite, to_bytes
from sfl.errors import ProtocolError


@dataclass(frozen=True, slots=True)
class Exact:
    """The tensor's own bytes: the round trip is bit-exact."""

    name: str = "none"

    def num_bytes(self, rows: int, hidden: int, dtype: torch.dtype) -> int:
        """Size of the payload in bytes."""
        return rows * hidden * dtype.itemsize

    def encode(self, values: Tensor) -> bytes:
        """One copy; non-finite values pass here and are refused by the receiver."""
        return to_bytes(values)

    def decode(self, payload: bytes, rows: int, hidden: int, dtype: torch.dtype) -> Tensor:
        """The same bits in fresh memory."""
        return from_bytes(payload, (rows, hidden), dtype)


@dataclass(frozen=True, slots=True)
class Cast:
    """Values rounded to a 16-bit float on the wire, and widened again."""

    name: str
    wire: torch.dtype

    def num_bytes(self, rows: int, hidden: int, dtype: torch.dtype) -> int:
        """Size of the payload in bytes."""
        return rows * hidden * self.wire.itemsize

    def encode(self, values: Tensor) -> bytes:
        """Round to nearest even. Raises ProtocolError where a value is beyond the type's range."""
        narrow = values.detach().to(self.wire)
        if not is_finite(narrow):
            raise ProtocolError(
                f"codec {self.name}: a value is NaN, infinite or beyond "
                f"{torch.finfo(self.wire).max:g}, the largest that {self.name} holds"
            )
        return to_bytes(narrow)

    def decode(self, payload: bytes, rows: int, hidden: int, dtype: torch.dtype) -> Tensor:
        """Widened to `dtype`."""
        return from_bytes(payload, (rows, hidden), self.wire).to(dtype)


NONE = Exact()
FP16 = Cast("fp16", torch.float16)
BF16 = Cast("bf16", torch.bfloat16)
