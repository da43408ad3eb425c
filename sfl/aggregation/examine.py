"""A round's updates looked at before they count: how long each is, and what becomes of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from sfl.aggregation.bound import Verdict, judge
from sfl.aggregation.contribution import Array, Contribution, Shortened, ordered
from sfl.aggregation.strategy import Strategy
from sfl.config import RunSettings
from sfl.rounds import Steps
from sfl.rounds.values import Length
from sfl.rounds.work import walk


@dataclass(frozen=True, slots=True)
class Examined:
    """What counts of a round; nothing of it does yet where something was refused."""

    contributions: Sequence[Contribution]
    verdict: Verdict
    norms: Mapping[str, float] = field(default_factory=dict)
    """How long each update is; empty where nobody looked."""


def length_of(contribution: Contribution, start: Mapping[str, Array]) -> Length:
    """How long an update is, in float64, one tensor in memory at a time.

    Raises ProtocolError where the contribution is not complete.
    """
    squared = began = 0.0
    count = 0
    shapes = {name: array.shape for name, array in start.items()}
    for name, values in contribution.tensors(shapes):
        first = start[name].astype(np.float64)
        squared += float(np.square(values - first).sum())
        began += float(np.square(first).sum())
        count += values.size
    return Length(math.sqrt(squared), math.sqrt(began), count)


def examine(
    contributions: Sequence[Contribution],
    steps: Mapping[str, Steps],
    strategy: Strategy,
    current: Mapping[str, Array],
    settings: RunSettings,
    round_: int,
    lengths: Mapping[str, Length] | None = None,
) -> Examined:
    """Judge a round's updates; `steps` are those that each device took, `current` the adapter that
    the round began with. `lengths` are there where edges have measured them.

    Raises ProtocolError where a contribution is not complete.
    """
    options, seed = settings.aggregation, settings.run.seed
    if options.max_update_norm == "off":
        return Examined(contributions, Verdict())
    devices = ordered(contributions)
    if lengths is None:
        lengths = {
            one.device: length_of(one, strategy.start(one, current, seed, round_))
            for one in devices
        }
    walks = {name: walk(settings.training, own) for name, own in steps.items()}
    decay = settings.training.weight_decay
    verdict = judge(lengths, walks, options, decay, settings.min_devices)
    counted = [
        replace(
            one,
            shortened=Shortened(
                strategy.start(one, current, seed, round_), verdict.shortened[one.device]
            ),
        )
        if one.device in verdict.shortened
        else one
        for one in devices
    ]
    return Examined(counted, verdict, {name: own.norm for name, own in lengths.items()})


def not_finite(values: Mapping[str, Array]) -> str | None:
    """The first tensor, by name, that holds NaN or infinite values."""
    return next((name for name in sorted(values) if not np.isfinite(values[name]).all()), None)
