"""Stages behind each other: what a session sends says by itself which neighbour it is for."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sfl.adapters.lora import LoraBank
from sfl.adapters.names import belongs_to
from sfl.config import RunSettings
from sfl.metrics.stats import NodeStats
from sfl.models.folder import ModelFolder
from sfl.models.span import build_span
from sfl.plan import Holder, Plan, Topology, Toward
from sfl.stage.messages import GradientNorm, Key, Kind, Outgoing, Purpose, TensorMessage
from sfl.stage.session import Request
from sfl.stage.training import TrainingSession, session_of
from tests.house.assigned import assigned
from tests.house.sessions import messages
from tests.house.splits import LORA
from tests.house.tiny_models import LAYERS, busy_values, manifest_of, opened

STEPS = 3


class Chain:
    """Sessions in the model's order; a message goes where it is sent, and to nobody else."""

    def __init__(self, stages: Sequence[TrainingSession]) -> None:
        self._stages = stages

    def handle(self, message: Request, at: int = 0) -> list[Request]:
        """What leaves the chain at either end, once nothing is under way."""
        returned: list[Request] = []
        under_way = deque([(at, message)])
        while under_way:
            at, request = under_way.popleft()
            for out in self._stages[at].handle(request):
                to = at + (1 if out.toward is Toward.LOSS else -1)
                if to < 0 or to == len(self._stages):
                    returned.append(out.message)
                else:
                    under_way.append((to, _carried(out.message)))
        return returned

    def state(self) -> dict[str, np.ndarray]:
        """The adapter of all stages."""
        return {name: v for stage in self._stages for name, v in stage.end_round().items()}


def _carried(message: Request) -> Request:
    """As it comes out at a neighbour: in memory of its own."""
    if isinstance(message, GradientNorm) or message.rows is None:
        return message
    return replace(message, rows=message.rows.clone())


def stage(
    plan: Plan, folder: ModelFolder, settings: RunSettings, holder: Holder = "edge"
) -> TrainingSession:
    span = plan.span_of(holder)
    model = build_span(
        folder,
        span,
        task="causal_lm",
        num_labels=0,
        dtype=torch.float32,
        packed=settings.computation == "lean",
    )
    bank = LoraBank(model, settings.lora, settings.lora.target_modules)
    told = assigned(settings, plan, round_=1, steps=STEPS)
    stats = NodeStats("e", "edge")
    session = session_of(span)("d", told, model, bank, settings, stats, holder=holder)
    values = busy_values(manifest_of(folder, "causal_lm", LORA))
    own = {name: value for name, value in values.items() if belongs_to(name, span)}
    session.begin_round(told, own)
    return session


def chain(plan: Plan, folder: ModelFolder, settings: RunSettings) -> Chain:
    """All servers of a plan."""
    return Chain([stage(plan, folder, settings, held.holder) for held in plan.servers])


def run_settings(
    computation: str = "reference", dropout: float = 0.0, norm: float | None = None
) -> RunSettings:
    return RunSettings.model_validate(
        {
            "model": {"path": "m"},
            "lora": {"rank": LORA.rank, "alpha": LORA.alpha, "dropout": dropout},
            "training": {"computation": computation, "max_grad_norm": norm},
            "devices": [{"name": "d", "cut_layer": 1}],
        }
    )


@pytest.mark.parametrize("computation", ["reference", "lean"])
@pytest.mark.parametrize(("kind", "dropout"), [("llama", 0.0), ("gpt2", 0.3), ("gemma2", 0.0)])
def test_three_tiers_are_two_to_the_bit(kind: str, dropout: float, computation: str) -> None:
    folder, settings = opened(kind), run_settings(computation, dropout)
    one = chain(Plan.split(LAYERS, 1, 0, "vanilla"), folder, settings)
    both = chain(Plan.split(LAYERS, 1, 0, "three_tier", (2,)), folder, settings)
    for step in range(STEPS):
        for number, made in enumerate(messages("causal_lm", folder.hidden_size, 2)):
            key = Key(Purpose.TRAINING, 1, step, number)
            sent = replace(made, key=key, num_micro_batches=2, normalizer=9)
            (wanted,), (found,) = one.handle(sent), both.handle(sent)
            assert isinstance(wanted, TensorMessage) and isinstance(found, TensorMessage)
            assert found.kind is Kind.GRADIENT and found.loss == wanted.loss
            assert found.rows is not None and wanted.rows is not None
            assert torch.equal(found.rows, wanted.rows)
    parts, whole = both.state(), one.state()
    assert parts.keys() == whole.keys()
    assert all(np.array_equal(parts[name], whole[name]) for name in whole)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_a_u_shape_of_three_tiers_is_one_of_two_to_the_bit(kind: str) -> None:
    folder, settings = opened(kind), run_settings()
    layers = folder.num_layers
    one = chain(Plan.split(layers, 0, 1, "u_shaped"), folder, settings)
    both = chain(Plan.split(layers, 0, 1, "three_tier_u_shaped", (1,)), folder, settings)
    for step in range(STEPS):
        (made,) = messages("causal_lm", folder.hidden_size, 1)
        sent = replace(made, key=Key(Purpose.TRAINING, 1, step, 0), labels=None)
        (wanted,), (found,) = one.handle(sent), both.handle(sent)
        assert isinstance(wanted, TensorMessage) and isinstance(found, TensorMessage)
        assert found.kind is Kind.ACTIVATION and found.rows is not None
        assert wanted.rows is not None and torch.equal(found.rows, wanted.rows)
        gradient = replace(found, kind=Kind.GRADIENT, rows=found.rows.flip(0).clone())
        one.handle(gradient)
        both.handle(gradient, at=1)
    parts, whole = both.state(), one.state()
    assert parts.keys() == whole.keys()
    assert all(np.array_equal(parts[name], whole[name]) for name in whole)


