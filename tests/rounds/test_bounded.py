"""Waiting for those that are lost has an end, and leaves a run that can go on."""

from __future__ import annotations

import pytest

from sfl.rounds import (
    AdapterReady,
    CloudRestarted,
    Coordinator,
    DeviceAway,
    DeviceJoined,
    DeviceLost,
    DeviceReady,
    EdgeLost,
    EdgeReady,
    Fault,
    FinishRun,
    Phase,
    Rehearsed,
    ReplayRound,
    StartRound,
    Tick,
    UseModel,
)
from sfl.rounds.membership import MOST_VAIN
from sfl.rounds.values import BEGINNING, Point
from tests.house.lost import STEPS, begun, deliver, join, settings


def flap(coordinator: Coordinator, name: str, now: float) -> list[object]:
    """It is lost, and back at once."""
    lost = coordinator.handle(DeviceLost(name, "killed"), now)
    return [*lost, *join(coordinator, name, now + 1.0)]


def test_one_that_is_lost_again_and_again_holds_up_no_round_for_ever() -> None:
    coordinator = begun(settings(2))
    deliver(coordinator, "d0")
    for number in range(MOST_VAIN):
        commands = flap(coordinator, "d1", 10.0 * number)
        assert any(isinstance(command, ReplayRound) for command in commands)
    commands = coordinator.handle(DeviceLost("d1", "killed"), 300.0)
    said = f"killed; lost {MOST_VAIN + 1} times without a part delivered (strike 1 of 3)"
    assert Fault(1, "d1", said) in commands
    assert coordinator.phase is Phase.AGGREGATING and "d1" not in coordinator.progress


def test_who_delivers_may_be_lost_as_often_again() -> None:
    coordinator = begun(settings(2))
    for round_, now in ((1, 1.0), (2, 91.0)):
        deliver(coordinator, "d0", now)
        for number in range(MOST_VAIN):
            flap(coordinator, "d1", now + 2.0 * number)
        deliver(coordinator, "d1", now + 80.0)
        coordinator.handle(AdapterReady(round_, "a"), now + 81.0)
    assert coordinator.round == 3 and set(coordinator.progress) == {"d0", "d1"}


def late_in_round_one(coordinator: Coordinator, losses: int, silent: bool) -> None:
    """Round 1 closes without d1, which was lost so often; d1 is in round 2."""
    deliver(coordinator, "d0")
    for number in range(losses):
        flap(coordinator, "d1", 2.0 + 2.0 * number)
    if silent:
        coordinator.handle(Tick(), coordinator.state.deadline)
    else:
        coordinator.handle(DeviceLost("d1", "killed"), 40.0)
        coordinator.handle(Tick(), 61.0)
    assert coordinator.phase is Phase.AGGREGATING and "d1" not in coordinator.progress
    join(coordinator, "d1", coordinator.state.now + 1.0)
    coordinator.handle(AdapterReady(1, "a"), coordinator.state.now + 1.0)
    assert coordinator.round == 2 and "d1" in coordinator.progress


def test_a_strike_settles_the_losses_before_it() -> None:
    """Else the same breaks of a link would be two strikes: one as it was late, one as it broke."""
    coordinator = begun(settings(2))
    late_in_round_one(coordinator, MOST_VAIN, silent=True)
    assert coordinator.strikes.silences["d1"].count == 1
    for number in range(MOST_VAIN):
        commands = flap(coordinator, "d1", 150.0 + 2.0 * number)
        assert any(isinstance(command, ReplayRound) for command in commands)
    assert coordinator.strikes.silences["d1"].count == 1


def test_losses_count_on_into_the_next_round_where_nothing_was_delivered() -> None:
    """Else one that is never back in time holds up every round as long as it can."""
    coordinator = begun(settings(2))
    late_in_round_one(coordinator, 6, silent=False)
    lost = 0
    while not coordinator.strikes.silences:
        flap(coordinator, "d1", 80.0 + 2.0 * lost)
        lost += 1
    assert lost == MOST_VAIN - 5, "7 times before, one of which held up nobody"


