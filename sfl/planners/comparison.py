"""A decision foretold in full, beside what would be simpler: to stay, or to look at less."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from sfl.cost.predict import Prediction
from sfl.planners.decision import Choice, Decision
from sfl.planners.scan import SCAN
from sfl.planners.state import State, foretold

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
    narrow = state.with_stages_where_they_are()
    rivals = [
        Rival(name, foretold(state, {n: own for n, own in choices.items() if n in taking}).seconds)
        for name, choices in _rivals(state, narrow, configured)
        if taking <= choices.keys()
    ]
    uniform = [
        Rival(
            f"cut {cut} for all" if not tail else f"cut {cut} and tail {tail} for all",
            foretold(state, dict.fromkeys(taking, Choice(cut, tail))).seconds,
        )
        for cut, tail in _common(narrow)
    ]
    if uniform:
        rivals.append(min(uniform, key=lambda rival: rival.seconds))
    rivals += _other_stages(state, decision.devices)
    return Comparison(decision, foretold(state, decision.devices), tuple(rivals))


def _other_stages(state: State, choices: Choices) -> Iterator[Rival]:
    """The best place for the stage behind all edges, with devices' own cuts as decided."""
    choices = {name: replace(choice, stage_cuts=()) for name, choice in choices.items()}
    taking = [choice for choice in choices.values() if choice.takes_part]
    if len(state.stages) != 1 or not taking:
        return
    first = 1 + max(choice.cut_layer for choice in taking)
    last = state.workload.num_layers - max(choice.tail_layers for choice in taking)

    def seconds(cut: int) -> float:
        devices = tuple(replace(device, stage_cuts=(cut,)) for device in state.devices)
        return foretold(replace(state, devices=devices), choices).seconds

    places = {cut: seconds(cut) for cut in range(first, last)}
    if places:
        best = min(places, key=lambda cut: places[cut])
        yield Rival(f"stages.cuts = [{best}] for all", places[best])


def _rivals(
    state: State, narrow: State, configured: Mapping[str, tuple[int, int]]
) -> Iterator[tuple[str, Choices]]:
    """`narrow` is the same with stages where they are."""
    yield "as configured", {name: Choice(*at) for name, at in configured.items()}
    yield "each device alone", SCAN.propose(state).devices
    yield "fewest blocks", {one.name: one.choice(one.legal[0]) for one in narrow.able}
    yield "most blocks", {one.name: one.choice(one.legal[-1]) for one in narrow.able}


def _common(state: State) -> list[tuple[int, int]]:
    """Cuts that every device may have."""
    every = [{cut.at for cut in device.legal} for device in state.able]
    return sorted(set.intersection(*every)) if every else []
