"""Absmax quantisation in blocks: `int(b)` to the nearest, `stochastic(b)` unbiased, `int8`.

With L = 2^(b-1) - 1 and s the block's absmax / L, rounded up to bf16, a value x is sent as
floor(x / s + r) and comes back as that times s; r is 1/2, or a keyed uniform number in [0, 1):
then the mean of what comes back is x, its variance at most s^2 / 4 (QSGD, 1610.02132; SFT,
2501.09237).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sfl.codec.kernel import kernel, kernel_for
from sfl.codec.packet import Form, Quantised, Source, Symbols, symbol_bits
from sfl.codec.spec import Argument, at_most, whole, word
from sfl.errors import ProtocolError

BLOCK = 64
_SCALE_BITS = 16
_HUGE = 0x7C00
"""2^121 as bf16: 127 times any scale below it is a finite float32."""
_LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True, slots=True)
class Blocks:
    """Side: a bf16 scale for each block; symbols: 2L + 1 levels. `block` 0 is a whole row."""

    name: str
    bits: int
    block: int
    stochastic: bool
    exact: bool = False

    @property
    def levels(self) -> int:
        """L, the largest code's distance from zero."""
        return int((1 << (self.bits - 1)) - 1)

    def encode(self, values: Tensor, columns: int, scale_of: Tensor, key: int) -> Quantised:
        """Scales and codes. Raises ProtocolError on NaN or infinity."""
        block = self.block or columns
        drawn = key if self.stochastic else None
        coded = kernel_for(values).quantise_blocks(values, block, self.levels, drawn)
        if coded is None:
            raise ProtocolError(f"codec {self.name}: a value is NaN or infinite")
        scales, codes = coded
        symbols = Symbols(codes, columns, 2 * self.levels + 1, self.levels)
        # The high bytes alike, the low ones noise: apart they compress.
        return Quantised(scales.view(np.uint8).reshape(-1, 2).T.tobytes(), symbols)

    def decode(self, read: Source, count: int, columns: int, dtype: torch.dtype) -> Tensor:
        """`(code - L) * scale`."""
        block = self.block or columns
        num_scales = -(-count // block)
        planes = np.frombuffer(read.bytes(2 * num_scales), np.uint8).reshape(2, num_scales)
        scales = np.ascontiguousarray(planes.T).view("<u2").reshape(-1)
        if scales.size and int(scales.max()) >= 0x7F80:
            raise ProtocolError(f"codec {self.name}: a scale is not a finite positive number")
        codes = read.symbols(Form(count, columns, 2 * self.levels + 1, self.levels))
        values = kernel().dequantise_blocks(codes, scales, block, self.levels)
        if scales.size and int(scales.max()) >= _HUGE:  # L of them may be beyond float32
            values.clamp_(-_LARGEST, _LARGEST)
        return values

    def fixed_bits(self, count: int, columns: int, dtype: torch.dtype) -> float | None:
        """Codes and scales."""
        return float(
            symbol_bits(2 * self.levels + 1) * count
            + _SCALE_BITS * -(-count // (self.block or columns))
        )


def _block(arguments: tuple[Argument, ...], default: int) -> int:
    if len(arguments) < 2:
        return default
    if isinstance(arguments[1], str):
        word(arguments[1], "row")
        return 0
    return whole(arguments[1], 8, 1 << 16)


def _make(name: str, arguments: tuple[Argument, ...], stochastic: bool) -> Blocks:
    if not arguments:
        raise ValueError("needs the number of bits, 2 to 8")
    at_most(arguments, 2)
    bits, block = whole(arguments[0], 2, 8), _block(arguments, BLOCK)
    shown = {BLOCK: "", 0: ", row"}.get(block, f", {block}")
    return Blocks(f"{name}({bits}{shown})", bits, block, stochastic)


def make_int(arguments: tuple[Argument, ...]) -> Blocks:
    """`int(bits[, block or row])`: to the nearest."""
    return _make("int", arguments, stochastic=False)


def make_stochastic(arguments: tuple[Argument, ...]) -> Blocks:
    """`stochastic(bits[, block or row])`: unbiased."""
    return _make("stochastic", arguments, stochastic=True)


def make_int8(arguments: tuple[Argument, ...]) -> Blocks:
    """`int8`: 255 levels to the nearest, one scale a row."""
    at_most(arguments, 0)
    return Blocks("int8", 8, 0, stochastic=False)
