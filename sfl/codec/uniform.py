"""One step for the whole tensor, for an entropy coder to make the most of: `uniform(c)`.

At a given number of bits after entropy coding a uniform quantiser with one step errs least, within
a quarter of a bit of any other (Gish and Pierce, 1968): small values share the code of zero and
cost next to nothing. The step is c times the median over columns of a column's root mean square,
which a few outlying channels do not move. `dither` adds keyed noise before rounding and takes it
away after (subtractive dither, Roberts 1962): unbiased, the error at most half a step. `stochastic`
rounds up or down by chance, unbiased too, and leaves zeros zero.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sfl.codec.kernel import kernel, kernel_for
from sfl.codec.packet import Form, Quantised, Source, Symbols
from sfl.codec.spec import Argument, at_most, number, word
from sfl.errors import ProtocolError

_CENTRE = 128
_SIDE = struct.Struct("<fIBBI")  # step, key, lowest code, number of levels, escapes
_LARGEST = float(np.finfo(np.float32).max)
_MEASURED = 1 << 17  # values enough to know the step by
_SMALLEST = 2.0**-120  # its reciprocal is finite
_SQUARABLE = 2.0**-60  # the square is a normal float32


@dataclass(frozen=True, slots=True)
class Uniform:
    """Side: step, key, alphabet, and the values beyond it in full; symbols: the codes seen."""

    name: str
    step: float
    rounding: str
    exact: bool = False

    def encode(self, values: Tensor, columns: int, scale_of: Tensor, key: int) -> Quantised:
        """Codes in units of the step. Raises ProtocolError on NaN or infinity."""
        step = self._step(scale_of)
        # Rounding by chance and rounding what was dithered give the same codes.
        drawn = key if self.rounding else None
        codes = kernel_for(values).quantise_grid(values, 1.0 / step, drawn)
        if codes is None:
            raise ProtocolError(f"codec {self.name}: a value is NaN or infinite")
        far = np.flatnonzero((codes == 1) | (codes == 255))
        values_far = values[torch.from_numpy(far)].cpu().numpy()
        lowest, highest = int(codes.min()), int(codes.max())
        levels = highest - lowest + 1
        codes -= np.uint8(lowest)
        side = _SIDE.pack(step, key, lowest, levels, far.size)
        side += np.diff(far, prepend=0).astype("<u4").tobytes() + values_far.tobytes()
        return Quantised(side, Symbols(codes, columns, levels, _centre(lowest, levels)))

    def _step(self, scale_of: Tensor) -> float:
        """c times the median column's root mean square, by rows evenly spaced."""
        stride = max(1, scale_of.numel() // _MEASURED)
        norms = torch.linalg.vector_norm(scale_of[::stride], dim=0)
        if not bool(norms.isfinite().all()):  # NaN, infinity, or squares beyond float32
            norms = torch.linalg.vector_norm(scale_of[::stride], dim=0, dtype=torch.float64)
            if not bool(norms.isfinite().all()):
                raise ProtocolError(f"codec {self.name}: a value is NaN or infinite")
        median = float(norms.median())
        if median < _SQUARABLE:  # its squares may have been lost in float32
            exact = torch.linalg.vector_norm(scale_of[::stride], dim=0, dtype=torch.float64)
            median = float(exact.median())
        scale = median or float(norms.max())
        step = self.step * scale / (len(scale_of[::stride])) ** 0.5
        return float(np.float32(min(max(step, _SMALLEST), 2.0**126)))

    def decode(self, read: Source, count: int, columns: int, dtype: torch.dtype) -> Tensor:
        """`(code - 128) * step`, the dither taken away again."""
        side = read.bytes(_SIDE.size + 8 * count, exactly=False)
        if len(side) < _SIDE.size:
            raise ProtocolError(f"codec {self.name}: the step is missing")
        step, key, lowest, levels, num_far = _SIDE.unpack_from(side)
        if not (_SMALLEST <= step < 2.0**127) or levels < 1 or lowest + levels > 256:
            raise ProtocolError(f"codec {self.name}: step {step:g} or alphabet out of range")
        if len(side) != _SIDE.size + 8 * num_far:
            raise ProtocolError(f"codec {self.name}: {num_far} escapes announced")
        codes = read.symbols(Form(count, columns, levels, _centre(lowest, levels)))
        noise = key if self.rounding == "dither" else None
        values = kernel().dequantise_grid(codes + np.uint8(lowest), step, noise)
        if step >= 2.0**119:  # 128 of them may be beyond float32
            values.clamp_(-_LARGEST, _LARGEST)
        self._restore(values, side[_SIDE.size :], num_far)
        return values

    def _restore(self, values: Tensor, escapes: bytes, count: int) -> None:
        """Put values beyond the alphabet back as they were."""
        if count == 0:
            return
        places = np.cumsum(np.frombuffer(escapes, "<u4", count).astype(np.int64))
        far = np.frombuffer(escapes, "<f4", count, 4 * count)
        if int(places[-1]) >= values.numel() or not bool(np.isfinite(far).all()):
            raise ProtocolError(f"codec {self.name}: an escape is outside the tensor")
        values.numpy()[places] = far

    def fixed_bits(self, count: int, columns: int, dtype: torch.dtype) -> float | None:
        """The values decide."""
        return None


def _centre(lowest: int, levels: int) -> int:
    return min(max(_CENTRE - lowest, 0), levels - 1)


def make_uniform(arguments: tuple[Argument, ...]) -> Uniform:
    """`uniform(step[, stochastic or dither])`."""
    if not arguments:
        raise ValueError("needs the step in units of the tensor's root mean square, e.g. 0.5")
    at_most(arguments, 2)
    step = number(arguments[0], 0.0, 16.0)
    rounding = word(arguments[1], "stochastic", "dither") if len(arguments) > 1 else ""
    shown = f", {rounding}" if rounding else ""
    return Uniform(f"uniform({step:g}{shown})", step, rounding)
