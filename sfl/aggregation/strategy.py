"""What a rule that merges adapters has to offer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from sfl.aggregation.contribution import Array, Contribution, Shapes
from sfl.aggregation.traits import STRATEGIES
from sfl.config import AggregationSettings, LoraSettings


@dataclass
class Strategy(ABC):
    """How the adapters of a round become the next global one.

    `state` is all that it remembers between rounds: arrays by name, which may be saved and put
    back.
    """

    state: dict[str, Array] = field(default_factory=dict, kw_only=True)

    @classmethod
    def of(cls, options: AggregationSettings, lora: LoraSettings) -> Self:
        """As a run's settings have it; here none of them counts."""
        return cls()

    def shapes(self, contribution: Contribution, current: Mapping[str, Array]) -> Shapes:
        """What a device has to send, names and shapes; here the same as the global adapter."""
        return {name: array.shape for name, array in current.items()}

    def start(
        self, contribution: Contribution, current: Mapping[str, Array], seed: int, round_: int
    ) -> Mapping[str, Array]:
        """What the device began the round with, of all that it has to send."""
        return {name: current[name] for name in self.shapes(contribution, current)}

    @abstractmethod
    def aggregate(
        self, contributions: Sequence[Contribution], current: Mapping[str, Array]
    ) -> dict[str, Array]:
        """The next adapter in float32, whatever the order of arrival.

        It has `current`'s names, and its shapes but for what is `folded`. Raises ProtocolError
        where a contribution is not complete.
        """

    def folded(self, merged: Mapping[str, Array]) -> dict[str, Array]:
        """What every node adds to its base for good, of scaling 1; the rest is sent to devices.

        Of most strategies nothing.
        """
        return {}


def server_step(options: AggregationSettings) -> float:
    """The cloud's step, for a strategy whose traits have a default of it."""
    step = options.server_step
    assert step is not None, "the strategy has one"
    return step


def make_strategy(options: AggregationSettings, lora: LoraSettings) -> Strategy:
    """The strategy of a run's settings, remembering nothing yet."""
    name = options.strategy
    kind: type[Strategy] = STRATEGIES.implementation(name, STRATEGIES[name].implementation)
    return kind.of(options, lora)
