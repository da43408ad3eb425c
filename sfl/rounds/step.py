"""What a run does next: one event in, the state after it and what is to be done out."""

from __future__ import annotations

from functools import singledispatch
from typing import assert_never

from sfl.config import RunSettings
from sfl.rounds import reducing
from sfl.rounds.asynchronous import average_again, while_asynchronous
from sfl.rounds.away import wait_no_longer
from sfl.rounds.changed import changed
from sfl.rounds.decided import planned, while_planning
from sfl.rounds.late import leave_out_silent
from sfl.rounds.membership import (
    device_joined,
    device_lost,
    device_ready,
    edge_ready,
    lose_edge,
    restarted,
)
from sfl.rounds.messages import (
    AdapterReady,
    CloudRestarted,
    Command,
    DeviceJoined,
    DeviceLost,
    DeviceMoved,
    DeviceOffended,
    DeviceReady,
    EdgeLost,
    EdgeReady,
    Event,
    Planned,
    Rehearsed,
    ReportReceived,
    SumReceived,
    Tick,
    UpdateReceived,
    UpdatesRefused,
)
from sfl.rounds.placing import hear
from sfl.rounds.state import Phase, RunState
from sfl.rounds.training import (
    adapter_ready,
    merge_again,
    reported,
    update_received,
    updates_refused,
    while_aggregating,
    while_evaluating,
    while_training,
)
from sfl.rounds.turn import Turn
from sfl.rounds.waiting import while_rehearsing, while_waiting


def step(
    state: RunState, event: Event, now: float, settings: RunSettings
) -> tuple[RunState, list[Command]]:
    """Take one event at `now`, in seconds on the run's own clock.

    Pure. Costs O(log n) for n devices, and O(n log n) where a round begins or closes.
    """
    turn = Turn(changed(state, now=now), settings)
    if state.phase is not Phase.OVER:
        take(event, turn)
    if _waits_for(turn.state) != _waits_for(state):
        turn.state = changed(turn.state, phase_began=now)
    return turn.state, turn.commands


def _waits_for(state: RunState) -> tuple[Phase, bool]:
    """What the run stands at; an asynchronous one averages in the middle of a round."""
    return state.phase, bool(state.buffer.merging)


@singledispatch
def take(event: Event, turn: Turn) -> None:
    """What an event means."""
    raise TypeError(event)


@take.register
def _(event: EdgeReady, turn: Turn) -> None:
    edge_ready(turn, event)
    if reducing.edge_back(turn, event.edge, event.keeps):
        advance(turn)


@take.register
def _(event: EdgeLost, turn: Turn) -> None:
    turn.state = changed(turn.state, no_edge=event.final)
    lose_edge(turn, event.edge, event.reason, event.returns, event.elsewhere)
    advance(turn)


@take.register
def _(event: DeviceJoined, turn: Turn) -> None:
    device_joined(turn, event)


@take.register
def _(event: DeviceReady, turn: Turn) -> None:
    if event.device in turn.state.roster.devices:
        device_ready(turn, event)
        advance(turn)


@take.register
def _(event: DeviceLost, turn: Turn) -> None:
    device_lost(turn, event.device, event.reason, event.cause)
    advance(turn)


@take.register
def _(event: UpdateReceived, turn: Turn) -> None:
    if update_received(turn, event):
        advance(turn)


@take.register
def _(event: SumReceived, turn: Turn) -> None:
    reducing.sum_received(turn, event)


@take.register
def _(event: DeviceOffended, turn: Turn) -> None:
    state = turn.state
    if event.device in state.roster.devices or state.part_of(event.device) is not None:
        turn.send_away(event.device, event.reason, "offence")
        advance(turn)


@take.register
def _(event: UpdatesRefused, turn: Turn) -> None:
    if updates_refused(turn, event):
        advance(turn)


@take.register
def _(event: ReportReceived, turn: Turn) -> None:
    hear(turn, event)
    if reported(turn, event.device, event.round):
        advance(turn)


@take.register
def _(event: DeviceMoved, turn: Turn) -> None:
    state = turn.state
    if event.device in state.roster.devices:
        before = state.open.stragglers
        after = before.heard(event.device, event.count, event.resting, state.now)
        if after is not before:
            turn.state = changed(state, open=changed(state.open, stragglers=after))


@take.register
def _(event: Rehearsed, turn: Turn) -> None:
    if (rehearsal := turn.state.rehearsal) is not None:
        rehearsal = rehearsal.note(event.device, event.seconds, event.value_bits)
        turn.state = changed(turn.state, rehearsal=rehearsal)
    advance(turn)


@take.register
def _(event: AdapterReady, turn: Turn) -> None:
    if adapter_ready(turn, event):
        advance(turn)


@take.register
def _(event: Planned, turn: Turn) -> None:
    planned(turn, event)


@take.register
def _(event: CloudRestarted, turn: Turn) -> None:
    restarted(turn)
    if turn.state.phase is Phase.AGGREGATING:
        merge_again(turn)
    elif turn.state.buffer.merging:
        average_again(turn)


@take.register
def _(event: Tick, turn: Turn) -> None:
    if turn.state.time_left == 0 or turn.state.phase in (Phase.ROUND, Phase.FINAL):
        advance(turn)


def advance(turn: Turn) -> None:
    """Do what the state allows: begin a round, close it, or give up."""
    reducing.give_up(turn)
    if not wait_no_longer(turn):
        return
    leave_out_silent(turn)
    match turn.state.phase:
        case Phase.WAITING:
            while_waiting(turn)
        case Phase.REHEARSAL:
            while_rehearsing(turn)
        case Phase.PLANNING:
            while_planning(turn)
        case Phase.ROUND:
            _while_open(turn)
        case Phase.FINAL:
            while_evaluating(turn)
        case Phase.AGGREGATING:
            while_aggregating(turn)
        case Phase.OVER:
            pass
        case unknown:
            assert_never(unknown)


def _while_open(turn: Turn) -> None:
    """Only in an asynchronous run devices train while an average is made."""
    if turn.state.buffer.merging:
        while_aggregating(turn)
    elif turn.settings.is_asynchronous:
        while_asynchronous(turn)
    else:
        while_training(turn)
