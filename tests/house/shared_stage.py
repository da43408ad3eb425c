"""A last stage whose devices share one adapter, and what each of them sends in each step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from sfl.adapters.lora import LoraBank
from sfl.adapters.names import belongs_to
from sfl.config import RunSettings
from sfl.metrics.stats import NodeStats
from sfl.models.span import SpanModel, build_span
from sfl.plan import Plan
from sfl.rounds.values import Assignment
from sfl.stage.messages import GradientNorm, Key, Purpose, TensorMessage
from sfl.stage.snapshots import Snapshots
from sfl.stage.training import SharedSession, Team, VanillaSession, new_team
from tests.house.assigned import assigned
from tests.house.sessions import messages
from tests.house.splits import LORA
from tests.house.tiny_models import LAYERS, busy_values, manifest_of, opened

NAMES, STEPS = ("a", "b"), 3
PLAN = Plan.split(LAYERS, 1, 0, "three_tier", (2,))


class Stage:
    """A last stage, and the rows that each device sends in each step."""

    def __init__(self, computation: str = "reference", **training: Any) -> None:
        self.folder = opened("llama")
        self.settings = RunSettings.model_validate(
            {
                "run": {"topology": "three_tier"},
                "stages": {"cuts": [2]},
                "model": {"path": "m"},
                "lora": {"rank": LORA.rank, "alpha": LORA.alpha},
                "training": {"computation": computation, "learning_rate": 0.01, **training},
                "devices": [{"name": name, "cut_layer": 1} for name in NAMES],
            }
        )
        self.span = PLAN.span_of("stage")
        values = busy_values(manifest_of(self.folder, "causal_lm", LORA))
        self.values = {n: v for n, v in values.items() if belongs_to(n, self.span)}

    def model(self) -> tuple[SpanModel, LoraBank]:
        model = build_span(
            self.folder,
            self.span,
            task="causal_lm",
            num_labels=0,
            dtype=torch.float32,
            packed=self.settings.computation == "lean",
        )
        return model, LoraBank(model, self.settings.lora, self.settings.lora.target_modules)

    def told(self, name: str, round_: int = 1) -> Assignment:
        own = assigned(self.settings, PLAN, name, round_, STEPS)
        return replace(own, together=NAMES)

    def sent(self, name: str, step: int, round_: int = 1) -> TensorMessage:
        made = messages("causal_lm", self.folder.hidden_size, 3)
        one = made[(2 * step + NAMES.index(name)) % len(made)]
        return replace(one, key=Key(Purpose.TRAINING, round_, step, 0), num_micro_batches=1)

    def shared(self, snapshots: Snapshots | None = None) -> tuple[Team, dict[str, SharedSession]]:
        model, bank = self.model()
        team = new_team(self.told("a"), model, bank, self.settings, snapshots)
        stats = NodeStats("s", "stage")
        sessions = {
            name: SharedSession(
                name, self.told(name), model, bank, self.settings, stats, team, holder="stage"
            )
            for name in NAMES
        }
        for name, session in sessions.items():
            session.begin_round(self.told(name), self.values)
        return team, sessions

    def averaged(self) -> dict[str, np.ndarray]:
        """The same by hand: an adapter for each, whose gradients are replaced by their mean."""
        found = []
        for name in NAMES:
            model, bank = self.model()
            session = VanillaSession(
                name,
                self.told(name),
                model,
                bank,
                self.settings,
                NodeStats("s", "stage"),
                holder="stage",
            )
            session.begin_round(self.told(name), self.values)
            found.append(session)
        for step in range(STEPS):
            for session in found:
                session.handle(self.sent(session.device, step))
            both = [session.adapter.trained for session in found]
            for name in both[0]:
                one, other = (own[name].grad for own in both)
                assert one is not None and other is not None
                mean = (one + other) / 2
                for own in both:
                    own[name].grad = mean.clone()
            for session in found:  # which waits for the device's norm before it steps
                session.handle(GradientNorm(1, step, 0.0))
        states = [session.end_round() for session in found]
        assert all(np.array_equal(states[0][name], states[1][name]) for name in states[0])
        return states[0]
