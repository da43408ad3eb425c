"""A device, an edge or the cloud is lost and comes back: nothing is lost, nothing counts twice."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from rich.console import Console

from sfl.report.live import status_picture
from sfl.report.projection import RunProjection
from sfl.report.standing import standing, waits_of
from sfl.report.status import RunStatus, Wait
from sfl.rounds import (
    AdapterReady,
    Aggregate,
    CloudRestarted,
    Command,
    Coordinator,
    DeviceAway,
    DeviceBack,
    DeviceJoined,
    DeviceLost,
    DeviceMoved,
    DeviceReady,
    EdgeLost,
    EdgeReady,
    Fault,
    FinishRun,
    Phase,
    Rehearse,
    Rehearsed,
    ReplayRound,
    Report,
    ReportReceived,
    StartRound,
    Tick,
    UpdateReceived,
    UseModel,
    Welcome,
)
from sfl.rounds.values import BEGINNING, Point, Steps
from tests.house.any_order import AnyOrder
from tests.house.lost import ROUNDS, STEPS, begun, close_round, deliver, join, settings
from tests.house.rebuilt import Rebuilt


def test_a_device_that_is_back_in_time_begins_its_part_again() -> None:
    coordinator = begun(settings())
    deliver(coordinator, "d0")
    assert coordinator.handle(DeviceLost("d1", "killed"), 2.0) == [DeviceAway("d1", "killed", 20.0)]
    deliver(coordinator, "d2")
    assert coordinator.handle(Tick(), 21.9) == [] and coordinator.phase is Phase.ROUND
    assert join(coordinator, "d1", 21.9) == [
        Welcome("d1"),
        DeviceBack("d1", BEGINNING),
        ReplayRound(1, {"d1": Steps(STEPS, 0, STEPS * ROUNDS)}, "all", {"d1": BEGINNING}),
    ]
    assert deliver(coordinator, "d1", 22.0) == [Aggregate(1, {"d0": 10, "d1": 10, "d2": 10})]


@pytest.mark.parametrize(("rests", "said"), [(False, "stuck (strike 1 of 3)"), (True, "stuck")])
def test_who_others_waited_for_is_out_of_the_round_at_once_and_back_for_the_next(
    rests: bool, said: str
) -> None:
    coordinator = begun(settings())
    coordinator.handle(DeviceMoved("d1", 7, rests), 1.0)
    deliver(coordinator, "d0")
    assert coordinator.handle(DeviceLost("d1", "stuck", "stuck"), 2.0) == [Fault(1, "d1", said)]
    assert join(coordinator, "d1", 3.0) == [Welcome("d1")]
    assert deliver(coordinator, "d2", 4.0) == [Aggregate(1, {"d0": 10, "d2": 10})]
    (start,) = coordinator.handle(AdapterReady(1), 5.0)
    assert isinstance(start, StartRound) and start.devices.keys() == {"d0", "d1", "d2"}


def test_a_device_that_is_not_back_in_time_is_left_out() -> None:
    coordinator = begun(settings())
    for name in ("d0", "d2"):
        deliver(coordinator, name)
    coordinator.handle(DeviceLost("d1", "killed"), 2.0)
    said = "killed; not back within rejoin_timeout (20 s)"
    assert coordinator.handle(Tick(), 22.0) == [
        Fault(1, "d1", said),
        Aggregate(1, {"d0": 10, "d2": 10}),
    ]
    assert join(coordinator, "d1", 23.0)[0] == Welcome("d1")  # for the next round


def test_who_is_back_goes_on_in_another_lineage_unless_its_edge_has_begun() -> None:
    coordinator = begun(settings(2))
    first = dict(coordinator.state.lineages.items())
    assert first == {"d0": 1, "d1": 2}

    def back(begun: Point = BEGINNING) -> ReplayRound:
        coordinator.handle(DeviceLost("d1", "cut"), 2.0)
        coordinator.handle(DeviceJoined("d1", "e"), 2.0)
        commands = coordinator.handle(DeviceReady("d1", 10, begun=begun), 2.0)
        (replay,) = [command for command in commands if isinstance(command, ReplayRound)]
        assert coordinator.state.lineages["d1"] == replay.lineage["d1"]
        return replay

    replay = back()
    assert (replay.begun, replay.lineage) == (False, {"d1": 3})
    kept = back(Point(1, 0, 2))  # what was ordered last has not arrived
    assert (kept.begun, kept.lineage) == (True, {"d1": 2})
    for made_up in (Point(2, 0, 2), Point(1, 0, 2**32 - 1)):
        replay = back(made_up)
        assert not replay.begun and replay.lineage["d1"] > 3
    deliver(coordinator, "d1")
    assert coordinator.state.reached["d1"] == Point(1, STEPS, replay.lineage["d1"])


def test_who_had_delivered_everything_is_asked_for_nothing_again() -> None:
    coordinator = begun(settings())
    deliver(coordinator, "d1")
    coordinator.handle(DeviceLost("d1", "killed"), 2.0)
    back = join(coordinator, "d1", 3.0, Point(1, STEPS))
    assert back == [Welcome("d1"), DeviceBack("d1", Point(1, STEPS))]
    assert deliver(coordinator, "d0") == []
    assert deliver(coordinator, "d2") == [Aggregate(1, dict.fromkeys(("d0", "d1", "d2"), 10))]


def test_the_next_round_waits_for_who_is_away() -> None:
    coordinator = begun(settings(2))
    deliver(coordinator, "d0")
    deliver(coordinator, "d1")
    coordinator.handle(DeviceLost("d1", "killed"), 2.0)
    coordinator.handle(AdapterReady(1, "adapter"), 2.0)
    assert coordinator.phase is Phase.WAITING and not _starts(coordinator.handle(Tick(), 21.0))
    (start,) = _starts(join(coordinator, "d1", 21.5, Point(1, STEPS)))
    assert start.round == 2 and set(start.after.values()) == {Point(1, STEPS)}


def test_the_next_round_begins_without_who_is_too_late() -> None:
    coordinator = begun(settings(2))
    deliver(coordinator, "d0")
    deliver(coordinator, "d1")
    coordinator.handle(DeviceLost("d1", "killed"), 2.0)
    coordinator.handle(AdapterReady(1, "adapter"), 2.0)
    (start,) = _starts(coordinator.handle(Tick(), 22.0))
    assert list(start.devices) == ["d0"]


def _starts(commands: list[Command]) -> list[StartRound]:
    return [command for command in commands if isinstance(command, StartRound)]


@pytest.mark.parametrize(
    ("points", "after"),
    [
        ((Point(1, 5), Point(2, 5)), Point(1, 5)),  # delivered, and lost on the way to the cloud
        ((Point(1, 5),), Point(1, 5)),
        ((Point(1, 5), Point(2, 3)), Point(2, 3)),  # in the middle of the round
        ((), BEGINNING),
    ],
)
def test_it_goes_on_from_the_newest_that_both_have_and_that_comes_before(
    points: tuple[Point, ...], after: Point
) -> None:
    coordinator = begun(settings(2))
    close_round(coordinator, ["d0", "d1"])
    coordinator.handle(DeviceLost("d1", "killed"), 2.0)
    commands = join(coordinator, "d1", 3.0, *points)
    (replay,) = [command for command in commands if isinstance(command, ReplayRound)]
    assert replay.after == {"d1": after}
    faults = [command for command in commands if isinstance(command, Fault)]
    assert [fault.reason for fault in faults] == (
        []
        if after >= Point(1, 5)
        else [
            "device and edge have no snapshot of round 1 in common: the optimizer's moments start "
            "afresh"
        ]
    )


def test_an_older_snapshot_is_better_than_none_and_is_told() -> None:
    coordinator = begun(settings(2))
    for _ in range(2):
        close_round(coordinator, ["d0", "d1"])
    coordinator.handle(DeviceLost("d1", "killed"), 2.0)
    *_, fault, back, replay = join(coordinator, "d1", 3.0, Point(1, STEPS))
    assert isinstance(fault, Fault) and "go on with the moments of round 1" in fault.reason
    assert back == DeviceBack("d1", Point(1, STEPS))
    assert isinstance(replay, ReplayRound) and replay.after == {"d1": Point(1, STEPS)}


def test_an_edge_takes_its_devices_along_and_brings_them_back() -> None:
    coordinator = begun(settings(2))
    deliver(coordinator, "d0")
    lost = coordinator.handle(EdgeLost("e", "it broke"), 2.0)
    said = Report("edge e: it broke; waiting 20 s for it")
    away = [DeviceAway(name, "its edge e was lost: it broke", 20.0) for name in ("d0", "d1")]
    assert lost == [said, *away]  # no fault: it is back in time
    coordinator.handle(EdgeReady("e", 4), 3.0)
    assert not [c for c in join(coordinator, "d0", 4.0) if isinstance(c, ReplayRound)]
    assert [c for c in join(coordinator, "d1", 4.0) if isinstance(c, ReplayRound)]
    assert deliver(coordinator, "d1", 5.0) == [Aggregate(1, {"d0": 10, "d1": 10})]


def test_an_edge_that_is_not_back_in_time_is_told_with_its_reason() -> None:
    coordinator = begun(settings(2))
    coordinator.handle(EdgeLost("e", "it broke"), 2.0)
    end = coordinator.handle(Tick(), 22.0)[-1]
    late = "d0: its edge e was lost: it broke; not back within rejoin_timeout (20 s)"
    assert isinstance(end, FinishRun) and late in end.reason


AUTO = {"training": {"local_steps": STEPS, "batch_size": 4, "micro_batches": "auto"}}
COUNTS = (1, 2, 4)


def rehearsing(count: int = 2) -> Coordinator:
    """A run whose devices time steps."""
    coordinator = Rebuilt(settings(count, **AUTO))
    coordinator.handle(EdgeReady("e", 4), 0.0)
    for entry in coordinator.settings.devices:
        join(coordinator, entry.name, 0.0)
    assert coordinator.phase is Phase.REHEARSAL
    return coordinator


def test_who_is_lost_in_rehearsal_is_waited_for_and_times_its_steps_again() -> None:
    coordinator = rehearsing(3)
    coordinator.handle(Rehearsed("d0", (3.0, 2.0, 1.0)), 1.0)
    assert coordinator.handle(DeviceLost("d1", "cut"), 2.0) == [DeviceAway("d1", "cut", 20.0)]
    assert coordinator.handle(Rehearsed("d2", (3.0, 2.0, 1.0)), 3.0) == []
    assert coordinator.handle(Tick(), 21.0) == [] and coordinator.phase is Phase.REHEARSAL
    back = DeviceBack("d1", BEGINNING)
    assert join(coordinator, "d1", 21.0) == [Welcome("d1"), back, Rehearse(("d1",), COUNTS)]
    *_, start = coordinator.handle(Rehearsed("d1", (3.0, 2.0, 1.0)), 22.0)
    assert isinstance(start, StartRound) and list(start.devices) == ["d0", "d1", "d2"]


def test_who_is_lost_in_rehearsal_and_has_timed_its_steps_is_waited_for_only() -> None:
    coordinator = rehearsing()
    coordinator.handle(Rehearsed("d0", (3.0, 2.0, 1.0)), 1.0)
    coordinator.handle(DeviceLost("d0", "cut"), 2.0)
    assert coordinator.handle(Rehearsed("d1", (3.0, 2.0, 1.0)), 3.0) == []
    *_, start = join(coordinator, "d0", 4.0)
    assert isinstance(start, StartRound) and list(start.devices) == ["d0", "d1"]


def test_who_is_not_back_in_time_for_its_rehearsal_is_left_out() -> None:
    coordinator = rehearsing(3)
    for name in ("d0", "d2"):
        coordinator.handle(Rehearsed(name, (3.0, 2.0, 1.0)), 1.0)
    coordinator.handle(DeviceLost("d1", "cut"), 2.0)
    fault, _, start = coordinator.handle(Tick(), 22.0)
    assert fault == Fault(0, "d1", "cut; not back within rejoin_timeout (20 s)")
    assert isinstance(start, StartRound) and list(start.devices) == ["d0", "d2"]


def test_an_edge_that_is_lost_in_rehearsal_brings_its_devices_back() -> None:
    coordinator = rehearsing()
    coordinator.handle(Rehearsed("d0", (3.0, 2.0, 1.0)), 1.0)
    lost = coordinator.handle(EdgeLost("e", "it broke"), 2.0)
    assert [type(command) for command in lost] == [Report, DeviceAway, DeviceAway]
    coordinator.handle(EdgeReady("e", 4), 3.0)
    assert not [c for c in join(coordinator, "d0", 4.0) if isinstance(c, Rehearse)]
    assert join(coordinator, "d1", 4.0)[-1] == Rehearse(("d1",), COUNTS)
    *_, start = coordinator.handle(Rehearsed("d1", (3.0, 2.0, 1.0)), 5.0)
    assert isinstance(start, StartRound) and list(start.devices) == ["d0", "d1"]


def test_an_edge_that_cannot_go_on_is_not_waited_for() -> None:
    coordinator = begun(settings(2))
    commands = coordinator.handle(EdgeLost("e", "no memory", final=True, returns=False), 2.0)
    assert isinstance(commands[-1], FinishRun) and "no memory" in commands[-1].reason


def test_who_fell_silent_is_waited_for_until_its_last_strike() -> None:
    coordinator = begun(settings(2))
    for strike in (1, 2):
        commands = coordinator.handle(DeviceLost("d1", "not a byte", "silence"), 2.0)
        said = f"not a byte (strike {strike} of 3)"
        assert commands == [DeviceAway("d1", said, coordinator.settings.network.rejoin_timeout)]
        assert any(isinstance(c, ReplayRound) for c in join(coordinator, "d1", 3.0))
    commands = coordinator.handle(DeviceLost("d1", "not a byte", "silence"), 4.0)
    assert not any(isinstance(command, DeviceAway) for command in commands)
    assert "d1" not in coordinator.progress


@pytest.mark.parametrize("cause", ["offence", "adapter", "left"])
def test_who_broke_the_contract_or_left_for_good_is_not_waited_for(cause: Any) -> None:
    coordinator = begun(settings(2))
    commands = coordinator.handle(DeviceLost("d1", "why", cause), 2.0)
    assert not any(isinstance(command, DeviceAway) for command in commands)
    assert "d1" not in coordinator.progress


def test_other_data_is_another_part() -> None:
    coordinator = begun(settings(2))
    coordinator.handle(DeviceLost("d1", "killed"), 2.0)
    commands = join(coordinator, "d1", 3.0, examples=7)
    assert Fault(1, "d1", "came back with 7 examples; the round began with 10") in commands
    assert "d1" not in coordinator.progress


def test_the_rounds_deadline_leaves_out_the_late_and_not_the_away() -> None:
    coordinator = begun(settings(3))
    deliver(coordinator, "d0")
    coordinator.handle(DeviceLost("d1", "killed"), 95.0)
    coordinator.handle(Tick(), 100.0)
    assert set(coordinator.progress) == {"d0", "d1"}  # d2 was here, and not done
    join(coordinator, "d1", 101.0)
    assert coordinator.handle(Tick(), 200.0) == []  # it has a round's time again
    assert deliver(coordinator, "d1", 200.5) == [Aggregate(1, {"d0": 10, "d1": 10})]


def test_a_restarted_cloud_goes_on_in_the_middle_of_a_round() -> None:
    coordinator = begun(settings(2))
    deliver(coordinator, "d0")
    coordinator.handle(UpdateReceived("d1", "edge", 1, STEPS), 2.0)
    away = coordinator.handle(CloudRestarted(), 3.0)
    assert away == [DeviceAway(name, "the cloud was away", 30.0) for name in ("d0", "d1")]
    coordinator.handle(EdgeReady("e", 4), 4.0)
    assert [type(c) for c in join(coordinator, "d0", 4.0, Point(1, STEPS))] == [Welcome, DeviceBack]
    again = join(coordinator, "d1", 4.0)
    assert [type(command) for command in again] == [Welcome, DeviceBack, ReplayRound]
    assert coordinator.handle(ReportReceived("d1", 1), 5.0) == []  # what it had before is due again
    assert deliver(coordinator, "d1", 5.0) == [Aggregate(1, {"d0": 10, "d1": 10})]


def test_a_restarted_cloud_averages_again() -> None:
    coordinator = begun(settings(2))
    deliver(coordinator, "d0")
    due = deliver(coordinator, "d1")
    assert coordinator.handle(CloudRestarted(), 3.0)[-1:] == due


def test_before_the_first_round_a_restarted_cloud_begins_anew() -> None:
    coordinator = Rebuilt(settings(2))
    coordinator.handle(EdgeReady("e", 4), 0.0)
    join(coordinator, "d0", 0.0)
    assert coordinator.handle(CloudRestarted(), 5.0) == []
    assert coordinator.handle(EdgeReady("e", 4), 5.0) == [UseModel("")]
    join(coordinator, "d0", 5.0)
    (start,) = _starts(join(coordinator, "d1", 5.0))
    assert start.round == 1


AnyOrder.TestCase.settings = hypothesis_settings(
    max_examples=60, stateful_step_count=40, deadline=None
)
TestAnyOrder = AnyOrder.TestCase


def test_the_status_says_who_is_waited_for_and_until_when(tmp_path: Path) -> None:
    coordinator = begun(settings(3))
    deliver(coordinator, "d0")
    coordinator.handle(DeviceLost("d1", "killed"), 2.0)
    coordinator.handle(Tick(), 7.0)
    status = standing("run", coordinator.settings, RunProjection(), coordinator.state)
    status.write(tmp_path / "status.json")
    assert RunStatus.read(tmp_path / "status.json") == status
    away, part = status.waits
    assert away == Wait("cloud", "device d1", "killed", 5.0, 15.0, away=True, kind="return")
    assert part == Wait("cloud", "device d2", "its part of round 1", 7.0, 93.0)
    assert [device.state for device in status.devices][1] == "away: 15 s left"
    assert [device.at_end(ok=True).state for device in status.devices][1] == "lost"
    console = Console(width=120, record=True, file=StringIO())
    console.print(status_picture(status, 7.0))
    assert "cloud waits for device d1: killed; 5 s so far, 15 s left" in console.export_text()


def waits(coordinator: Coordinator) -> list[tuple[str, str, float, float]]:
    """Whom the cloud waits for, for what, for how long by now, and for how long still."""
    found = waits_of(coordinator.state, coordinator.settings)
    return [(own.whom, own.kind, own.seconds, own.seconds_left) for own in found]


def test_the_cloud_says_whom_it_waits_for_in_each_phase() -> None:
    config = settings(3, run={"rounds": 1, "min_devices": 2})
    coordinator = Rebuilt(config)
    coordinator.handle(EdgeReady("e", 4), 0.0)
    join(coordinator, "d0", 1.0)
    coordinator.handle(Tick(), 2.0)
    assert waits(coordinator) == [
        ("device d1", "join", 2.0, 28.0),
        ("device d2", "join", 2.0, 28.0),
    ]
    join(coordinator, "d1", 3.0)
    join(coordinator, "d2", 3.0)
    coordinator.handle(Tick(), 4.0)
    parts_due = [(f"device d{number}", "part", 1.0, 99.0) for number in range(3)]
    assert waits(coordinator) == parts_due
    coordinator.handle(DeviceLost("d1", "killed"), 4.0)
    assert waits(coordinator) == [
        ("device d1", "return", 0.0, 20.0),
        parts_due[0],
        parts_due[2],
    ]
    join(coordinator, "d1", 5.0)
    for name in ("d0", "d1", "d2"):
        deliver(coordinator, name, 6.0)
    coordinator.handle(Tick(), 8.0)
    assert waits(coordinator) == [("cloud", "averaging", 2.0, 98.0)]


def test_the_cloud_says_whom_it_waits_for_where_a_quorum_is_missing() -> None:
    config = settings(2, run={"rounds": 2, "min_devices": 2}, rejoin=1.0)
    coordinator = begun(config)
    for name in ("d0", "d1"):
        deliver(coordinator, name, 1.0)
    coordinator.handle(DeviceLost("d1", "killed"), 1.0)
    coordinator.handle(Tick(), 3.0)
    coordinator.handle(AdapterReady(1, "adapter"), 4.0)
    assert coordinator.phase is Phase.WAITING
    coordinator.handle(Tick(), 5.0)
    assert waits(coordinator) == [("device d1", "join", 1.0, 29.0)]


def test_grace_bounds_the_wait_for_the_rest() -> None:
    network = {"join_timeout": 30.0, "join_grace": 5.0}
    coordinator = Rebuilt(settings(2, run={"rounds": 1, "min_devices": 1}, network=network))
    coordinator.handle(EdgeReady("e", 4), 0.0)
    join(coordinator, "d0", 10.0)
    coordinator.handle(Tick(), 12.0)
    assert waits(coordinator) == [("device d1", "join", 12.0, 3.0)]


def test_the_cloud_says_who_has_yet_to_time_its_steps() -> None:
    config = settings(2, training={"local_steps": STEPS, "batch_size": 4, "micro_batches": "auto"})
    coordinator = Rebuilt(config)
    coordinator.handle(EdgeReady("e", 4), 0.0)
    join(coordinator, "d0", 1.0)
    join(coordinator, "d1", 1.0)
    assert coordinator.phase is Phase.REHEARSAL
    coordinator.handle(Tick(), 2.0)
    assert waits(coordinator) == [
        ("device d0", "timing", 1.0, 99.0),
        ("device d1", "timing", 1.0, 99.0),
    ]


def test_after_a_restart_a_wait_is_no_shorter_than_nothing() -> None:
    """The time of those that never joined is longer then, not its beginning later."""
    coordinator = Coordinator(settings(3, rejoin=60.0))
    coordinator.handle(EdgeReady("e", 4), 0.0)
    for name in ("d0", "d1"):
        join(coordinator, name, 0.0)
    coordinator.handle(Tick(), 31.0)
    for name in ("d0", "d1"):
        deliver(coordinator, name, 32.0)
    coordinator.handle(DeviceLost("d1", "killed"), 33.0)
    coordinator.handle(AdapterReady(1, "a"), 34.0)
    coordinator.handle(CloudRestarted(), 40.0)
    coordinator.handle(Tick(), 41.0)
    assert ("device d2", "join", 7.0, 59.0) in waits(coordinator)


def test_a_wait_for_timed_steps_is_as_long_as_it_is_whoever_times_them_again() -> None:
    config = settings(2, training={"local_steps": STEPS, "batch_size": 4, "micro_batches": "auto"})
    coordinator = Rebuilt(config)
    coordinator.handle(EdgeReady("e", 4), 0.0)
    for name in ("d0", "d1"):
        join(coordinator, name, 1.0)
    coordinator.handle(DeviceLost("d1", "killed"), 11.0)
    join(coordinator, "d1", 21.0)
    assert waits(coordinator) == [
        ("device d0", "timing", 20.0, 100.0),
        ("device d1", "timing", 20.0, 100.0),
    ]


def test_an_asynchronous_run_says_for_whose_updates_it_waits() -> None:
    run = {"rounds": 3, "min_devices": 1, "mode": "asynchronous"}
    coordinator = Rebuilt(settings(3, run=run, aggregation={"buffer_size": 2}))
    coordinator.handle(EdgeReady("e", 4), 0.0)
    for name in ("d0", "d1", "d2"):
        join(coordinator, name, 1.0)
    assert coordinator.phase is Phase.ROUND
    coordinator.handle(Tick(), 11.0)
    found = [str(own) for own in waits_of(coordinator.state, coordinator.settings)]
    assert found == [
        f"cloud waits for device d{n}: its update of round 1; 10 s so far, 90 s left"
        for n in range(3)
    ]
    coordinator.handle(DeviceLost("d1", "killed"), 12.0)
    assert [own[:2] for own in waits(coordinator)] == [
        ("device d1", "return"),
        ("device d0", "part"),
        ("device d2", "part"),
    ]
