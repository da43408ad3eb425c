"""Multi-Krum: the mean of the adapters that Krum prefers (Blanchard et al., 1703.02757)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from sfl.aggregation.contribution import Array, Contribution
from sfl.aggregation.krum import Krum
from sfl.aggregation.mean import in_float32, weighted_mean
from sfl.config import AggregationSettings, LoraSettings


@dataclass
class MultiKrum(Krum):
    """The plain mean of the `selected` adapters with the least Krum scores; default: n - f - 2.

    Needs what Krum needs; averages more, so that less of the honest devices' work is lost.
    """

    selected: int | None

    @classmethod
    def of(cls, options: AggregationSettings, lora: LoraSettings) -> Self:
        """As a run's settings have it."""
        return cls(options.byzantine, options.selected)

    def aggregate(
        self, contributions: Sequence[Contribution], current: Mapping[str, Array]
    ) -> dict[str, Array]:
        """The mean in fp32. Raises ProtocolError on too few or incomplete contributions."""
        honest = len(contributions) - self.byzantine
        count = honest - 2 if self.selected is None else min(self.selected, honest)
        chosen = [
            replace(one, num_examples=1) for one in self.nearest(contributions, current)[:count]
        ]
        return in_float32(weighted_mean(chosen, self.shapes(chosen[0], current)))
