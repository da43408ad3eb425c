"""FedAvg: the mean of the adapters, weighted by examples (McMahan et al., 1602.05629, eq. 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sfl.aggregation.contribution import Array, Contribution


@dataclass(frozen=True, slots=True)
class FedAvg:
    """`w = sum_k n_k w_k / sum_k n_k`: float64 sums in device-name order, divided once.

    Memory is two adapters' worth of sums however many devices there are: each file is opened
    once and gives one tensor at a time. Of one device the result is its adapter, bit for bit
    (`n * x` of an fp32 `x` is exact in float64 for n < 2^29, so dividing gives `x` again).
    """

    name: str = "fedavg"

    def aggregate(
        self, contributions: Sequence[Contribution], current: Mapping[str, Array]
    ) -> dict[str, Array]:
        """The weighted mean in fp32. Raises ProtocolError where a contribution is not complete."""
        ordered = sorted(contributions, key=lambda contribution: contribution.device)
        names = [contribution.device for contribution in ordered]
        assert names and len(set(names)) == len(names), f"one contribution a device: {names}"

        sums: dict[str, Array] = {}
        for contribution in ordered:
            for name, values in contribution.tensors(current):
                term = values.astype(np.float64)
                term *= contribution.num_examples
                if name in sums:
                    sums[name] += term
                else:
                    sums[name] = term  # not 0 + term: that loses the sign of -0.0

        total = sum(contribution.num_examples for contribution in ordered)
        return {name: (sums.pop(name) / total).astype(np.float32) for name in sorted(sums)}
