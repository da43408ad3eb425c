"""A run whose devices may be lost and come back, as decisions alone."""

from __future__ import annotations

from typing import Any

from sfl.config import RunSettings
from sfl.rounds import (
    AdapterReady,
    Command,
    Coordinator,
    DeviceJoined,
    DeviceReady,
    EdgeReady,
    Event,
    Phase,
    ReportReceived,
    RunState,
    UpdateReceived,
)
from sfl.rounds.values import Point
from tests.house.rebuilt import Rebuilt

STEPS, ROUNDS = 5, 3


def settings(count: int = 3, rejoin: float = 20.0, **sections: Any) -> RunSettings:
    return RunSettings.model_validate(
        {
            "model": {"path": "m"},
            "run": {"rounds": ROUNDS, "min_devices": 1},
            "training": {"local_steps": STEPS, "batch_size": 4},
            "devices": [{"name": f"d{n}"} for n in range(count)],
            "network": {"rejoin_timeout": rejoin, "join_timeout": 30.0, "round_timeout": 100.0},
            **sections,
        }
    )


def begun(config: RunSettings) -> Coordinator:
    """A run in its first round; killed and rebuilt before every event."""
    coordinator = Rebuilt(config)
    coordinator.handle(EdgeReady("e", 4), 0.0)
    for entry in config.devices:
        join(coordinator, entry.name, 0.0)
    assert coordinator.phase is Phase.ROUND
    return coordinator


def join(
    coordinator: Coordinator,
    device: str,
    now: float,
    *points: Point,
    examples: int = 10,
    edge: str = "e",
) -> list[Command]:
    commands = coordinator.handle(DeviceJoined(device, edge), now)
    ready = DeviceReady(device, examples, points=points)
    return commands + coordinator.handle(ready, now)


def deliver(coordinator: Coordinator, device: str, now: float = 1.0) -> list[Command]:
    commands: list[Command] = []
    for event in parts(coordinator.state, device):
        commands += coordinator.handle(event, now)
    return commands


def parts(state: RunState, device: str) -> list[Event]:
    round_, steps = state.round, state.open.progress[device].steps.count
    sides: list[Event] = [
        UpdateReceived(device, "device", round_, steps),
        UpdateReceived(device, "edge", round_, steps),
    ]
    return [*(sides if steps else []), ReportReceived(device, round_)]


def close_round(coordinator: Coordinator, devices: list[str], now: float = 1.0) -> list[Command]:
    for name in devices:
        deliver(coordinator, name, now)
    return coordinator.handle(AdapterReady(coordinator.round, "adapter"), now)
