"""Strategies that ask no more of a round than the weighted mean of its adapters."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

from sfl.aggregation.contribution import Array, Contribution
from sfl.aggregation.mean import weighted_mean
from sfl.aggregation.strategy import Strategy
from sfl.errors import ConfigError


class MeanStrategy(Strategy):
    """One whose traits say `weighted_sum`: whoever makes the mean, the rest is the same.

    So edges may add up what their devices trained (`sfl/aggregation/sums.py`).
    """

    def aggregate(
        self, contributions: Sequence[Contribution], current: Mapping[str, Array]
    ) -> dict[str, Array]:
        """From the mean over all devices. Raises ProtocolError where one is not complete."""
        shapes = self.shapes(contributions[0], current)
        return self.from_mean(weighted_mean(contributions, shapes), current)

    @abstractmethod
    def from_mean(self, means: dict[str, Array], current: Mapping[str, Array]) -> dict[str, Array]:
        """The next adapter in float32, from `sum_k n_k w_k / sum_k n_k` in float64.

        `means` is the callee's own. It has the names and shapes of `shapes`.
        """


def mean_strategy(strategy: Strategy, name: str) -> MeanStrategy:
    """The same, where its traits have promised that. Raises ConfigError where they should not."""
    if isinstance(strategy, MeanStrategy):
        return strategy
    problem = f"its traits say weighted_sum, and {type(strategy).__name__} is no MeanStrategy"
    fix = 'Set aggregation.sums = "flat", or have the package corrected.'
    raise ConfigError("aggregation.strategy", name, problem, fix)
