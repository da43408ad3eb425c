"""Devices that are lost and waited for: their part in the round stays open until they are back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from sfl.rounds.beginning import rehearsing, together
from sfl.rounds.changed import changed
from sfl.rounds.late import LATER, may_count, not_waited_for
from sfl.rounds.messages import (
    DeviceAway,
    DeviceBack,
    DeviceReady,
    Fault,
    ReplayRound,
)
from sfl.rounds.open_round import Progress
from sfl.rounds.ordered import Ordered
from sfl.rounds.rehearsal import Rehearsal
from sfl.rounds.state import Away, Phase, RunState
from sfl.rounds.turn import Turn, shortened
from sfl.rounds.values import BEGINNING, Point


def go_away(turn: Turn, name: str, reason: str, seconds: float) -> None:
    """A device is not here any more; it is waited for."""
    now = turn.state.now
    turn.forget(name)
    away = turn.state.away.put(name, Away(reason, now, now + seconds))
    turn.state = changed(turn.state, away=away)
    turn.do(DeviceAway(name, reason, seconds))


def takes_part(state: RunState, name: str) -> bool:
    """Whether a device has anything to come back to."""
    if state.phase is Phase.PLANNING and name not in state.roster.missing:
        return True
    timing = () if state.rehearsal is None else state.rehearsal.timed
    known = state.open.progress, state.buffer.unawaited, state.reached, state.away, timing
    return any(name in own for own in known)


def loads(turn: Turn, name: str) -> None:
    """One that was away has joined again: until it is ready it has the time of one that joins."""
    if (own := turn.state.away.get(name)) is not None:
        until = max(own.until, turn.state.now + turn.settings.network.join_timeout)
        turn.state = changed(turn.state, away=turn.state.away.put(name, replace(own, until=until)))


def wait_no_longer(turn: Turn) -> bool:
    """Go on without those that were not back in time; where too few are left, stop as it is.

    Returns whether the run goes on.
    """
    if not turn.state.away:  # as nearly always, and every event asks
        return True
    now, network = turn.state.now, turn.settings.network
    late = [name for name, own in turn.state.away.items() if now >= own.until]
    if late and too_few_without(turn, late):
        turn.stop(_not_back(turn, late))
        return False
    for name in sorted(late):
        said = _late(turn, name)
        state = turn.state
        unfinished = name in state.open.progress and not state.open.progress[name].done
        if unfinished and may_count(turn):
            not_waited_for(turn, name)
            said = f"{said}; {LATER}"
        elif unfinished:
            turn.state = changed(state, open=state.open.without(name, network))
        elif turn.settings.is_asynchronous:
            turn.state = changed(state, buffer=state.buffer.without_part(name))
        state = turn.state
        losses = state.losses.put(name, said)
        turn.state = changed(
            state,
            away=state.away.without(name),
            losses=losses,
            rehearsal=None if state.rehearsal is None else state.rehearsal.without(name),
        )
        turn.do(Fault(turn.state.round, name, said))
    return True


def _late(turn: Turn, name: str) -> str:
    away, usual = turn.state.away[name], turn.settings.network.rejoin_timeout
    waited = away.until - away.since
    limit = f"rejoin_timeout ({waited:g} s)" if waited == usual else f"{waited:g} s"
    return f"{away.reason}; not back within {limit}"


def too_few_without(turn: Turn, late: Iterable[str]) -> bool:
    """Whether what is left of the open round could not be averaged."""
    if turn.state.phase not in (Phase.ROUND, Phase.FINAL):
        return False
    progress, gone = turn.state.open.progress, set(late)
    left = [name for name, own in progress.items() if own.done or name not in gone]
    return len(progress) >= turn.least > len(left)


def _not_back(turn: Turn, late: Iterable[str]) -> str:
    progress = turn.state.open.progress
    owing = sorted(name for name in late if name in progress and not progress[name].done)
    reasons = "; ".join(shortened([f"{name}: {_late(turn, name)}" for name in owing]))
    return f"too few devices are left in round {turn.state.round}: {reasons}"


def come_back(turn: Turn, event: DeviceReady) -> None:
    """A device is ready: what it goes on from, and whether its part in the open round is due."""
    name, state = event.device, turn.state
    due = _due(state, name)
    after = newest(event.points, state.round, due)
    expected = state.reached.get(name, BEGINNING)
    was_away = name in state.away
    reached, away = state.reached.put(name, after), state.away.without(name)
    turn.state = changed(state, reached=reached, away=away)
    begun = due is not None and _has_begun(state, event.begun, due)
    furthest = max(expected, state.furthest.get(name, BEGINNING), key=_place)
    further = _place(after) > _place(furthest)
    costs = _waits_for(state, name) if due is None else not begun
    turn.state = changed(turn.state, vain=_in_vain(state, name, costs, further))
    if was_away:
        known = state.furthest.put(name, after if further else furthest)
        turn.state = changed(turn.state, furthest=known)
    _go_on_in(turn, name, event.begun.lineage if begun else state.lineage + 1)
    if after < expected:
        turn.do(Fault(state.round, name, _lacking(expected, after)))
    if was_away:
        turn.do(DeviceBack(name, after))
    if due is not None:
        _replay(turn, event, due, after, begun)
    elif turn.state.rehearsal is not None:
        _rehearse_again(turn, turn.state.rehearsal, name)


def _in_vain(state: RunState, name: str, costs: bool, further: bool) -> Ordered[str, int]:
    """How often a device was lost for nothing: not if that `costs` nothing, since its edge has kept
    its round or nobody waits for it, or if it goes on from a later step than ever before."""
    often = 0 if further else max(0, state.vain.get(name, 0) - (not costs))
    return state.vain.put(name, often) if often else state.vain.without(name)


def _place(point: Point) -> tuple[int, int]:
    """How far one is, in whatever lineage."""
    return point.round, point.step


def _waits_for(state: RunState, name: str) -> bool:
    """Whether the run stands still while a device of which nothing is due is away."""
    if state.phase is Phase.REHEARSAL:
        return state.rehearsal is not None and name in state.rehearsal.timed
    return state.phase in (Phase.WAITING, Phase.PLANNING)


def _rehearse_again(turn: Turn, rehearsal: Rehearsal, name: str) -> None:
    """A device that was lost while it timed steps times them again."""
    if name in rehearsal.waiting:
        state = turn.state
        deadline = max(state.deadline, state.now + turn.settings.network.round_timeout)
        turn.state = changed(state, deadline=deadline)
        turn.do(rehearsing(state, rehearsal, (name,)))


def _has_begun(state: RunState, begun: Point, due: Progress) -> bool:
    """Whether an edge keeps what is due; it knows no lineage that was not given."""
    return begun.round == due.round and begun.lineage <= state.lineage


def _go_on_in(turn: Turn, name: str, lineage: int) -> None:
    """A device's points are of this lineage from now on."""
    state = turn.state
    last, lineages = max(lineage, state.lineage), state.lineages.put(name, lineage)
    turn.state = changed(state, lineage=last, lineages=lineages)


