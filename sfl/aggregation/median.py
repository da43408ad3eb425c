"""The coordinate-wise median: half of the devices may lie (Yin et al., 1803.01498, def. 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sfl.aggregation.contribution import Array, Contribution, in_step, ordered
from sfl.aggregation.strategy import Strategy


class Median(Strategy):
    """Each value is the median over the devices, or the mean of the middle two.

    Every device counts once: a number of examples is a claim like any other. Memory: one adapter,
    and one tensor of every device.
    """

    def aggregate(
        self, contributions: Sequence[Contribution], current: Mapping[str, Array]
    ) -> dict[str, Array]:
        """The median in fp32. Raises ProtocolError where a contribution is not complete."""
        devices = ordered(contributions)
        shapes = [self.shapes(one, current) for one in devices]
        return {
            name: np.median(np.asarray(rows, np.float64), axis=0).astype(np.float32)
            for name, rows in in_step(devices, shapes)
        }
