"""Sessions of three devices whose adapters may rest."""

from __future__ import annotations

from typing import Any

import torch

from sfl.adapters.lora import LoraBank
from sfl.adapters.names import belongs_to
from sfl.config import RunSettings
from sfl.metrics.stats import NodeStats
from sfl.models.span import build_span
from sfl.plan import Plan
from sfl.stage.messages import Key, Kind, Purpose, TensorMessage
from sfl.stage.swapping import Residence
from sfl.stage.training import TrainingSession, session_of
from tests.house.assigned import assigned
from tests.house.sessions import messages
from tests.house.splits import LORA
from tests.house.tiny_models import busy_values, manifest_of, opened

NAMES = ("attic", "barn", "cellar")


def edge(
    residence: Residence | None, topology: str = "vanilla", strategy: str = "fedprox"
) -> list[TrainingSession]:
    """Sessions of all names over one base, in an open round."""
    folder = opened("llama")
    settings = RunSettings.model_validate(
        {
            "run": {"topology": topology},
            "model": {"path": "m"},
            "lora": {"rank": LORA.rank, "alpha": LORA.alpha},
            "training": {"computation": "lean"},
            "aggregation": {"strategy": strategy},
            "devices": [{"name": name} for name in NAMES],
        }
    )
    plan = Plan.split(folder.num_layers, 1, 0, topology)  # type: ignore[arg-type]
    model = build_span(
        folder, plan.middle, task="causal_lm", num_labels=0, dtype=torch.float32, packed=True
    )
    bank = LoraBank(model, settings.lora, settings.lora.target_modules)
    values = busy_values(manifest_of(folder, "causal_lm", LORA))
    own = {n: v for n, v in values.items() if belongs_to(n, plan.middle)}
    stats = NodeStats("edge", "edge") if residence is None else residence._stats
    sessions = [
        session_of(plan.middle)(
            name,
            assigned(settings, plan, name, 1, 3),
            model,
            bank,
            settings,
            stats,
            residence=residence,
        )
        for name in NAMES
    ]
    for session in sessions:
        session.begin_round(session.assignment, own)
    return sessions


def message(topology: str, seed: int, step: int, hidden: int) -> TensorMessage:
    made: Any = messages("causal_lm", hidden, 3)[seed]
    key = Key(Purpose.TRAINING, 1, step, 0)
    labels = made.labels if topology == "vanilla" else None
    return TensorMessage(Kind.ACTIVATION, key, 1, made.lengths, made.rows, labels)
