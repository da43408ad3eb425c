"""Quantisers and packing of codes, compiled."""

from __future__ import annotations

import ctypes

import numpy as np
import torch
from torch import Tensor

from sfl.codec.arrays import Bytes, Words
from sfl.codec.compiled.calls import INT, LONG, Core, at, fitting, of, threads


class CompiledQuantising(Core):
    """Quantisers and packing of codes; see sfl.codec.kernel.Kernel."""

    def quantise_blocks(
        self, values: Tensor, block: int, levels: int, key: int | None
    ) -> tuple[Words, Bytes] | None:
        """bf16 scales and codes."""
        n = values.numel()
        scales, codes = np.empty(-(-n // block), np.uint16), np.empty(n, np.uint8)
        bad = self._c.sfl_quantise_blocks(
            of(values),
            LONG(n),
            LONG(block),
            INT(levels),
            INT(key is not None),
            ctypes.c_uint32(key or 0),
            at(scales),
            at(codes),
            threads(),
        )
        return None if bad else (scales, codes)

    def dequantise_blocks(self, codes: Bytes, scales: Words, block: int, levels: int) -> Tensor:
        """Values."""
        values = torch.empty(codes.size)
        misfit = self._c.sfl_dequantise_blocks(
            at(codes),
            at(scales),
            LONG(scales.size),
            LONG(codes.size),
            LONG(block),
            INT(levels),
            of(values),
            threads(),
        )
        return fitting(values, misfit)

    def quantise_grid(self, values: Tensor, inverse: float, key: int | None) -> Bytes | None:
        """Codes."""
        codes = np.empty(values.numel(), np.uint8)
        bad = self._c.sfl_quantise_grid(
            of(values),
            LONG(codes.size),
            ctypes.c_float(inverse),
            INT(key is not None),
            ctypes.c_uint32(key or 0),
            at(codes),
            threads(),
        )
        return None if bad else codes

    def dequantise_grid(self, codes: Bytes, step: float, key: int | None) -> Tensor:
        """Values."""
        values = torch.empty(codes.size)
        self._c.sfl_dequantise_grid(
            at(codes),
            LONG(codes.size),
            ctypes.c_float(step),
            INT(key is not None),
            ctypes.c_uint32(key or 0),
            of(values),
            threads(),
        )
        return values

    def pack_bits(self, codes: Bytes, bits: int) -> Bytes:
        """Packed."""
        if bits == 8:
            return codes
        packed = np.empty((codes.size * bits + 7) // 8, np.uint8)
        self._c.sfl_pack_bits(at(codes), LONG(codes.size), INT(bits), at(packed), threads())
        return packed

    def unpack_bits(self, packed: Bytes, count: int, bits: int) -> Bytes:
        """Codes."""
        if bits == 8:
            return packed
        codes = np.empty(count, np.uint8)
        misfit = self._c.sfl_unpack_bits(
            at(packed), LONG(packed.size), LONG(count), INT(bits), at(codes), threads()
        )
        return fitting(codes, misfit)

    def pack_radix(self, codes: Bytes, levels: int, group: int) -> Bytes:
        """Packed."""
        if group == 1:
            return codes
        packed = np.empty(-(-codes.size // group), np.uint8)
        self._c.sfl_pack_radix(
            at(codes), LONG(codes.size), INT(levels), INT(group), at(packed), threads()
        )
        return packed

    def unpack_radix(self, packed: Bytes, count: int, levels: int, group: int) -> Bytes:
        """Codes."""
        if group == 1:
            return packed
        codes = np.empty(count, np.uint8)
        misfit = self._c.sfl_unpack_radix(
            at(packed),
            LONG(packed.size),
            LONG(count),
            INT(levels),
            INT(group),
            at(codes),
            threads(),
        )
        return fitting(codes, misfit)
