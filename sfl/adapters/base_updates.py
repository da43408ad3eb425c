"""Base updates: what rounds of FLoRA add to the base, and all of a run's as one adapter.

Numpy only. A base update is a sum of products of factors, of scaling 1. It holds A `[q, in]` and
B `[out, q]` of every layer, q being the same for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import reduce
from operator import iadd
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

from sfl.adapters.names import is_lora_a, lora_b_of

Array = npt.NDArray[Any]
Factors = tuple[Array, Array]
"""B `[out, q]` and A `[q, in]`."""


def as_one_adapter(files: Sequence[Path]) -> dict[str, Array]:
    """The sum of all base updates, float32, as an adapter of one rank R and scaling 1.

    R is the sum of their ranks, and the factors are theirs side by side. Where that is more
    than the full rank of the widest layer, R is that full rank: each layer's sum, taken in float64
    in the order of the files, is one factor and the identity the other, zeros filling up narrower
    layers. Reads one layer at a time.
    """
    with ExitStack() as opened:
        base_updates = [opened.enter_context(safe_open(path, framework="numpy")) for path in files]
        layers = [name for name in base_updates[0].keys() if is_lora_a(name)]  # noqa: SIM118
        rank = sum(base_update.get_slice(layers[0]).get_shape()[0] for base_update in base_updates)
        most = max(_full_rank(base_updates[0], name) for name in layers)
        result: dict[str, Array] = {}
        for name in sorted(layers):
            pairs = [(s.get_tensor(lora_b_of(name)), s.get_tensor(name)) for s in base_updates]
            b, a = _side_by_side(pairs) if rank <= most else _dense(pairs, most)
            result[name], result[lora_b_of(name)] = a, b
    return result


def _full_rank(base_update: Any, a: str) -> int:
    outputs = base_update.get_slice(lora_b_of(a)).get_shape()[0]
    inputs = base_update.get_slice(a).get_shape()[1]
    return int(min(outputs, inputs))


def _side_by_side(pairs: Sequence[Factors]) -> Factors:
    return np.concatenate([b for b, _ in pairs], axis=1), np.concatenate([a for _, a in pairs])


def _dense(pairs: Sequence[Factors], rank: int) -> Factors:
    """The sum itself as a factor, beside the identity on its smaller side."""
    terms = (b.astype(np.float64) @ a.astype(np.float64) for b, a in pairs)
    total = reduce(iadd, terms).astype(np.float32)
    outputs, inputs = total.shape
    b, a = np.zeros((outputs, rank), np.float32), np.zeros((rank, inputs), np.float32)
    if outputs <= inputs:
        np.fill_diagonal(b, 1.0)
        a[:outputs] = total
    else:
        np.fill_diagonal(a, 1.0)
        b[:, :inputs] = total
    return b, a
