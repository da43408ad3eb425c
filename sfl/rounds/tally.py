"""How devices did in the rounds that they took part in, for planners that choose by it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from sfl.planners.told import Outcome
from sfl.rounds.ordered import Ordered


@dataclass(frozen=True, slots=True)
class Tally:
    """Of `rounds` that a device began it `finished` so many; `last` is the latest of them.

    `seconds` are what that one took it, from the round's beginning; None where it is not done.
    """

    rounds: int = 0
    finished: int = 0
    last: int = 0
    seconds: float | None = None

    @property
    def success(self) -> float:
        """The share of its rounds that it finished; 1 before the first."""
        return self.finished / self.rounds if self.rounds else 1.0

    def outcome(self, round_: int, longest: float) -> Outcome | None:
        """What became of it in a round; one that failed took as long as the `longest`."""
        if not round_ or self.last != round_:
            return None
        return Outcome(self.seconds is not None, longest if self.seconds is None else self.seconds)


NEVER = Tally()
Tallies = Ordered[str, Tally]


def begun(tallies: Tallies, names: Iterable[str], round_: int) -> Tallies:
    """These devices begin with a round."""
    for name in names:
        own = tallies.get(name, NEVER)
        tallies = tallies.put(name, Tally(own.rounds + 1, own.finished, round_))
    return tallies


def finished(tallies: Tallies, name: str, seconds: float) -> Tallies:
    """A device has delivered everything of the round that it is in."""
    own = tallies.get(name, NEVER)
    if own.seconds is not None:  # it was back, and told again
        return tallies.put(name, replace(own, seconds=seconds))
    return tallies.put(name, replace(own, finished=own.finished + 1, seconds=seconds))
