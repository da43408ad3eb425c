"""A base update is added to the frozen layers, for good (FLoRA, 2409.05976)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers.pytorch_utils import Conv1D

from sfl.adapters.names import lora_names
from sfl.adapters.targets import Target
from sfl.errors import ProtocolError

Array = npt.NDArray[Any]

PIECE_VALUES = 1 << 18
"""Weights changed at once: beside them twice 2 MiB are held, whatever the layer."""


def fold(targets: Sequence[Target], base_update: Mapping[str, Array]) -> None:
    """Add B A to the weight of every target, in place; `base_update` may have other layers too.

    The product is taken in float64 on the CPU and the sum rounded once, so neither where the model
    is cut nor what a layer is on changes a bit. Raises ProtocolError, with nothing changed, for a
    base update that lacks a target or does not fit it.
    """
    pairs = [_pair(target, base_update) for target in targets]
    for target, (b, a) in zip(targets, pairs, strict=True):
        _add(target, b, a)


def _pair(target: Target, base_update: Mapping[str, Array]) -> tuple[Array, Array]:
    a, b = (base_update.get(name) for name in lora_names(target.name))
    if a is None or b is None:
        raise ProtocolError(f"nothing came to be added to {target.name}")
    if a.ndim != 2 or b.shape != (target.num_outputs, len(a)) or a.shape[1] != target.num_inputs:
        raise ProtocolError(
            f"{list(b.shape)} x {list(a.shape)} came to be added to {target.name}, which is "
            f"[{target.num_outputs}, {target.num_inputs}]"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ProtocolError(f"what came to be added to {target.name} is not finite")
    return b, a


def _add(target: Target, b: Array, a: Array) -> None:
    weight: Any = target.module.weight
    assert weight.dtype == torch.float32, "settled before the base was loaded"
    # GPT-2 stores [in, out].
    rows = weight.t() if isinstance(target.module, Conv1D) else weight
    right = torch.from_numpy(a.astype(np.float64))
    step = max(1, PIECE_VALUES // target.num_inputs)
    with torch.no_grad():
        for first in range(0, target.num_outputs, step):
            left = torch.from_numpy(b[first : first + step].astype(np.float64))
            piece = rows[first : first + step]
            piece.copy_((left @ right).add_(piece.to("cpu", torch.float64)))
