"""FedAvgM: momentum in the cloud (Hsu et al., 1909.06335)."""

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
class FedAvgM(MeanStrategy):
    """`v = momentum v + (w - mean)`, then `w = w - learning_rate v`; v starts at zero.

    Without momentum and with learning rate 1 it is FedAvg, to rounding. State: v. Memory: four
    adapters, whatever the devices.
    """

    learning_rate: float
    momentum: float

    @classmethod
    def of(cls, options: AggregationSettings, lora: LoraSettings) -> Self:
        """As a run's settings have it."""
        return cls(server_step(options), options.momentum)

    def from_mean(self, means: dict[str, Array], current: Mapping[str, Array]) -> dict[str, Array]:
        """A step along v, in fp32."""
        for name, array in current.items():
            velocity = array - means[name]
            if (last := self.state.get(name)) is not None:
                velocity += self.momentum * last
            self.state[name] = velocity
            means[name] = array - self.learning_rate * velocity
        return in_float32(means)
