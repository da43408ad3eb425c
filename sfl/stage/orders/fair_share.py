"""Fair share: whoever has had least of the edge's time in this round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sfl.stage.orders.waiting import Waiting, least


@dataclass(frozen=True, slots=True)
class FairShare:
    """The job of the device that was served least, in seconds; equal ones as they came."""

    name: str = "fair_share"

    def rank(self, waiting: Waiting) -> tuple[float, int]:
        """By the edge's time so far."""
        return waiting.served_seconds, waiting.number

    def choose(self, waiting: Sequence[Waiting]) -> int:
        """Index of the least served."""
        return least(self, waiting)
