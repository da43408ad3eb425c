"""`status.json` as a run's journal tells it: where the run is, or how it ended."""

from __future__ import annotations

from typing import assert_never

from sfl.config import RunSettings
from sfl.report.projection import RunProjection
from sfl.report.status import LEFT_OUT, DeviceStatus, RunPhase, RunStatus, ServerStatus
from sfl.rounds import Phase, RunState


def standing(
    run_id: str, settings: RunSettings, told: RunProjection, state: RunState, **written: float | str
) -> RunStatus:
    """The status; `written` says who wrote it when, and is no part of the journal."""
    end = told.end
    devices = [
        DeviceStatus.from_snapshot(
            told.snapshots.of("device", entry.name), _device_state(entry.name, told, state)
        )
        for entry in settings.devices
    ]
    servers = told.snapshots.servers()
    phase: RunPhase = shown_phase(state.phase)
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
        cloud=ServerStatus.from_snapshot(told.snapshots.of("cloud", "cloud")),
        faults=tuple(str(fault) for fault in told.faults.kept),
        **written,  # type: ignore[arg-type]
    )


def shown_phase(phase: Phase) -> RunPhase:
    """A coordinator's phase as the status calls it."""
    match phase:
        case Phase.WAITING:
            return "waiting for devices"
        case Phase.REHEARSAL:
            return "timing steps"
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
    if known is None:
        return "lost" if device in told.rounds.facts else "not here yet"
    if (progress := state.open.progress.get(device)) is None:
        return "ready" if known.ready else "loading"
    if progress.reported:
        return "done"
    snapshot = told.snapshots.of("device", device)
    if snapshot.paused:
        return f"paused: {snapshot.paused}"
    return "training" if snapshot.step else "evaluating"
