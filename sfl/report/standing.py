"""`status.json` as a run's journal tells it: where the run is, or how it ended."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import assert_never

from sfl.config import RunSettings
from sfl.metrics.waits import What
from sfl.report.projection import RunProjection
from sfl.report.status import LEFT_OUT, DeviceStatus, RunPhase, RunStatus, ServerStatus, Wait
from sfl.rounds import Phase, RunState
from sfl.rounds.placing import place_of
from sfl.rounds.turn import NAMED


def standing(
    run_id: str, settings: RunSettings, told: RunProjection, state: RunState, **written: float | str
) -> RunStatus:
    """The status; `written` says who wrote it when, and is no part of the journal."""
    end = told.end
    devices = [_device(entry.name, told, state) for entry in settings.devices]
    servers = told.statistics.servers()
    waits, more_waits = ((), 0) if end is not None else _waits(told, state, settings)
    phase: RunPhase = shown_phase(state.phase)
    if state.end is not None and not state.end.ok:
        phase = "failed"
    if end is not None:  # nobody trains any more
        devices = [device.at_end(end.ok) for device in devices]
        phase = "finished" if end.ok else "failed"
    return RunStatus(
        run_id=run_id,
        phase=phase,
        round=min(state.round, settings.run.rounds),
        rounds=settings.run.rounds,
        task=settings.model.task,
        message=told.message,
        devices=tuple(devices),
        edges=tuple(ServerStatus.from_snapshot(s) for s in servers if s.kind == "edge"),
        stages=tuple(ServerStatus.from_snapshot(s) for s in servers if s.kind == "stage"),
        cloud=ServerStatus.from_snapshot(told.statistics.of("cloud", "cloud")),
        faults=tuple(str(fault) for fault in told.faults.kept),
        waits=waits,
        more_waits=more_waits,
        mode=settings.run.mode,
        buffered=len(state.buffer.waiting) if settings.counts_late_updates else None,
        plan="" if told.planned is None else told.planned.in_short,
        buffer_size=settings.buffer_size if settings.is_asynchronous else 0,
        **written,  # type: ignore[arg-type]
    )


def _device(name: str, told: RunProjection, state: RunState) -> DeviceStatus:
    snapshot = told.statistics.of("device", name)
    status = DeviceStatus.from_snapshot(snapshot, _device_state(name, told, state))
    own, place = state.buffer.unawaited.get(name), place_of(state, name)
    late = None if own is None else state.round - own.round
    return replace(status, staleness=late, edge=place.edge, handovers=place.handovers)


def _waits(
    told: RunProjection, state: RunState, settings: RunSettings
) -> tuple[tuple[Wait, ...], int]:
    """The first few of those that are away, of what the phase needs, and of what nodes said; how
    many more there are."""
    others = told.words.waits(state, settings.network.idle_timeout)
    own = list(waits_of(state, settings))
    away = len(state.away) + len(state.sums_away)
    groups = own[:away], own[away:], list(others)
    shown = tuple(wait for some in groups for wait in some[:NAMED])
    return shown, sum(map(len, groups)) - len(shown)


def waits_of(state: RunState, settings: RunSettings) -> Iterator[Wait]:
    """Whom the cloud waits for by its state: those that are away, then what the phase needs."""
    lost = [("edge", state.sums_away), ("device", state.away)]
    for whom, name, away in ((kind, *own) for kind, all_ in lost for own in sorted(all_.items())):
        left = max(0.0, away.until - state.now)
        seconds = state.now - away.since
        yield Wait("cloud", f"{whom} {name}", away.reason, seconds, left, True, "return")
    if state.phase is Phase.AGGREGATING and (missing := state.open.reduction.missing):
        yield from _sums(state, missing)
        return
    if settings.is_asynchronous and state.phase is Phase.ROUND and not state.buffer.merging:
        yield from _updates(state, settings)
        return
    if state.phase is Phase.WAITING:
        yield from _edges(state)
    if (own := _of_phase(state)) is None:
        return
    what, kind, names, seconds = own
    for name in (n for n in names if n not in state.away):
        whom = f"device {name}" if name else "cloud"
        yield Wait("cloud", whom, what, seconds, _left(state), kind=kind)


def _edges(state: RunState) -> Iterator[Wait]:
    """Edges that were lost, where no other is here: one of them is to be started again."""
    for edge, why in state.edges_missing.items():
        what, seconds = f"to be started again ({why})", state.now - state.phase_began
        yield Wait("cloud", edge, what, seconds, _left(state), away=True, kind="join")


def _sums(state: RunState, missing: Iterable[str]) -> Iterator[Wait]:
    """Edges that are to add up what their devices trained."""
    what, seconds = f"its sum of round {state.round}", state.now - state.phase_began
    for edge in missing:
        if edge not in state.sums_away:
            yield Wait("cloud", f"edge {edge}", what, seconds, _left(state), kind="averaging")


def _updates(state: RunState, settings: RunSettings) -> Iterator[Wait]:
    """Devices of an asynchronous run, until a buffer's updates are there; where none is at work,
    those that are to come."""
    now = state.now
    for name, own in sorted(state.buffer.unawaited.items()):
        if name not in state.away:
            left = max(0.0, own.began + settings.network.round_timeout - now)
            what = f"its update of round {own.round}"
            yield Wait("cloud", f"device {name}", what, now - own.began, left)
    if not state.buffer.unawaited and not state.away and state.deadline != math.inf:
        since = now - (state.deadline - settings.network.join_timeout)
        for name in state.roster.first_missing(len(state.roster.missing)):
            yield Wait("cloud", f"device {name}", "to be ready", since, _left(state), kind="join")


def _of_phase(state: RunState) -> tuple[str, What, Iterable[str], float] | None:
    """For what, for whom (a device, or itself: empty), and for how long by now."""
    now, round_ = state.now, state.round
    seconds = now - state.phase_began
    match Phase.AGGREGATING if state.buffer.merging else state.phase:
        case Phase.WAITING:
            missing = state.roster.first_missing(len(state.roster.missing))
            return "to be ready", "join", missing, seconds
        case Phase.REHEARSAL if state.rehearsal is not None:
            return "its timed steps", "timing", state.rehearsal.waiting, seconds
        case Phase.PLANNING:
            return f"round {round_ + 1} is planned", "planning", ("",), seconds
        case Phase.ROUND | Phase.FINAL:
            since = now - state.open.stragglers.began
            return f"its part of round {round_}", "part", state.open.rest, since
        case Phase.AGGREGATING:
            return f"round {round_} is averaged", "averaging", ("",), seconds
        case _:
            return None


def _left(state: RunState) -> float:
    """Seconds until the phase waits no longer."""
    ends = state.deadline if state.grace_ends is None else min(state.deadline, state.grace_ends)
    return max(0.0, ends - state.now)


def shown_phase(phase: Phase) -> RunPhase:
    """A coordinator's phase as the status calls it."""
    match phase:
        case Phase.WAITING:
            return "waiting for devices"
        case Phase.REHEARSAL:
            return "timing steps"
        case Phase.PLANNING:
            return "planning"
        case Phase.ROUND:
            return "training"
        case Phase.FINAL:
            return "evaluating"
        case Phase.AGGREGATING:
            return "aggregating"
        case Phase.OVER:
            return "finished"
        case unknown:
            assert_never(unknown)


def _device_state(device: str, told: RunProjection, state: RunState) -> str:
    known = state.roster.devices.get(device)
    if device in state.strikes.out:
        return LEFT_OUT
    if (away := state.away.get(device)) is not None:
        return f"away: {away.until - state.now:.0f} s left"
    if known is None:
        return "lost" if device in told.rounds.facts else "not here yet"
    if (progress := state.part_of(device)) is None:
        waits = device in state.buffer.waiting or device in state.buffer.merging
        ready = "waiting" if waits else "ready"
        return ready if known.ready else "loading"
    if progress.reported:
        return "done"
    snapshot = told.statistics.of("device", device)
    if snapshot.paused:
        return f"paused: {snapshot.paused}"
    return "training" if snapshot.step else "evaluating"