@pytest.mark.parametrize("early", [False, True])
def test_every_stage_clips_by_the_same_norm(early: bool) -> None:
    folder, settings = opened("llama"), run_settings(norm=1e-3)
    layers = folder.num_layers
    both = chain(Plan.split(layers, 0, 0, "three_tier", (1, 2)), folder, settings)
    stages = both._stages
    (made,) = messages("causal_lm", folder.hidden_size, 1)
    sent = replace(made, key=Key(Purpose.TRAINING, 1, 0, 0))
    norms = []
    for one in stages:
        optimizer = one.optimizer
        clip = optimizer.clip

        def noted(squared: float, clip: Any = clip) -> None:
            norms.append(squared)
            clip(squared)

        optimizer.clip = noted  # type: ignore[method-assign]
    if early:  # the device's norm may be there before those of the stages behind
        (up,) = stages[0].handle(sent)
        (on,) = stages[1].handle(up.message)
        back, last = stages[2].handle(on.message)
        (back,) = stages[1].handle(back.message)
        stages[0].handle(back.message)
        assert stages[0].handle(GradientNorm(1, 0, 0.3)) == []
        (suffix,) = stages[1].handle(last.message)
        told, onward = stages[0].handle(suffix.message)
        (further,) = stages[1].handle(onward.message)
        assert stages[2].handle(further.message) == []
    else:
        _, told_ = both.handle(sent)
        assert isinstance(told_, GradientNorm)
        told = Outgoing(Toward.INPUT, told_)
        assert both.handle(GradientNorm(1, 0, 0.3)) == []
    assert isinstance(told.message, GradientNorm)
    assert norms == [0.3 + told.message.squared] * 3
    assert [one.step for one in stages] == [1, 1, 1]


@pytest.mark.parametrize("topology", ["vanilla", "u_shaped"])
def test_what_a_stage_sends_goes_where_its_kind_belongs(topology: Topology) -> None:
    folder = opened("llama")
    settings = RunSettings.model_validate(
        {
            "run": {"topology": topology},
            "model": {"path": "m"},
            "lora": {"rank": LORA.rank, "alpha": LORA.alpha},
            "training": {"max_grad_norm": 1.0},
            "devices": [{"name": "d", "cut_layer": 1}],
        }
    )
    session = stage(Plan.split(LAYERS, 1, 0, topology), folder, settings)
    (sent,) = messages("causal_lm", folder.hidden_size, 1)
    scored: Any = session.handle(replace(sent, key=Key(Purpose.EVALUATION, 1, 0, 0)))
    outgoing = session.handle(sent)
    if topology == "u_shaped":
        assert outgoing[0].toward is Toward.LOSS
        assert isinstance(outgoing[0].message, TensorMessage)
        outgoing += session.handle(replace(outgoing[0].message, kind=Kind.GRADIENT))
    *tensors, norm = outgoing
    assert norm.toward is Toward.INPUT and isinstance(norm.message, GradientNorm)
    for out in (*scored, *tensors):
        assert isinstance(out.message, TensorMessage) and out.toward is out.message.kind.toward
    assert [out.message.kind for out in scored] == (
        [Kind.SCORE] if topology == "vanilla" else [Kind.ACTIVATION]
    )


@pytest.mark.parametrize("kind", list(Kind))
def test_a_tensor_cannot_be_sent_against_its_kind(kind: Kind) -> None:
    key = Key(Purpose.TRAINING, 1, 0, 0)
    message = TensorMessage(kind, key, 1, (1,))
    right = Toward.LOSS if kind is Kind.ACTIVATION else Toward.INPUT
    (wrong,) = set(Toward) - {right}
    assert Outgoing(right, message).message is message
    with pytest.raises(AssertionError):
        Outgoing(wrong, message)
    assert Outgoing(Toward.LOSS, GradientNorm(1, 0, 1.0)).toward is Toward.LOSS
    with pytest.raises(AssertionError):
        Outgoing(Toward.INPUT, GradientNorm(1, 0, 1.0))
