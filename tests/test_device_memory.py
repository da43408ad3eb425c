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
from tiny_models import CASES, LABELS, VOCAB, batch, busy_values, manifest_of, opened
from transformers.activations import ACT2FN

from sfl.models.family import Task
from sfl.models.piecewise import Piecewise
from sfl.models.span import build_span
from sfl.plan import Span

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


# -- an embedding that stays on disk ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("kind", "task"), CASES)
def test_rows_read_from_disk_are_the_embedding_s(kind: str, task: Task, dtype: torch.dtype) -> None:
    folder = opened(kind)
    for packed in (False, True):
        held, read = (
            build_span(
                folder,
                Span(0, 1, embedding=True, head=False),
                task=task,
                num_labels=LABELS,
                dtype=dtype,
                packed=packed,
                embedding_on_disk=on_disk,
            )
            for on_disk in (False, True)
        )
        assert sum(p.numel() for p in read.parameters()) < sum(p.numel() for p in held.parameters())
        ids, lengths, _ = batch(PADDED, task)
        if packed:
            ids = ids[torch.arange(ids.shape[1])[None] < lengths[:, None]][None]
        assert torch.equal(read.embed(ids, lengths), held.embed(ids, lengths))
        hidden = held.embed(ids, lengths)
        assert torch.equal(read.blocks(hidden, lengths), held.blocks(hidden, lengths))


def test_a_token_beyond_the_vocabulary_is_an_error() -> None:
    span = Span(0, 1, embedding=True, head=False)
    model = build_span(
        opened("llama"),
        span,
        task="causal_lm",
        num_labels=0,
        dtype=torch.float32,
        embedding_on_disk=True,
    )
    with pytest.raises(IndexError, match="vocabulary"):
        model.embed(torch.tensor([[VOCAB]]), torch.tensor([1]))


# -- activation functions in pieces ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["gelu_new", "gelu_fast", "gelu_accurate"])
@pytest.mark.parametrize("shape", [(1, 300, 3072), (5, 33333), (3, 7, 131)], ids=str)
def test_pieces_change_no_bit(name: str, shape: tuple[int, ...]) -> None:
    draw = torch.Generator().manual_seed(1)
    values, gradient = (torch.randn(shape, generator=draw) * 3 for _ in range(2))
    results = []
    for function in (ACT2FN[name], Piecewise(ACT2FN[name])):
        x = values.clone().requires_grad_()
        output = function(x)
        output.backward(gradient)
        with torch.no_grad():
            assert torch.equal(function(values), output)
        results.append((output.detach(), x.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
