"""What the compiled kernel gives for fixed inputs, a digest for each pass; needs numpy alone.

    python tests/house/kernel_bytes.py sfl/codec/_kernel*.so

The same on every machine: inputs are made of whole numbers, and the passes' floats are IEEE's, not
contracted. So a board without torch, or an emulator, can be compared with the digests below.
"""

from __future__ import annotations

import ctypes
import hashlib
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

COUNT = 1024 * 72 + 13  # not whole blocks, bytes or threads' shares
THREADS = ctypes.c_int32(2)

DIGESTS = {
    "quantise_blocks 127 72 None": "cae1e1e4684fd58a",
    "dequantise_blocks 127 72 None": "8652e29f30c34a60",
    "pack_bits 8": "e61b4d8a15111923",
    "quantise_blocks 7 64 None": "413a3f0522794dbd",
    "dequantise_blocks 7 64 None": "0216463e5cc2f10c",
    "pack_bits 4": "59d9616edb7faa1a",
    "quantise_blocks 3 64 77": "7cac9d3c7a03e6bb",
    "dequantise_blocks 3 64 77": "db0b6b5fba29f9c3",
    "pack_bits 3": "a5955a7a29658009",
    "quantise_blocks 1 16 5": "28d2880affcffd1b",
    "dequantise_blocks 1 16 5": "fe40594d6f070e2d",
    "pack_bits 2": "bda2de2029327aff",
    "quantise_grid None": "b49ae6f4ddd3d118",
    "dequantise_grid None": "4ce1e4952b886488",
    "quantise_grid 9": "c154c37a99df8b60",
    "dequantise_grid 9": "e4de33c9dcf3ea10",
    "pack_radix 3 5": "83e6752e424cc683",
    "sparsify": "88d7a467226d67f7",
    "expand": "f0d361110cd3d793",
    "counts": "8e7c45dded076f75",
    "rans_encode": "f4da1f6b48633f42",
}


