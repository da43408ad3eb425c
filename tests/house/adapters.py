"""Adapters of a made-up model, and what strategies are given of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from sfl.adapters.names import is_lora_a, lora_b_of, lora_names
from sfl.aggregation.contribution import Contribution
from sfl.aggregation.strategy import Strategy, make_strategy
from sfl.config import AggregationSettings, LoraSettings

Array = npt.NDArray[Any]


Adapter = dict[str, Array]


ALPHA, RANK = 8.0, 6


LORA = LoraSettings(rank=RANK, alpha=ALPHA)


LAYERS = {"m.layers.0.q": (9, 7), "m.layers.1.k": (5, 12)}  # out, in


SAVED = {"base_model.model.score.weight": (3, 7), "base_model.model.score.bias": (3,)}


def strategy(name: str, **options: Any) -> Strategy:
    return make_strategy(AggregationSettings(strategy=name, **options), LORA)


def adapter(seed: int, rank: int = RANK) -> Adapter:
    rng = np.random.default_rng(seed)
    shapes = dict(SAVED)
    for layer, (outputs, inputs) in LAYERS.items():
        a, b = lora_names(layer)
        shapes |= {a: (rank, inputs), b: (outputs, rank)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def fresh(seed: int = 99) -> Adapter:
    """As a run begins: B is zero."""
    values = adapter(seed)
    return values | {
        lora_b_of(n): np.zeros_like(values[lora_b_of(n)]) for n in values if is_lora_a(n)
    }


def spool(folder: Path, device: str, values: Mapping[str, Array], n: int = 1) -> Contribution:
    """The adapter in two files; its rank is read off an A."""
    names = sorted(values)
    files = tuple(folder / f"{device}-{side}.safetensors" for side in ("device", "edge"))
    for number, path in enumerate(files):
        save_file({name: values[name] for name in names[number::2]}, path)
    rank = next((len(values[name]) for name in values if is_lora_a(name)), RANK)
    return Contribution(device, n, files, rank, ALPHA / rank)


def update(values: Mapping[str, Array], layer: str, scaling: float) -> Array:
    """The layer's dense update."""
    a, b = lora_names(layer)
    return scaling * values[b].astype(np.float64) @ values[a].astype(np.float64)


def same_bits(left: Adapter, right: Adapter) -> bool:
    return left.keys() == right.keys() and all(
        left[n].dtype == right[n].dtype and left[n].tobytes() == right[n].tobytes() for n in left
    )
