"""The coordinate-wise trimmed mean: the extremes are left out (Yin et al., 1803.01498, def. 2)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from sfl.aggregation.contribution import Array, Contribution, in_step, ordered
from sfl.aggregation.strategy import Strategy
from sfl.config import AggregationSettings, LoraSettings


@dataclass
class TrimmedMean(Strategy):
    """Each value is the mean over the devices without the `fraction` largest and smallest.

    Their number is rounded up, as far as one value is left. Every device counts once: a number of
    examples is a claim like any other. Memory: one adapter, and one tensor of every device.
    """

    fraction: float

    @classmethod
    def of(cls, options: AggregationSettings, lora: LoraSettings) -> Self:
        """As a run's settings have it."""
        return cls(options.trim_fraction)

    def aggregate(
        self, contributions: Sequence[Contribution], current: Mapping[str, Array]
    ) -> dict[str, Array]:
        """The trimmed mean in fp32. Raises ProtocolError where a contribution is not complete."""
        devices = ordered(contributions)
        count = len(devices)
        # 0.2 * 15 is a little more than 3 in floating point.
        trimmed = min(math.ceil(self.fraction * count - 1e-9), (count - 1) // 2)
        shapes = [self.shapes(one, current) for one in devices]
        return {
            name: _middle(rows, trimmed).astype(np.float32)
            for name, rows in in_step(devices, shapes)
        }


def _middle(rows: Sequence[Array], trimmed: int) -> Array:
    """Mean of what is left; values are added from the smallest up."""
    values = np.sort(np.asarray(rows, np.float64), axis=0)
    middle: Array = values[trimmed : len(values) - trimmed].mean(axis=0)
    return middle
