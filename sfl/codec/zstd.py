"""Lossless compression by Zstandard, bounded on the way back."""

from __future__ import annotations

from dataclasses import dataclass

import zstandard

from sfl.errors import ProtocolError


@dataclass(frozen=True, slots=True)
class Zstd:
    """One frame that carries its content size; level 1, since entropy is all there is to gain."""

    name: str = "zstd"
    level: int = 1

    def compress(self, payload: bytes) -> bytes:
        """One frame."""
        return zstandard.ZstdCompressor(level=self.level).compress(payload)

    def decompress(self, payload: bytes, num_bytes: int) -> bytes:
        """The content, refused before allocating unless the frame declares `num_bytes`.

        The library allocates whatever a frame declares and bounds only frames that declare
        nothing, so the declaration is what has to be checked.
        """
        try:
            declared = zstandard.get_frame_parameters(payload).content_size
            if declared != num_bytes:
                raise ProtocolError(
                    f"codec zstd: the frame declares {declared} bytes, the shape needs {num_bytes}"
                )
            return zstandard.ZstdDecompressor().decompress(
                payload, max_output_size=num_bytes, allow_extra_data=False
            )
        except zstandard.ZstdError as error:
            raise ProtocolError(f"codec zstd: not a valid frame: {error}") from None


ZSTD = Zstd()
