"""What a device has to do in a run: steps, by the examples it says it has."""

from __future__ import annotations

import math

from sfl.config import RunSettings
from sfl.config.run import MOST_STEPS
from sfl.rounds.messages import Steps


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
