"""Lossless compression by Zstandard, bounded on the way back."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import zstandard

from sfl.codec.kernel import kernel
from sfl.codec.packet import Bytes, Form, Symbols
from sfl.codec.spec import Argument, at_most, whole
from sfl.errors import ProtocolError
from sfl.node.buffers import Raw

ZSTD_BYTES = 1
ZSTD_SYMBOLS = 2
_WORTH = 48  # bytes; a frame itself costs about 12


@dataclass(frozen=True, slots=True)
class Zstd:
    """One frame a section; level 1 by default, since entropy is all there is to gain.

    Symbols are packed as many to a byte as fit in base `levels`, so that each byte is a whole
    number of symbols and its Huffman code sees their joint frequencies.
    """

    name: str = "zstd"
    level: int = 1
    needs_kernel: bool = False

    def compress(self, body: Raw | Symbols) -> tuple[int, Raw] | None:
        """The frame, where it is shorter than the plain section."""
        if not isinstance(body, Symbols):
            if len(body) < _WORTH:
                return None
            data = _compressor(self.level).compress(body)
            return (ZSTD_BYTES, data) if len(data) < len(body) else None
        packed = kernel().pack_radix(body.codes, body.levels, group_of(body.levels))
        data = _compressor(self.level).compress(packed.data)
        straight = (body.codes.size * max(1, (body.levels - 1).bit_length()) + 7) // 8
        return (ZSTD_SYMBOLS, data) if len(data) < straight else None


_contexts = threading.local()  # they take time to make, and no two threads may use one at once


def _compressor(level: int) -> zstandard.ZstdCompressor:
    known: dict[int, zstandard.ZstdCompressor] = _contexts.__dict__.setdefault("compressors", {})
    if level not in known:
        known[level] = zstandard.ZstdCompressor(level=level)
    return known[level]


def _decompressor() -> zstandard.ZstdDecompressor:
    if not hasattr(_contexts, "decompressor"):
        _contexts.decompressor = zstandard.ZstdDecompressor()
    found: zstandard.ZstdDecompressor = _contexts.decompressor
    return found


def group_of(levels: int) -> int:
    """Symbols below `levels` that fit into one byte."""
    group = 1
    while group < 8 and levels ** (group + 1) <= 256:
        group += 1
    return group


def decompress_bytes(data: bytes | memoryview, most: int) -> bytes:
    """The content, refused before allocating where the frame declares more than `most` bytes.

    The library allocates whatever a frame declares and bounds only frames that declare nothing,
    so the declaration is what has to be checked. Raises ProtocolError.
    """
    try:
        declared = zstandard.get_frame_parameters(data).content_size
        if declared > most:
            raise ProtocolError(
                f"codec zstd: the frame declares {declared} bytes, at most {most} are expected"
            )
        return _decompressor().decompress(data, max_output_size=most, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ProtocolError(f"codec zstd: not a valid frame: {error}") from None


def decompress_symbols(data: bytes | memoryview, form: Form) -> Bytes:
    """The symbols. Raises ProtocolError."""
    group = group_of(form.levels)
    size = -(-form.count // group)
    packed = decompress_bytes(data, size)
    if len(packed) != size:
        raise ProtocolError(f"codec zstd: {len(packed)} bytes of symbols where {size} are expected")
    array = np.frombuffer(packed, np.uint8)
    return kernel().unpack_radix(array, form.count, form.levels, group)


def make_zstd(arguments: tuple[Argument, ...]) -> Zstd:
    """`zstd[(level)]`."""
    at_most(arguments, 1)
    if not arguments:
        return Zstd()
    level = whole(arguments[0], 1, 19)
    return Zstd(f"zstd({level})", level)