def lose_and_bring_back(coordinator: Coordinator, now: float, kept: bool) -> list[object]:
    """An edge and its devices; it has `kept` what they do, or not."""
    lost = coordinator.handle(EdgeLost("e", "it broke"), now)
    coordinator.handle(EdgeReady("e", 4), now)
    for name in ("d0", "d1"):
        coordinator.handle(DeviceJoined(name, "e"), now)
        lineage = coordinator.state.lineages[name]
        point = Point(coordinator.round, 0, lineage) if kept else BEGINNING
        coordinator.handle(DeviceReady(name, 10, begun=point), now)
    return list(lost)


def test_breaks_that_cost_no_work_are_never_too_many() -> None:
    coordinator = begun(settings(2))
    deadline = coordinator.state.deadline
    for number in range(5 * MOST_VAIN):
        lose_and_bring_back(coordinator, 0.1 * number, kept=True)
    assert coordinator.phase is Phase.ROUND and not coordinator.state.vain
    assert coordinator.state.deadline == deadline, "and hold up no round for ever"


@pytest.mark.parametrize("kept", [True, False])
def test_losses_of_those_that_have_delivered_are_never_too_many(kept: bool) -> None:
    coordinator = begun(settings(2))
    for name in ("d0", "d1"):
        deliver(coordinator, name)
    assert coordinator.phase is Phase.AGGREGATING
    for number in range(5 * MOST_VAIN):
        lost = lose_and_bring_back(coordinator, 2.0 + 0.1 * number, kept)
        assert not any(isinstance(command, Fault) for command in lost)
    assert coordinator.phase is Phase.AGGREGATING and not coordinator.state.vain


def test_one_that_is_lost_again_and_again_before_it_is_ready_is_not_waited_for_for_ever() -> None:
    coordinator = begun(settings(2))
    for name in ("d0", "d1"):
        deliver(coordinator, name)
    coordinator.handle(DeviceLost("d1", "killed"), 2.0)
    for number in range(MOST_VAIN):
        coordinator.handle(DeviceJoined("d1", "e"), 3.0 + number)
        lost = coordinator.handle(DeviceLost("d1", "killed"), 3.5 + number)
    assert any(isinstance(command, Fault) for command in lost)


def test_breaks_after_which_a_device_goes_on_from_a_later_step_are_not_in_vain() -> None:
    coordinator = begun(settings(2))
    for step in range(1, STEPS):
        for _ in range(MOST_VAIN):
            coordinator.handle(DeviceLost("d1", "killed"), 1.0 * step)
            join(coordinator, "d1", 1.0 * step, Point(1, step))
    assert coordinator.phase is Phase.ROUND and "d1" in coordinator.progress


@pytest.mark.parametrize("points", [(1, 2), (STEPS, 0)])
def test_who_goes_back_and_forth_between_snapshots_comes_no_further(
    points: tuple[int, ...],
) -> None:
    coordinator = begun(settings(2))
    for name in ("d0", "d1"):
        deliver(coordinator, name)
    coordinator.handle(AdapterReady(1, "a"), 2.0)
    deliver(coordinator, "d0", 3.0)
    assert coordinator.round == 2
    for number in range(MOST_VAIN + len(points) + 1):
        coordinator.handle(DeviceLost("d1", "killed"), 3.0 + number)
        if "d1" in coordinator.state.away:
            held = Point(2 - (0 in points), points[number % 2])
            join(coordinator, "d1", 3.5 + number, *([held] if held.step else []))
    assert coordinator.phase is Phase.AGGREGATING and "d1" not in coordinator.progress


def take_turns(coordinator: Coordinator, first: str, second: str, phase: Phase) -> int:
    """One is away, and comes back when the other one has gone; how often, while the phase lasts."""
    coordinator.handle(DeviceLost(first, "killed"), 1.5)
    if coordinator.phase is Phase.AGGREGATING:
        coordinator.handle(AdapterReady(coordinator.round, "a"), 2.0)
    for number in range(10 * MOST_VAIN):
        now = 4.0 + 8.0 * number
        coordinator.handle(DeviceLost(second, "killed"), now)
        coordinator.handle(Tick(), now + 0.5)
        join(coordinator, first, now + 4.0, Point(1, STEPS))
        coordinator.handle(Tick(), now + 4.5)
        first, second = second, first
        if coordinator.phase is not phase:
            return number
    raise AssertionError(f"it is {phase} for ever")


