"""Packets of every codec for a decoder that trusts nothing: mutated, or made with lying numbers."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch

from sfl.codec import integers, rans, sections
from sfl.codec.packet import DTYPES, Packet
from sfl.codec.pipeline import Decoder, Encoder, parse
from sfl.codec.transform import RowContext
from sfl.errors import ProtocolError
from tests.fuzz.mutate import EXTREMES, mutated, varint, written_as

WRITERS = (sections, rans, integers)
SPECS = (
    "none",
    "none | zstd",
    "fp16",
    "bf16 | zstd",
    "int8",
    "int(3, 16) | zstd",
    "stochastic(4) | rans",
    "stochastic(2, row) | zstd",
    "uniform(0.25, dither) | rans",
    "uniform(2, stochastic) | zstd",
    "topk(0.3) | stochastic(4) | zstd",
    "topk(0.3, row) | fp16",
    "topk(0.5) | uniform(1) | rans",
    "delta(bigram, 64) | uniform(0.25, dither) | rans",
    "delta(token, 64) | fp16",
    "delta(token, 64) | topk(0.5) | stochastic(4) | rans",
)


@dataclass(frozen=True)
class Case:
    """A tensor and how it is coded."""

    spec: str
    rows: torch.Tensor

    def packet(self) -> Packet:
        count = len(self.rows)
        known = RowContext(*(np.arange(count) % 5 for _ in range(4)))
        return Encoder(parse(self.spec)).encode(self.rows, 7, (count,), known)


def cases(seed: int) -> list[Case]:
    """Every codec over small tensors: of few and many symbols, with rows of zeros, in each type."""
    generator = torch.Generator().manual_seed(seed)
    tensors = []
    for shape in ((1, 8), (3, 40), (8, 16), (12, 384)):
        tensors.append(torch.randn(shape, generator=generator))
    sparse = torch.randn((8, 16), generator=generator)
    sparse[::2] = 0.0
    tensors += [sparse, torch.randn((6, 24), generator=generator).bfloat16()]
    return [Case(spec, rows) for spec in SPECS for rows in tensors]


def lies(case: Case, pairs: int, rng: random.Random) -> Iterator[Packet]:
    """The packet with each of its numbers at an extreme, and with so many pairs of them."""
    with written_as(WRITERS, {}) as asked:
        case.packet()
    numbers = range(len(asked))
    chosen = [{number: value} for number in numbers for value in rng.sample(EXTREMES, 7)]
    for _ in range(pairs):
        pair = rng.sample(numbers, min(2, len(numbers)))
        chosen.append({number: rng.choice(EXTREMES) for number in pair})
    for lie in chosen:
        with written_as(WRITERS, lie):
            yield case.packet()


def wrapped_lengths(lengths: tuple[int, ...]) -> Packet:
    """A rANS section of sixteen bytes of words, whose segments claim to have `lengths` of them."""
    levels = 3
    table = bytes([0, levels - 1]) + varint(4000) + varint(48) + varint(48)
    body = bytes([1, 1, 2, len(lengths)]) + table + b"".join(map(varint, lengths)) + bytes(16)
    side = struct.pack("<fIBBI", 0.25, 7, 127, levels, 0)
    parts = [(sections.PLAIN, bytes(1)), (sections.PLAIN, side), (rans.RANS, body)]
    payload = b"".join(bytes([method]) + varint(len(data)) + data for method, data in parts)
    return Packet(parse("uniform(0.25, dither) | rans").spec, "float32", (1, 384), payload)


SEGMENTS = (
    (2**40, 2**40, 2**63 - 1, 2**64 + 8 - 2**41 - (2**63 - 1)),
    (2**63 - 1, 2**63 - 1, 10, 0),
    (2**62, 2**62, 2**62, 2**62 + 8),
    (9, 2**63 - 1, 2**63 - 1, 1),
    (2**63 - 1, 2**63 - 1, 10),
    (0, 8, 2**63 - 1, 2**63 - 1),
    (2**40, 0, 0, 8),
    (8, 0, 0, 1),
    (2**63 - 1,),
)
"""Lengths of segments; the first three come round to the eight words that there are."""


def check(packet: Packet) -> bool:
    """Whether a decoder took it: a tensor of the claimed shape, all finite, or a ProtocolError."""
    try:
        rows = Decoder().decode(packet)
    except ProtocolError:
        return False
    assert tuple(rows.shape) == tuple(packet.shape) and rows.dtype is DTYPES[packet.dtype]
    assert bool(rows.isfinite().all()), packet
    return True


def fuzz(inputs: int, seed: int) -> Iterator[bool]:
    """Whether each of so many mutated packets was taken."""
    rng, honest = random.Random(seed), [case.packet() for case in cases(seed)]
    for _ in range(inputs):
        packet, other = rng.choice(honest), rng.choice(honest)
        payload = mutated(bytes(packet.payload), rng, bytes(other.payload))
        if rng.random() < 0.1:
            packet = replace(packet, codec=other.codec)
        if rng.random() < 0.1:
            packet = replace(packet, dtype=rng.choice([*DTYPES, "float64", ""]))
        if rng.random() < 0.1:
            packet = replace(packet, shape=_shape(packet.shape, rng))
        yield check(replace(packet, payload=payload))


def fuzz_numbers(inputs: int, seed: int) -> Iterator[bool]:
    """The same of packets whose numbers lie, and of rANS sections that claim any lengths."""
    return map(check, islice(_lying(random.Random(seed)), inputs))


def _lying(rng: random.Random) -> Iterator[Packet]:
    while True:
        case = rng.choice(cases(rng.randrange(2**16)))
        for packet in lies(case, 20, rng):
            yield packet
            yield wrapped_lengths(tuple(rng.choices(EXTREMES, k=rng.randint(1, 4))))


def _shape(shape: tuple[int, ...], rng: random.Random) -> tuple[int, ...]:
    """Another shape; small, or so large that it is refused before it is allocated."""
    extreme = rng.choice((0, 1, 2, 3, 64, 2**31, 2**32 - 1, 2**62))
    shapes = [(*shape[:-1], extreme), (extreme, *shape[1:]), shape[::-1], (*shape, 1), shape[:1]]
    return rng.choice(shapes)
