"""A strategy: the cloud goes only a part of the way to the mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from sfl.aggregation.contribution import Array, Contribution
from sfl.aggregation.mean import in_float32, weighted_mean
from sfl.aggregation.strategy import Strategy, server_step
from sfl.config import AggregationSettings, LoraSettings


@dataclass
class Damped(Strategy):
    """`w = w + step (mean - w)`; a step of 1 is FedAvg, to rounding."""

    step: float

    @classmethod
    def of(cls, options: AggregationSettings, lora: LoraSettings) -> Self:
        """As a run's settings have it."""
        return cls(server_step(options))

    def aggregate(
        self, contributions: Sequence[Contribution], current: Mapping[str, Array]
    ) -> dict[str, Array]:
        """A step to the mean. Raises ProtocolError where a contribution is not complete."""
        means = weighted_mean(contributions, self.shapes(contributions[0], current))
        for name, array in current.items():
            means[name] = array + self.step * (means[name] - array)
        return in_float32(means)
