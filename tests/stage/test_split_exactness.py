"""A split model computes what the unsplit PEFT model computes, to the last bit (fp32, CPU).

In one process: front, a boundary in fresh memory, middle, and where U-shaped another boundary and
the tail. The same over real processes and gRPC is shown elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from sfl.adapters.lora import LoraBank
from sfl.adapters.names import belongs_to
from sfl.keys import derive_seed
from sfl.models.families.family import Task
from sfl.models.folder import open_model
from sfl.models.span import build_span
from sfl.plan import Plan, Span
from sfl.stage.loss import training_loss
from tests.house.paths import MODEL, STORIES
from tests.house.splits import (
    DROPOUT,
    FULL,
    KEY,
    LORA,
    PADDED,
    PLANS,
    Node,
    Split,
    assert_same,
    make_split,
    plan_name,
    reference,
    reference_step,
    spans,
    split_step,
)
from tests.house.tiny_models import (
    CASES,
    LABELS,
    LAYERS,
    base_model,
    batch,
    busy_values,
    manifest_of,
    model_folder,
    opened,
    peft_model,
)


@pytest.mark.parametrize("plan", PLANS, ids=plan_name)
@pytest.mark.parametrize(("kind", "task"), CASES)
def test_loss_and_every_gradient_equal_the_unsplit_model(kind: str, task: Task, plan: Plan) -> None:
    folder = opened(kind)
    values = busy_values(manifest_of(folder, task, LORA))
    for lengths in (FULL, PADDED):
        split = make_split(folder, plan, task, LORA, values)
        loss = split_step(split, *batch(lengths, task))
        wanted_loss, wanted = reference(kind, task, lengths)
        assert torch.equal(loss, wanted_loss)
        assert_same(split.gradients(), wanted)


@pytest.mark.parametrize(("kind", "task"), CASES)
def test_what_padding_rows_hold_changes_no_bit(kind: str, task: Task) -> None:
    folder = opened(kind)
    values = busy_values(manifest_of(folder, task, LORA))
    split = make_split(folder, PLANS[5], task, LORA, values, zero_padding=False)
    loss = split_step(split, *batch(PADDED, task))
    wanted_loss, wanted = reference(kind, task, PADDED)
    assert torch.equal(loss, wanted_loss)
    assert_same(split.gradients(), wanted)


# -- dropout ---------------------------------------------------------------------------------------


def seed_dropout(*parts: str | int) -> None:
    torch.manual_seed(derive_seed(*parts, "dropout"))


def seed_before(model: Any, modules: Mapping[str, str], blocks: str) -> None:
    """Let the unsplit model draw by the same keys."""
    parts = {name: name for name in (f"{blocks}.{i}" for i in range(LAYERS))} | dict(modules)
    for name, part in parts.items():
        key = (KEY.seed, KEY.device, KEY.round, KEY.step, KEY.micro_batch, part)
        model.get_base_model().get_submodule(name).register_forward_pre_hook(
            lambda *_, key=key: seed_dropout(*key)
        )


@pytest.mark.parametrize(
    ("kind", "task", "extra", "lora_dropout", "modules"), DROPOUT, ids=[d[0] for d in DROPOUT]
)
def test_keyed_dropout_draws_the_same_at_every_cut(
    kind: str, task: Task, extra: dict[str, float], lora_dropout: float, modules: dict[str, str]
) -> None:
    folder = opened(kind, json.dumps(extra))
    lora = LORA.model_copy(update={"dropout": lora_dropout})
    manifest = manifest_of(folder, task, lora)
    values = busy_values(manifest)
    model = peft_model(folder, task, manifest, values)
    seed_before(model, modules, folder.family.layout(folder.config, task).blocks)
    # A key-value cache lays keys out anew, and attention with dropout then sums in another order;
    # trainers switch it off.
    more: dict[str, Any] = {"use_cache": False} if task == "causal_lm" else {}
    wanted_loss, wanted = reference_step(model, *batch(PADDED, task), **more)
    undropped_loss, _ = reference(kind, task, PADDED)
    assert not torch.equal(wanted_loss, undropped_loss)
    for plan in PLANS:
        torch.manual_seed(plan.cut_layer)  # whatever was drawn before
        split = make_split(folder, plan, task, lora, values, key=KEY)
        loss = split_step(split, *batch(PADDED, task))
        assert torch.equal(loss, wanted_loss), plan
        assert_same(split.gradients(), wanted)


def test_training_with_dropout_asks_for_its_key() -> None:
    folder = opened("llama", '{"attention_dropout": 0.2}')
    values = busy_values(manifest_of(folder, "causal_lm", LORA))
    split = make_split(folder, PLANS[1], "causal_lm", LORA, values)
    with pytest.raises(AssertionError, match="key"):
        split.forward(*batch(PADDED, "causal_lm")[:2])


def test_evaluation_draws_nothing() -> None:
    folder = opened("llama", '{"attention_dropout": 0.2}')
    values = busy_values(manifest_of(folder, "causal_lm", LORA))
    split = make_split(folder, PLANS[1], "causal_lm", LORA, values)
    for node in split.nodes:
        node.model.eval()
    state = torch.get_rng_state()
    split.forward(*batch(PADDED, "causal_lm")[:2])
    assert torch.equal(torch.get_rng_state(), state)


# -- several devices over one base -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "task"), [("llama", "causal_lm"), ("gpt2", "causal_lm"), ("bert", CASES[-1][1])]
)
@pytest.mark.parametrize("topology", ["vanilla", "u_shaped"])
def test_interleaved_devices_do_not_disturb_each_other(
    kind: str, task: Task, topology: Any
) -> None:
    folder = opened(kind)
    manifest = manifest_of(folder, task, LORA)
    cuts = [(0, 0), (1, 0), (2, 0)] if topology == "vanilla" else [(0, 1), (1, 1), (2, 0)]
    plans = [Plan.split(LAYERS, cut, tail, topology) for cut, tail in cuts]
    values = [busy_values(manifest, seed) for seed in range(3)]
    batches = [batch((9, 6 - seed, 4), task, seed) for seed in range(3)]
    edge = build_span(
        folder,
        Span(0, LAYERS, embedding=False, head=topology == "vanilla"),
        task=task,
        num_labels=LABELS,
        dtype=torch.float32,
    ).train()
    bank = LoraBank(edge, LORA, LORA.target_modules)
    splits = []
    for number, (plan, mine) in enumerate(zip(plans, values, strict=True)):
        split = make_split(folder, plan, task, LORA, mine)
        adapter = bank.add(f"device-{number}", plan.middle)
        adapter.load({n: v for n, v in mine.items() if belongs_to(n, plan.middle)})
        split.nodes[1] = Node(edge, bank, adapter, plan.middle)
        splits.append(split)
    losses = [
        training_loss(split.forward(ids, lengths), labels, task, folder.vocab_size, None)
        for split, (ids, lengths, labels) in zip(splits, batches, strict=True)
    ]
    for split, loss, (_, lengths, _) in zip(splits, losses, batches, strict=True):
        split.backward(loss, lengths)
    for split, loss, mine, own in zip(splits, losses, values, batches, strict=True):
        alone = peft_model(folder, task, manifest, mine)
        wanted_loss, wanted = reference_step(alone, *own)
        assert torch.equal(loss.detach(), wanted_loss)
        assert_same(split.gradients(), wanted)


# -- several micro-batches, real weights -----------------------------------------------------------


def test_micro_batches_add_up_to_the_whole_batch() -> None:
    folder = opened("llama")
    values = busy_values(manifest_of(folder, "causal_lm", LORA))
    ids, lengths, labels = batch(PADDED, "causal_lm")
    split = make_split(folder, PLANS[1], "causal_lm", LORA, values)
    normalizer = int((labels[:, 1:] != -100).sum())
    total = torch.zeros(())
    for rows in (slice(0, 2), slice(2, 3)):
        logits = split.forward(ids[rows], lengths[rows])
        loss = training_loss(logits, labels[rows], "causal_lm", folder.vocab_size, normalizer)
        split.backward(loss, lengths[rows])
        total += loss.detach()
    wanted_loss, wanted = reference("llama", "causal_lm", PADDED)
    torch.testing.assert_close(total, wanted_loss)
    for name, gradient in split.gradients().items():
        torch.testing.assert_close(gradient, wanted[name])


@pytest.mark.parametrize("path", [STORIES, MODEL], ids=["stories260k", "quickstart"])
def test_real_weights(path: Path) -> None:
    if not (path / "config.json").is_file():
        pytest.skip(f"{path} is not here")
    folder = open_model(path)
    manifest = manifest_of(folder, "causal_lm", LORA)
    values = busy_values(manifest)
    model = peft_model(folder, "causal_lm", manifest, values)
    ids, lengths, labels = batch((24, 17, 9), "causal_lm")
    wanted_loss, wanted = reference_step(model, ids, lengths, labels)
    for plan in (
        Plan.split(folder.num_layers, 1, 0, "vanilla"),
        Plan.split(folder.num_layers, folder.num_layers - 2, 1, "u_shaped"),
    ):
        split = make_split(folder, plan, "causal_lm", LORA, values)
        assert torch.equal(split_step(split, ids, lengths, labels), wanted_loss)
        assert_same(split.gradients(), wanted)


def test_bfloat16_stays_close_to_peft() -> None:
    folder = opened("llama")
    manifest = manifest_of(folder, "causal_lm", LORA)
    values = busy_values(manifest)
    ids, lengths, labels = batch(PADDED, "causal_lm")
    model = peft_model(folder, "causal_lm", manifest, values, dtype=torch.bfloat16)
    wanted_loss, wanted = reference_step(model, ids, lengths, labels)
    nodes = []
    for span in spans(PLANS[1]):
        half = build_span(
            folder, span, task="causal_lm", num_labels=LABELS, dtype=torch.bfloat16
        ).train()
        bank = LoraBank(half, LORA, LORA.target_modules)
        adapter = bank.add("kitchen", span)
        adapter.load({n: v for n, v in values.items() if belongs_to(n, span)})
        nodes.append(Node(half, bank, adapter, span))
    split = Split(nodes, "causal_lm")
    assert torch.equal(split_step(split, ids, lengths, labels), wanted_loss)
    assert_same(split.gradients(), wanted)
    assert {g.dtype for g in split.gradients().values()} == {torch.float32}


def test_the_reference_is_what_transformers_loads_by_default() -> None:
    """Attention kernel and all: nothing here chose another one."""
    model: Any = base_model(model_folder("llama"), "causal_lm")
    assert model.config._attn_implementation == "sdpa"
