"""As a planner has ranked the devices; it is no setting, but what a round's orders may say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from sfl.stage.orders.waiting import Order, Waiting


@dataclass(frozen=True, slots=True)
class Ranked:
    """Of the jobs that have arrived, that of the device which the planner names first."""

    places: Mapping[str, int]
    name: str = "planned"

    @classmethod
    def of(cls, devices: Sequence[str]) -> Self:
        """These devices, the first one first; others come last."""
        return cls({device: place for place, device in enumerate(devices)})

    def choose(self, waiting: Sequence[Waiting]) -> int:
        """Index of the first in rank; jobs of one device are served as they came."""
        last = len(self.places)

        def rank(index: int) -> tuple[int, int]:
            job = waiting[index]
            return self.places.get(job.device, last), job.number

        return min(range(len(waiting)), key=rank)


def ranked(devices: Sequence[str], usual: Order) -> Order:
    """The planner's order, or the usual one where it has none."""
    return Ranked.of(devices) if devices else usual