def test_two_that_are_away_by_turns_hold_up_no_next_round_for_ever() -> None:
    coordinator = begun(settings(4))
    for entry in coordinator.settings.devices:
        deliver(coordinator, entry.name)
    assert take_turns(coordinator, "d1", "d2", Phase.WAITING) == 2 * MOST_VAIN
    assert coordinator.phase is Phase.ROUND and {"d0", "d3"} <= set(coordinator.progress)


def test_two_that_are_away_by_turns_hold_up_no_rehearsal_for_ever() -> None:
    auto = {"local_steps": STEPS, "batch_size": 4, "micro_batches": "auto"}
    coordinator = Coordinator(settings(3, training=auto))
    coordinator.handle(EdgeReady("e", 4), 0.0)
    for name in ("d0", "d1", "d2"):
        join(coordinator, name, 0.0)
    for name in ("d0", "d1"):
        coordinator.handle(Rehearsed(name, (3.0, 2.0, 1.0)), 1.0)
    assert coordinator.phase is Phase.REHEARSAL
    assert take_turns(coordinator, "d0", "d1", Phase.REHEARSAL) < 2 * MOST_VAIN
    assert coordinator.phase is Phase.ROUND and "d2" not in coordinator.progress


def test_the_deadline_of_a_rehearsal_is_that_of_those_who_are_here() -> None:
    auto = {"local_steps": STEPS, "batch_size": 4, "micro_batches": "auto"}
    coordinator = Coordinator(settings(3, training=auto))
    coordinator.handle(EdgeReady("e", 4), 0.0)
    for name in ("d0", "d1", "d2"):
        join(coordinator, name, 0.0)
    coordinator.handle(Rehearsed("d0", (3.0, 2.0, 1.0)), 1.0)
    coordinator.handle(DeviceLost("d1", "killed"), 90.0)
    faults = [c.device for c in coordinator.handle(Tick(), 101.0) if isinstance(c, Fault)]
    assert faults == ["d2"] and coordinator.phase is Phase.REHEARSAL, "d1 has its own time"
    join(coordinator, "d1", 102.0)
    coordinator.handle(Rehearsed("d1", (3.0, 2.0, 1.0)), 103.0)
    assert set(coordinator.progress) == {"d0", "d1"}


def test_an_edge_that_is_lost_too_often_leaves_a_run_that_can_go_on() -> None:
    coordinator = begun(settings(2))
    for number in range(MOST_VAIN):
        lose_and_bring_back(coordinator, 1.0 * number, kept=False)
    (end,) = [
        c for c in coordinator.handle(EdgeLost("e", "it broke"), 20.0) if isinstance(c, FinishRun)
    ]
    assert "lost 11 times" in end.reason and coordinator.phase is Phase.ROUND
    coordinator.handle(CloudRestarted(), 30.0)
    assert not coordinator.state.vain


def test_an_edge_that_flaps_is_no_strike_of_its_devices() -> None:
    coordinator = begun(settings(2))
    for number in range(MOST_VAIN + 1):
        assert not coordinator.strikes.silences
        coordinator.handle(EdgeLost("e", "it broke"), 10.0 * number)
        coordinator.handle(EdgeReady("e", 4), 10.0 * number + 1.0)
        for name in ("d0", "d1"):
            if coordinator.phase is Phase.ROUND:
                join(coordinator, name, 10.0 * number + 1.0)
    assert not coordinator.strikes.silences and not coordinator.strikes.out


def test_who_was_in_no_round_is_not_waited_for() -> None:
    coordinator = Coordinator(settings(3))
    coordinator.handle(EdgeReady("e", 4), 0.0)
    for name in ("d0", "d1"):
        join(coordinator, name, 0.0)
    coordinator.handle(Tick(), 31.0)
    assert coordinator.round == 1
    coordinator.handle(DeviceJoined("d2", "e"), 32.0)
    commands = coordinator.handle(DeviceLost("d2", "out of memory"), 33.0)
    assert not any(isinstance(command, DeviceAway) for command in commands)
    for name in ("d0", "d1"):
        deliver(coordinator, name, 34.0)
    commands = coordinator.handle(AdapterReady(1, "a"), 35.0)
    assert any(isinstance(command, StartRound) for command in commands)


