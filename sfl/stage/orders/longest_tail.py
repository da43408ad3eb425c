"""Longest remaining tail first (2503.13819, III-B, made work-conserving)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sfl.stage.orders.waiting import Waiting, least


@dataclass(frozen=True, slots=True)
class LongestTail:
    """Of the jobs that have arrived, the one whose device has most left to do afterwards.

    The paper fixes the order by the clients' backward time and waits for the slowest; taking only
    from what has arrived is Schrage's rule for delivery times, at most twice the optimum. Equal
    tails are served as they came.
    """

    name: str = "longest_tail"

    def rank(self, waiting: Waiting) -> tuple[float, int]:
        """By what is left to do."""
        return -waiting.tail_seconds, waiting.number

    def choose(self, waiting: Sequence[Waiting]) -> int:
        """Index of the longest tail."""
        return least(self, waiting)
