"""Large payloads on their way, in pieces and without copies."""

from __future__ import annotations

from collections.abc import Sequence

Raw = bytes | bytearray | memoryview


class Chunks:
    """Bytes in several pieces, cut without copying."""

    __slots__ = ("_size", "pieces")

    def __init__(self, pieces: Sequence[Raw]) -> None:
        self.pieces = [memoryview(piece) for piece in pieces]
        self._size = sum(map(len, self.pieces))

    def __len__(self) -> int:
        return self._size

    def __bytes__(self) -> bytes:
        return b"".join(self.pieces)

    def cut(self, at: int, size: int) -> Chunks:
        """`size` bytes from `at` on, fewer at the end."""
        found = []
        for piece in self.pieces:
            if at < len(piece) and size > 0:
                found.append(piece[at : at + size])
                size -= len(found[-1])
            at = max(0, at - len(piece))
        return Chunks(found)

    def whole(self) -> memoryview:
        """All of it in one piece, copied only where it is in several."""
        return self.pieces[0] if len(self.pieces) == 1 else memoryview(bytes(self))
