"""FedAdam: Adam in the cloud, on what a round changed (Reddi et al., 2003.00295, alg. 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from sfl.aggregation.contribution import Array
from sfl.aggregation.mean import in_float32
from sfl.aggregation.strategy import server_step
from sfl.aggregation.weighted import MeanStrategy
from sfl.config import AggregationSettings, LoraSettings


@dataclass
class FedAdam(MeanStrategy):
    """`w = w - learning_rate m / (sqrt(v) + tau)`, m and v being moments of `g = w - mean`.

    `m = b1 m + (1 - b1) g` and `v = b2 v + (1 - b2) g^2`. As in the paper m starts at zero, v at
    tau^2, and neither is corrected for its start. State: `m.NAME` and `v.NAME`. Memory: six
    adapters, whatever the devices.
    """

    learning_rate: float
    betas: tuple[float, float]
    tau: float

    @classmethod
    def of(cls, options: AggregationSettings, lora: LoraSettings) -> Self:
        """As a run's settings have it."""
        return cls(server_step(options), options.betas, options.tau)

    def from_mean(self, means: dict[str, Array], current: Mapping[str, Array]) -> dict[str, Array]:
        """An adaptive step in fp32."""
        for name, array in current.items():
            gradient = array - means[name]
            m, v = self._moments(name, gradient)
            means[name] = array - self.learning_rate * m / (np.sqrt(v) + self.tau)
        return in_float32(means)

    def _moments(self, name: str, gradient: Array) -> tuple[Array, Array]:
        """Both moments with `gradient` taken in, kept for the next round."""
        first, second = f"m.{name}", f"v.{name}"
        m = self.state.get(first, np.zeros_like(gradient))
        v = self.state.get(second, np.full_like(gradient, self.tau**2))
        m = self.betas[0] * m + (1.0 - self.betas[0]) * gradient
        v = self._second_moment(v, np.square(gradient))
        self.state[first], self.state[second] = m, v
        return m, v

    def _second_moment(self, v: Array, squared: Array) -> Array:
        return self.betas[1] * v + (1.0 - self.betas[1]) * squared
