"""While a planner decides, and what it has decided: the run goes on with that."""

from __future__ import annotations

from sfl.rounds.changed import changed
from sfl.rounds.messages import Fault, Planned
from sfl.rounds.planning import takes_part
from sfl.rounds.state import Phase
from sfl.rounds.turn import Turn
from sfl.rounds.waiting import is_hopeless, while_waiting

PLANNER = "cloud"
"""The node whose fault it is if a planner fails: no device has this name."""


def while_planning(turn: Turn) -> None:
    """A decision ends with an event of its own; who never decides does not hold up the run."""
    state = turn.state
    if is_hopeless(turn) or state.now < state.deadline:
        return
    policy, waited = turn.settings.planner.policy, turn.settings.network.round_timeout
    fault = f"planner {policy!r} has not decided within round_timeout ({waited:g} s)"
    stays = f"{fault}, so that cuts stay"
    planned(turn, Planned(state.round + 1, {}, state.order, state.memory, fault=stays))


def planned(turn: Turn, event: Planned) -> None:
    """A planner has decided: the round begins as it says, once those who are away are back."""
    state = turn.state
    if state.phase is not Phase.PLANNING or event.round != state.round + 1:
        return
    _tell(turn, event)
    choices = state.choices
    for name, choice in event.choices.items():
        choices = choices.put(name, choice)
    turn.state = changed(
        state,
        phase=Phase.WAITING,
        planned=event.round,
        deadline=state.now + turn.settings.network.join_timeout,
        choices=choices,
        order=event.order,
        memory=event.memory,
    )
    if _chose_nobody(turn, event):
        turn.finish(False, f"the planner chose no device for round {event.round}")
    else:
        while_waiting(turn)


def _chose_nobody(turn: Turn, event: Planned) -> bool:
    """Whether it has; where those that it chose are gone, it is asked again."""
    if any(choice.takes_part for choice in event.choices.values()):
        return False
    return bool(event.choices) and not any(
        takes_part(turn.state, name) for name in turn.state.roster.ready
    )


def _tell(turn: Turn, event: Planned) -> None:
    """What went wrong with the planner, and who can no longer take part."""
    if event.fault:
        turn.do(Fault(event.round, PLANNER, event.fault))
    for name, reason in event.unfit.items():
        if takes_part(turn.state, name):
            turn.do(Fault(event.round, name, reason))
