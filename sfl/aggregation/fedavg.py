"""FedAvg: the mean of the adapters, weighted by examples (McMahan et al., 1602.05629, eq. 1)."""

from __future__ import annotations

from collections.abc import Mapping

from sfl.aggregation.contribution import Array
from sfl.aggregation.mean import in_float32
from sfl.aggregation.weighted import MeanStrategy


class FedAvg(MeanStrategy):
    """`w = sum_k n_k w_k / sum_k n_k`, A and B each for itself.

    Of one device the result is its adapter, bit for bit (`n * x` of an fp32 `x` is exact in float64
    for n < 2^29, so dividing gives `x` again). Memory: two adapters, whatever the devices.
    """

    def from_mean(self, means: dict[str, Array], current: Mapping[str, Array]) -> dict[str, Array]:
        """The weighted mean in fp32."""
        return in_float32(means)
