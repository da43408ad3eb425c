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
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sfl.codec.torch_kernel import TorchKernel
from sfl.errors import ProtocolError

log = logging.getLogger(__name__)

ABI = 4
MISFIT = 2  # what the compiled kernel returns where its arguments do not fit each other
Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint16]
Longs = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


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


def _at(array: npt.NDArray[np.generic]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _of(values: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(values.data_ptr())


_long = ctypes.c_int64
_int = ctypes.c_int32


class CompiledKernel:
    """`_kernel.c` through ctypes, which releases the GIL."""

    name = "compiled"

    def __init__(self, library: ctypes.CDLL) -> None:
        self._c = library
        library.sfl_sparsify.restype = ctypes.c_int64

    def quantise_blocks(
        self, values: Tensor, block: int, levels: int, key: int | None
    ) -> tuple[Words, Bytes] | None:
        """bf16 scales and codes."""
        n = values.numel()
        scales, codes = np.empty(-(-n // block), np.uint16), np.empty(n, np.uint8)
        bad = self._c.sfl_quantise_blocks(
            _of(values),
            _long(n),
            _long(block),
            _int(levels),
            _int(key is not None),
            ctypes.c_uint32(key or 0),
            _at(scales),
            _at(codes),
            _threads(),
        )
        return None if bad else (scales, codes)

    def dequantise_blocks(self, codes: Bytes, scales: Words, block: int, levels: int) -> Tensor:
        """Values."""
        values = torch.empty(codes.size)
        misfit = self._c.sfl_dequantise_blocks(
            _at(codes),
            _at(scales),
            _long(scales.size),
            _long(codes.size),
            _long(block),
            _int(levels),
            _of(values),
            _threads(),
        )
        return _fitting(values, misfit)

    def quantise_grid(self, values: Tensor, inverse: float, key: int | None) -> Bytes | None:
        """Codes."""
        codes = np.empty(values.numel(), np.uint8)
        bad = self._c.sfl_quantise_grid(
            _of(values),
            _long(codes.size),
            ctypes.c_float(inverse),
            _int(key is not None),
            ctypes.c_uint32(key or 0),
            _at(codes),
            _threads(),
        )
        return None if bad else codes

    def dequantise_grid(self, codes: Bytes, step: float, key: int | None) -> Tensor:
        """Values."""
        values = torch.empty(codes.size)
        self._c.sfl_dequantise_grid(
            _at(codes),
            _long(codes.size),
            ctypes.c_float(step),
            _int(key is not None),
            ctypes.c_uint32(key or 0),
            _of(values),
            _threads(),
        )
        return values

    def pack_bits(self, codes: Bytes, bits: int) -> Bytes:
        """Packed."""
        if bits == 8:
            return codes
        packed = np.empty((codes.size * bits + 7) // 8, np.uint8)
        self._c.sfl_pack_bits(_at(codes), _long(codes.size), _int(bits), _at(packed), _threads())
        return packed

    def unpack_bits(self, packed: Bytes, count: int, bits: int) -> Bytes:
        """Codes."""
        if bits == 8:
            return packed
        codes = np.empty(count, np.uint8)
        misfit = self._c.sfl_unpack_bits(
            _at(packed), _long(packed.size), _long(count), _int(bits), _at(codes), _threads()
        )
        return _fitting(codes, misfit)

    def pack_radix(self, codes: Bytes, levels: int, group: int) -> Bytes:
        """Packed."""
        if group == 1:
            return codes
        packed = np.empty(-(-codes.size // group), np.uint8)
        self._c.sfl_pack_radix(
            _at(codes), _long(codes.size), _int(levels), _int(group), _at(packed), _threads()
        )
        return packed

    def unpack_radix(self, packed: Bytes, count: int, levels: int, group: int) -> Bytes:
        """Codes."""
        if group == 1:
            return packed
        codes = np.empty(count, np.uint8)
        misfit = self._c.sfl_unpack_radix(
            _at(packed),
            _long(packed.size),
            _long(count),
            _int(levels),
            _int(group),
            _at(codes),
            _threads(),
        )
        return _fitting(codes, misfit)

    def sparsify(self, values: Tensor, starts: Longs, keep: Longs) -> tuple[Bytes, Tensor]:
        """Mask and survivors."""
        mask = np.empty((values.numel() + 7) // 8, np.uint8)
        room = int(keep.sum())
        while True:  # once, and once more where there were ties
            kept = torch.empty(room)
            count: int = self._c.sfl_sparsify(
                _of(values),
                _at(starts),
                _long(keep.size),
                _at(keep),
                _at(mask),
                _of(kept),
                _long(room),
                _threads(),
            )
            if count < 0:
                raise MemoryError("sparsifying")
            if count <= room:
                return mask, kept[:count]
            room = count

    def expand(self, mask: Bytes, kept: Tensor, count: int) -> Tensor:
        """All values."""
        values = torch.empty(count)
        misfit = self._c.sfl_expand(
            _at(mask),
            _long(mask.size),
            _of(kept),
            _long(kept.numel()),
            _long(count),
            _of(values),
        )
        return _fitting(values, misfit)

    def gather_rows(self, table: Words, slots: Longs) -> Tensor:
        """Rows."""
        rows = torch.empty(slots.size, table.shape[1])
        misfit = self._c.sfl_gather_rows(
            _at(table),
            _long(len(table)),
            _at(slots),
            _long(slots.size),
            _long(table.shape[1]),
            _of(rows),
        )
        return _fitting(rows, misfit)

    def move_rows(
        self, table: Words, written: Floats, slots: Longs, values: Tensor, floor: float
    ) -> None:
        """In place."""
        failed = self._c.sfl_move_rows(
            _at(table),
            _at(written),
            _long(len(table)),
            _long(table.shape[1]),
            _at(slots),
            _of(values.contiguous()),
            _long(slots.size),
            ctypes.c_float(floor),
        )
        _fitting(None, failed)
        if failed:
            raise MemoryError("remembering rows")

    def magnitudes(self, codes: Bytes, columns: int, centre: int) -> tuple[Longs, Longs]:
        """Sums by row and by column."""
        rows = codes.size // columns
        by_row, by_column = np.empty(rows, np.int64), np.empty(columns, np.uint32)
        self._c.sfl_magnitudes(
            _at(codes), _long(rows), _long(columns), _int(centre), _at(by_row), _at(by_column)
        )
        return by_row, by_column.astype(np.int64)

    def counts(
        self, codes: Bytes, columns: int, context_of: Bytes, by_row: bool, contexts: int
    ) -> npt.NDArray[np.uint32]:
        """Histograms."""
        counts = np.empty((contexts, 256), np.uint32)
        failed = self._c.sfl_counts(
            _at(codes),
            _long(codes.size // columns),
            _long(columns),
            _at(context_of),
            _int(by_row),
            _int(contexts),
            _at(counts),
            _threads(),
        )
        if failed:
            raise MemoryError("counting symbols")
        return counts

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
        """Words of each segment."""
        rows = codes.size // columns
        capacity = -(-rows // segments) * columns + 2 * lanes + 1
        words, used = np.empty((segments, capacity), np.uint16), np.empty(segments, np.int64)
        failed = self._c.sfl_rans_encode(
            _at(codes),
            _long(rows),
            _long(columns),
            _at(context_of),
            _int(by_row),
            _int(len(frequencies)),
            _at(frequencies),
            _int(lanes),
            _int(segments),
            _at(words),
            _long(capacity),
            _at(used),
            _threads(),
        )
        if failed:
            raise MemoryError("entropy coding")
        return [own[:count] for own, count in zip(words, used, strict=True)]

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
        """Codes."""
        codes = np.empty(count, np.uint8)
        failed = self._c.sfl_rans_decode(
            _at(words),
            _long(words.size),
            _at(word_start),
            _long(count // columns),
            _long(columns),
            _at(context_of),
            _long(context_of.size),
            _int(by_row),
            _int(len(frequencies)),
            _at(frequencies),
            _int(lanes),
            _int(word_start.size - 1),
            _at(codes),
            _threads(),
        )
        if failed < 0:
            raise MemoryError("entropy decoding")
        _fitting(None, failed)
        return None if failed else codes


T = TypeVar("T")


def _fitting(made: T, status: int) -> T:
    """What the kernel made, where its arguments fitted each other. Raises ProtocolError."""
    if status == MISFIT:
        raise ProtocolError("lengths in a packet do not fit each other")
    return made


_process_threads: int | None = None


def use_threads(threads: int) -> None:
    """The kernel works with so many threads of its own, whichever thread calls it."""
    global _process_threads
    _process_threads = threads


def _threads() -> ctypes.c_int32:
    return ctypes.c_int32(_process_threads or torch.get_num_threads())
