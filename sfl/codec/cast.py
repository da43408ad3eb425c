"""Quantisers that store every value as one number: as it is, or as a 16-bit float."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfl.codec.packet import Quantised, Source, from_bytes, is_finite, to_bytes
from sfl.codec.spec import Argument, at_most
from sfl.errors import ProtocolError


@dataclass(frozen=True, slots=True)
class Exact:
    """The tensor's own bytes: the round trip is bit-exact."""

    name: str = "none"
    exact: bool = True

    def encode(self, values: Tensor, columns: int, scale_of: Tensor, key: int) -> Quantised:
        """The tensor's memory; non-finite values pass here and are refused by the receiver."""
        return Quantised(b"", to_bytes(values))

    def decode(self, read: Source, count: int, columns: int, dtype: torch.dtype) -> Tensor:
        """The same bits in fresh memory."""
        values = from_bytes(read.view(count * dtype.itemsize), (count,), dtype)
        return _finite(values)

    def fixed_bits(self, count: int, columns: int, dtype: torch.dtype) -> float | None:
        """All of them."""
        return 8.0 * count * dtype.itemsize


@dataclass(frozen=True, slots=True)
class Cast:
    """Values rounded to a 16-bit float on the wire, and widened again."""

    name: str
    wire: torch.dtype
    exact: bool = False

    def encode(self, values: Tensor, columns: int, scale_of: Tensor, key: int) -> Quantised:
        """Round to nearest even. Raises ProtocolError where a value is beyond the type's range."""
        narrow = values.to(self.wire)
        if not is_finite(narrow):
            raise ProtocolError(f"codec {self.name}: {self._misfit(values)}")
        return Quantised(b"", to_bytes(narrow))

    def _misfit(self, values: Tensor) -> str:
        if not is_finite(values):
            return "a value is NaN or infinite"
        largest = float(values.abs().max())
        return (
            f"a value of {largest:g} is beyond {torch.finfo(self.wire).max:g}, the largest that "
            f"{self.name} holds; fine, compact and none hold any"
        )

    def decode(self, read: Source, count: int, columns: int, dtype: torch.dtype) -> Tensor:
        """Widened to float32."""
        return _finite(from_bytes(read.view(count * 2), (count,), self.wire)).float()

    def fixed_bits(self, count: int, columns: int, dtype: torch.dtype) -> float | None:
        """Sixteen a value."""
        return 16.0 * count


def _finite(values: Tensor) -> Tensor:
    if not is_finite(values):
        raise ProtocolError("the tensor holds NaN or infinite values")
    return values


def make_none(arguments: tuple[Argument, ...]) -> Exact:
    """`none`."""
    at_most(arguments, 0)
    return Exact()


def make_fp16(arguments: tuple[Argument, ...]) -> Cast:
    """`fp16`."""
    at_most(arguments, 0)
    return Cast("fp16", torch.float16)


def make_bf16(arguments: tuple[Argument, ...]) -> Cast:
    """`bf16`."""
    at_most(arguments, 0)
    return Cast("bf16", torch.bfloat16)
