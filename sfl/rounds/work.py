"""What a device has to do in a run: its steps, by the examples it says it has, and their rates."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sfl.config import RunSettings, TrainingSettings
from sfl.config.sections import MOST_STEPS
from sfl.rounds.values import Steps


def steps_of(settings: RunSettings, num_examples: int, round_: int) -> Steps:
    """Steps of a round; the position in the run goes by the round, not by what was missed."""
    options, rounds = settings.training, settings.run.rounds
    an_epoch = math.ceil(num_examples / options.batch_size)
    count = options.local_steps or an_epoch * (options.local_epochs or 1)
    return Steps(count if round_ <= rounds else 0, (round_ - 1) * count, count * rounds)


def cannot_take(settings: RunSettings, num_examples: int) -> str | None:
    """Why a device with so many examples cannot take part; None where it can."""
    most = settings.aggregation.max_examples
    if num_examples < 1:
        return "it has no training examples"
    if num_examples > most:
        return (
            f"it says it has {num_examples} training examples; aggregation.max_examples is {most}"
        )
    total = steps_of(settings, num_examples, 1).total
    if total > MOST_STEPS:
        return (
            f"its {num_examples} training examples make {total} steps over the run, more than "
            f"{MOST_STEPS}; set training.local_steps"
        )
    return None


@dataclass(frozen=True, slots=True)
class Walk:
    """A device's steps in a round, and what their learning rates add up to."""

    steps: int
    rates: float


def walk(training: TrainingSettings, steps: Steps) -> Walk:
    """How far the steps of a round may lead: each value by the learning rate, all one way."""
    stride = max(1, steps.count // _LOOKED_AT)
    taken = range(steps.first, steps.first + steps.count, stride)
    factors = math.fsum(learning_rate_factor(training, step, steps.total) for step in taken)
    share = steps.count / len(taken) if taken else 0.0
    return Walk(steps.count, training.learning_rate * factors * share)


_LOOKED_AT = 1000
"""Steps of a round whose learning rates are looked at; those between are like them."""


def learning_rate_factor(settings: TrainingSettings, step: int, total_steps: int) -> float:
    """Share of the peak learning rate at `step` (from 0) of `total_steps`, as in transformers."""
    warmup = settings.warmup_steps
    if step < warmup:
        return step / max(1, warmup)
    progress = (step - warmup) / max(1, total_steps - warmup)
    if settings.schedule == "linear":
        return max(0.0, float(total_steps - step) / float(max(1, total_steps - warmup)))
    if settings.schedule == "cosine":
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
    return 1.0