def values(count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Numbers between -8 and 8, of magnitudes down to a 4096th of that."""
    words = (np.arange(count, dtype=np.uint64) * np.uint64(2654435761)) % np.uint64(1 << 32)
    signed = words.astype(np.int64) - (1 << 31)
    scale = (words >> np.uint64(7)) % np.uint64(13)
    return np.ldexp(signed.astype(np.float32), -28 - scale.astype(np.int32)).astype(np.float32)


def digest(*arrays: np.ndarray[Any, Any]) -> str:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:16]


def passes(path: Path) -> Iterator[tuple[str, str]]:
    """(pass and its arguments, digest of what it gives)."""
    library = ctypes.CDLL(str(path))
    at, n = _at, ctypes.c_int64(COUNT)
    x = values(COUNT)
    for levels, block, key in ((127, 72, None), (7, 64, None), (3, 64, 77), (1, 16, 5)):
        seed = (ctypes.c_int32(key is not None), ctypes.c_uint32(key or 0))
        form = (n, ctypes.c_int64(block), ctypes.c_int32(levels))
        scales, codes = np.empty(-(-COUNT // block), np.uint16), np.empty(COUNT, np.uint8)
        bad = library.sfl_quantise_blocks(at(x), *form, *seed, at(scales), at(codes), THREADS)
        assert not bad
        yield f"quantise_blocks {levels} {block} {key}", digest(scales, codes)
        back = np.empty(COUNT, np.float32)
        num_scales = ctypes.c_int64(scales.size)
        misfit = library.sfl_dequantise_blocks(
            at(codes), at(scales), num_scales, *form, at(back), THREADS
        )
        assert not misfit
        yield f"dequantise_blocks {levels} {block} {key}", digest(back)
        bits = (2 * levels).bit_length()
        packed = np.empty((COUNT * bits + 7) // 8, np.uint8)
        library.sfl_pack_bits(at(codes), n, ctypes.c_int32(bits), at(packed), THREADS)
        yield f"pack_bits {bits}", digest(packed)
        unpacked = np.empty(COUNT, np.uint8)
        size = ctypes.c_int64(packed.size)
        library.sfl_unpack_bits(at(packed), size, n, ctypes.c_int32(bits), at(unpacked), THREADS)
        assert np.array_equal(unpacked, codes)
    for key in (None, 9):
        seed = (ctypes.c_int32(key is not None), ctypes.c_uint32(key or 0))
        codes = np.empty(COUNT, np.uint8)
        library.sfl_quantise_grid(at(x), n, ctypes.c_float(2.75), *seed, at(codes), THREADS)
        yield f"quantise_grid {key}", digest(codes)
        back = np.empty(COUNT, np.float32)
        library.sfl_dequantise_grid(at(codes), n, ctypes.c_float(0.36), *seed, at(back), THREADS)
        yield f"dequantise_grid {key}", digest(back)
    yield from _radix(library, codes % 3)
    yield from _sparse(library, x)
    yield from _entropy(library)


def _radix(library: Any, codes: Any) -> Iterator[tuple[str, str]]:
    form = (ctypes.c_int64(COUNT), ctypes.c_int32(3), ctypes.c_int32(5))
    packed, unpacked = np.empty(-(-COUNT // 5), np.uint8), np.empty(COUNT, np.uint8)
    library.sfl_pack_radix(_at(codes), *form, _at(packed), THREADS)
    yield "pack_radix 3 5", digest(packed)
    size = ctypes.c_int64(packed.size)
    library.sfl_unpack_radix(_at(packed), size, *form, _at(unpacked), THREADS)
    assert np.array_equal(unpacked, codes)


def _sparse(library: Any, x: Any) -> Iterator[tuple[str, str]]:
    starts, keep = np.array([0, 30000, COUNT]), np.array([9000, 2000])
    mask, kept = np.empty((COUNT + 7) // 8, np.uint8), np.empty(20000, np.float32)
    library.sfl_sparsify.restype = ctypes.c_int64
    count = library.sfl_sparsify(
        _at(x), _at(starts), ctypes.c_int64(2), _at(keep), _at(mask), _at(kept),
        ctypes.c_int64(kept.size), THREADS,
    )  # fmt: skip
    assert 11000 <= count <= kept.size
    yield "sparsify", digest(mask, kept[:count])
    whole = np.empty(COUNT, np.float32)
    size = ctypes.c_int64(mask.size)
    library.sfl_expand(
        _at(mask), size, _at(kept), ctypes.c_int64(count), ctypes.c_int64(COUNT), _at(whole)
    )
    assert np.array_equal(whole != 0, np.unpackbits(mask, count=COUNT, bitorder="little") == 1)
    yield "expand", digest(whole)


def _entropy(library: Any) -> Iterator[tuple[str, str]]:
    rows, columns, lanes, segments = 256, 288, 32, 2
    shape = (ctypes.c_int64(rows), ctypes.c_int64(columns))
    codes = np.minimum(np.abs(values(rows * columns)) * 8, 16).astype(np.uint8)
    context_of = (np.arange(rows) % 2).astype(np.uint8)
    context = (_at(context_of), ctypes.c_int32(1), ctypes.c_int32(2))
    counts = np.empty((2, 256), np.uint32)
    library.sfl_counts(_at(codes), *shape, *context, _at(counts), THREADS)
    yield "counts", digest(counts)
    frequencies = np.zeros((2, 256), np.uint16)
    for own, seen in zip(frequencies, counts.astype(np.int64), strict=True):
        own[:] = np.maximum(seen * 4000 // seen.sum(), seen > 0)
        own[np.argmax(own)] += 4096 - own.sum()
    capacity = rows // segments * columns + 2 * lanes + 1
    words, used = np.empty((segments, capacity), np.uint16), np.empty(segments, np.int64)
    failed = library.sfl_rans_encode(
        _at(codes), *shape, *context, _at(frequencies), ctypes.c_int32(lanes),
        ctypes.c_int32(segments), _at(words), ctypes.c_int64(capacity), _at(used), THREADS,
    )  # fmt: skip
    assert not failed
    yield "rans_encode", digest(*(own[:count] for own, count in zip(words, used, strict=True)))


def _at(array: np.ndarray[Any, Any]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def main() -> int:
    """Print every digest, and whether it is the expected one."""
    wrong = 0
    for name, found in passes(Path(sys.argv[1])):
        same = DIGESTS.get(name) == found
        wrong += not same
        sys.stdout.write(f"{found}  {name}{'' if same else '   DIFFERS'}\n")
    sys.stdout.write(f"{platform.machine()}: {len(DIGESTS)} passes, {wrong} differ\n")
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
