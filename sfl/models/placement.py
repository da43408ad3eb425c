"""Which of an edge's blocks are on which of its devices: decided once, from sizes alone."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from sfl.plan import Span


@dataclass(frozen=True, slots=True)
class Stretch:
    """Blocks `first..last-1` on one device, by torch's name of it; none beside a lone head."""

    device: str
    first: int
    last: int


def lay_out(
    span: Span,
    devices: Sequence[str],
    free: Sequence[int],
    blocks: Sequence[int] = (),
    after: int = 0,
) -> tuple[Stretch, ...]:
    """Consecutive ranges of the span's blocks, in the order of `devices`.

    Each device takes a share of the blocks, by their bytes (by default all alike), like its share
    of all `free` memory, to the nearest block; one with next to nothing free may take none.
    Whatever follows the blocks (final norm, head, a piece of the logits) takes `after` bytes of the
    last device that has room for it, where it may be alone; devices beyond that take nothing.
    """
    assert len(devices) == len(free) > 0
    blocks = blocks or [1] * span.num_blocks
    assert len(blocks) == span.num_blocks
    last = next((n for n in reversed(range(len(free))) if free[n] >= after), len(free) - 1)
    room = [*free[:last], max(0, free[last] - after)]
    whole, total = sum(blocks), max(1, sum(room))
    middles = [end - size / 2 for end, size in zip(accumulate(blocks), blocks, strict=True)]
    ends = [span.first + bisect_right(middles, whole * seen / total) for seen in accumulate(room)]
    ends[-1] = span.last
    return tuple(
        Stretch(device, first, end)
        for device, first, end in zip(devices, [span.first, *ends], ends, strict=False)
        if first < end or (after and device == devices[last])
    )
