"""FLoRA: factors side by side are added to every base (Wang et al., 2409.05976)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from sfl.adapters.initial import fresh_lora
from sfl.adapters.names import is_lora_a, is_lora_b
from sfl.adapters.rank import shapes_at_rank
from sfl.aggregation.contribution import Array, Contribution, Shapes, in_step, ordered
from sfl.aggregation.mean import mean_of, rounded
from sfl.aggregation.strategy import Strategy
from sfl.config import AggregationSettings, LoraSettings


@dataclass
class Flora(Strategy):
    """`[p_1 s_1 B_1, p_2 s_2 B_2, ..] [A_1; A_2; ..]`, which is `sum_k p_k s_k B_k A_k` exactly.

    `p_k` is the share of the device's examples, `s_k` its own alpha / rank; both go into B, so that
    the sum counts with scaling 1. Every node adds it to its base, and all devices start the next
    round with a fresh LoRA of their own rank over that (`sfl.adapters.initial.fresh_lora`). Saved
    modules take the weighted mean, as FedAvg's. `rank` is that of devices that name none. Memory:
    the base update, and one tensor of every device.
    """

    rank: int

    @classmethod
    def of(cls, options: AggregationSettings, lora: LoraSettings) -> Self:
        """As a run's settings have it."""
        return cls(lora.rank)

    def shapes(self, contribution: Contribution, current: Mapping[str, Array]) -> Shapes:
        """The same layers at the device's own rank; `current` may be a base update of any."""
        return shapes_at_rank(current, contribution.rank or self.rank)

    def start(
        self, contribution: Contribution, current: Mapping[str, Array], seed: int, round_: int
    ) -> Mapping[str, Array]:
        """The round's fresh LoRA of the device's rank, beside the saved modules."""
        fresh = fresh_lora(self.shapes(contribution, current), seed, round_)
        return {name: fresh.get(name, array) for name, array in current.items()}

    def aggregate(
        self, contributions: Sequence[Contribution], current: Mapping[str, Array]
    ) -> dict[str, Array]:
        """The round's base update, devices by name. Raises ProtocolError on an incomplete one."""
        devices = ordered(contributions)
        total = sum(one.num_examples for one in devices)
        weights = [one.num_examples / total * one.scaling for one in devices]
        result: dict[str, Array] = {}
        for name, parts in in_step(devices, [self.shapes(one, current) for one in devices]):
            if is_lora_a(name):
                result[name] = np.concatenate(parts)
            elif is_lora_b(name):
                scaled = [w * b.astype(np.float64) for w, b in zip(weights, parts, strict=True)]
                result[name] = rounded(np.concatenate(scaled, axis=1))
            else:
                result[name] = mean_of(devices, parts)
        return result

    def folded(self, merged: Mapping[str, Array]) -> dict[str, Array]:
        """All of LoRA."""
        return {n: array for n, array in merged.items() if is_lora_a(n) or is_lora_b(n)}
