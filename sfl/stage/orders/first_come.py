"""First come, first served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sfl.stage.orders.waiting import Waiting, least


@dataclass(frozen=True, slots=True)
class FirstCome:
    """The job that arrived first."""

    name: str = "first_come"

    def rank(self, waiting: Waiting) -> tuple[float, int]:
        """By arrival alone."""
        return 0.0, waiting.number

    def choose(self, waiting: Sequence[Waiting]) -> int:
        """Index of the earliest."""
        return least(self, waiting)
