"""Runs in which an update may count later than in its own round, as the coordinator has them."""

from __future__ import annotations

from typing import Any

from sfl.config import RunSettings
from sfl.rounds import (
    AdapterReady,
    Aggregate,
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
from sfl.rounds.values import Point, Steps
from tests.house.lost import in_its_lineage, of_one_past
from tests.house.rebuilt import Rebuilt

STEPS, ROUNDS = 5, 4


def settings(
    count: int = 3, size: int | None = 2, rejoin: float = 20.0, **more: Any
) -> RunSettings:
    values: dict[str, Any] = {
        "model": {"path": "m"},
        "run": {"rounds": ROUNDS, "min_devices": 1, "mode": "asynchronous"},
        "training": {"local_steps": STEPS, "batch_size": 4},
        "aggregation": {"buffer_size": size},
        "devices": [{"name": f"d{n}"} for n in range(count)],
        "network": {"rejoin_timeout": rejoin, "join_timeout": 30.0, "round_timeout": 100.0},
    }
    for section, own in more.items():
        values[section] = {**values.get(section, {}), **own}
    return RunSettings.model_validate(values)


def begun(config: RunSettings) -> Coordinator:
    """A run in its first round; killed and rebuilt before every event."""
    coordinator = Rebuilt(config)
    coordinator.handle(EdgeReady("e", 4), 0.0)
    for entry in config.devices:
        join(coordinator, entry.name, 0.0)
    assert coordinator.phase is Phase.ROUND
    return coordinator


def join(coordinator: Coordinator, device: str, now: float, *points: Point) -> list[Command]:
    commands = coordinator.handle(DeviceJoined(device, "e"), now)
    said = in_its_lineage(coordinator.state, device, points)
    return of_one_past(commands + coordinator.handle(DeviceReady(device, 10, points=said), now))


def parts(state: RunState, device: str) -> list[Event]:
    own = state.part_of(device)
    assert own is not None
    sides: list[Event] = [
        UpdateReceived(device, "device", own.round, own.steps.count),
        UpdateReceived(device, "edge", own.round, own.steps.count),
    ]
    return [*(sides if own.steps.count else []), ReportReceived(device, own.round)]


def deliver(coordinator: Coordinator, device: str, now: float = 1.0) -> list[Command]:
    commands: list[Command] = []
    for event in parts(coordinator.state, device):
        commands += coordinator.handle(event, now)
    return commands


def steps(round_: int) -> Steps:
    return Steps(STEPS, (round_ - 1) * STEPS, STEPS * ROUNDS)


def average(coordinator: Coordinator, now: float = 1.0) -> list[Command]:
    return coordinator.handle(AdapterReady(coordinator.round, "adapter"), now)


def merged(coordinator: Coordinator, command: Command) -> dict[str, int]:
    """The round of each update that is averaged."""
    assert isinstance(command, Aggregate)
    return {name: update.round for name, update in coordinator.updates_of(command).items()}
