"""FlexLoRA: products are averaged, for devices of unequal ranks (Bai et al., 2402.11505)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from sfl.adapters.names import is_lora_a, is_lora_b, lora_b_of
from sfl.adapters.rank import ProductSum, shapes_at_rank, truncated
from sfl.aggregation.contribution import Array, Contribution, Shapes, ordered
from sfl.aggregation.mean import mean_of
from sfl.aggregation.strategy import Strategy
from sfl.config import AggregationSettings, LoraSettings


@dataclass
class FlexLora(Strategy):
    """The best rank-R approximation of `sum_k p_k s_k B_k A_k`, `s_k` a device's own scaling.

    `p_k` is the share of the device's examples. With `rank_partitioned` each component counts
    among those that have one of that number: `n_k / sum over r_i > j of n_i` for component j, so
    that what some cannot hold is no zero in the mean (raFLoRA, Wu et al., 2602.13486). Devices of
    equal ranks get the same bits either way.

    Divided by the global `scaling` it becomes balanced factors, components sorted by weight, so
    that a device of rank r takes the first r of them (`sfl.adapters.rank.truncated`). A component
    that no device has used keeps the global A's row beside a zero column of B, and so can still be
    trained. Saved modules take the weighted mean. Memory: two adapters and some factors of one
    layer, no wider than three times the smaller side of its matrix, whatever the devices.
    """

    scaling: float
    rank_partitioned: bool = False

    @classmethod
    def of(cls, options: AggregationSettings, lora: LoraSettings) -> Self:
        """As a run's settings have it."""
        return cls(lora.alpha / lora.rank, options.rank_partitioned)

    def shapes(self, contribution: Contribution, current: Mapping[str, Array]) -> Shapes:
        """The global adapter's at the device's own rank."""
        if contribution.rank is None:
            return {name: array.shape for name, array in current.items()}
        return shapes_at_rank(current, contribution.rank)

    def start(
        self, contribution: Contribution, current: Mapping[str, Array], seed: int, round_: int
    ) -> Mapping[str, Array]:
        """As many components as the device has."""
        return current if contribution.rank is None else truncated(current, contribution.rank)

    def aggregate(
        self, contributions: Sequence[Contribution], current: Mapping[str, Array]
    ) -> dict[str, Array]:
        """The re-projected adapter. Raises ProtocolError where a contribution is not complete."""
        devices = ordered(contributions)
        streams = [one.tensors(self.shapes(one, current)) for one in devices]
        result: dict[str, Array] = {}
        for name in sorted(current):
            if is_lora_a(name):
                shares = self._shares(devices, len(current[name]))
                weights = [
                    share * one.scaling / self.scaling
                    for share, one in zip(shares, devices, strict=True)
                ]
                product = _product(name, streams, weights)
                result[name], result[lora_b_of(name)] = _projected(
                    product, current[name], current[lora_b_of(name)]
                )
            elif not is_lora_b(name):
                result[name] = mean_of(devices, _each(name, streams))
        return result

    def _shares(self, devices: Sequence[Contribution], rank: int) -> list[Array]:
        """Each device's weight in the sum, `[r_k]`: one of each of its components."""
        ranks = [one.rank or rank for one in devices]
        examples = np.array([one.num_examples for one in devices], np.float64)
        if not self.rank_partitioned:
            return [np.full(r, n / examples.sum()) for r, n in zip(ranks, examples, strict=True)]
        holders = np.array(ranks)[:, None] > np.arange(max(ranks))  # [devices, components]
        totals = (examples[:, None] * holders).sum(axis=0)
        return [n / totals[:r] for r, n in zip(ranks, examples, strict=True)]


Stream = Iterator[tuple[str, Array]]


def _each(name: str, streams: Sequence[Stream]) -> Iterator[Array]:
    """The tensor called so, which is next in every stream."""
    for stream in streams:
        found, values = next(stream)
        assert found == name
        yield values


def _product(name: str, streams: Sequence[Stream], weights: Sequence[Array]) -> ProductSum:
    """The weighted sum of B A; a layer's B comes right behind its A in the order of names."""
    product = ProductSum()
    for stream, weight in zip(streams, weights, strict=True):
        (a,), (b,) = _each(name, [stream]), _each(lora_b_of(name), [stream])
        product.add(weight, b, a)
    return product


def _projected(product: ProductSum, a: Array, b: Array) -> tuple[Array, Array]:
    """(A, B) of the sum, unused components as in the current `a`."""
    new_b, new_a = product.best(len(a))
    a, b = a.copy(), np.zeros_like(b)
    a[: len(new_a)], b[:, : len(new_a)] = new_a, new_b
    return a, b
