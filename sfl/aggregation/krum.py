"""Krum: the one adapter that most others are close to (Blanchard et al., 1703.02757)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from sfl.aggregation.contribution import Array, Contribution, in_step, ordered
from sfl.aggregation.strategy import Strategy
from sfl.config import AggregationSettings, LoraSettings
from sfl.errors import ProtocolError


@dataclass
class Krum(Strategy):
    """The adapter whose squared distances to its n - f - 2 nearest sum to the least, as it is.

    Holds against f = `byzantine` arbitrary ones of n >= 2 f + 3. Of equal scores the first device
    by name wins; numbers of examples do not count. Distances go over all values of A, B and saved
    modules. Memory: one adapter, and one tensor of every device; files are read twice.
    """

    byzantine: int

    @classmethod
    def of(cls, options: AggregationSettings, lora: LoraSettings) -> Self:
        """As a run's settings have it."""
        return cls(options.byzantine)

    def aggregate(
        self, contributions: Sequence[Contribution], current: Mapping[str, Array]
    ) -> dict[str, Array]:
        """The chosen adapter, bit for bit. Raises ProtocolError on too few or incomplete ones."""
        return dict(self.nearest(contributions, current)[0].tensors(_shapes(current)))

    def nearest(
        self, contributions: Sequence[Contribution], current: Mapping[str, Array]
    ) -> list[Contribution]:
        """All contributions, those closest to the others first."""
        devices, needed = ordered(contributions), 2 * self.byzantine + 3
        if len(devices) < needed:
            raise ProtocolError(
                f"krum needs {needed} adapters against {self.byzantine} arbitrary ones, "
                f"{len(devices)} came"
            )
        scores = krum_scores(_squared_distances(devices, current), self.byzantine)
        return [devices[number] for number in np.argsort(scores, kind="stable")]


def krum_scores(squared_distances: Array, byzantine: int) -> Array:
    """Sum over each one's n - f - 2 nearest others; `squared_distances` is `[n, n]`."""
    count = len(squared_distances)
    nearest = np.sort(squared_distances, axis=1)  # itself, at distance 0, comes first
    scores: Array = nearest[:, 1 : count - byzantine - 1].sum(axis=1)
    return scores


def _squared_distances(devices: Sequence[Contribution], current: Mapping[str, Array]) -> Array:
    """Squared Euclidean distances between whole adapters, float64."""
    total = np.zeros((len(devices), len(devices)))
    for _, rows in in_step(devices, [_shapes(current)] * len(devices)):
        for i, mine in enumerate(rows):
            for j in range(i):
                difference = mine.astype(np.float64) - rows[j]
                total[i, j] += np.square(difference).sum()
    symmetric: Array = total + total.T
    return symmetric


def _shapes(current: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in current.items()}
