"""A round of many steps, from shorter ones: a decision takes no longer because a round does."""

from __future__ import annotations

from collections.abc import Callable, Sequence

MOST_PLAYED = 4_000
"""Micro-batches of all devices together that are played as events."""
LEAST_STEPS = 4
"""Steps of each device that are played in any case."""


def paced(play: Callable[[int], Sequence[float]], steps: int, micro_batches: int) -> list[float]:
    """When each device has done its `steps`, by `play`; `micro_batches` are those of one step of
    all.

    Beyond what is played a round goes on at the pace at which a whole round of more steps takes
    longer than one of fewer: so who is done early is in it as well.
    """
    most = max(LEAST_STEPS, MOST_PLAYED // max(1, micro_batches))
    if steps <= most:
        return list(play(steps))
    fewer = most // 2
    early, late = play(fewer), play(most)
    more = (steps - most) / (most - fewer)
    return [end + more * (end - begin) for begin, end in zip(early, late, strict=True)]
