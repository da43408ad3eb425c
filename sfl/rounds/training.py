"""While a round is open: who is late, and when it closes."""

from __future__ import annotations

from sfl.rounds import reducing
from sfl.rounds.asynchronous import averaged, delivered, fill_again, stop_working
from sfl.rounds.changed import changed
from sfl.rounds.late import drop_too_old, leave_behind, take_late
from sfl.rounds.messages import AdapterReady, Aggregate, UpdateReceived, UpdatesRefused
from sfl.rounds.open_round import OpenRound, Progress
from sfl.rounds.ordered import Ordered
from sfl.rounds.state import Phase, RunState
from sfl.rounds.tally import finished
from sfl.rounds.turn import Turn


def progress_of(turn: Turn, device: str, round_: int) -> Progress | None:
    """How far a participant is; None where it or the round is not in question."""
    progress = turn.state.part_of(device)
    return progress if progress is not None and progress.round == round_ else None


def update_received(turn: Turn, event: UpdateReceived) -> bool:
    """One side's part is there; whether that may change something."""
    progress = progress_of(turn, event.device, event.round)
    if progress is None:
        return False
    if event.final_step == progress.steps.count:
        after = progress.with_part(event.side, event.final_step)
        _put(turn, event.device, after.measured(event.length))
    else:
        ends = f"ends at step {event.final_step}, not {progress.steps.count}"
        turn.send_away(event.device, f"its {event.side} part {ends}", "offence")
    return True


def reported(turn: Turn, device: str, round_: int) -> bool:
    """A device's report is there; whether that may change something."""
    progress = progress_of(turn, device, round_)
    if progress is None:
        return False
    _put(turn, device, progress.with_report())
    return True


def _put(turn: Turn, device: str, after: Progress) -> None:
    """How far a device is now; who has delivered everything goes on from there."""
    kept = after.steps.count and turn.settings.sums_at_edges
    if after.done and not kept and device in turn.state.vain:
        turn.state = changed(turn.state, vain=turn.state.vain.without(device))
    state = turn.state
    if device not in state.open.progress:
        if after.done:
            delivered(turn, device, after)
        else:
            turn.state = changed(state, buffer=state.buffer.put_part(device, after))
        return
    turn.state = changed(state, open=state.open.put(device, after, state.now))
    if after.done and after.steps.count:
        point = state.point_of(device, state.round, after.steps.count)
        turn.state = changed(turn.state, reached=state.reached.put(device, point))
        if device in state.tallies:  # where a planner asks
            took = turn.state.open.stragglers.took[device]
            turn.state = changed(turn.state, tallies=finished(state.tallies, device, took))


def updates_refused(turn: Turn, event: UpdatesRefused) -> bool:
    """Merge again, without what does not count; whether something else may follow."""
    state = turn.state
    closing = state.phase is Phase.AGGREGATING
    if event.round != state.round or not (closing or state.buffer.merging):
        return False
    for name, reason in sorted(event.reasons.items()):
        turn.send_away(name, reason, "offence")
    turn.state = changed(turn.state, buffer=turn.state.buffer.refuse(event.reasons))
    if closing:
        merge(turn)
    else:
        fill_again(turn)
    return not closing


def while_training(turn: Turn) -> None:
    """Close the round when nothing more is to come."""
    _leave_out_late(turn)
    open_round = turn.state.open
    cannot = open_round.cannot_compute
    if open_round.all_done or (cannot and len(open_round.progress) < turn.least):
        take_late(turn)
        merge(turn)


def merge(turn: Turn) -> None:
    """Have what the round brought merged, if enough did."""
    state, least = turn.state, turn.least
    examples = {name: own.num_examples for name, own in state.open.progress.items()}
    examples |= {name: update.num_examples for name, update in state.buffer.merging.items()}
    if len(examples) < least:
        few = f"round {state.round} closed with {len(examples)} of at least {least} devices"
        turn.finish(False, few + turn.because + turn.who_cannot_compute)
        return
    deadline = state.now + turn.settings.network.round_timeout
    turn.state = changed(state, phase=Phase.AGGREGATING, deadline=deadline)
    if turn.settings.sums_at_edges:
        reducing.begin(turn)
    else:
        turn.do(Aggregate(state.round, dict(sorted(examples.items()))))


def merge_again(turn: Turn) -> None:
    """The cloud was stopped while a round was merged; sums that it has are not asked for again."""
    if turn.settings.sums_at_edges and not reducing.is_void(turn.state):
        reducing.average(turn)
    else:
        merge(turn)


def adapter_ready(turn: Turn, event: AdapterReady) -> bool:
    """An adapter is there; whether a round was to be averaged."""
    state = changed(turn.state, adapter_ref=event.adapter, strategy_ref=event.strategy)
    turn.state = state
    if state.phase is Phase.ROUND and state.buffer.merging:
        averaged(turn)
        return True
    if state.phase is not Phase.AGGREGATING:
        return state.roster.num_ready > 0  # who waited for the first adapter begins now
    through = state.open.progress.keys() | state.buffer.merging.keys()
    strikes = state.strikes.seen_through(through)
    deadline = state.now + turn.settings.network.join_timeout
    buffer = changed(state.buffer, merging=Ordered())
    turn.state = changed(
        state,
        strikes=strikes,
        phase=Phase.WAITING,
        deadline=deadline,
        buffer=buffer,
    )
    reducing.averaged(turn)
    if state.round == turn.settings.run.rounds:
        stop_working(turn)
    drop_too_old(turn)
    return True


def while_aggregating(turn: Turn) -> None:
    """Averaging ends with an event of its own; a disk that never answers ends the run."""
    state = turn.state
    if reducing.is_void(state) and not state.open.reduction.complete:
        merge(turn)
    elif state.now >= state.deadline and not state.sums_away:
        waited = turn.settings.network.round_timeout
        late = f"was not averaged within round_timeout ({waited:g} s)"
        turn.finish(False, f"round {turn.state.round} {late}")


def while_evaluating(turn: Turn) -> None:
    """End the run when everybody has scored the last adapter."""
    _leave_out_late(turn)
    open_round, least = turn.state.open, turn.least
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
            leave_behind(turn, name, reason, "silence")
    elif state.now >= state.open.stragglers.look_at and _enough_done(state.open, turn.least):
        stragglers, late = state.open.stragglers.late(_here(state), state.now, network)
        turn.state = changed(state, open=changed(state.open, stragglers=stragglers))
        for name, reason in late.items():
            leave_behind(turn, name, reason, "link" if stragglers.rests(name) else "silence")


def _here(state: RunState) -> list[str]:
    """Those of which something is to come; who is away has a time of its own."""
    return [name for name in state.open.rest if name not in state.away]


def _enough_done(open_round: OpenRound, least: int) -> bool:
    """Whether half of a round, and as many as it needs, are through."""
    done = open_round.num_done
    return not open_round.all_done and done >= max(1, least, len(open_round.progress) - done)
