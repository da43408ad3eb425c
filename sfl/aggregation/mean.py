"""The mean over devices, weighted by their examples: what most strategies begin with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from operator import iadd

import numpy as np

from sfl.aggregation.contribution import Array, Contribution, Shapes
from sfl.aggregation.sums import flat


def weighted_mean(contributions: Sequence[Contribution], shapes: Shapes) -> dict[str, Array]:
    """`sum_k n_k w_k / sum_k n_k` by name: float64 sums in device-name order, divided once.

    Memory is two adapters' worth of sums however many devices there are: each file is opened
    once and gives one tensor at a time. Raises ProtocolError where a contribution is not complete.
    """
    return flat(contributions, shapes).mean()


def mean_of(devices: Sequence[Contribution], parts: Iterable[Array]) -> Array:
    """The same of one tensor, in float32: `parts` are the devices' values in their order."""
    terms = (
        one.num_examples * values.astype(np.float64)
        for one, values in zip(devices, parts, strict=True)
    )
    total = sum(one.num_examples for one in devices)
    return rounded(reduce(iadd, terms) / total)


def in_float32(values: dict[str, Array]) -> dict[str, Array]:
    """The values rounded, sorted by name; empties `values`, so that nothing is there twice."""
    return {name: rounded(values.pop(name)) for name in sorted(values)}


def rounded(values: Array) -> Array:
    """In float32. What is too large for it is infinite, without a warning."""
    with np.errstate(over="ignore"):  # whoever keeps an adapter looks for that, and names it
        return values.astype(np.float32)
