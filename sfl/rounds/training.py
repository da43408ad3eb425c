"""While a round is open: who is late, and when it closes."""

from __future__ import annotations

from sfl.config import RunSettings
from sfl.rounds.changed import changed
from sfl.rounds.messages import AdapterReady, Aggregate, UpdateReceived, UpdatesRefused
from sfl.rounds.open_round import OpenRound, Progress
from sfl.rounds.state import Phase, RunState
from sfl.rounds.turn import Turn
from sfl.rounds.values import Point


def progress_of(turn: Turn, device: str, round_: int) -> Progress | None:
    """How far a participant is; None where it or the round is not in question."""
    return turn.state.open.progress.get(device) if round_ == turn.state.round else None


def update_received(turn: Turn, event: UpdateReceived) -> bool:
    """One side's part is there; whether that may change something."""
    progress = progress_of(turn, event.device, event.round)
    if progress is None:
        return False
    if event.final_step == progress.steps.count:
        state = turn.state
        open_round = state.open.part(event.device, event.side, event.final_step, state.now)
        turn.state = changed(state, open=open_round)
        _reached(turn, event.device)
    else:
        ends = f"ends at step {event.final_step}, not {progress.steps.count}"
        turn.send_away(event.device, f"its {event.side} part {ends}", "offence")
    return True


def reported(turn: Turn, device: str, round_: int) -> bool:
    """A device's report is there; whether that may change something."""
    if progress_of(turn, device, round_) is None:
        return False
    state = turn.state
    turn.state = changed(state, open=state.open.report(device, state.now))
    _reached(turn, device)
    return True


def _reached(turn: Turn, device: str) -> None:
    """Who has delivered everything goes on from there."""
    state, progress = turn.state, turn.state.open.progress[device]
    if progress.done and progress.steps.count:
        point = Point(state.round, progress.steps.count)
        turn.state = changed(state, reached=state.reached.put(device, point))


def updates_refused(turn: Turn, event: UpdatesRefused) -> None:
    """Merge again, without what does not count."""
    if turn.state.phase is not Phase.AGGREGATING or event.round != turn.state.round:
        return
    for name, reason in sorted(event.reasons.items()):
        turn.send_away(name, reason, "offence")
    merge(turn)


def while_training(turn: Turn) -> None:
    """Close the round when nothing more is to come."""
    _leave_out_late(turn)
    open_round = turn.state.open
    few = len(open_round.progress) < turn.settings.min_devices
    if open_round.all_done or (few and open_round.cannot_compute):
        merge(turn)


def merge(turn: Turn) -> None:
    """Have what the round brought merged, if enough did."""
    state, least = turn.state, turn.settings.min_devices
    trained = sorted(state.open.progress.items())
    if len(trained) < least:
        few = f"round {state.round} closed with {len(trained)} of at least {least} devices"
        turn.finish(False, few + turn.because + turn.who_cannot_compute)
        return
    deadline = state.now + turn.settings.network.round_timeout
    turn.state = changed(state, phase=Phase.AGGREGATING, deadline=deadline)
    turn.do(Aggregate(state.round, {name: own.num_examples for name, own in trained}))


def adapter_ready(turn: Turn, event: AdapterReady) -> bool:
    """An adapter is there; whether a round was to be averaged."""
    state = changed(turn.state, adapter_ref=event.adapter, strategy_ref=event.strategy)
    turn.state = state
    if state.phase is not Phase.AGGREGATING:
        return False
    strikes = state.strikes.seen_through(state.open.progress)
    deadline = state.now + turn.settings.network.join_timeout
    turn.state = changed(state, strikes=strikes, phase=Phase.WAITING, deadline=deadline)
    return True


def while_aggregating(turn: Turn) -> None:
    """Averaging ends with an event of its own; a disk that never answers ends the run."""
    if turn.state.now >= turn.state.deadline:
        waited = turn.settings.network.round_timeout
        late = f"was not averaged within round_timeout ({waited:g} s)"
        turn.finish(False, f"round {turn.state.round} {late}")


def while_evaluating(turn: Turn) -> None:
    """End the run when everybody has scored the last adapter."""
    _leave_out_late(turn)
    open_round, least = turn.state.open, turn.settings.min_devices
    if not open_round.all_done:
        return
    evaluated = len(open_round.progress)
    if open_round.cannot_compute and not evaluated:
        turn.finish(False, "no device could evaluate the last adapter" + turn.who_cannot_compute)
    elif evaluated < least:
        few = f"{evaluated} of at least {least} devices evaluated the last adapter"
        why = turn.because + turn.who_cannot_compute
        turn.finish(False, f"every round closed, but {few}{why}")
    else:
        turn.finish(True, "every round closed")


def _leave_out_late(turn: Turn) -> None:
    """Whoever holds up the round: at its deadline all of the rest, before it who does nothing."""
    state, network = turn.state, turn.settings.network
    if state.now >= state.deadline:
        reason = f"not done within round_timeout ({network.round_timeout:g} s)"
        for name in _here(state):
            turn.send_away(name, reason, "silence")
    elif state.now >= state.open.stragglers.look_at and _enough_done(state.open, turn.settings):
        stragglers, late = state.open.stragglers.late(_here(state), state.now, network)
        turn.state = changed(state, open=changed(state.open, stragglers=stragglers))
        for name, reason in late.items():
            turn.send_away(name, reason, "link" if stragglers.rests(name) else "silence")


def _here(state: RunState) -> list[str]:
    """Those of which something is to come; who is away has a time of its own."""
    return [name for name in state.open.rest if name not in state.away]


def _enough_done(open_round: OpenRound, settings: RunSettings) -> bool:
    """Whether half of a round, and as many as it needs, are through."""
    done = open_round.num_done
    return not open_round.all_done and done >= max(
        1, settings.min_devices, len(open_round.progress) - done
    )
