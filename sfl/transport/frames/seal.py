"""A checksum over every message, so that a bit that flips on the way never counts as meant.

It is the last field of each message of the contract (`fixed64 checksum = 15`): XXH3 of all bytes
before it, labels, lengths and headers included, which a payload's own would not cover. It is looked
at before anything else is read. Not against anybody who means harm: that is what TLS is for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import xxhash

from sfl.errors import Corrupted, ProtocolError

M = TypeVar("M")

_TAG = bytes((15 << 3 | 1,))
SEAL_BYTES = 9
"""Of a message on the wire."""

Raw = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What comes in place of a message that cannot be used; whoever takes messages raises it."""

    error: Corrupted | ProtocolError


def sound(message: M | Unreadable, peer: str = "") -> M:
    """The message. Raises Corrupted, ProtocolError, with the name of the peer before it."""
    if not isinstance(message, Unreadable):
        return message
    error = message.error
    raise type(error)(f"{peer}: {error}") if peer else error


def seal(*pieces: Raw) -> bytes:
    """A message's bytes with their checksum, in one copy."""
    digest = xxhash.xxh3_64()
    for piece in pieces:
        digest.update(piece)
    return b"".join((*pieces, _TAG, digest.intdigest().to_bytes(8, "little")))


def has_seal(data: bytes) -> bool:
    """Whether a message ends in a checksum; one of an older sfl does not."""
    return data[-SEAL_BYTES:-8] == _TAG


def unsealed(data: bytes) -> memoryview:
    """A view of the message without its checksum. Raises Corrupted."""
    body = memoryview(data)[:-SEAL_BYTES]
    if not has_seal(data) or xxhash.xxh3_64_intdigest(body).to_bytes(8, "little") != data[-8:]:
        raise Corrupted(
            f"bytes changed on the way: the checksum of a message of {len(data)} bytes does not fit"
        )
    return body
