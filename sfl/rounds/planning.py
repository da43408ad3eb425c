"""A round begins: with all who are there, or as a planner says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sfl.planners.decision import Choice
from sfl.rounds.asynchronous import open_first
from sfl.rounds.beginning import order, parts_of
from sfl.rounds.changed import changed
from sfl.rounds.messages import PlanRound
from sfl.rounds.open_round import OpenRound
from sfl.rounds.ordered import Ordered
from sfl.rounds.placing import hand_over, handovers
from sfl.rounds.state import Phase, RunState
from sfl.rounds.stragglers import Stragglers
from sfl.rounds.tally import begun
from sfl.rounds.turn import Turn
from sfl.rounds.values import DeviceFacts


def plan_or_start(turn: Turn, ready: Sequence[str]) -> None:
    """The next round begins with these devices, once a planner has decided where it is to."""
    if _is_due(turn) or _nobody_left(turn, ready):
        state = turn.state
        deadline = state.now + turn.settings.network.round_timeout
        turn.state = changed(state, phase=Phase.PLANNING, deadline=deadline, grace_ends=None)
        turn.do(PlanRound(state.round + 1, tuple(ready)))
    else:
        start(turn, ready)


def _is_due(turn: Turn) -> bool:
    """Whether the next round needs a decision, and has none."""
    own, round_ = turn.settings.planner, turn.state.round
    return _is_planned(turn) and not round_ % own.every_rounds and turn.state.planned <= round_


def _is_planned(turn: Turn) -> bool:
    """Whether planners are asked of the next round: not of the last one, which only evaluates."""
    return turn.settings.planner.policy != "off" and turn.state.round < turn.settings.run.rounds


def _nobody_left(turn: Turn, ready: Sequence[str]) -> bool:
    """Whether all that the last decision has chosen are gone, and others are there."""
    left = any(takes_part(turn.state, name) for name in ready)
    return _is_planned(turn) and bool(ready) and not left


def keep_to_memory(turn: Turn, name: str, facts: DeviceFacts | None) -> None:
    """A device whose cut takes more memory than it may use has the first that does not.

    It has loaded that one by itself, if cuts may move in the run. A planner goes on from there.
    """
    if facts is None or facts.memory is None or not turn.settings.planner.moves:
        return
    fitting = [cut for cut in facts.cuts if cut.memory <= facts.memory]
    entry, chosen = turn.settings.device(name), turn.state.choices.get(name)
    at = (entry.cut_layer, entry.tail_layers) if chosen is None else chosen.at
    if not fitting or at in {cut.at for cut in fitting}:
        return
    first = min(fitting)
    before = Choice(*first.at) if chosen is None else chosen
    choice = replace(before, cut_layer=first.cut_layer, tail_layers=first.tail_layers)
    turn.state = changed(turn.state, choices=turn.state.choices.put(name, choice))


def start(turn: Turn, ready: Sequence[str]) -> None:
    """The next round begins, with those of these devices that take part."""
    state, network = turn.state, turn.settings.network
    round_ = state.round + 1
    final = round_ > turn.settings.run.rounds
    taking = list(ready) if final else [name for name in ready if takes_part(state, name)]
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
    leaving = {} if final or turn.settings.is_asynchronous else handovers(turn, taking)
    staying = Ordered.of((name, own) for name, own in parts.items() if name not in leaving)
    order(turn, round_, staying if leaving else parts)
    for name, edge in leaving.items():
        hand_over(turn, name, edge)


def takes_part(state: RunState, name: str) -> bool:
    """Whether the last decision has a device take part, or says nothing of it."""
    return name not in state.choices or state.choices[name].takes_part
