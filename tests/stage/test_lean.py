"""Lean computing gives what the reference gives, to rounding, with less held and less done."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import sfl.models.span as span_module
from sfl.adapters.lora import LoraBank
from sfl.adapters.names import belongs_to
from sfl.config import LoraSettings, RunSettings
from sfl.data.batches import Batch
from sfl.models.families.family import Task
from sfl.models.folder import ModelFolder
from sfl.models.packed import Packing
from sfl.models.span import SpanModel, build_span
from sfl.plan import Plan, Span
from sfl.stage import lean
from sfl.stage.computation import COMPUTATIONS
from sfl.stage.layout import pack_labels
from tests.house.splits import FULL, LORA, PADDED, PLANS, plan_name, reference, spans
from tests.house.tiny_models import CASES, LABELS, batch, busy_values, manifest_of, opened

RAGGED = (2, 9, 1, 5)
LEAN, REFERENCE = COMPUTATIONS["lean"], COMPUTATIONS["reference"]


def node(
    folder: ModelFolder, span: Span, task: Task, values: Any, packed: bool, lora: LoraSettings
) -> tuple[SpanModel, dict[str, torch.nn.Parameter]]:
    model = build_span(
        folder, span, task=task, num_labels=LABELS, dtype=torch.float32, packed=packed
    ).train()
    bank = LoraBank(model, lora, lora.target_modules)
    adapter = bank.add("kitchen", span)
    adapter.load({n: v for n, v in values.items() if belongs_to(n, span)})
    bank.activate(adapter)
    return model, adapter.parameters


def step(
    kind: str, task: Task, plan: Plan | None, lengths: tuple[int, ...], way: str
) -> tuple[torch.Tensor, dict[str, torch.Tensor], Any]:
    """(loss, gradients, score) through the plan's spans with a fresh boundary at each cut.

    Without a plan through the whole model.
    """
    folder, computation = opened(kind), COMPUTATIONS[way]
    whole_model = [Span(0, folder.num_layers, embedding=True, head=True)]
    values = busy_values(manifest_of(folder, task, LORA))
    ids, sizes, labels = batch(lengths, task)
    whole = Batch(ids, sizes, labels, 0, int(sizes.sum()))
    packed_labels = pack_labels(labels, lengths)
    parameters: dict[str, torch.nn.Parameter] = {}
    hidden, cuts = torch.empty(0), []
    for number, span in enumerate(spans(plan) if plan else whole_model):
        model, own = node(folder, span, task, values, computation.packed, LORA)
        parameters |= own
        if number:
            rows = computation.rows(hidden.detach(), lengths)
            received = computation.hidden(rows.clone(), lengths).requires_grad_()
            cuts.append((hidden, received))
            hidden = received
        else:
            hidden = model.embed(computation.tokens(whole), sizes)
        hidden = model.blocks(hidden, sizes, span.first, span.last)
    loss = computation.loss(model, hidden, lengths, packed_labels, None, None)
    loss.backward()  # type: ignore[no-untyped-call]
    for output, received in reversed(cuts):
        assert received.grad is not None
        gradient = computation.hidden(computation.rows(received.grad, lengths), lengths)
        if output.requires_grad:
            output.backward(gradient)  # type: ignore[no-untyped-call]
    score = computation.score(model, hidden, lengths, packed_labels)
    return (
        loss.detach(),
        {name: p.grad for name, p in parameters.items() if p.grad is not None},
        score,
    )


@cache
def lean_step(
    kind: str, task: Task, plan: Plan | None, lengths: tuple[int, ...]
) -> tuple[torch.Tensor, dict[str, torch.Tensor], Any]:
    """For tests that patch nothing."""
    return step(kind, task, plan, lengths, "lean")


@pytest.mark.process
@pytest.mark.parametrize("plan", PLANS, ids=plan_name)
@pytest.mark.parametrize(("kind", "task"), CASES)
def test_loss_gradients_and_score_equal_the_reference_to_rounding(
    kind: str, task: Task, plan: Plan
) -> None:
    for lengths in (FULL, PADDED):
        loss, gradients, score = lean_step(kind, task, plan, lengths)
        wanted_loss, wanted = reference(kind, task, lengths)
        assert float(loss) == pytest.approx(float(wanted_loss), rel=1e-5)
        assert gradients.keys() == wanted.keys()
        scale = max(float(g.norm()) for g in wanted.values())
        for name, gradient in wanted.items():
            assert float((gradients[name] - gradient).norm()) < 1e-5 * scale, name
        *_, wanted_score = step(kind, task, plan, lengths, "reference")
        assert score.loss_sum == pytest.approx(wanted_score.loss_sum, rel=1e-5)
        assert score.num_targets == wanted_score.num_targets
        assert score.num_correct == wanted_score.num_correct
        assert score.num_examples == wanted_score.num_examples


@pytest.mark.parametrize("plan", PLANS, ids=plan_name)
@pytest.mark.parametrize(("kind", "task"), CASES)
def test_split_equals_unsplit_bit_for_bit(kind: str, task: Task, plan: Plan) -> None:
    loss, gradients, score = lean_step(kind, task, plan, PADDED)
    wanted_loss, wanted, wanted_score = lean_step(kind, task, None, PADDED)
    assert torch.equal(loss, wanted_loss) and score == wanted_score
    assert gradients.keys() == wanted.keys()
    assert all(torch.equal(gradients[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_pieces_do_not_change_the_loss(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = PLANS[1]
    whole = step(kind, "causal_lm", plan, RAGGED, "lean")
    sizes = []
    real = SpanModel.logits
    monkeypatch.setattr(lean, "_pieces", lambda model, n: [slice(i, i + 3) for i in range(0, n, 3)])
    monkeypatch.setattr(
        SpanModel, "logits", lambda self, rows: sizes.append(len(rows)) or real(self, rows)
    )
    loss, gradients, score = step(kind, "causal_lm", plan, RAGGED, "lean")
    assert max(sizes) == 3 and len(sizes) > 2
    assert float(loss) == pytest.approx(float(whole[0]), rel=1e-6)
    for name, gradient in whole[1].items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-7)
    assert score.loss_sum == pytest.approx(whole[2].loss_sum)
    assert (score.num_correct, score.num_targets) == (whole[2].num_correct, whole[2].num_targets)


def test_only_scored_positions_meet_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = SpanModel.logits
    monkeypatch.setattr(
        SpanModel, "logits", lambda self, rows: seen.append(len(rows)) or real(self, rows)
    )
    step("llama", "causal_lm", PLANS[1], PADDED, "lean")
    _, _, labels = batch(PADDED, "causal_lm")
    scored = int((labels[:, 1:] != -100).sum())
    assert seen == [scored, scored]  # the loss, and the score
    assert scored < sum(PADDED)


def padded_form(lengths: torch.Tensor, device: torch.device) -> Packing:
    """The packing an accelerator is given."""
    real = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    return Packing(tuple(lengths.tolist()), real.flatten().nonzero()[:, 0])


@pytest.mark.parametrize(("kind", "task"), CASES)
def test_attention_sequence_by_sequence_or_in_the_padded_form(
    kind: str, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    real = scaled_dot_product_attention

    def attention(query: torch.Tensor, key: torch.Tensor, *args: Any, **options: Any) -> Any:
        seen.append([len(key), key.shape[2]])
        return real(query, key, *args, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    plan = PLANS[0]
    loss, gradients, _ = step(kind, task, plan, RAGGED, "lean")
    assert all(rows == 1 for rows, _ in seen)
    assert {width for _, width in seen} in (set(RAGGED), set())  # none: eager attention
    seen.clear()
    monkeypatch.setattr(span_module, "packing_of", padded_form)
    other_loss, other_gradients, _ = step(kind, task, plan, RAGGED, "lean")
    assert all(shape == [len(RAGGED), max(RAGGED)] for shape in seen)
    assert float(loss) == pytest.approx(float(other_loss), rel=1e-5)
    assert gradients.keys() == other_gradients.keys()
    scale = max(float(gradient.norm()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        assert float((other_gradients[name] - gradient).norm()) < 1e-5 * scale, name


def test_a_batch_without_targets_has_no_loss_and_no_gradient() -> None:
    folder = opened("llama")
    values = busy_values(manifest_of(folder, "causal_lm", LORA))
    span = Span(0, folder.num_layers, embedding=True, head=True)
    model, _ = node(folder, span, "causal_lm", values, True, LORA)
    hidden = torch.randn(1, 5, folder.hidden_size, requires_grad=True)
    labels = np.full(5, -100, np.int32)
    loss = LEAN.loss(model, hidden, (3, 2), labels, None, None)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0.0 and hidden.grad is not None and not bool(hidden.grad.any())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "lean"),
        ({"codec": {"activation": "none", "gradient": "none"}}, "reference"),
        ({"codec": {"activation": "zstd", "gradient": "none | rans"}}, "reference"),
        ({"codec": {"activation": "none", "gradient": "fp16"}}, "lean"),
        (
            {
                "codec": {
                    "activation": "none",
                    "gradient": "none",
                    "schedule": [{"from_round": 2, "gradient": "int8"}],
                }
            },
            "lean",
        ),
        (
            {
                "codec": {"activation": "none", "gradient": "none"},
                "devices": [{"name": "a", "codec": {"activation": "int8"}}],
            },
            "lean",
        ),
        (
            {
                "codec": {"activation": "none", "gradient": "none"},
                "training": {"computation": "lean"},
            },
            "lean",
        ),
        ({"training": {"computation": "reference"}}, "reference"),
    ],
)
def test_auto_is_the_reference_where_no_codec_changes_a_bit(
    changes: dict[str, Any], expected: str
) -> None:
    content = {"model": {"path": "m"}, "devices": [{"name": "a"}], **changes}
    assert RunSettings.model_validate(content).computation == expected
