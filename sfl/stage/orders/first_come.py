"""First come, first served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sfl.stage.orders.waiting import Waiting


@dataclass(frozen=True, slots=True)
class FirstCome:
    """The job that arrived first."""

    name: str = "first_come"

    def choose(self, waiting: Sequence[Waiting]) -> int:
        """Index of the earliest."""
        return min(range(len(waiting)), key=lambda index: waiting[index].number)
