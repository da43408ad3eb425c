"""A split model computes what the unsplit PEFT model computes, to the last bit (fp32, CPU).

In one process: front, a boundary in fresh memory, middle, and where U-shaped another boundary and
the tail. The same over real processes and gRPC is shown elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import (
    CASES,
    LABELS,
    LAYERS,
    base_model,
    batch,
    busy_values,
    gradients,
    manifest_of,
    model_folder,
    opened,
    peft_model,
)
from torch import Tensor

from sfl.adapters.lora import Adapter, LoraBank
from sfl.adapters.names import belongs_to
from sfl.config import LoraSettings
from sfl.keys import derive_seed
from sfl.models.families.family import Task
from sfl.models.folder import ModelFolder, open_model
from sfl.models.span import ForwardKey, SpanModel, build_span
from sfl.plan import Span, SplitPlan
from sfl.stage.loss import training_loss

PLANS = [
    SplitPlan(LAYERS, 0, 0, "vanilla"),
    SplitPlan(LAYERS, 1, 0, "vanilla"),
    SplitPlan(LAYERS, 2, 0, "vanilla"),
    SplitPlan(LAYERS, 0, 1, "u_shaped"),
    SplitPlan(LAYERS, 1, 0, "u_shaped"),
    SplitPlan(LAYERS, 1, 1, "u_shaped"),
    SplitPlan(LAYERS, 2, 0, "u_shaped"),
]
FULL, PADDED = (9, 9, 9), (9, 5, 3)
LORA = LoraSettings(rank=4, alpha=8.0)
KEY = ForwardKey(seed=11, device="kitchen", round=2, step=5, micro_batch=1)
STORIES = Path(__file__).parents[2] / "shared/models/stories260k"
QUICKSTART = Path(__file__).parents[1] / "examples/quickstart/model"


def plan_name(plan: SplitPlan) -> str:
    return f"{plan.topology}-{plan.cut_layer}-{plan.tail_layers}"


@dataclass
class Node:
    """One span with one adapter in it."""

    model: SpanModel
    bank: LoraBank
    adapter: Adapter
    span: Span

    def activate(self) -> None:
        self.bank.activate(self.adapter)


@dataclass
class Split:
    """A plan's spans, run one after another; boundaries lie in fresh memory."""

    nodes: list[Node]
    task: Task
    key: ForwardKey | None = None
    zero_padding: bool = True
    boundaries: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def boundary(self, output: Tensor, lengths: Tensor) -> Tensor:
        """What arrives at the other side: a fresh copy, rows of padding zero."""
        received = output.detach().clone()
        if self.zero_padding:
            received[torch.arange(output.shape[1])[None] >= lengths[:, None]] = 0.0
        received.requires_grad_()
        self.boundaries.append((output, received))
        return received

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        self.boundaries.clear()
        hidden = torch.empty(0)
        for number, node in enumerate(self.nodes):
            node.activate()
            model, span = node.model, node.span
            hidden = (
                self.boundary(hidden, lengths) if number else model.embed(ids, lengths, self.key)
            )
            hidden = model.blocks(hidden, lengths, span.first, span.last, self.key)
        return self.nodes[-1].model.head(hidden, lengths, self.key)

    def backward(self, loss: Tensor, lengths: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]
        for output, received in reversed(self.boundaries):
            assert received.grad is not None
            gradient = received.grad.clone()
            if self.zero_padding:
                gradient[torch.arange(gradient.shape[1])[None] >= lengths[:, None]] = 0.0
            if output.requires_grad:  # at cut 0 the device trains nothing
                output.backward(gradient)  # type: ignore[no-untyped-call]

    def gradients(self) -> dict[str, Tensor]:
        found = {}
        for node in self.nodes:
            for name, parameter in node.adapter.parameters.items():
                assert parameter.grad is not None, name
                found[name] = parameter.grad
        return found


