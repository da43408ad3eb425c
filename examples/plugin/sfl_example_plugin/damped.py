"""A strategy: the cloud goes only a part of the way to the mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from sfl.aggregation.contribution import Array
from sfl.aggregation.mean import in_float32
from sfl.aggregation.strategy import server_step
from sfl.aggregation.weighted import MeanStrategy
from sfl.config import AggregationSettings, LoraSettings


@dataclass
class Damped(MeanStrategy):
    """`w = w + step (mean - w)`; a step of 1 is FedAvg, to rounding."""

    step: float

    @classmethod
    def of(cls, options: AggregationSettings, lora: LoraSettings) -> Self:
        """As a run's settings have it."""
        return cls(server_step(options))

    def from_mean(self, means: dict[str, Array], current: Mapping[str, Array]) -> dict[str, Array]:
        """A step to the mean."""
        for name, array in current.items():
            means[name] = array + self.step * (means[name] - array)
        return in_float32(means)
