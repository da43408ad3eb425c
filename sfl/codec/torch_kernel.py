"""The codec's passes in torch and numpy, for where there is no compiled kernel: the same bytes.

What C does in one pass takes several here, each over memory of its own. Nothing depends on the
order of a float sum. Passes over values run where these are: on an accelerator they leave it as
codes, a byte each, and as bits of a mask.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sfl.codec.arrays import Bytes, Floats, Longs, Words
from sfl.codec.packet import is_finite
from sfl.codec.torch_symbols import TorchSymbols

_BF16_MAX = torch.finfo(torch.bfloat16).max
_BIN_SHIFT = 19  # an exponent and four leading bits
_CPU = torch.device("cpu")


def _signed(word: int) -> int:
    """A 32-bit word as int32 has it."""
    return word - (1 << 32) if word >= 1 << 31 else word


_GOLDEN, _FIRST, _SECOND = map(_signed, (0x9E3779B9, 0x21F0AAAD, 0xD35A2D97))


def uniform(key: int, count: int, device: torch.device = _CPU) -> Tensor:
    """Keyed numbers in [0, 1), multiples of 2^-24; the i-th depends on (key, i) alone."""
    bits = torch.arange(count, dtype=torch.int32, device=device).mul_(_GOLDEN).add_(_signed(key))
    bits ^= (bits >> 16) & 0xFFFF  # int32 shifts keep the sign, the hash wants zeros
    bits *= _FIRST
    bits ^= (bits >> 15) & 0x1FFFF
    bits *= _SECOND
    bits ^= (bits >> 15) & 0x1FFFF
    return ((bits >> 8) & 0xFFFFFF).float().mul_(2.0**-24)


def _as_bf16(table: Words) -> Tensor:
    return torch.from_numpy(table).view(torch.bfloat16)


class TorchKernel(TorchSymbols):
    """See sfl.codec.kernel.Kernel."""

    name = "torch"

    def quantise_blocks(
        self, values: Tensor, block: int, levels: int, key: int | None
    ) -> tuple[Words, Bytes] | None:
        """bf16 scales and codes."""
        n = values.numel()
        blocks = -(-n // block)
        padded = values if n == blocks * block else values.new_zeros(blocks * block)
        if padded is not values:
            padded[:n] = values
        grid = padded.view(blocks, block)
        largest = torch.maximum(grid.amax(1), -grid.amin(1))
        if not bool(largest.isfinite().all()):
            return None
        # By a tensor: CUDA takes a number's reciprocal, and multiplies.
        ratio = largest / torch.full_like(largest, levels)
        words = ratio.view(torch.int32).add_(0xFFFF) & -0x10000
        words = words.clamp_(0x03800000, 0x7F7F0000)
        inverse = 1.0 / words.view(torch.float32)
        u = grid * inverse[:, None]
        if key is None:
            u += 0.5
        else:
            u += _offsets(key, n, blocks * block, values.device).view(blocks, block)
        codes = u.add_(float(levels)).clamp_(0.0, float(2 * levels)).to(torch.uint8)
        scales = (words >> 16).to(torch.int16).cpu().numpy().view(np.uint16)
        return scales, codes.view(-1)[:n].cpu().numpy()

    def dequantise_blocks(self, codes: Bytes, scales: Words, block: int, levels: int) -> Tensor:
        """Values."""
        n, blocks = codes.size, scales.size
        padded = np.full(blocks * block, levels, np.uint8) if n != blocks * block else codes
        if padded is not codes:
            padded[:n] = codes
        scale = torch.from_numpy(scales.astype(np.uint32) << 16).view(torch.float32)
        values = torch.from_numpy(padded.astype(np.float32)).view(blocks, block)
        values -= float(levels)
        return values.mul_(scale[:, None]).view(-1)[:n]

    def quantise_grid(self, values: Tensor, inverse: float, key: int | None) -> Bytes | None:
        """Codes."""
        if not is_finite(values):
            return None
        u = values * torch.tensor(inverse)
        u += uniform(key, values.numel(), values.device) if key is not None else 0.5
        codes: Bytes = u.add_(128.0).clamp_(1.0, 255.0).to(torch.uint8).cpu().numpy()
        return codes

    def dequantise_grid(self, codes: Bytes, step: float, key: int | None) -> Tensor:
        """Values."""
        values = torch.from_numpy(codes.astype(np.float32)).sub_(128.0)
        if key is not None:
            values.sub_(uniform(key, codes.size)).add_(0.5)
        return values.mul_(torch.tensor(step))

    def pack_bits(self, codes: Bytes, bits: int) -> Bytes:
        """Packed."""
        if 8 % bits == 0:  # whole codes in a byte
            return self.pack_radix(codes, 1 << bits, 8 // bits)[: (codes.size * bits + 7) // 8]
        words = np.zeros(-(-codes.size // 8) * 8, np.uint8)
        words[: codes.size] = codes
        eights = words.reshape(-1, 8).astype(np.uint64)
        joined = np.zeros(len(eights), np.uint64)
        for place in range(8):
            joined |= eights[:, place] << np.uint64(bits * place)
        packed = joined.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :bits]
        return np.ascontiguousarray(packed).reshape(-1)[: (codes.size * bits + 7) // 8]

    def unpack_bits(self, packed: Bytes, count: int, bits: int) -> Bytes:
        """Codes."""
        if 8 % bits == 0:
            return self.unpack_radix(packed, count, 1 << bits, 8 // bits)
        words = np.zeros((-(-count // 8), 8), np.uint8)
        padded = np.zeros(len(words) * bits, np.uint8)
        padded[: packed.size] = packed
        words[:, :bits] = padded.reshape(-1, bits)
        joined = words.view("<u8")[:, 0]
        shifts = (np.arange(8) * bits).astype(np.uint64)
        codes = (joined[:, None] >> shifts) & np.uint64((1 << bits) - 1)
        return codes.astype(np.uint8).reshape(-1)[:count]

    def pack_radix(self, codes: Bytes, levels: int, group: int) -> Bytes:
        """Packed."""
        if group == 1:
            return codes
        padded = codes
        if codes.size % group:
            padded = np.zeros(-(-codes.size // group) * group, np.uint8)
            padded[: codes.size] = codes
        places = torch.from_numpy(padded).view(-1, group)
        packed = places[:, group - 1].clone()
        for place in range(group - 2, -1, -1):  # at most 255 at every moment
            packed.mul_(levels).add_(places[:, place])
        result: Bytes = packed.numpy()
        return result

    def unpack_radix(self, packed: Bytes, count: int, levels: int, group: int) -> Bytes:
        """Codes."""
        if group == 1:
            return packed
        powers = levels ** np.arange(group)
        table = (np.arange(256)[:, None] // powers % levels).astype(np.uint8)
        return table[packed].reshape(-1)[:count]

    def sparsify(self, values: Tensor, starts: Longs, keep: Longs) -> tuple[Bytes, Tensor]:
        """Mask and survivors."""
        magnitude = values.view(torch.int32) & 0x7FFFFFFF
        if not values.is_cpu:
            mask = _largest(magnitude, np.diff(starts), keep)
            return _packed_mask(mask), values[mask]
        mask = torch.empty(values.numel(), dtype=torch.bool)
        for group, count in enumerate(keep.tolist()):
            own = slice(int(starts[group]), int(starts[group + 1]))
            torch.ge(magnitude[own], _kth(magnitude[own], count), out=mask[own])
        return np.packbits(mask.numpy(), bitorder="little"), values[mask]

    def expand(self, mask: Bytes, kept: Tensor, count: int) -> Tensor:
        """All values."""
        values = torch.zeros(count)
        ones = torch.from_numpy(np.unpackbits(mask, count=count, bitorder="little")).bool()
        return values.masked_scatter_(ones, kept)

    def gather_rows(self, table: Words, slots: Longs) -> Tensor:
        """Rows."""
        return _as_bf16(table)[torch.from_numpy(slots)].float()

    def move_rows(
        self, table: Words, written: Floats, slots: Longs, values: Tensor, floor: float
    ) -> None:
        """In place."""
        rows = _as_bf16(table)
        unique, place, count = np.unique(slots, return_inverse=True, return_counts=True)
        times = count.astype(np.float32)
        mean = torch.zeros(len(unique), table.shape[1])
        mean.index_add_(0, torch.from_numpy(place), values)
        mean /= torch.from_numpy(times)[:, None]
        written[unique] += times
        weight = torch.from_numpy(np.maximum(times / written[unique], np.float32(floor)))[:, None]
        at = torch.from_numpy(unique)
        known = rows[at].float()
        # A fresh row takes the mean itself, whatever lay there before.
        moved = torch.where(weight >= 1.0, mean, known + weight * (mean - known))
        rows[at] = moved.clamp_(-_BF16_MAX, _BF16_MAX).bfloat16()


def _offsets(key: int, count: int, room: int, device: torch.device) -> Tensor:
    """Keyed offsets of `count` values, padded with zeros."""
    drawn = uniform(key, count, device)
    return drawn if room == count else torch.cat([drawn, drawn.new_zeros(room - count)])


def _largest(magnitude: Tensor, sizes: Longs, keep: Longs) -> Tensor:
    """Mask of an accelerator's values, which selects by itself; what is looked at is waited for."""
    size, count = int(sizes[0]), int(keep[0])
    if bool((sizes == size).all()):  # rows: all of them at once
        groups = magnitude.view(-1, size)
        return (groups >= groups.kthvalue(size - count + 1, 1, keepdim=True).values).view(-1)
    parts = torch.split(magnitude, sizes.tolist())
    return torch.cat(
        [
            own >= own.kthvalue(own.numel() - count + 1).values
            for own, count in zip(parts, keep.tolist(), strict=True)
        ]
    )


def _packed_mask(mask: Tensor) -> Bytes:
    """Bits, the first the lowest, eight to a byte before they leave an accelerator."""
    places = torch.zeros(-(-mask.numel() // 8) * 8, dtype=torch.uint8, device=mask.device)
    places[: mask.numel()] = mask
    weights = (1 << torch.arange(8, device=mask.device)).to(torch.uint8)
    packed: Bytes = (places.view(-1, 8) * weights).sum(1, dtype=torch.uint8).cpu().numpy()
    return packed


def _kth(magnitude: Tensor, k: int) -> Tensor:
    """The k-th largest of int32 magnitudes: its bin first, then a selection within the bin."""
    bins = magnitude >> _BIN_SHIFT
    counts = torch.bincount(bins, minlength=1)
    above = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(above, k))
    inside = magnitude[bins == counts.numel() - 1 - place]
    rank = k - (int(above[place - 1]) if place else 0)
    return inside.kthvalue(inside.numel() - rank + 1).values