def spans(plan: SplitPlan) -> list[Span]:
    return [span for span in (plan.front, plan.middle, plan.tail) if span is not None]


def make_node(
    folder: ModelFolder,
    span: Span,
    task: Task,
    lora: LoraSettings,
    values: Mapping[str, np.ndarray],
) -> Node:
    model = build_span(folder, span, task=task, num_labels=LABELS, dtype=torch.float32).train()
    bank = LoraBank(model, lora, lora.target_modules)
    adapter = bank.add("kitchen", span)
    adapter.load({n: v for n, v in values.items() if belongs_to(n, span)})
    return Node(model, bank, adapter, span)


def make_split(
    folder: ModelFolder,
    plan: SplitPlan,
    task: Task,
    lora: LoraSettings,
    values: Mapping[str, np.ndarray],
    **more: Any,
) -> Split:
    nodes = [make_node(folder, span, task, lora, values) for span in spans(plan)]
    return Split(nodes, task, **more)


def assert_same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    different = [name for name in wanted if not torch.equal(found[name], wanted[name])]
    assert not different
    assert any(bool(g.count_nonzero()) for g in wanted.values())


@cache
def reference(kind: str, task: Task, lengths: tuple[int, ...]) -> tuple[Tensor, dict[str, Tensor]]:
    """(loss, gradients) of PEFT in one process."""
    folder = opened(kind)
    manifest = manifest_of(folder, task, LORA)
    model = peft_model(folder, task, manifest, busy_values(manifest))
    return reference_step(model, *batch(lengths, task))


def reference_step(
    model: Any, ids: Tensor, lengths: Tensor, labels: Tensor, **more: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    mask = (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()
    loss = model(input_ids=ids, attention_mask=mask, labels=labels, **more).loss
    loss.backward()
    return loss.detach(), gradients(model)


def split_step(split: Split, ids: Tensor, lengths: Tensor, labels: Tensor) -> Tensor:
    logits = split.forward(ids, lengths)
    vocab = split.nodes[0].model.vocab_size
    loss = training_loss(logits, labels, split.task, vocab, None)
    split.backward(loss, lengths)
    return loss.detach()


@pytest.mark.parametrize("plan", PLANS, ids=plan_name)
@pytest.mark.parametrize(("kind", "task"), CASES)
def test_loss_and_every_gradient_equal_the_unsplit_model(
    kind: str, task: Task, plan: SplitPlan
) -> None:
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

DROPOUT: list[tuple[str, Task, dict[str, float], float, dict[str, str]]] = [
    (
        "llama",
        "causal_lm",
        {"attention_dropout": 0.2},
        0.3,
        {"model.embed_tokens": "embedding", "model.norm": "head"},
    ),
    (
        "gpt2",
        "causal_lm",
        {"embd_pdrop": 0.1, "attn_pdrop": 0.2, "resid_pdrop": 0.3},
        0.1,
        {"transformer.wte": "embedding", "transformer.ln_f": "head"},
    ),
    (
        "bert",
        "sequence_classification",
        {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.1},
        0.1,
        {"bert.embeddings": "embedding", "bert.pooler": "head"},
    ),
    (
        "roberta",
        "sequence_classification",
        {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.1},
        0.0,
        {"roberta.embeddings": "embedding", "classifier": "head"},
    ),
    (
        "distilbert",
        "sequence_classification",
        {"dropout": 0.2, "attention_dropout": 0.1, "seq_classif_dropout": 0.2},
        0.0,
        {"distilbert.embeddings": "embedding", "pre_classifier": "head"},
    ),
]


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
    plans = [SplitPlan(LAYERS, cut, tail, topology) for cut, tail in cuts]
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


@pytest.mark.parametrize("path", [STORIES, QUICKSTART], ids=["stories260k", "quickstart"])
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
        SplitPlan(folder.num_layers, 1, 0, "vanilla"),
        SplitPlan(folder.num_layers, folder.num_layers - 2, 1, "u_shaped"),
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
