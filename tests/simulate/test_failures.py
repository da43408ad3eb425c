"""Devices that fail: what the real coordinator makes of it."""

from __future__ import annotations

from typing import Any

import pytest

from sfl.planners import PLANNERS, Planner, Proposal, State
from sfl.rounds import DeviceLost, DeviceReady, Fault
from sfl.rounds.values import Point
from sfl.simulate.cloud import Cloud
from tests.house.simulated import PHONE, configured, file_of, kinds, played

NETWORK = {"idle_timeout": 8.0, "rejoin_timeout": 30.0}


def _fails(count: int = 2, /, run: dict[str, Any] | None = None, **failures: float) -> Any:
    own = file_of()["simulate"]
    classes = [{**PHONE, "failures": failures}]
    return file_of(
        simulate={**own, "devices": count, "classes": classes},
        run={"rounds": 3, "min_devices": 1, **(run or {})},
        network=NETWORK,
        recovery={"snapshot_steps": 2},
    )


def _until_training(cloud: Cloud) -> None:
    cloud.begin()
    while cloud.coordinator.round < 1:
        cloud.events.next()


def _finish(cloud: Cloud) -> None:
    while not cloud.over:
        assert cloud.events.next()


def test_a_crash_is_seen_at_once_and_the_device_goes_on_from_its_last_snapshot() -> None:
    config, fleet = configured(_fails())
    a_round = played(_fails())[0].rounds[0].seconds
    heard: list[Any] = []
    cloud = Cloud(config, fleet, heard.append)
    _until_training(cloud)
    life = cloud.lives["d0000"]
    crashed = cloud.events.now + 0.5 * a_round
    life._later(0.5 * a_round, life._crash, life._gone)
    _finish(cloud)

    (lost,) = kinds(heard, "DeviceLost")
    assert isinstance(lost.event, DeviceLost)
    assert lost.now == crashed
    assert lost.event.cause == "link"
    back = next(entry for entry in kinds(heard, "DeviceReady") if entry.now > crashed)
    assert isinstance(back.event, DeviceReady)
    assert [point.step for point in back.event.points if point.round == 1] == [2]
    assert len(kinds(heard, "DeviceBack")) == 1
    assert not kinds(heard, "Fault")
    # Three steps before the crash, three after it: the third is done again.
    assert life.working.meter.steps == 3 * 5 + 1


def test_a_short_break_only_delays() -> None:
    config, fleet = configured(_fails())
    undisturbed = played(_fails())[0]
    heard: list[Any] = []
    cloud = Cloud(config, fleet, heard.append)
    _until_training(cloud)
    now = cloud.events.now
    cloud.lives["d0000"].working.hold(now, now + 4.0)
    _finish(cloud)

    assert not kinds(heard, "DeviceLost")
    assert cloud.outcome.rounds[0].seconds == pytest.approx(
        undisturbed.rounds[0].seconds + 4.0, abs=0.5
    )


def test_a_long_break_is_silence_and_a_strike() -> None:
    file = _fails(4, run={"rounds": 30}, break_hours=0.01, break_seconds=40.0)
    _, heard = played(file)

    lost = kinds(heard, "DeviceLost")
    assert lost
    for entry in lost:
        assert isinstance(entry.event, DeviceLost)
        assert entry.event.cause == "silence"
        assert "nothing came for 8 s" in entry.event.reason


def test_who_is_not_back_in_time_is_a_fault_and_joins_a_later_round() -> None:
    file = _fails(6, run={"rounds": 40}, crash_hours=0.01, restart_seconds=60.0)
    outcome, heard = played(file)

    reasons = [entry.event.reason for entry in kinds(heard, "Fault")]  # type: ignore[union-attr]
    assert any("not back within rejoin_timeout (30 s)" in reason for reason in reasons)
    assert outcome.ok
    assert any(own.delivered < 6 for own in outcome.rounds)
    assert sum(own.losses for own in outcome.classes) == len(kinds(heard, "DeviceLost"))


def test_a_device_that_its_cut_does_not_fit_never_joins() -> None:
    own = file_of()["simulate"]
    model = {**own["model"], "block_memory": "100MB", "process_memory": "200MB"}
    classes = [{**PHONE, "memory": "350MB"}]
    file = file_of(
        simulate={**own, "model": model, "classes": classes},
        run={"rounds": 1, "min_devices": 1},
        network={"join_timeout": 20.0},
    )
    outcome, heard = played(file)

    joined = [entry.event.device for entry in kinds(heard, "DeviceJoined")]  # type: ignore[union-attr]
    assert joined == ["a"]  # b has two blocks
    assert outcome.ok
    assert outcome.classes[0].never_joined == 1


def test_too_few_devices_end_the_run_as_a_real_one() -> None:
    file = _fails(3, run={"rounds": 50, "min_devices": 3}, crash_hours=0.005, restart_seconds=900.0)
    outcome, _ = played(file)

    assert not outcome.ok
    assert "its process ended; not back within rejoin_timeout (30 s)" in outcome.reason


def test_points_keep_the_last_ends_of_rounds() -> None:
    config, fleet = configured(_fails(run={"rounds": 5}))
    cloud = Cloud(config, fleet)
    cloud.begin()
    _finish(cloud)

    lineage = cloud.coordinator.state.lineages["d0000"]
    assert cloud.lives["d0000"].points == (Point(4, 5, lineage), Point(5, 5, lineage))


def test_a_planner_that_fails_costs_a_simulated_run_no_more_than_a_real_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(state: State) -> Proposal:
        raise RuntimeError("out of ideas")

    built_in: Any = PLANNERS.built_in
    monkeypatch.setitem(built_in, "fleet", Planner("fleet", fails))
    outcome, heard = played(file_of(3, planner={"policy": "fleet"}))
    assert outcome.ok
    faults = [entry.event.reason for entry in heard if isinstance(entry.event, Fault)]
    said = "planner 'fleet' failed, so that cuts stay: RuntimeError: out of ideas"
    assert faults == [said] * 3
