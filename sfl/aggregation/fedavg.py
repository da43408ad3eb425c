"""FedAvg: the mean of the adapters, weighted by examples (McMahan et al., 1602.05629, eq. 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sfl.aggregation.contribution import Array, Contribution
from sfl.aggregation.mean import in_float32, weighted_mean
from sfl.aggregation.strategy import Strategy


class FedAvg(Strategy):
    """`w = sum_k n_k w_k / sum_k n_k`, A and B each for itself.

    Of one device the result is its adapter, bit for bit (`n * x` of an fp32 `x` is exact in float64
    for n < 2^29, so dividing gives `x` again). Memory: two adapters, whatever the devices.
    """

    def aggregate(
        self, contributions: Sequence[Contribution], current: Mapping[str, Array]
    ) -> dict[str, Array]:
        """The weighted mean in fp32. Raises ProtocolError where a contribution is not complete."""
        shapes = {name: array.shape for name, array in current.items()}
        return in_float32(weighted_mean(contributions, shapes))
