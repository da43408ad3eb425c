"""Sessions of an edge without an edge, and messages for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from sfl.adapters.lora import LoraBank
from sfl.adapters.names import belongs_to
from sfl.config import RunSettings
from sfl.metrics.stats import NodeStats
from sfl.models.placement import Stretch
from sfl.models.span import SpanModel, build_span
from sfl.plan import Plan, Span
from sfl.stage.messages import Key, Kind, Purpose, TensorMessage
from sfl.stage.training import session_of
from tests.house.assigned import assigned
from tests.house.splits import LORA
from tests.house.tiny_models import LABELS, batch, busy_values, manifest_of, opened


def edge_model(kind: str, task: str, packed: bool) -> tuple[SpanModel, Plan]:
    folder = opened(kind)
    plan = Plan.split(folder.num_layers, 0, 0, "vanilla")
    model = build_span(
        folder,
        plan.middle,
        task=task,  # type: ignore[arg-type]
        num_labels=LABELS,
        dtype=torch.float32,
        packed=packed,
    )
    return model, plan


def outcome(
    kind: str, topology: str, computation: str, task: str, over: bool = False, device: str = "cpu"
) -> list[Any]:
    """Replies, and the adapter, of a step of one device; `over` lays the CPU over it in ranges."""
    folder = opened(kind)
    settings = RunSettings.model_validate(
        {
            "run": {"topology": topology},
            "model": {
                "path": "m",
                "task": task,
                "labels": [str(n) for n in range(LABELS)] if task != "causal_lm" else [],
            },
            "lora": {"rank": LORA.rank, "alpha": LORA.alpha},
            "training": {"computation": computation},
            "devices": [{"name": "attic"}],
        }
    )
    model, _ = edge_model(kind, task, computation == "lean")
    plan = Plan.split(folder.num_layers, 1, 0, topology)  # type: ignore[arg-type]
    if over:
        # Ranges that do not begin where the device's do.
        edges = [0, 2, *range(3, folder.num_layers + 1)]
        model.lay_over([Stretch("cpu", a, b) for a, b in pairwise(edges)])
    if device != "cpu":
        model.lay_over([Stretch(device, 0, folder.num_layers)])
    bank = LoraBank(model, settings.lora, settings.lora.target_modules)
    told = assigned(settings, plan, round_=1, steps=2)
    session = session_of(plan.middle)(
        "attic", told, model, bank, settings, NodeStats("e", "edge"), recompute=over
    )
    values = busy_values(manifest_of(folder, task, LORA))  # type: ignore[arg-type]
    own = {n: v for n, v in values.items() if belongs_to(n, plan.middle)}
    session.begin_round(told, own)
    seen: list[Any] = []
    for message in messages(task, folder.hidden_size, 1):
        replies = [out.message for out in session.handle(message)]
        if topology == "u_shaped":
            (hidden,) = replies
            assert isinstance(hidden, TensorMessage) and hidden.rows is not None
            gradient = TensorMessage(
                Kind.GRADIENT, message.key, 1, message.lengths, hidden.rows.flip(0).clone(), None
            )
            replies = [hidden, *(out.message for out in session.handle(gradient))]
        seen += [(r.rows, r.loss) for r in replies if isinstance(r, TensorMessage)]
    return [seen, session.adapter.state()]


def edge(
    kind: str,
    task: str,
    names: Sequence[str],
    entries: Mapping[str, dict[str, Any]] = MappingProxyType({}),
    **sections: dict[str, Any],
) -> list[Any]:
    """Sessions of an edge over one base, each with values of its own, in an open round.

    `entries` add to a device's settings, `sections` to the run's.
    """
    folder = opened(kind)
    settings = RunSettings.model_validate(
        {
            **sections,
            "model": {
                "path": "m",
                "task": task,
                "labels": [str(n) for n in range(LABELS)] if task != "causal_lm" else [],
            },
            "lora": {"rank": LORA.rank, "alpha": LORA.alpha},
            "training": {"computation": "lean", **sections.get("training", {})},
            "devices": [{"name": name, **entries.get(name, {})} for name in names],
        }
    )
    plans = [settings.plan(name, folder.num_layers) for name in names]
    spans = [plan.span_of("edge") for plan in plans]
    last, head = max(span.last for span in spans), spans[0].head
    model: SpanModel = build_span(
        folder,
        Span(1, last, embedding=False, head=head),
        task=task,
        num_labels=LABELS,
        dtype=torch.float32,
        packed=True,  # type: ignore[arg-type]
    )
    bank = LoraBank(model, settings.lora, settings.lora.target_modules)
    stats, sessions = NodeStats("edge", "edge"), []
    for number, (name, plan) in enumerate(zip(names, plans, strict=True)):
        told = assigned(settings, plan, name, 1, 5)
        session = session_of(spans[number])(name, told, model, bank, settings, stats)
        lora = LORA.model_copy(update={"rank": settings.rank(name)})
        values = busy_values(manifest_of(folder, task, lora), seed=number)  # type: ignore[arg-type]
        session.begin_round(
            told,
            {n: v for n, v in values.items() if belongs_to(n, plan.middle)},
        )
        sessions.append(session)
    return sessions


def messages(task: str, hidden: int, count: int) -> list[TensorMessage]:
    """Activations of ragged batches with labels."""
    made = []
    for number in range(count):
        lengths = ((5, 3), (7, 2, 4), (1, 6))[number]
        _, _, labels = batch(lengths, task, seed=number)  # type: ignore[arg-type]
        packed = (
            np.concatenate([row[:n].numpy() for row, n in zip(labels, lengths, strict=True)])
            if task == "causal_lm"
            else labels.numpy()
        )
        rows = torch.randn(sum(lengths), hidden, generator=torch.Generator().manual_seed(number))
        key = Key(Purpose.TRAINING, 1, 0, 0)
        made.append(TensorMessage(Kind.ACTIVATION, key, 1, lengths, rows, packed.astype(np.int32)))
    return made
