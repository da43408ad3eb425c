"""A decision foretold in full, beside what would be simpler: to stay, or to look at less."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sfl.cost.predict import Prediction, predict
from sfl.planners.decision import Choice, Decision
from sfl.planners.scan import SCAN
from sfl.planners.state import State, placed

Choices = Mapping[str, Choice]


@dataclass(frozen=True, slots=True)
class Rival:
    """What would be simpler, and the seconds of its round."""

    name: str
    seconds: float

    def gain(self, seconds: float) -> float:
        """The share of it that a round of so many seconds saves; below 0 where it loses."""
        return 1.0 - seconds / self.seconds if self.seconds > 0.0 else 0.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """A round as it is foretold, and as its rivals would have it."""

    decision: Decision
    foretold: Prediction
    rivals: tuple[Rival, ...]


def compare(
    state: State, decision: Decision, configured: Mapping[str, tuple[int, int]]
) -> Comparison:
    """Each of the rivals with the same devices taking part; `configured` are the settings' cuts."""
    taking = {name for name, choice in decision.devices.items() if choice.takes_part}
    rivals = [
        Rival(name, foretold(state, {n: own for n, own in choices.items() if n in taking}).seconds)
        for name, choices in _rivals(state, configured)
    ]
    uniform = [
        Rival(
            f"cut {cut} for all" if not tail else f"cut {cut} and tail {tail} for all",
            foretold(state, dict.fromkeys(taking, Choice(cut, tail))).seconds,
        )
        for cut, tail in _common(state)
    ]
    if uniform:
        rivals.append(min(uniform, key=lambda rival: rival.seconds))
    return Comparison(decision, foretold(state, decision.devices), tuple(rivals))


def foretold(state: State, choices: Choices) -> Prediction:
    """A round of these choices."""
    edges = {edge.name: edge.cost for edge in state.edges}
    return predict(state.workload, placed(state, choices), edges)


def _rivals(
    state: State, configured: Mapping[str, tuple[int, int]]
) -> Iterator[tuple[str, Choices]]:
    yield "as configured", {name: Choice(*at) for name, at in configured.items()}
    yield "each device alone", SCAN.propose(state).devices
    yield "fewest blocks", {one.name: one.choice(one.legal[0]) for one in state.able}
    yield "most blocks", {one.name: one.choice(one.legal[-1]) for one in state.able}


def _common(state: State) -> list[tuple[int, int]]:
    """Cuts that every device may have."""
    every = [{cut.at for cut in device.legal} for device in state.able]
    return sorted(set.intersection(*every)) if every else []
