"""What crosses the wire, and the two kinds of stage that make and unmake its payload."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

MAX_TENSOR_BYTES = 1 << 30
"""Largest tensor that `decode` makes, in bytes; a claim of more is refused before allocating."""

DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""Types a tensor may have at either end of the wire."""


@dataclass(frozen=True, slots=True)
class Packet:
    """One encoded tensor `[rows, hidden]`; `codec` names the stages that were really applied."""

    codec: str
    dtype: str
    shape: tuple[int, ...]
    payload: bytes

    @property
    def raw_bytes(self) -> int:
        """Size in bytes of the same values at 4 bytes each."""
        rows, hidden = self.shape
        return 4 * rows * hidden


class Quantiser(Protocol):
    """The first stage: values to bytes, little-endian."""

    @property
    def name(self) -> str:
        """Name in codec specifications."""

    def num_bytes(self, rows: int, hidden: int, dtype: torch.dtype) -> int:
        """Size of the payload of a tensor `[rows, hidden]`; always the same for a shape."""

    def encode(self, values: Tensor) -> bytes:
        """`[rows, hidden]` as `num_bytes` bytes. Raises ProtocolError for values it cannot hold."""

    def decode(self, payload: bytes, rows: int, hidden: int, dtype: torch.dtype) -> Tensor:
        """The tensor, in memory of its own, from a payload of the right size."""


class Lossless(Protocol):
    """An optional second stage: bytes to fewer bytes, and back to exactly the same."""

    @property
    def name(self) -> str:
        """Name in codec specifications."""

    def compress(self, payload: bytes) -> bytes:
        """Usually shorter; the caller keeps the shorter of the two."""

    def decompress(self, payload: bytes, num_bytes: int) -> bytes:
        """Exactly `num_bytes` bytes, never allocating more. Raises ProtocolError."""


def to_bytes(values: Tensor) -> bytes:
    """The memory of a tensor, row by row (numpy has no bf16, so types never matter here)."""
    flat = values.detach().contiguous().view(torch.uint8).reshape(-1)
    return flat.numpy().tobytes()


def from_bytes(payload: bytes | memoryview, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor over fresh memory of torch's own.

    A tensor that merely looks at received bytes may lie off alignment, and then some kernels
    give other bits.
    """
    values = torch.empty(shape, dtype=dtype)
    values.view(torch.uint8).reshape(-1).numpy()[:] = np.frombuffer(payload, np.uint8)
    return values


def is_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite; two passes, nothing allocated."""
    return bool(values.amax().isfinite()) and bool(values.amin().isfinite())
