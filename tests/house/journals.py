"""A run of two devices for tests of journals: its settings, its events, and its file."""

from __future__ import annotations

from pathlib import Path

from sfl.config import RunSettings
from sfl.plan import TWO_TIERS
from sfl.rounds import (
    DeviceJoined,
    DeviceMoved,
    DeviceReady,
    EdgeReady,
    Event,
    ReportReceived,
    UpdateReceived,
)

SETTINGS = RunSettings.model_validate(
    {
        "model": {"path": "m"},
        "run": {"rounds": 2},
        "training": {"local_steps": 5, "batch_size": 4},
        "network": {"round_timeout": 50.0, "join_timeout": 30.0},
        "devices": [{"name": f"d{n}", "cut_layer": 1} for n in range(2)],
    }
)


def until(stage: str) -> list[Event]:
    """Events that bring a run of two devices there."""
    events: list[Event] = [EdgeReady("e", 4), DeviceJoined("d0", "e")]
    if stage == "waiting":
        return events
    events.append(DeviceReady("d0", 10))
    if stage == "grace":
        return events
    events += [DeviceJoined("d1", "e"), DeviceReady("d1", 10)]
    if stage == "training":
        return [*events, DeviceMoved("d0", 3), DeviceMoved("d1", 3)]
    for name in ("d0",) if stage == "straggling" else ("d0", "d1"):
        events += [UpdateReceived(name, side, 1, 5) for side in TWO_TIERS]
        events.append(ReportReceived(name, 1))
    return events


def files_of(folder: Path) -> dict[str, bytes]:
    """What a journal is on disk, but for the index that its processes share."""
    return {
        path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith("-shm")
    }
