"""Updates that come after their round has closed: dropped, or counted in a later average."""

from __future__ import annotations

from sfl.rounds.changed import changed
from sfl.rounds.messages import Cause, Fault
from sfl.rounds.state import Phase
from sfl.rounds.turn import Turn

LATER = "its update counts when it comes"
"""What a fault says of a device that is not waited for any more."""


def may_count(turn: Turn) -> bool:
    """Whether an update of the open round counts when it comes late."""
    weighted = turn.settings.aggregation.late_updates == "weighted"
    return weighted and turn.state.phase is Phase.ROUND


def leave_behind(turn: Turn, name: str, reason: str, cause: Cause) -> None:
    """The round goes on without a device that is late: its update may count in a later one."""
    if may_count(turn):
        not_waited_for(turn, name)
        turn.do(Fault(turn.state.round, name, f"{reason}; {LATER}"))
    else:
        turn.send_away(name, reason, cause)


def not_waited_for(turn: Turn, name: str) -> None:
    """A device's part in the open round is not waited for any more, and may still come."""
    state, network = turn.state, turn.settings.network
    buffer = state.buffer.put_part(name, state.open.progress[name])
    turn.state = changed(state, open=state.open.without(name, network), buffer=buffer)


def take_late(turn: Turn) -> None:
    """Have the late updates counted in the round that closes; of a device only its newest."""
    state = turn.state
    outdone = [u for name in state.open.progress for u in state.buffer.waiting.get(name, ())]
    buffer = state.buffer.drop(outdone)
    turn.state = changed(state, buffer=buffer.take(list(buffer.waiting)))
    for update in outdone:
        said = f"its update of round {update.round} does not count: it has a newer one"
        turn.do(Fault(state.round, update.device, said))


def leave_out_silent(turn: Turn) -> None:
    """In an asynchronous run, who takes as long as `round_timeout` for its round.

    Who missed it in a synchronous one is late already, and may take its time.
    """
    state, timeout = turn.state, turn.settings.network.round_timeout
    if state.now < state.buffer.look_at or not turn.settings.is_asynchronous:
        return
    here = {
        name: progress.began
        for name, progress in state.buffer.unawaited.items()
        if name in state.roster.devices
    }
    late = sorted(name for name, began in here.items() if state.now - began >= timeout)
    began = (began for name, began in here.items() if name not in late)
    look_at = min(began, default=state.now) + timeout
    turn.state = changed(state, buffer=changed(state.buffer, look_at=look_at))
    for name in late:
        turn.send_away(name, f"not done within round_timeout ({timeout:g} s)", "silence")


def drop_too_old(turn: Turn) -> None:
    """What has waited too long for the next average does not count, and that is told."""
    state, most = turn.state, turn.settings.aggregation.max_staleness
    closing = state.phase is not Phase.ROUND or bool(state.buffer.merging)
    next_ = state.round + closing
    old = state.buffer.too_old(next_, most)
    if old:
        turn.state = changed(state, buffer=state.buffer.drop(old))
    for update in old:
        since = f"{update.staleness(next_)} adapters were made since it began"
        said = f"its update of round {update.round} does not count: {since}"
        turn.do(Fault(state.round, update.device, f"{said} (aggregation.max_staleness = {most})"))
    _expect_no_longer(turn, next_, most)


def _expect_no_longer(turn: Turn, next_: int, most: int | None) -> None:
    """Who is gone, is not waited for, and would come too late by now: its adapter is not kept."""
    state = turn.state
    for name, own in state.buffer.unawaited.items():
        here = name in state.roster.devices or name in state.away
        if not here and most is not None and next_ - own.round > most:
            turn.state = changed(turn.state, buffer=turn.state.buffer.without_part(name))
