"""Rounds that nobody waits for (FedBuff, Nguyen et al., 2106.06639).

In an asynchronous run round r of a device begins from the adapter of round r - 1, as in any run. No
other device waits for it. Whoever has delivered begins the open round at once, unless it was that
round's update. The open round closes once the updates of `buffer_size` devices wait, whichever
rounds they are of; what came while an average was made waits for the next, so that an average
takes all that is there. An update of round q that counts in round r has staleness r - q.

So no device trains twice from one adapter, and its rounds grow: a point names one moment of it.
With a buffer for all devices the rounds are those of a synchronous run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from sfl.rounds.away import go_away
from sfl.rounds.beginning import order, parts_of
from sfl.rounds.buffer import Buffer, Update
from sfl.rounds.changed import changed
from sfl.rounds.late import drop_too_old
from sfl.rounds.messages import Aggregate, Evict, Report
from sfl.rounds.open_round import OpenRound, Progress
from sfl.rounds.ordered import Ordered
from sfl.rounds.state import Phase, RunState
from sfl.rounds.turn import Turn


def open_first(turn: Turn, parts: Ordered[str, Progress]) -> None:
    """The first round is open: from now on every device works at its own pace."""
    state, timeout = turn.state, turn.settings.network.round_timeout
    buffer = Buffer(unawaited=parts, look_at=state.now + timeout)
    turn.state = changed(state, buffer=buffer, open=OpenRound(), deadline=math.inf)


def begin_idle(turn: Turn, names: Iterable[str]) -> None:
    """Those of these devices that may begin the open round do."""
    state = turn.state
    if not turn.settings.is_asynchronous or state.phase is not Phase.ROUND:
        return
    parts = parts_of(turn, [name for name in names if _may_begin(state, name)], state.round)
    if parts:
        buffer = state.buffer
        for name, progress in parts.items():
            buffer = buffer.put_part(name, progress)
        turn.state = changed(state, buffer=buffer)
        order(turn, state.round, parts)


def _may_begin(state: RunState, name: str) -> bool:
    device, buffer = state.roster.devices.get(name), state.buffer
    ready = device is not None and device.ready and name not in buffer.unawaited
    return ready and buffer.delivered.get(name, 0) < state.round


def delivered(turn: Turn, name: str, progress: Progress) -> None:
    """An update is whole that no round has waited for."""
    state, update = turn.state, Update.of(name, progress)
    reached = state.reached.put(name, state.point_of(name, update.round, update.steps.count))
    turn.state = changed(state, reached=reached, buffer=state.buffer.put_update(update))
    drop_too_old(turn)
    begin_idle(turn, [name])


# -- an average -----------------------------------------------------------------------------------


def while_asynchronous(turn: Turn) -> None:
    """Average once the buffer is full, or nothing more is to come; or give up."""
    if _is_full(turn):
        _average(turn)
    else:
        _wait(turn)


def _is_full(turn: Turn) -> bool:
    state, settings = turn.state, turn.settings
    count = len(state.buffer.waiting)
    return count >= (settings.min_devices if _nobody_works(state) else settings.buffer_size)


def _nobody_works(state: RunState) -> bool:
    return not state.buffer.unawaited and not state.away


def _average(turn: Turn) -> None:
    buffer = turn.state.buffer
    turn.state = changed(turn.state, buffer=buffer.take(list(buffer.waiting)))
    average_again(turn)


def average_again(turn: Turn) -> None:
    """Have averaged what was chosen."""
    state = turn.state
    turn.state = changed(state, deadline=state.now + turn.settings.network.round_timeout)
    merging = sorted(state.buffer.merging.items())
    turn.do(Aggregate(state.round, {name: update.num_examples for name, update in merging}))


def fill_again(turn: Turn) -> None:
    """Something of what was to be averaged does not count: the rest waits for more."""
    turn.state = changed(turn.state, buffer=turn.state.buffer.give_back(), deadline=math.inf)


def _wait(turn: Turn) -> None:
    """As long as nobody works the run waits for devices, and for `join_timeout` at most."""
    state = turn.state
    if not _nobody_works(state):
        if state.deadline != math.inf:
            turn.state = changed(state, deadline=math.inf)
        return
    few = f"round {state.round} has {len(state.buffer.waiting)} of at least "
    few += f"{turn.settings.min_devices} updates, and no device is at work"
    if state.deadline == math.inf:
        turn.state = changed(state, deadline=state.now + turn.settings.network.join_timeout)
        turn.do(Report(few))
    elif state.no_edge or state.now >= state.deadline:
        turn.stop(few + turn.because + turn.who_cannot_compute)


def averaged(turn: Turn) -> None:
    """The next adapter is there: who waited for it begins with it."""
    state = turn.state
    strikes = state.strikes.seen_through(state.buffer.merging)
    buffer = changed(state.buffer, merging=Ordered())
    turn.state = changed(state, strikes=strikes, buffer=buffer, deadline=math.inf)
    if state.round < turn.settings.run.rounds:
        turn.state = changed(turn.state, round=state.round + 1)
        drop_too_old(turn)
        begin_idle(turn, turn.state.roster.ready)
    else:
        deadline = state.now + turn.settings.network.join_timeout
        turn.state = changed(turn.state, phase=Phase.WAITING, deadline=deadline)
        stop_working(turn)


def stop_working(turn: Turn) -> None:
    """The last adapter is there: who is still at work is to evaluate it instead."""
    state, network = turn.state, turn.settings.network
    turn.state = changed(state, buffer=Buffer())
    for name in sorted(state.buffer.unawaited):
        if name in state.roster.devices:
            reason = "the run's last adapter was there before its update"
            go_away(turn, name, reason, network.rejoin_timeout or network.join_timeout)
            turn.do(Evict(name, reason))
