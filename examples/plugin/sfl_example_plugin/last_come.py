"""An order: the newest job first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sfl.stage.orders.waiting import Waiting


@dataclass(frozen=True, slots=True)
class LastCome:
    """The job that arrived last. Old ones wait, so it suits no real run."""

    name: str = "last_come"

    def choose(self, waiting: Sequence[Waiting]) -> int:
        """Index of the latest."""
        return max(range(len(waiting)), key=lambda index: waiting[index].number)


LAST_COME = LastCome()
