"""Bytes and numbers, changed as a hostile or broken peer may change them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

EXTREMES = (
    0,
    1,
    2,
    7,
    127,
    128,
    255,
    4095,
    4096,
    4097,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**40,
    2**61,
    2**62,
    2**63 - 2,
    2**63 - 1,
    2**64 - 1,
)
"""Numbers where widths end, and where sums of a few of them come round to small ones again."""


def mutated(data: bytes, rng: random.Random, other: bytes = b"") -> bytes:
    """One to four changes; `other` is a second honest input to take pieces of."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        rng.choice(_CHANGES)(out, rng, other)
    return bytes(out)


def _flip(out: bytearray, rng: random.Random, other: bytes) -> None:
    if out:
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)


def _set(out: bytearray, rng: random.Random, other: bytes) -> None:
    if out:
        out[rng.randrange(len(out))] = rng.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF))


def _insert(out: bytearray, rng: random.Random, other: bytes) -> None:
    at = rng.randint(0, len(out))
    out[at:at] = rng.choice((varint(rng.choice(EXTREMES)), rng.randbytes(rng.randint(1, 9))))


def _overwrite(out: bytearray, rng: random.Random, other: bytes) -> None:
    at, number = rng.randint(0, len(out)), varint(rng.choice(EXTREMES))
    out[at : at + len(number)] = number


def _delete(out: bytearray, rng: random.Random, other: bytes) -> None:
    at = rng.randint(0, len(out))
    del out[at : at + rng.randint(1, 16)]


def _cut(out: bytearray, rng: random.Random, other: bytes) -> None:
    del out[rng.randint(0, len(out)) :]


def _splice(out: bytearray, rng: random.Random, other: bytes) -> None:
    if other:
        at, begin = rng.randint(0, len(out)), rng.randrange(len(other))
        out[at:] = other[begin : begin + rng.randint(1, 64)] + out[at:]


_CHANGES: tuple[Callable[[bytearray, random.Random, bytes], None], ...] = (
    _flip,
    _set,
    _insert,
    _overwrite,
    _delete,
    _cut,
    _splice,
)


def varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; ten bytes for 2^64 - 1, as protobuf has it."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


@contextmanager
def written_as(modules: tuple[ModuleType, ...], lies: dict[int, int]) -> Iterator[list[int]]:
    """While it lasts, the n-th number that the codec writes comes out as `lies[n]`.

    What is around it stays whole: lengths of sections and sums are of what was written. Gives the
    numbers that were asked for, in their order.
    """
    asked: list[int] = []

    def write(value: int) -> bytes:
        asked.append(value)
        return varint(lies.get(len(asked) - 1, value))

    honest = [module.varint for module in modules]
    for module in modules:
        module.varint = write  # type: ignore[attr-defined]
    try:
        yield asked
    finally:
        for module, function in zip(modules, honest, strict=True):
            module.varint = function  # type: ignore[attr-defined]
