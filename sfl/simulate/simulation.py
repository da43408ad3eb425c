"""A simulated run from its beginning to its end."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from sfl.config import RunConfig
from sfl.errors import RunFailed
from sfl.planners.plans import Plan
from sfl.rounds import Fact
from sfl.rounds.coordinator import nobody
from sfl.rounds.journal import Entry
from sfl.simulate.cloud import Cloud, Tells
from sfl.simulate.fleet import Fleet
from sfl.simulate.ledger import Outcome
from sfl.simulate.worker import Worker

LOOKS = 2_000
"""Acts of the clock between two words of how far it is."""


@dataclass(frozen=True, slots=True)
class Sofar:
    """How far a simulated run is: its round, its own seconds, the coordinator's events."""

    round: int
    seconds: float
    events: int


def _nobody(so_far: Sofar) -> None:
    """Nobody looks on."""


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without looking for cycles: a fleet is many objects, and a run makes none that is one.

    That saves a quarter of the time.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


class Simulation:
    """A run of a fleet. The same settings give the same outcome, to the bit."""

    def __init__(
        self,
        config: RunConfig,
        fleet: Fleet,
        hear: Callable[[Entry], object] = nobody,
        tells: Tells | None = None,
        *,
        recorded: Sequence[Plan] = (),
        strict: bool = False,
    ) -> None:
        """`hear` gets what a real run's journal would have, `tells` makes reports of nodes.

        `recorded` are another run's decisions. `strict`: no edge runs ahead of the clock; the same
        comes of it, more slowly.
        """
        self._cloud = Cloud(config, fleet, hear, tells, recorded=recorded, strict=strict)

    def run(self, show: Callable[[Sofar], object] = _nobody) -> Outcome:
        """To its end. Raises RunFailed where nothing more can happen."""
        with _uncollected():
            return self._run(show)

    def _run(self, show: Callable[[Sofar], object]) -> Outcome:
        cloud, events = self._cloud, self._cloud.events
        cloud.begin()
        number = 0
        while not cloud.over:
            if not events.next():
                raise RunFailed("nothing more can happen in this run, and it is not over")
            number += 1
            if not number % LOOKS:
                show(Sofar(cloud.coordinator.round, events.now, cloud.num_events))
        return cloud.outcome

    @property
    def workers(self) -> Mapping[str, Worker]:
        """Devices by name, with what they have done."""
        return {name: life.working for name, life in self._cloud.lives.items()}

    def tell(self, *facts: Fact) -> None:
        """What decides nothing, for whoever hears: last statistics, and that the run has ended."""
        for fact in facts:
            self._cloud.tell(fact)
