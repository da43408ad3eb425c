"""What a device saves memory by changes no bit; a memory budget is kept, or refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from test_split_exactness import (
    DROPOUT,
    FULL,
    KEY,
    LORA,
    PADDED,
    PLANS,
    Split,
    assert_same,
    make_split,
    plan_name,
    split_step,
)
from tiny_models import batch, busy_values, manifest_of, opened

from sfl.models.family import Task

# -- blocks that run again for their backward ------------------------------------------------------


def recomputing(split: Split) -> Split:
    for node in split.nodes:
        node.model.recompute = True
    return split


@pytest.mark.parametrize("plan", [PLANS[1], PLANS[5]], ids=plan_name)
@pytest.mark.parametrize(
    ("kind", "task", "extra", "lora_dropout", "_modules"), DROPOUT, ids=[d[0] for d in DROPOUT]
)
def test_recomputing_changes_no_bit_with_dropout(
    kind: str, task: Task, extra: dict[str, float], lora_dropout: float, _modules: Any, plan: Any
) -> None:
    folder = opened(kind, json.dumps(extra))
    lora = LORA.model_copy(update={"dropout": lora_dropout})
    values = busy_values(manifest_of(folder, task, lora))
    for lengths in (FULL, PADDED):
        wanted = make_split(folder, plan, task, lora, values, key=KEY)
        found = recomputing(make_split(folder, plan, task, lora, values, key=KEY))
        wanted_loss = split_step(wanted, *batch(lengths, task))
        assert torch.equal(split_step(found, *batch(lengths, task)), wanted_loss)
        assert_same(found.gradients(), wanted.gradients())


def test_recomputing_keeps_less() -> None:
    folder = opened("llama")
    values = busy_values(manifest_of(folder, "causal_lm", LORA))
    kept = {}
    for recompute in (False, True):
        split = make_split(folder, PLANS[2], "causal_lm", LORA, values)
        front = split.nodes[0]
        front.activate()
        front.model.recompute = recompute
        sizes: list[int] = []

        def keep(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        ids, lengths, _ = batch(PADDED, "causal_lm")
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            front.model.blocks(front.model.embed(ids, lengths), lengths)
        kept[recompute] = sum(sizes)
    assert kept[True] < kept[False] / 4
