"""What crosses the wire, and the kinds of stage that make and unmake its payload.

Nothing here does any work; sections.py reads and writes payloads, pipeline.py joins the stages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sfl.errors import ProtocolError
from sfl.node.buffers import Chunks, Raw

MAX_TENSOR_BYTES = 1 << 30
"""Largest tensor that `decode` makes, in bytes; a claim of more is refused before allocating."""

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""Types a tensor may have at either end of the wire."""

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Packet:
    """One encoded tensor `[rows, hidden]`; `codec` names its stages, the payload says the rest."""

    codec: str
    dtype: str
    shape: tuple[int, ...]
    payload: Raw | Chunks

    @property
    def raw_bytes(self) -> int:
        """Size in bytes of the same values at 4 bytes each."""
        rows, hidden = self.shape
        return 4 * rows * hidden


@dataclass(frozen=True, slots=True)
class Symbols:
    """Codes `[rows, columns]` below `levels`, `centre` the code of zero."""

    codes: Bytes
    columns: int
    levels: int
    centre: int


@dataclass(frozen=True, slots=True)
class Form:
    """What a decoder knows of a section before it reads it: its symbols' shape and alphabet."""

    count: int
    columns: int
    levels: int
    centre: int


@dataclass(frozen=True, slots=True)
class Quantised:
    """A quantiser's output: a few side bytes, then symbols or raw bytes."""

    side: bytes
    body: Symbols | Raw


class Source(Protocol):
    """Where a quantiser reads what it once wrote."""

    def bytes(self, most: int, exactly: bool = True) -> bytes:
        """A section of bytes: exactly (or at most) so many."""

    def view(self, count: int) -> Raw | Chunks:
        """A section of exactly so many bytes, not copied where it is plain."""

    def symbols(self, form: Form) -> Bytes:
        """A section of symbols."""


class Quantiser(Protocol):
    """Float values to symbols or bytes, little-endian."""

    @property
    def name(self) -> str:
        """As written in a specification, with its arguments."""

    @property
    def exact(self) -> bool:
        """Whether the round trip keeps every bit."""

    def encode(self, values: Tensor, columns: int, scale_of: Tensor, key: int) -> Quantised:
        """Contiguous `values`, `columns` to a row (1: no rows left), keyed draws.

        `scale_of` are the values before anything was predicted or left out. Raises ProtocolError.
        """

    def decode(self, read: Source, count: int, columns: int, dtype: torch.dtype) -> Tensor:
        """`count` finite values, float32 unless exact, in memory of their own."""

    def fixed_bits(self, count: int, columns: int, dtype: torch.dtype) -> float | None:
        """Bits of `count` values before any lossless stage; None where the values decide."""


class Lossless(Protocol):
    """A coder of sections; each section keeps the shortest form it found."""

    @property
    def name(self) -> str:
        """As written in a specification."""

    @property
    def needs_kernel(self) -> bool:
        """Whether it is quick in C alone."""

    def compress(self, body: Raw | Symbols) -> tuple[int, Raw] | None:
        """(method, bytes), or None where plain bytes are no longer."""


def symbol_bits(levels: int) -> int:
    """Bits of a symbol below `levels`."""
    return max(1, (levels - 1).bit_length())


def varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first, as protobuf has it."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """(value, next position). Raises ProtocolError."""
    value = 0
    for shift in range(0, 63, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ProtocolError("a number in a packet has no end")


def to_bytes(values: Tensor) -> memoryview:
    """The memory of a tensor itself, row by row (numpy has no bf16, types never matter here)."""
    return values.detach().contiguous().view(torch.uint8).reshape(-1).cpu().numpy().data


def from_bytes(payload: Raw | Chunks, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor over fresh memory of torch's own.

    A tensor that merely looks at received bytes may be off alignment, and then some kernels
    give other bits.
    """
    values = torch.empty(shape, dtype=dtype)
    room, at = values.view(torch.uint8).reshape(-1).numpy(), 0
    for piece in payload.pieces if isinstance(payload, Chunks) else (payload,):
        room[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
        at += len(piece)
    return values


def is_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite; one pass, nothing allocated."""
    low, high = values.aminmax()
    return bool(low.isfinite()) and bool(high.isfinite())
