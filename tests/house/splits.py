"""A split model without a wire: its spans run one after another in this process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfl.adapters.lora import Adapter, LoraBank
from sfl.adapters.names import belongs_to
from sfl.config import LoraSettings
from sfl.models.families.family import Task
from sfl.models.folder import ModelFolder
from sfl.models.span import ForwardKey, SpanModel, build_span
from sfl.plan import Plan, Span
from sfl.stage.loss import training_loss
from tests.house.tiny_models import (
    LABELS,
    LAYERS,
    batch,
    busy_values,
    gradients,
    manifest_of,
    opened,
    peft_model,
)

PLANS = [
    Plan.split(LAYERS, 0, 0, "vanilla"),
    Plan.split(LAYERS, 1, 0, "vanilla"),
    Plan.split(LAYERS, 2, 0, "vanilla"),
    Plan.split(LAYERS, 0, 1, "u_shaped"),
    Plan.split(LAYERS, 1, 0, "u_shaped"),
    Plan.split(LAYERS, 1, 1, "u_shaped"),
    Plan.split(LAYERS, 2, 0, "u_shaped"),
]


FULL, PADDED = (9, 9, 9), (9, 5, 3)


LORA = LoraSettings(rank=4, alpha=8.0)


KEY = ForwardKey(seed=11, device="kitchen", round=2, step=5, micro_batch=1)


def plan_name(plan: Plan) -> str:
    tail = "vanilla" if plan.tail is None else f"u_shaped-{plan.tail.num_blocks}"
    return f"{tail}-{plan.cut_layer}"


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


def spans(plan: Plan) -> list[Span]:
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
    plan: Plan,
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