def _due(state: RunState, name: str) -> Progress | None:
    """A device's part in its round, where something of it is still to come."""
    progress = state.part_of(name)
    closed = state.phase not in (Phase.ROUND, Phase.FINAL) and name in state.open.progress
    return None if progress is None or progress.done or closed else progress


def newest(points: Iterable[Point], round_: int, due: Progress | None) -> Point:
    """The last of what both ends have that comes before what is to be done."""
    end = Point(round_ + 1) if due is None else Point(due.round, max(1, due.steps.count))
    return max((point for point in points if point < end), default=BEGINNING)


def _lacking(expected: Point, after: Point) -> str:
    missing = f"device and edge have no snapshot of round {expected.round} in common"
    if after == BEGINNING:
        return f"{missing}: the optimizer's moments start afresh"
    return f"{missing}: they go on with the moments of round {after.round}"


def _replay(turn: Turn, event: DeviceReady, due: Progress, after: Point, begun: bool) -> None:
    name, state, network = event.device, turn.state, turn.settings.network
    edge = state.roster.devices[name].edge
    if due.num_examples != event.num_examples:
        said = f"came back with {event.num_examples} examples; the round began with "
        buffer = state.buffer.without_part(name)
        turn.state = changed(state, open=state.open.without(name, network), buffer=buffer)
        turn.do(Fault(state.round, name, f"{said}{due.num_examples}"))
        return
    if name in state.open.progress:
        deadline = state.deadline  # of what is kept nothing is done again
        if not begun:
            deadline = max(deadline, state.now + network.round_timeout)
        turn.state = changed(state, open=state.open.again(name, state.now, edge), deadline=deadline)
    else:
        buffer = state.buffer.put_part(name, due.afresh(state.now, edge))
        turn.state = changed(state, buffer=buffer)
    extent = turn.settings.evaluation.extent(due.round - 1, turn.settings.run.rounds)
    lineage = {name: state.lineages.get(name, 0)}
    chosen = {} if due.choice is None else {name: due.choice}
    steps, points, whole = {name: due.steps}, {name: after}, together(turn)
    turn.do(ReplayRound(due.round, steps, extent, points, begun, lineage, chosen, whole))
