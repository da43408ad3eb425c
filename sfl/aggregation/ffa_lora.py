"""FFA-LoRA: A frozen, B averaged: the mean of products is exact (Sun et al., 2403.12313)."""

from __future__ import annotations

from collections.abc import Mapping

from sfl.adapters.names import is_lora_a
from sfl.aggregation.contribution import Array, Contribution, Shapes
from sfl.aggregation.mean import in_float32
from sfl.aggregation.weighted import MeanStrategy


class FfaLora(MeanStrategy):
    """The weighted mean of every B and saved module; every A keeps its first values.

    `sum_k p_k B_k A` is `(sum_k p_k B_k) A`; FedAvg of both factors only approximates the mean of
    products. Devices and edge train no A and send none. Memory: two adapters, whatever the devices.
    """

    def shapes(self, contribution: Contribution, current: Mapping[str, Array]) -> Shapes:
        """As the global adapter, without A."""
        return {name: array.shape for name, array in current.items() if not is_lora_a(name)}

    def from_mean(self, means: dict[str, Array], current: Mapping[str, Array]) -> dict[str, Array]:
        """A as it was, the rest averaged."""
        averaged = in_float32(means)
        return {name: averaged.get(name, array) for name, array in sorted(current.items())}
