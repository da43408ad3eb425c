"""When adapters are tried on held-out examples, and on how many of them."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from sfl.config.base import Section

Extent = Literal["none", "sample", "all"]
"""How much of its held-out examples a device evaluates: the sample is the same in every round."""


class EvaluationSettings(Section):
    """When adapters are evaluated on held-out examples, and on how many of them."""

    every: PositiveInt = 2
    """Rounds from one evaluation to the next. The adapter before training and the run's final
    adapter are always evaluated."""
    max_examples: NonNegativeInt = 32
    """Most held-out examples of a device in evaluations between rounds, the same ones each time. 0:
    all."""
    full: bool = True
    """Use all held-out examples before training and at the end. false: never more than
    `max_examples`."""

    def extent(self, adapter: int, rounds: int) -> Extent:
        """How much the adapter of round `adapter` is evaluated on in a run of so many rounds.

        0 is the adapter before training.
        """
        if adapter in (0, rounds):
            return "all"
        return "none" if adapter % self.every else "sample"