def test_who_left_for_good_is_no_longer_waited_for() -> None:
    coordinator = begun(settings(2))
    deliver(coordinator, "d0")
    coordinator.handle(DeviceLost("d1", "killed"), 1.0)
    coordinator.handle(DeviceJoined("d1", "e"), 2.0)
    coordinator.handle(DeviceLost("d1", "its data are gone", "left"), 3.0)
    assert not coordinator.state.away
    commands = coordinator.handle(AdapterReady(1, "a"), 4.0)
    assert any(isinstance(command, StartRound) for command in commands)


def test_who_is_back_has_time_to_load() -> None:
    coordinator = begun(settings(2))
    deliver(coordinator, "d0")
    coordinator.handle(DeviceLost("d1", "killed"), 1.0)
    coordinator.handle(DeviceJoined("d1", "e"), 20.0)
    assert coordinator.handle(Tick(), 45.0) == []  # 20 s to be back, then 30 s to load
    assert "d1" in coordinator.progress
    coordinator.handle(Tick(), 51.0)
    assert "d1" not in coordinator.progress


def test_after_a_restart_everybody_has_the_time_to_start_and_load() -> None:
    coordinator = begun(settings(2, run={"rounds": 3, "min_devices": 2}))
    coordinator.handle(CloudRestarted(), 50.0)
    coordinator.handle(Tick(), 79.0)
    coordinator.handle(CloudRestarted(), 79.0)
    assert {own.until for own in coordinator.state.away.values()} == {109.0}
    assert coordinator.handle(Tick(), 108.0) == []


def test_where_nobody_is_back_the_run_stops_as_it_is() -> None:
    config = settings(2, run={"rounds": 3, "min_devices": 2})
    coordinator = begun(config)
    deliver(coordinator, "d0")
    coordinator.handle(CloudRestarted(), 50.0)
    (end,) = coordinator.handle(Tick(), 80.0)
    assert isinstance(end, FinishRun) and not end.ok
    assert end.reason.startswith("too few devices are left in round 1: d1: the cloud was away")
    state = coordinator.journal.latest().state(config)
    assert state.phase is Phase.ROUND and set(state.open.progress) == {"d0", "d1"}
    again = Coordinator(config, journal=coordinator.journal, state=state)
    again.handle(CloudRestarted(), 90.0)
    again.handle(EdgeReady("e", 4), 91.0)
    for name in ("d0", "d1"):
        join(again, name, 91.0)
    deliver(again, "d1", 92.0)
    assert again.phase is Phase.AGGREGATING


def test_between_rounds_it_stops_as_it_is_too() -> None:
    config = settings(2, run={"rounds": 3, "min_devices": 2})
    coordinator = begun(config)
    for name in ("d0", "d1"):
        deliver(coordinator, name)
    coordinator.handle(EdgeLost("e", "it broke"), 2.0)
    coordinator.handle(AdapterReady(1, "a"), 2.0)
    coordinator.handle(CloudRestarted(), 500.0)
    assert coordinator.handle(Tick(), 529.0) == []
    *faults, end = coordinator.handle(Tick(), 531.0)
    assert [fault.device for fault in faults if isinstance(fault, Fault)] == ["d0", "d1"]
    assert isinstance(end, FinishRun) and "0 of at least 2 devices were ready" in end.reason
    assert coordinator.phase is Phase.WAITING


def test_no_round_is_kept_before_its_adapter() -> None:
    """With an edge that never came, the model is settled when enough devices have waited."""
    config = settings(2, run={"rounds": 3, "min_devices": 2, "edges": ["north", "south"]})
    coordinator = Coordinator(config)
    coordinator.handle(EdgeReady("north", 4, "abc"), 0.0)
    join(coordinator, "d0", 0.0, edge="north")
    assert join(coordinator, "d1", 0.0, edge="north")[-1:] == [UseModel("abc")]
    assert coordinator.round == 0
    commands = coordinator.handle(AdapterReady(0, "adapters/round-0000"), 0.0)
    assert any(isinstance(command, StartRound) for command in commands)
