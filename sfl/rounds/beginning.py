"""What devices do in a round, as it begins for them."""

from __future__ import annotations

from collections.abc import Iterable

from sfl.rounds.assignment import plan_of
from sfl.rounds.messages import Rehearse, StartRound
from sfl.rounds.open_round import Progress
from sfl.rounds.ordered import Ordered
from sfl.rounds.rehearsal import Rehearsal
from sfl.rounds.state import RunState
from sfl.rounds.turn import Turn
from sfl.rounds.values import BEGINNING
from sfl.rounds.work import steps_of


def parts_of(turn: Turn, names: Iterable[str], round_: int) -> Ordered[str, Progress]:
    """Nothing is delivered yet of these devices' parts in a round."""
    return Ordered.of((name, _part_of(turn, name, round_)) for name in names)


def _part_of(turn: Turn, name: str, round_: int) -> Progress:
    settings, state = turn.settings, turn.state
    num_layers, device = state.num_layers, state.roster.devices[name]
    assert num_layers is not None, "who is ready is so for a model"
    steps = steps_of(settings, device.num_examples, round_)
    choice = state.choices.get(name)
    holders = plan_of(settings, name, num_layers, choice).holders
    return Progress(
        steps,
        device.num_examples,
        holders,
        round=round_,
        began=state.now,
        choice=choice,
        edge=device.edge,
    )


def rehearsing(state: RunState, rehearsal: Rehearsal, names: tuple[str, ...]) -> Rehearse:
    """Have these devices time steps."""
    chosen = {name: state.choices[name] for name in names if name in state.choices}
    return Rehearse(names, rehearsal.counts, rehearsal.codec, chosen)


def order(turn: Turn, round_: int, parts: Ordered[str, Progress]) -> None:
    """Have these devices begin with a round."""
    settings, reached = turn.settings, turn.state.reached
    due = settings.evaluation.extent(round_ - 1, settings.run.rounds)
    after = {name: reached.get(name, BEGINNING) for name in parts}
    steps = {name: own.steps for name, own in parts.items()}
    lineage = {name: turn.state.lineages.get(name, 0) for name in parts}
    choices = {name: own.choice for name, own in parts.items() if own.choice is not None}
    whole = together(turn)
    turn.do(StartRound(round_, steps, due, after, lineage, choices, turn.state.order, whole))


def together(turn: Turn) -> tuple[str, ...]:
    """All devices of the open round, by name, where they share the last stage's adapter."""
    if turn.settings.stages.adapters != "shared":
        return ()
    return tuple(sorted(turn.state.open.progress))
