"""A run whose devices may be lost and come back, as decisions alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from sfl.config import RunSettings
from sfl.rounds import (
    AdapterReady,
    Command,
    Coordinator,
    DeviceBack,
    DeviceJoined,
    DeviceReady,
    EdgeReady,
    Event,
    Phase,
    ReplayRound,
    ReportReceived,
    RunState,
    StartRound,
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
    ready = DeviceReady(device, examples, points=in_its_lineage(coordinator.state, device, points))
    return of_one_past(commands + coordinator.handle(ready, now))


def in_its_lineage(state: RunState, device: str, points: Iterable[Point]) -> tuple[Point, ...]:
    """As a device says them that has never gone back."""
    lineage = state.lineages.get(device, 0)
    return tuple(replace(point, lineage=lineage) for point in points)


def of_one_past(commands: Sequence[Command]) -> list[Command]:
    """The same, whatever lineages they name."""
    return [as_of_one_past(command) for command in commands]


def as_of_one_past(command: Command) -> Command:
    match command:
        case StartRound() | ReplayRound():
            after = {name: replace(point, lineage=0) for name, point in command.after.items()}
            return replace(command, after=after, lineage={})
        case DeviceBack():
            return replace(command, after=replace(command.after, lineage=0))
        case _:
            return command


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
