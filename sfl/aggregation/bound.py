"""How far a device may change the adapter in a round: decided from lengths, no values.

An update is the change from what the device began the round with, its length the Euclidean norm
over all values that it trained. Two things bound it where `aggregation.max_update_norm` is `auto`:

    reach_k = rates_k sqrt(values_k) + (rates_k weight_decay + 2^-23 steps_k) |w_0|
    bound_k = min(4 reach_k, 5 median over j != k of length_j max(1, reach_k / reach_j))

`rates_k` is the sum of the learning rates of the device's steps, so `reach` is where AdamW comes if
every step moves every value by its learning rate, all one way; 2^-23 is float32's rounding. One
step can be longer, but hardly a round of them, so that nobody honest is beyond four times that. The
median counts with two or more others that can have moved (in a warmup's first step nobody does): of
two devices nobody can say which is odd. It holds as long as the odd ones are fewer than half of the
others.

An honest device can be beyond the second: one that comes late, with data that the others never saw,
moves ten times as far as they do by then. So, unless told otherwise, only the first is an offence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

from sfl.config import AggregationSettings
from sfl.rounds.values import Length
from sfl.rounds.work import Walk

BEYOND_REACH = 4.0
BEYOND_OTHERS = 5.0
_ROUNDING = 2.0**-23


@dataclass(frozen=True, slots=True)
class Bound:
    """How long an update may be, and what sets that; none beyond `honest` was come by honestly."""

    norm: float
    why: str
    honest: float
    honest_why: str

    def said(self, norm: float) -> str:
        """What is wrong with an update of this length."""
        if norm > self.honest:
            return (
                f"its update has norm {norm:.4g}, more than {self.honest:.4g} ({self.honest_why})"
            )
        return f"its update has norm {norm:.4g}, more than {self.norm:.4g} ({self.why})"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What of a round's updates does not count as it is, and why."""

    refused: Mapping[str, str] = field(default_factory=dict)
    shortened: Mapping[str, float] = field(default_factory=dict)
    """What factor each of these is to be scaled by."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """What is said of those."""
    nearest: tuple[str, float] | None = None
    """Which device came nearest to its bound, and its length as a part of that."""


def reach_of(length: Length, walk: Walk, weight_decay: float) -> float:
    """Where AdamW comes with every step as long as its learning rate, all one way."""
    drift = (walk.rates * weight_decay + walk.steps * _ROUNDING) * length.start
    return walk.rates * math.sqrt(length.values) + drift


def bounds(
    lengths: Mapping[str, Length],
    walks: Mapping[str, Walk],
    options: AggregationSettings,
    weight_decay: float,
) -> dict[str, Bound]:
    """The bound of each device; none where that is off."""
    most = options.max_update_norm
    if most == "off":
        return {}
    if most != "auto":
        why = "aggregation.max_update_norm"
        return dict.fromkeys(lengths, Bound(most, why, most, why))
    reaches = {name: reach_of(own, walks[name], weight_decay) for name, own in lengths.items()}
    moved = {name: own.norm for name, own in lengths.items() if walks[name].rates}
    return {name: _auto(name, moved, reaches) for name in lengths}


def _auto(name: str, moved: Mapping[str, float], reaches: Mapping[str, float]) -> Bound:
    own = reaches[name]
    reach, why = BEYOND_REACH * own, f"{BEYOND_REACH:g} times as far as its steps can lead"
    furthest = Bound(reach, why, reach, why)
    others = [
        norm * max(1.0, own / reaches[other]) for other, norm in moved.items() if other != name
    ]
    if len(others) < 2:
        return furthest
    usual = Bound(
        BEYOND_OTHERS * median(others), f"{BEYOND_OTHERS:g} times the other devices'", reach, why
    )
    return min(furthest, usual, key=lambda bound: bound.norm)


def judge(
    lengths: Mapping[str, Length],
    walks: Mapping[str, Walk],
    options: AggregationSettings,
    weight_decay: float,
    fewest: int,
) -> Verdict:
    """What to do about updates that are too long; `fewest` have to be left to be merged.

    The longest are refused first. What cannot be, for want of others, is shortened to its bound, so
    that nobody ends a run by being refused.
    """
    limits = bounds(lengths, walks, options, weight_decay)
    if not limits:
        return Verdict()
    parts = {name: _part(lengths[name].norm, limit.norm) for name, limit in limits.items()}
    nearest = max(sorted(parts), key=lambda name: parts[name])
    excess = {name: part for name, part in parts.items() if part > 1.0}
    worst = sorted(excess, key=lambda name: (-excess[name], name))
    offends = {
        "refuse": worst,
        "auto": [name for name in worst if lengths[name].norm > limits[name].honest],
        "clip": [],
    }[options.large_updates]
    refused = offends[: max(0, len(lengths) - fewest)]
    said = {name: limits[name].said(lengths[name].norm) for name in worst}
    kept = [name for name in worst if name not in refused]
    return Verdict(
        refused={name: said[name] for name in refused},
        shortened={name: 1.0 / excess[name] for name in kept},
        notes={
            name: f"{said[name]}; it counts shortened to {limits[name].norm:.4g}" for name in kept
        },
        nearest=(nearest, parts[nearest]),
    )


def _part(norm: float, bound: float) -> float:
    """How much of its bound a length is; one that is not bounded from below is all or nothing."""
    if bound:
        return norm / bound
    return math.inf if norm else 0.0
