"""A device's part in a round, as the cloud would make it, or with a plan of the test's own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sfl.config import RunSettings
from sfl.plan import Plan
from sfl.rounds.assignment import assign
from sfl.rounds.values import Assignment, EdgeBase, Steps


def assigned(
    settings: RunSettings,
    plan: Plan,
    device: str = "",
    round_: int = 0,
    steps: int = 0,
    first: int = 0,
    total: int | None = None,
    **fields: Any,
) -> Assignment:
    """Of the run's first device, unless another is named; `total` steps are those of the round."""
    name = device or settings.names[0]
    own = assign(settings, EdgeBase(plan.num_layers), name, round_)
    every = Steps(steps, first, first + steps if total is None else total)
    return replace(own, **{"plan": plan, "steps": every, **fields})
