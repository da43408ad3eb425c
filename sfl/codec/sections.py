"""A payload is a row of sections, each coded on its own: a byte that says how, a length, the bytes.

So every section keeps the shortest form that was found for it, plain where coding does not pay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from sfl.codec import rans, zstd
from sfl.codec.kernel import kernel
from sfl.codec.packet import (
    Bytes,
    Form,
    Lossless,
    Quantised,
    Symbols,
    read_varint,
    symbol_bits,
    varint,
)
from sfl.errors import ProtocolError
from sfl.node.buffers import Chunks, Raw

PLAIN = 0
_JOINED = 1 << 16  # bytes up to which a copy costs nothing
_LONGEST = 11  # bytes of a section's method and length

BYTE_CODERS: dict[int, Callable[[memoryview, int], bytes]] = {
    zstd.ZSTD_BYTES: zstd.decompress_bytes
}
"""How a section of bytes was coded -> its decoder, bounded by a number of bytes."""
SYMBOL_CODERS: dict[int, Callable[[memoryview, Form], Bytes]] = {
    zstd.ZSTD_SYMBOLS: zstd.decompress_symbols,
    rans.RANS: rans.decompress_symbols,
}
"""How a section of symbols was coded -> its decoder."""

C = TypeVar("C")


def _coder(known: dict[int, C], method: int) -> C:
    if method not in known:
        raise ProtocolError(f"a section is coded in an unknown way ({method})")
    return known[method]


def _unpacked(data: memoryview, form: Form) -> Bytes:
    bits = symbol_bits(form.levels)
    if len(data) != (form.count * bits + 7) // 8:
        raise ProtocolError(f"{len(data)} bytes for {form.count} codes of {bits} bits")
    return kernel().unpack_bits(np.frombuffer(data, np.uint8), form.count, bits)


def plain(body: Raw | Symbols) -> tuple[int, Raw]:
    """Bytes as they are, symbols bit-packed."""
    if not isinstance(body, Symbols):
        return PLAIN, body
    return PLAIN, kernel().pack_bits(body.codes, symbol_bits(body.levels)).data


class Writer:
    """Sections on their way out."""

    def __init__(self, lossless: Lossless | None) -> None:
        self._lossless = lossless
        self._parts: list[Raw] = []

    def add(self, body: Raw | Symbols) -> None:
        """One section in its shortest form."""
        coded = None if self._lossless is None else self._lossless.compress(body)
        method, data = coded or plain(body)
        self._parts += [bytes([method]), varint(len(data)), data]

    def payload(self) -> Raw | Chunks:
        """All of them; a large one stays where it is."""
        chunks = Chunks(self._parts)
        return chunks if len(chunks) > _JOINED else bytes(chunks)


class Reader:
    """Sections on their way in, bounded by what is due. Every method raises ProtocolError."""

    def __init__(self, payload: Raw | Chunks) -> None:
        self._payload = payload if isinstance(payload, Chunks) else Chunks([payload])
        self._at = 0

    def bytes(self, most: int, exactly: bool = True) -> bytes:
        """A section of bytes: exactly (or at most) so many."""
        method, data = self._section()
        body = self._body(method, data, most)
        if exactly and len(body) != most:
            raise ProtocolError(f"{len(body)} bytes in a section where {most} are expected")
        return bytes(body)

    def view(self, count: int) -> Raw | Chunks:
        """A section of exactly so many bytes, not copied where it is plain."""
        method, data = self._section()
        body = data if method == PLAIN else self._body(method, data, count)
        if len(body) != count:
            raise ProtocolError(f"{len(body)} bytes in a section where {count} are expected")
        return body

    def _body(self, method: int, data: Chunks, most: int) -> Raw:
        whole = data.whole()
        body = whole if method == PLAIN else _coder(BYTE_CODERS, method)(whole, most)
        if len(body) > most:
            raise ProtocolError(f"{len(body)} bytes in a section where {most} are expected")
        return body

    def symbols(self, form: Form) -> Bytes:
        """A section of symbols."""
        method, data = self._section()
        if method == PLAIN:
            codes = _unpacked(data.whole(), form)
        else:
            codes = _coder(SYMBOL_CODERS, method)(data.whole(), form)
        if codes.size and int(codes.max()) >= form.levels:
            raise ProtocolError(f"code {int(codes.max())} in a section of {form.levels} levels")
        return codes

    def finish(self) -> None:
        """Nothing may be left."""
        if self._at != len(self._payload):
            raise ProtocolError(f"{len(self._payload) - self._at} bytes too many in a packet")

    def _section(self) -> tuple[int, Chunks]:
        if self._at >= len(self._payload):
            raise ProtocolError("a packet ends before its last section")
        head = self._payload.cut(self._at, _LONGEST).whole()
        size, used = read_varint(head, 1)
        method, self._at = head[0], self._at + used
        data = self._payload.cut(self._at, size)
        if len(data) != size:
            raise ProtocolError("a packet ends within a section")
        self._at += size
        return method, data


class Loopback:
    """What a quantiser just made, read back without coding it: what the receiver will see."""

    def __init__(self, coded: Quantised) -> None:
        self._sections: list[Raw | Symbols] = [coded.side] if coded.side else []
        self._sections.append(coded.body)

    def bytes(self, most: int, exactly: bool = True) -> bytes:
        """The next section."""
        return bytes(self.view(most))

    def view(self, count: int) -> Raw:
        """The next section."""
        section = self._sections.pop(0)
        assert not isinstance(section, Symbols)
        return section

    def symbols(self, form: Form) -> Bytes:
        """The next section."""
        section = self._sections.pop(0)
        assert isinstance(section, Symbols)
        return section.codes
