"""Which of an edge's blocks lie on which of its devices: decided once, from sizes alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sfl.plan import Span


@dataclass(frozen=True, slots=True)
class Stretch:
    """Blocks `first..last-1` on one device, by torch's name of it."""

    device: str
    first: int
    last: int


def lay_out(span: Span, devices: Sequence[str], free: Sequence[int]) -> tuple[Stretch, ...]:
    """Consecutive ranges of the span's blocks, in the order of `devices`.

    Each device takes a share of the blocks like its share of all `free` memory, to the nearest
    block; one with next to nothing free may take none. Whatever follows the blocks (final norm,
    head) lies where the last of them does.
    """
    assert len(devices) == len(free) > 0
    total = max(1, sum(free))
    ends, seen = [], 0
    for size in free:
        seen += size
        ends.append(span.first + int(span.num_blocks * seen / total + 0.5))
    ends[-1] = span.last
    starts = [span.first, *ends[:-1]]
    return tuple(
        Stretch(device, first, last)
        for device, first, last in zip(devices, starts, ends, strict=True)
        if first < last
    )
