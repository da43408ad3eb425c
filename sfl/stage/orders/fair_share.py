"""Fair share: whoever has had least of the edge's time in this round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sfl.stage.orders.waiting import Waiting


@dataclass(frozen=True, slots=True)
class FairShare:
    """The job of the device that was served least, in seconds; equal ones as they came."""

    name: str = "fair_share"

    def choose(self, waiting: Sequence[Waiting]) -> int:
        """Index of the least served."""
        return min(
            range(len(waiting)),
            key=lambda index: (waiting[index].served_seconds, waiting[index].number),
        )
