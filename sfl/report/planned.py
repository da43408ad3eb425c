"""What a run's planner decided, as its summary has it, and how what it foretold came out."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from sfl.planners.plans import Plan
from sfl.report.records import RoundRecord

At = tuple[int, int, int]
"""A round, and a device's cut from it on: blocks before and after the edge's."""


@dataclass(frozen=True, slots=True)
class PlanSummary:
    """One decision, which holds from `round` on; it was only said where it was `advice`.

    `foretold` are the seconds of training of the device that a round waits for, `measured` the mean
    of the same over the rounds that it held for, where one of them was trained. `gain` is the share
    of a round that it saves, `moved` and `out` the devices that get another cut or take no part.
    """

    round: int
    policy: str
    advice: bool
    foretold: float
    measured: float | None
    slowest: str
    gain: float
    moved: tuple[str, ...]
    out: tuple[str, ...]
    note: str

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From plain values, as JSON has them."""
        lists = {name: tuple(values[name]) for name in ("moved", "out")}
        return cls(**{**values, **lists})


def plan_summaries(
    plans: Iterable[Plan], records: Iterable[RoundRecord]
) -> tuple[PlanSummary, ...]:
    """One for each decision, by round."""
    ordered = _latest(plans)
    begins = [plan.decision.round for plan in ordered]
    seconds: dict[int, dict[int, float]] = {}
    for record in records:
        place = bisect_right(begins, record.round) - 1
        if place >= 0 and record.steps:
            own = seconds.setdefault(place, {})
            own[record.round] = max(own.get(record.round, 0.0), record.seconds)
    return tuple(_summary(plan, seconds.get(place, {})) for place, plan in enumerate(ordered))


def _summary(plan: Plan, seconds: Mapping[int, float]) -> PlanSummary:
    decision, why = plan.decision, plan.decision.why
    return PlanSummary(
        decision.round,
        decision.policy,
        plan.advice,
        why.seconds - why.parts.get("exchange", 0.0),
        math.fsum(seconds.values()) / len(seconds) if seconds else None,
        why.slowest,
        why.gain,
        why.moved,
        tuple(name for name, own in decision.devices.items() if not own.takes_part),
        why.note,
    )


def cuts_over_rounds(plans: Iterable[Plan]) -> dict[str, tuple[At, ...]]:
    """Of each device the rounds from which on it has another cut, with that; advice moves none."""
    found: dict[str, list[At]] = {}
    for plan in _latest(plans):
        if plan.advice:
            continue
        for name, choice in plan.decision.devices.items():
            own = found.setdefault(name, [])
            if not own or own[-1][1:] != choice.at:
                own.append((plan.decision.round, *choice.at))
    return {name: tuple(own) for name, own in found.items()}


def _latest(plans: Iterable[Plan]) -> Sequence[Plan]:
    """The last decision of each round: a cloud that was killed may have taken one twice."""
    by_round = {plan.decision.round: plan for plan in plans}
    return [by_round[round_] for round_ in sorted(by_round)]
