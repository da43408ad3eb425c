"""Which edge a device is at, as decisions alone; the cloud is killed before every event."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from sfl.config import RunSettings
from sfl.planners.decision import Choice
from sfl.rounds import (
    Aggregate,
    Command,
    Coordinator,
    DeviceAway,
    DeviceJoined,
    DeviceLost,
    EdgeLost,
    EdgeReady,
    Fault,
    HandOver,
    Phase,
    Planned,
    Refuse,
    ReplayRound,
    ReportReceived,
    StartRound,
    Tick,
    Welcome,
)
from sfl.rounds.placing import addresses, place_of
from sfl.rounds.values import BEGINNING, Point, RoundReport
from tests.house.lost import STEPS, close_round, deliver, join, settings
from tests.house.rebuilt import Rebuilt

NORTH, SOUTH, WEST = "north", "south", "west"


def run(placement: str = "configured", count: int = 3, **sections: Any) -> RunSettings:
    shape = {"rounds": 3, "min_devices": 1, "placement": placement}
    return settings(count, run=shape | sections.pop("run", {}), **sections)


def there(config: RunSettings, *edges: str, store: str = "s") -> Coordinator:
    coordinator = Rebuilt(config)
    for edge in edges or (NORTH, SOUTH):
        coordinator.handle(EdgeReady(edge, 4, address=f"{edge}:7001", store=store), 0.0)
    return coordinator


def refused(commands: list[Command]) -> tuple[str, ...]:
    """Where a device is sent to instead; nothing where it is let in."""
    if any(isinstance(command, Welcome) for command in commands):
        return ()
    (refusal,) = (command for command in commands if isinstance(command, Refuse))
    assert refusal.elsewhere and not refusal.in_use
    return refusal.elsewhere


def handed_over(commands: list[Command]) -> dict[str, str]:
    return {command.device: command.to for command in commands if isinstance(command, HandOver)}


def started(commands: list[Command]) -> list[str]:
    (command,) = (command for command in commands if isinstance(command, StartRound))
    return list(command.devices)


def report(coordinator: Coordinator, device: str, **said: Any) -> list[Command]:
    told = RoundReport(coordinator.round, device, **said)
    return coordinator.handle(ReportReceived(device, coordinator.round, told), 1.0)


# -- who joins ------------------------------------------------------------------------------------


def test_a_device_is_sent_to_the_edge_that_is_configured_once_that_is_there() -> None:
    devices = [{"name": "d0", "edge": SOUTH}, {"name": "d1"}]
    coordinator = there(run(devices=devices, count=2), NORTH)
    assert refused(coordinator.handle(DeviceJoined("d1", NORTH), 0.0)) == ()
    coordinator.handle(EdgeReady(SOUTH, 4, address="south:7001"), 0.0)
    assert refused(coordinator.handle(DeviceJoined("d0", NORTH), 0.0)) == (SOUTH,)
    assert addresses(coordinator.state, (SOUTH,)) == {SOUTH: "south:7001"}
    assert refused(coordinator.handle(DeviceJoined("d0", SOUTH), 0.0)) == ()


def test_one_that_cannot_get_there_is_let_in_where_it_comes() -> None:
    devices = [{"name": "d0", "edge": SOUTH}, {"name": "d1"}]
    coordinator = there(run(devices=devices, count=2))
    for _ in range(2):
        assert refused(coordinator.handle(DeviceJoined("d0", NORTH), 0.0)) == (SOUTH,)
    assert refused(coordinator.handle(DeviceJoined("d0", NORTH), 0.0)) == ()


def test_the_least_loaded_edge_counts_who_is_on_the_way() -> None:
    coordinator = there(run("least_loaded", count=6))
    asked = [refused(coordinator.handle(DeviceJoined(f"d{n}", NORTH), 0.0)) for n in range(4)]
    assert asked == [(), (SOUTH,), (), (SOUTH,)]
    assert refused(coordinator.handle(DeviceJoined("d4", SOUTH), 0.0)) == ()
    for name in ("d1", "d3"):
        assert refused(coordinator.handle(DeviceJoined(name, SOUTH), 0.0)) == ()
    assert refused(coordinator.handle(DeviceJoined("d5", SOUTH), 0.0)) == (NORTH,)


def test_who_never_comes_is_on_its_way_no_more_after_the_time_to_join() -> None:
    coordinator = there(run("least_loaded", count=8))
    asked = [refused(coordinator.handle(DeviceJoined(f"d{n}", NORTH), 0.0)) for n in range(4)]
    assert asked == [(), (SOUTH,), (), (SOUTH,)]
    later = coordinator.settings.network.join_timeout + 1.0
    asked = [refused(coordinator.handle(DeviceJoined(f"d{n}", NORTH), later)) for n in (4, 5, 6)]
    assert asked == [(SOUTH,), (SOUTH,), ()]


def test_the_nearest_edge_is_measured_first() -> None:
    coordinator = there(run("nearest"), NORTH, SOUTH, WEST)
    assert refused(coordinator.handle(DeviceJoined("d0", NORTH), 0.0)) == (NORTH, SOUTH, WEST)
    trips = {NORTH: 0.03, SOUTH: 0.01, "elsewhere": 0.001}
    assert refused(coordinator.handle(DeviceJoined("d0", NORTH, trips), 0.0)) == (SOUTH,)
    assert refused(coordinator.handle(DeviceJoined("d0", SOUTH, trips), 0.0)) == ()
    assert refused(coordinator.handle(DeviceJoined("d1", SOUTH, trips), 0.0)) == ()


@pytest.mark.parametrize("placement", ["configured", "nearest", "least_loaded"])
def test_with_one_edge_nobody_is_sent_anywhere(placement: str) -> None:
    coordinator = there(run(placement), NORTH)
    for name in ("d0", "d1", "d2"):
        assert refused(coordinator.handle(DeviceJoined(name, NORTH), 0.0)) == ()


# -- as a round begins ----------------------------------------------------------------------------


def begun(config: RunSettings, at: Mapping[str, str], store: str = "s") -> Coordinator:
    """In its first round, with devices at these edges."""
    coordinator = there(config, store=store)
    for name, edge in at.items():
        place = {NORTH: 0.01, SOUTH: 0.01} | {edge: 0.001}
        coordinator.handle(DeviceJoined(name, edge, place), 0.0)
        join(coordinator, name, 0.0, edge=edge)
    assert coordinator.phase is Phase.ROUND
    return coordinator


AT = {"d0": NORTH, "d1": NORTH, "d2": SOUTH}


def test_who_asks_goes_and_does_its_part_there() -> None:
    coordinator = begun(run(), AT)
    report(coordinator, "d0", num_steps=STEPS, asks_for=SOUTH)
    commands = close_round(coordinator, ["d0", "d1", "d2"])
    assert handed_over(commands) == {"d0": SOUTH} and started(commands) == ["d1", "d2"]
    assert [c.device for c in commands if isinstance(c, DeviceAway)] == ["d0"]
    # Its old edge says that it has left: before or after it has come to the new one.
    coordinator.handle(DeviceLost("d0", "it goes to south"), 1.0)
    for name in ("d1", "d2"):
        assert not any(isinstance(c, Aggregate) for c in deliver(coordinator, name))
    commands = join(coordinator, "d0", 2.0, Point(1, STEPS), edge=SOUTH)
    (replay,) = (c for c in commands if isinstance(c, ReplayRound))
    assert list(replay.devices) == ["d0"] and not replay.begun
    assert (replay.after["d0"].round, replay.after["d0"].step) == (1, STEPS)
    assert not any(isinstance(c, Fault) for c in commands)
    place = place_of(coordinator.state, "d0")
    assert (place.edge, place.handovers, place.asks_for) == (SOUTH, 1, "")
    assert deliver(coordinator, "d0") == [Aggregate(2, dict.fromkeys(AT, 10))]
    assert handed_over(close_round(coordinator, [])) == {}


def test_one_that_never_arrives_is_waited_for_as_one_that_is_lost() -> None:
    coordinator = begun(run(), AT)
    report(coordinator, "d0", num_steps=STEPS, asks_for=SOUTH)
    close_round(coordinator, ["d0", "d1", "d2"])
    for name in ("d1", "d2"):
        deliver(coordinator, name, 2.0)
    assert coordinator.handle(Tick(), 30.0) == []
    commands = coordinator.handle(Tick(), 31.0)  # join_timeout, the longer one
    assert [c.device for c in commands if isinstance(c, Fault)] == ["d0"]
    assert Aggregate(2, {"d1": 10, "d2": 10}) in commands


def test_one_that_comes_back_where_it_was_goes_on_there() -> None:
    coordinator = begun(run(), AT)
    report(coordinator, "d0", num_steps=STEPS, asks_for=SOUTH)
    close_round(coordinator, ["d0", "d1", "d2"])
    commands = join(coordinator, "d0", 2.0, Point(1, STEPS), edge=NORTH)
    assert any(isinstance(c, ReplayRound) for c in commands)
    assert place_of(coordinator.state, "d0").handovers == 0


@pytest.mark.parametrize("asked", ["nowhere", NORTH])
def test_an_edge_that_is_not_there_or_its_own_moves_nobody(asked: str) -> None:
    coordinator = begun(run(), AT)
    report(coordinator, "d0", num_steps=STEPS, asks_for=asked)
    commands = close_round(coordinator, ["d0", "d1", "d2"])
    assert handed_over(commands) == {} and started(commands) == ["d0", "d1", "d2"]


def test_nobody_goes_to_an_edge_that_is_lost() -> None:
    coordinator = begun(run(), {"d0": NORTH, "d1": NORTH, "d2": NORTH})
    report(coordinator, "d0", num_steps=STEPS, asks_for=SOUTH)
    coordinator.handle(EdgeLost(SOUTH, "killed"), 1.0)
    assert handed_over(close_round(coordinator, ["d0", "d1", "d2"])) == {}


@pytest.mark.parametrize(
    ("far", "near", "goes"),
    [(0.020, 0.010, True), (0.020, 0.015, False), (0.003, 0.0015, False), (0.010, 0.020, False)],
)
def test_a_device_follows_a_round_trip_that_is_clearly_shorter(
    far: float, near: float, goes: bool
) -> None:
    coordinator = begun(run("nearest"), AT)
    report(coordinator, "d0", num_steps=STEPS, round_trips={NORTH: far, SOUTH: near})
    commands = close_round(coordinator, ["d0", "d1", "d2"])
    assert handed_over(commands) == ({"d0": SOUTH} if goes else {})


def test_without_a_store_of_both_moments_stay_where_they_are() -> None:
    trips = {NORTH: 0.1, SOUTH: 0.001}
    coordinator = begun(run("nearest"), AT, store="")
    report(coordinator, "d0", num_steps=STEPS, round_trips=trips)
    assert handed_over(close_round(coordinator, ["d0", "d1", "d2"])) == {}
    kept = begun(run("nearest", recovery={"snapshots": False}), AT)
    report(kept, "d0", num_steps=STEPS, round_trips=trips)
    assert handed_over(close_round(kept, ["d0", "d1", "d2"])) == {}


def test_an_edge_that_comes_late_gets_its_share_as_the_first_round_begins() -> None:
    coordinator = there(run("least_loaded", count=4), NORTH, store="")
    for number in range(4):
        assert refused(coordinator.handle(DeviceJoined(f"d{number}", NORTH), 0.0)) == ()
    coordinator.handle(EdgeReady(SOUTH, 4, address="south:7001"), 0.0)
    commands: list[Command] = []
    for number in range(4):
        commands = join(coordinator, f"d{number}", 0.0, edge=NORTH)
    assert handed_over(commands) == {"d2": SOUTH, "d3": SOUTH}
    assert started(commands) == ["d0", "d1"]
    back = join(coordinator, "d3", 1.0, edge=SOUTH)
    (replay,) = (c for c in back if isinstance(c, ReplayRound))
    assert replay.after == {"d3": BEGINNING}


def test_who_was_let_in_before_its_edge_was_there_goes_to_it_once() -> None:
    devices = [{"name": "d0", "edge": SOUTH}, {"name": "d1"}]
    coordinator = there(run(devices=devices, count=2), NORTH)
    assert refused(coordinator.handle(DeviceJoined("d0", NORTH), 0.0)) == ()
    coordinator.handle(EdgeReady(SOUTH, 4, address="south:7001", store="s"), 0.0)
    join(coordinator, "d0", 0.0, edge=NORTH)
    assert handed_over(join(coordinator, "d1", 0.0, edge=NORTH)) == {"d0": SOUTH}
    join(coordinator, "d0", 1.0, edge=SOUTH)
    # Once it has been moved on purpose, it is not called back.
    report(coordinator, "d0", num_steps=STEPS, asks_for=NORTH)
    report(coordinator, "d1", num_steps=STEPS)
    assert handed_over(close_round(coordinator, ["d0", "d1"])) == {"d0": NORTH}
    join(coordinator, "d0", 2.0, edge=NORTH)
    assert handed_over(close_round(coordinator, ["d0", "d1"])) == {}


def test_a_planners_word_comes_first() -> None:
    config = run("nearest", planner={"policy": "pairing"})
    coordinator = there(config)
    for name, edge in AT.items():
        coordinator.handle(DeviceJoined(name, edge, {edge: 0.001}), 0.0)
        join(coordinator, name, 0.0, edge=edge)
    out = Choice(1, takes_part=False)
    choices = {"d0": Choice(1, edge=SOUTH), "d1": Choice(1), "d2": out}
    commands = coordinator.handle(Planned(1, choices), 0.0)
    assert handed_over(commands) == {"d0": SOUTH} and started(commands) == ["d1"]


def test_the_last_evaluation_moves_nobody() -> None:
    coordinator = begun(run(run={"rounds": 1}), AT)
    report(coordinator, "d0", num_steps=STEPS, asks_for=SOUTH)
    commands = close_round(coordinator, ["d0", "d1", "d2"])
    assert handed_over(commands) == {} and coordinator.phase is Phase.FINAL
