"""Before a round: who is waited for, and how long."""

from __future__ import annotations

from sfl.config import RunSettings
from sfl.rounds.beginning import rehearsing
from sfl.rounds.changed import changed
from sfl.rounds.membership import one_form, one_model
from sfl.rounds.messages import Fault, Report, UseModel
from sfl.rounds.planning import plan_or_start
from sfl.rounds.rehearsal import Rehearsal
from sfl.rounds.state import Phase, RunState
from sfl.rounds.turn import NAMED, Turn, shortened


def while_waiting(turn: Turn) -> None:
    """Begin once everybody is there, or enough are and have waited; or give up."""
    if is_hopeless(turn):
        return
    settings, roster = turn.settings, turn.state.roster
    enough = roster.num_ready - _still_at_work(turn.state) >= settings.min_devices
    turn.state = changed(turn.state, grace_ends=_grace(turn.state, settings, enough))
    away = bool(turn.state.away)
    late = turn.state.time_left == 0 and not away
    # The first round waits for everybody; later ones go on with whoever is there.
    go_on = not roster.missing or (not away and (late or _has_begun(turn.state)))
    if enough and go_on:
        _begin(turn)
    elif turn.state.no_edge and not away:
        _give_up(turn, f"no edge is left{turn.because}")
    elif late:
        _give_up(turn, _not_enough(turn))
    else:
        turn.do(Report(_waited_for(settings, turn.state)))


def is_hopeless(turn: Turn) -> bool:
    """Whether too many are out for good; the run has then ended."""
    roster = turn.state.roster
    if roster.num_ready + len(roster.missing) >= turn.settings.min_devices:
        return False
    turn.finish(False, _too_many_out(turn))
    return True


def _has_begun(state: RunState) -> bool:
    """Whether it is settled who is in the run: a first round that is planned needs nobody more."""
    return state.round > 0 or state.planned > 0


def _still_at_work(state: RunState) -> int:
    """How many are here, and busy with a round that has closed without them."""
    return sum(name in state.roster.devices for name in state.buffer.unawaited)


def _give_up(turn: Turn, reason: str) -> None:
    """Nobody is there; what rounds have brought may be gone on with."""
    if turn.state.round:
        turn.stop(reason)
    else:
        turn.finish(False, reason)


def _waited_for(settings: RunSettings, state: RunState) -> str:
    """Names while they are few: a thousand that join would be a thousand long lists."""
    if gone := state.edges_missing:
        whom = f"{next(iter(gone))} to be started again" if len(gone) == 1 else "an edge"
        return f"{'; '.join(shortened(list(map(': '.join, gone.items()))))}; waiting for {whom}"
    missing = len(state.roster.missing)
    if missing <= NAMED:
        return f"waiting for {', '.join(state.roster.first_missing(NAMED))}"
    return f"waiting for {missing} of {len(settings.devices)} devices"


def _not_enough(turn: Turn) -> str:
    """Why the run ends where too few came in time."""
    settings, roster = turn.settings, turn.state.roster
    names = shortened(roster.first_missing(len(roster.missing)))
    slow = "; where a model takes longer to read, raise network.join_timeout"
    return (
        f"{roster.num_ready} of at least {settings.min_devices} devices were "
        f"ready after {settings.network.join_timeout:g} s; missing: {', '.join(names)}"
        f"{turn.because or slow}"
    )


def _too_many_out(turn: Turn) -> str:
    """Why the run can't go on without those that are out for good."""
    out = sorted(turn.state.strikes.out.items())
    reasons = "; ".join(shortened([f"{name}: {why}" for name, why in out]))
    return f"fewer than {turn.settings.min_devices} devices are left: {reasons}"


def _grace(state: RunState, settings: RunSettings, enough: bool) -> float | None:
    """When waiting for the rest ends; it begins anew where somebody it counted on is lost."""
    grace = settings.network.join_grace
    if grace is None or not enough or _has_begun(state):
        return None
    ends = state.now + grace
    return ends if state.grace_ends is None else min(state.grace_ends, ends)


def _begin(turn: Turn) -> None:
    """Settle what is still open, then rehearse or start; some may have to go first."""
    said = len(turn.commands)
    _settle_model(turn)
    if any(isinstance(command, UseModel) for command in turn.commands[said:]):
        return  # the first adapter is made now: no round is kept before it is
    if len(turn.commands) == said:
        turn.state = changed(turn.state, forms=turn.state.forms.settle())
        one_form(turn)
    if len(turn.commands) == said:
        _rehearse_or_start(turn)
    elif turn.state.phase is Phase.WAITING:
        while_waiting(turn)


def _settle_model(turn: Turn) -> None:
    if turn.state.models.chosen is not None:
        return
    roster = turn.state.roster
    edges = [roster.devices[name].edge for name in roster.ready]
    turn.state = changed(turn.state, models=turn.state.models.settle(edges))
    one_model(turn)


def _rehearse_or_start(turn: Turn) -> None:
    ready, first = turn.state.roster.ready, not _has_begun(turn.state)
    if first:
        turn.do(*_missed(turn))
    if first and (rehearsal := Rehearsal.for_run(turn.settings, ready)):
        rehearse(turn, rehearsal)
    else:
        plan_or_start(turn, [name for name in ready if name not in turn.state.buffer.unawaited])


def _missed(turn: Turn) -> list[Fault]:
    missing = turn.state.roster.missing
    return [
        Fault(1, entry.name, "did not join in time")
        for entry in turn.settings.devices
        if entry.name in missing and not entry.optional
    ]


def rehearse(turn: Turn, rehearsal: Rehearsal) -> None:
    """Have devices time steps."""
    state, timeout = turn.state, turn.settings.network.round_timeout
    deadline = state.now + timeout
    turn.state = changed(state, phase=Phase.REHEARSAL, rehearsal=rehearsal, deadline=deadline)
    turn.do(rehearsing(state, rehearsal, rehearsal.devices))


def while_rehearsing(turn: Turn) -> None:
    """Once every device that is still there has timed its steps: choose, and begin.

    Who is lost meanwhile is waited for; the deadline is that of those who are here.
    """
    if turn.state.now >= turn.state.deadline:
        _send_late_away(turn)
    rehearsal, least = _timing(turn), turn.settings.min_devices
    if rehearsal.waiting or any(name in turn.state.away for name in rehearsal.devices):
        return
    if (there := len(rehearsal.timed)) < least:
        few = f"{there} of at least {least} devices timed their steps"
        turn.finish(False, few + turn.because + turn.who_cannot_compute)
    elif (further := rehearsal.try_next()) is not None:
        rehearse(turn, further)
    else:
        turn.state = changed(turn.state, rehearsal=None)
        turn.do(rehearsal.choose())
        plan_or_start(turn, list(rehearsal.devices))


def _send_late_away(turn: Turn) -> None:
    timeout = turn.settings.network.round_timeout
    for name in _timing(turn).waiting:
        if name not in turn.state.away:
            turn.send_away(name, f"not done within round_timeout ({timeout:g} s)", "silence")


def _timing(turn: Turn) -> Rehearsal:
    assert turn.state.rehearsal is not None
    return turn.state.rehearsal
