"""A round begins: with all who are there, or as a planner says."""

from __future__ import annotations

from collections.abc import Sequence

from sfl.rounds.asynchronous import open_first
from sfl.rounds.beginning import order, parts_of
from sfl.rounds.changed import changed
from sfl.rounds.messages import Fault, Planned, PlanRound
from sfl.rounds.open_round import OpenRound
from sfl.rounds.state import Phase, RunState
from sfl.rounds.stragglers import Stragglers
from sfl.rounds.tally import begun
from sfl.rounds.turn import Turn

PLANNER = "cloud"
"""The node whose fault it is if a planner fails: no device has this name."""


def plan_or_start(turn: Turn, ready: Sequence[str]) -> None:
    """The next round begins with these devices, once a planner has decided where it is to.

    Until then the run waits as before, so that a restarted cloud asks the planner again.
    """
    if _is_due(turn) or _nobody_left(turn, ready):
        turn.state = changed(turn.state, phase=Phase.WAITING)
        turn.do(PlanRound(turn.state.round + 1, tuple(ready)))
    else:
        start(turn, ready)


def _is_due(turn: Turn) -> bool:
    """Whether the next round needs a decision; the last one, which only evaluates, does not."""
    own, round_ = turn.settings.planner, turn.state.round
    return (
        own.policy != "off" and round_ < turn.settings.run.rounds and not round_ % own.every_rounds
    )


def _nobody_left(turn: Turn, ready: Sequence[str]) -> bool:
    """Whether all that the last decision has chosen are gone, and others are there."""
    trains = turn.settings.planner.policy != "off" and turn.state.round < turn.settings.run.rounds
    return trains and bool(ready) and not any(_takes_part(turn.state, name) for name in ready)


def planned(turn: Turn, event: Planned) -> None:
    """A planner has decided: the round begins with those that it has chosen."""
    state = turn.state
    if state.phase is not Phase.WAITING or event.round != state.round + 1:
        return
    _tell(turn, event)
    choices = state.choices
    for name, choice in event.choices.items():
        choices = choices.put(name, choice)
    turn.state = changed(state, choices=choices, order=event.order, memory=event.memory)
    start(turn, [name for name in state.roster.ready if name not in state.buffer.unawaited])


def _tell(turn: Turn, event: Planned) -> None:
    """What went wrong with the planner, and who can no longer take part."""
    if event.fault:
        turn.do(Fault(event.round, PLANNER, event.fault))
    for name, reason in event.unfit.items():
        if _takes_part(turn.state, name):
            turn.do(Fault(event.round, name, reason))


def start(turn: Turn, ready: Sequence[str]) -> None:
    """The next round begins, with those of these devices that take part."""
    state, network = turn.state, turn.settings.network
    round_ = state.round + 1
    final = round_ > turn.settings.run.rounds
    taking = list(ready) if final else [name for name in ready if _takes_part(state, name)]
    if not taking:
        turn.finish(False, f"the planner chose no device for round {round_}")
        return
    parts = parts_of(turn, taking, round_)
    chosen = len(taking) if len(taking) < len(ready) else None
    turn.state = changed(
        state,
        phase=Phase.FINAL if final else Phase.ROUND,
        round=round_,
        deadline=state.now + network.round_timeout,
        grace_ends=None,
        open=OpenRound(parts, Stragglers.begin(state.now, network), chosen=chosen),
    )
    if turn.settings.planner.policy != "off" and not final:
        turn.state = changed(turn.state, tallies=begun(turn.state.tallies, taking, round_))
    if turn.settings.is_asynchronous and not final:
        open_first(turn, parts)
    order(turn, round_, parts)


def _takes_part(state: RunState, name: str) -> bool:
    return name not in state.choices or state.choices[name].takes_part
