"""The codec's fast passes: compiled where the wheel has them, else torch; the same bytes from both.

`kernel()` picks once. The compiled core is `_kernel.c`; SFL_KERNEL=torch forces the other one, and
SFL_KERNEL=PATH.so another build of the core.
Values on an accelerator are torch's in any case: `kernel_for(values)`.
All arrays are contiguous. The compiled core has threads of its own, as many as `use_threads` says.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import logging
import os
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from sfl.codec.arrays import Bytes, Floats, Longs, Words
from sfl.codec.compiled.quantising import CompiledQuantising
from sfl.codec.compiled.rows import CompiledRows
from sfl.codec.compiled.symbols import CompiledSymbols
from sfl.codec.torch_kernel import TorchKernel

log = logging.getLogger(__name__)

ABI = 4


class Kernel(Protocol):
    """Elementwise passes over flat float32 tensors and uint8 codes; each independent of threads.

    Tensors are the CPU's, but for those that are quantised or sparsified by what `kernel_for` gave.
    """

    @property
    def name(self) -> str:
        """`compiled` or `torch`."""

    def quantise_blocks(
        self, values: Tensor, block: int, levels: int, key: int | None
    ) -> tuple[Words, Bytes] | None:
        """bf16 scales and codes 0..2 levels of each block; stochastic with a key.

        None where a value is NaN or infinite.
        """

    def dequantise_blocks(self, codes: Bytes, scales: Words, block: int, levels: int) -> Tensor:
        """`(code - levels) * scale`, float32."""

    def quantise_grid(self, values: Tensor, inverse: float, key: int | None) -> Bytes | None:
        """Codes 1..255 around 128 of values in units of one step, clipped.

        None where a value is NaN or infinite.
        """

    def dequantise_grid(self, codes: Bytes, step: float, key: int | None) -> Tensor:
        """`(code - 128) * step`, float32; with a key less the noise that rounding added."""

    def pack_bits(self, codes: Bytes, bits: int) -> Bytes:
        """Codes below 2^bits, eight of them in `bits` bytes."""

    def unpack_bits(self, packed: Bytes, count: int, bits: int) -> Bytes:
        """The inverse."""

    def pack_radix(self, codes: Bytes, levels: int, group: int) -> Bytes:
        """`group` codes below `levels` as one byte in base `levels`."""

    def unpack_radix(self, packed: Bytes, count: int, levels: int, group: int) -> Bytes:
        """The inverse."""

    def sparsify(self, values: Tensor, starts: Longs, keep: Longs) -> tuple[Bytes, Tensor]:
        """Bit mask and values of the `keep[g]` largest magnitudes of each group, ties included."""

    def expand(self, mask: Bytes, kept: Tensor, count: int) -> Tensor:
        """`count` values: the kept ones where the mask has ones, zeros elsewhere."""

    def gather_rows(self, table: Words, slots: Longs) -> Tensor:
        """`[n, H]` float32: the rows of a bfloat16 table `[S, H]` at `slots`."""

    def move_rows(
        self, table: Words, written: Floats, slots: Longs, values: Tensor, floor: float
    ) -> None:
        """Move rows at `slots` towards the mean of their `values`, by `max(floor, new / written)`.

        `written` counts what each row has seen, and is brought up to date.
        """

    def magnitudes(self, codes: Bytes, columns: int, centre: int) -> tuple[Longs, Longs]:
        """Sums of |code - centre| by row and by column of `[rows, columns]`."""

    def counts(
        self, codes: Bytes, columns: int, context_of: Bytes, by_row: bool, contexts: int
    ) -> npt.NDArray[np.uint32]:
        """`[contexts, 256]`: how often each code occurs in each row's or column's context."""

    def rans_encode(
        self,
        codes: Bytes,
        columns: int,
        context_of: Bytes,
        by_row: bool,
        frequencies: Words,
        lanes: int,
        segments: int,
    ) -> list[Words]:
        """The words of each segment; frequencies `[contexts, 256]` sum to 4096 a context."""

    def rans_decode(
        self,
        words: Words,
        word_start: Longs,
        count: int,
        columns: int,
        context_of: Bytes,
        by_row: bool,
        frequencies: Words,
        lanes: int,
    ) -> Bytes | None:
        """The codes; None where the words are not what an encoder made."""


@cache
def kernel() -> Kernel:
    """The kernel of this process."""
    wanted = os.environ.get("SFL_KERNEL", "compiled")
    if wanted != "torch":
        library = _library(wanted)
        if library is not None:
            return CompiledKernel(library)
        log.info("no compiled codec kernel in this installation; torch does its work")
    return TorchKernel()


_ELSEWHERE = TorchKernel()


def kernel_for(values: Tensor) -> Kernel:
    """The kernel for these values: on an accelerator one that codes them before they leave it."""
    return kernel() if values.is_cpu else _ELSEWHERE


def _library(wanted: str = "compiled") -> ctypes.CDLL | None:
    """The compiled core beside this file, where the build had a compiler; or another build."""
    beside = [f"_kernel{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    for name in [wanted] if wanted.endswith(".so") else beside:
        path = Path(__file__).parent / name  # an absolute path stays what it is
        if not path.exists():
            continue
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            log.warning("the compiled codec kernel does not load: %s", error)
            return None
        if library.sfl_abi() == ABI:
            return library
        log.warning("%s is of another version; run: make install", path)
    return None


class CompiledKernel(CompiledQuantising, CompiledRows, CompiledSymbols):
    """`_kernel.c` through ctypes, which releases the GIL."""

    name = "compiled"

    def __init__(self, library: ctypes.CDLL) -> None:
        super().__init__(library)
        library.sfl_sparsify.restype = ctypes.c_int64
