"""Updates that come after their round has closed: dropped, or counted later by their age."""

from __future__ import annotations

from typing import Any

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from sfl.config import RunSettings
from sfl.rounds import (
    AdapterReady,
    Aggregate,
    CloudRestarted,
    Coordinator,
    DeviceAway,
    DeviceJoined,
    DeviceLost,
    DeviceReady,
    EdgeReady,
    Event,
    Evict,
    Fault,
    FinishRun,
    Phase,
    ReplayRound,
    StartRound,
    Tick,
    Update,
    UpdatesRefused,
)
from sfl.rounds.values import BEGINNING, Point
from tests.house.asynchronous import average, begun, deliver, join, merged, parts, settings, steps
from tests.house.rebuilt import Rebuilt


def weighted(count: int = 3, policy: str = "weighted", **more: Any) -> RunSettings:
    more["run"] = {"mode": "synchronous", **more.get("run", {})}
    more["aggregation"] = {"late_updates": policy, **more.get("aggregation", {})}
    return settings(count, None, **more)


def late(config: RunSettings) -> Coordinator:
    """Round 1 has closed without d2, and round 2 is open."""
    coordinator = begun(config)
    deliver(coordinator, "d0")
    deliver(coordinator, "d1")
    fault, aggregate = coordinator.handle(Tick(), 100.0)
    said = "not done within round_timeout (100 s); its update counts when it comes"
    assert fault == Fault(1, "d2", said) and merged(coordinator, aggregate) == {"d0": 1, "d1": 1}
    (start,) = [c for c in average(coordinator, 101.0) if isinstance(c, StartRound)]
    assert (start.round, list(start.devices)) == (2, ["d0", "d1"])
    return coordinator


def test_by_default_who_is_late_is_sent_away() -> None:
    coordinator = begun(weighted(policy="drop"))
    deliver(coordinator, "d0")
    deliver(coordinator, "d1")
    commands = coordinator.handle(Tick(), 100.0)
    assert [type(command) for command in commands] == [Evict, Fault, Aggregate]
    assert not coordinator.state.buffer.unawaited


def test_a_late_update_counts_in_the_round_that_is_open_then() -> None:
    coordinator = late(weighted())
    assert coordinator.state.needed_adapter == 0
    deliver(coordinator, "d0", 102.0)
    assert deliver(coordinator, "d2", 103.0) == []  # it takes part again in round 3
    (aggregate,) = deliver(coordinator, "d1", 104.0)
    assert merged(coordinator, aggregate) == {"d0": 2, "d1": 2, "d2": 1}
    assert coordinator.updates_of(aggregate)["d2"].staleness(2) == 1
    (start,) = [c for c in average(coordinator, 105.0) if isinstance(c, StartRound)]
    assert start.devices == dict.fromkeys(("d0", "d1", "d2"), steps(3))
    lineage = coordinator.state.lineages["d2"]
    assert start.after["d2"] == Point(1, 5, lineage) and coordinator.state.needed_adapter is None


def test_an_update_that_comes_while_its_round_is_averaged_is_outdone_by_a_newer_one() -> None:
    coordinator = begun(weighted())
    deliver(coordinator, "d0")
    deliver(coordinator, "d1")
    coordinator.handle(Tick(), 100.0)
    assert deliver(coordinator, "d2", 100.5) == []
    (start,) = [c for c in average(coordinator, 101.0) if isinstance(c, StartRound)]
    assert list(start.devices) == ["d0", "d1", "d2"]
    for name in ("d0", "d1"):
        deliver(coordinator, name, 102.0)
    fault, aggregate = deliver(coordinator, "d2", 102.0)
    said = "its update of round 1 does not count: it has a newer one"
    assert fault == Fault(2, "d2", said)
    assert merged(coordinator, aggregate) == {"d0": 2, "d1": 2, "d2": 2}


def test_who_was_not_back_in_time_goes_on_with_its_round_later() -> None:
    coordinator = begun(weighted())
    coordinator.handle(DeviceLost("d2", "killed"), 2.0)
    for name in ("d0", "d1"):
        deliver(coordinator, name)
    fault, _ = coordinator.handle(Tick(), 22.0)
    said = "killed; not back within rejoin_timeout (20 s); its update counts when it comes"
    assert fault == Fault(1, "d2", said)
    average(coordinator, 23.0)
    replay = join(coordinator, "d2", 90.0)[-1]
    assert replay == ReplayRound(1, {"d2": steps(1)}, "all", {"d2": BEGINNING})
    assert deliver(coordinator, "d2", 91.0) == []
    deliver(coordinator, "d0", 92.0)
    (aggregate,) = deliver(coordinator, "d1", 93.0)
    assert merged(coordinator, aggregate) == {"d0": 2, "d1": 2, "d2": 1}


def test_a_late_device_may_take_its_time() -> None:
    coordinator = late(weighted())
    for now in (190.0, 280.0):
        deliver(coordinator, "d0", now)
        deliver(coordinator, "d1", now)
        average(coordinator, now)
    assert "d2" in coordinator.state.buffer.unawaited and coordinator.round == 4


def test_a_refused_late_update_is_left_out_and_the_round_averaged_again() -> None:
    coordinator = late(weighted())
    for name in ("d2", "d0", "d1"):
        deliver(coordinator, name, 102.0)
    evict, fault, aggregate = coordinator.handle(UpdatesRefused(2, {"d2": "too long"}), 103.0)
    assert isinstance(evict, Evict) and isinstance(fault, Fault)
    assert merged(coordinator, aggregate) == {"d0": 2, "d1": 2}


def test_a_restarted_cloud_averages_the_same_late_updates_again() -> None:
    coordinator = late(weighted())
    deliver(coordinator, "d2", 102.0)
    deliver(coordinator, "d0", 102.0)
    due = deliver(coordinator, "d1", 102.0)
    assert coordinator.handle(CloudRestarted(), 103.0)[-1:] == due
    coordinator.handle(EdgeReady("e", 4), 104.0)


def test_a_late_part_outlives_a_restart_and_is_done_again() -> None:
    coordinator = late(weighted())
    coordinator.handle(CloudRestarted(), 103.0)
    coordinator.handle(EdgeReady("e", 4), 104.0)
    replay = join(coordinator, "d2", 104.0)[-1]
    assert replay == ReplayRound(1, {"d2": steps(1)}, "all", {"d2": BEGINNING})


def test_who_is_late_when_the_last_adapter_is_there_evaluates_it() -> None:
    coordinator = begun(weighted(run={"rounds": 1}))
    for name in ("d0", "d1"):
        deliver(coordinator, name)
    coordinator.handle(Tick(), 100.0)
    commands = average(coordinator, 101.0)
    assert [type(command) for command in commands[:2]] == [DeviceAway, Evict]
    assert coordinator.phase is Phase.WAITING
    (start,) = [c for c in join(coordinator, "d2", 102.0) if isinstance(c, StartRound)]
    assert list(start.devices) == ["d0", "d1", "d2"] and start.round == 2


def test_too_late_is_too_late() -> None:
    coordinator = late(weighted(aggregation={"max_staleness": 1}))
    for name in ("d0", "d1"):
        deliver(coordinator, name, 102.0)
    average(coordinator, 103.0)
    (fault,) = deliver(coordinator, "d2", 104.0)
    assert isinstance(fault, Fault) and "2 adapters were made since it began" in fault.reason


def test_who_never_returns_holds_no_adapter_for_ever() -> None:
    coordinator = late(weighted(aggregation={"max_staleness": 1}))
    coordinator.handle(DeviceLost("d2", "killed"), 101.0)
    coordinator.handle(Tick(), 130.0)
    assert "d2" not in coordinator.state.away and coordinator.state.needed_adapter == 0
    for now in (131.0, 141.0):
        for name in ("d0", "d1"):
            deliver(coordinator, name, now)
        average(coordinator, now + 1.0)
    assert coordinator.state.needed_adapter is None
    assert "d2" not in coordinator.state.buffer.unawaited


class AnyOrder(RuleBasedStateMachine):
    """Late, lost and returning devices in any order: each update counts once at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.over = False
        self.computing: dict[str, int] = {}
        self.delivered: set[tuple[str, int]] = set()
        self.averaged: set[tuple[str, int]] = set()
        self.merging: tuple[Aggregate, dict[str, Update]] | None = None

    @initialize(count=st.integers(2, 4))
    def begin(self, count: int) -> None:
        self.names = [f"d{n}" for n in range(count)]
        self.coordinator = Rebuilt(weighted(count, run={"rounds": 12}))
        self.happens(EdgeReady("e", 4))
        for name in self.names:
            self.join(name)

    def happens(self, event: Event) -> None:
        evicted = []
        for command in self.coordinator.handle(event, self.now):
            if isinstance(command, StartRound | ReplayRound):
                for name in command.devices:
                    assert name not in self.computing and name in self.coordinator.devices
                    assert (name, command.round) not in self.delivered
                    self.computing[name] = command.round
            elif isinstance(command, Aggregate):
                made = command, self.coordinator.updates_of(command)
                assert self.merging in (None, made)
                self.merging = made
                for name, update in made[1].items():
                    assert (name, update.round) in self.delivered - self.averaged
            elif isinstance(command, Evict):
                evicted.append(command.device)
            elif isinstance(command, FinishRun):
                self.over = True
        for name in evicted:
            self.computing.pop(name, None)
            self.happens(DeviceLost(name, "evicted"))

    def join(self, name: str) -> None:
        self.computing.pop(name, None)
        self.happens(DeviceJoined(name, "e"))
        self.happens(DeviceReady(name, 10))

    @precondition(lambda self: not self.over and self.computing)
    @rule(data=st.data())
    def a_device_delivers(self, data: st.DataObject) -> None:
        here = sorted(set(self.computing) & set(self.coordinator.devices))
        if here:
            name = data.draw(st.sampled_from(here))
            own = self.coordinator.state.part_of(name)
            assert own is not None and own.round == self.computing.pop(name)
            if own.steps.count:
                self.delivered.add((name, own.round))
            for event in parts(self.coordinator.state, name):
                self.happens(event)

    @precondition(lambda self: not self.over)
    @rule(data=st.data())
    def a_device_is_lost(self, data: st.DataObject) -> None:
        if here := sorted(self.coordinator.devices):
            name = data.draw(st.sampled_from(here))
            self.computing.pop(name, None)
            self.happens(DeviceLost(name, "killed"))

    @precondition(lambda self: not self.over)
    @rule(data=st.data())
    def a_device_is_back(self, data: st.DataObject) -> None:
        out = self.coordinator.strikes.out
        missing = sorted(set(self.names) - set(self.coordinator.devices) - set(out))
        if missing:
            self.join(data.draw(st.sampled_from(missing)))

    @precondition(lambda self: not self.over)
    @rule()
    def the_cloud_is_restarted(self) -> None:
        self.computing.clear()
        self.happens(CloudRestarted())
        self.happens(EdgeReady("e", 4))

    @precondition(lambda self: not self.over and self.merging)
    @rule()
    def the_adapter_is_there(self) -> None:
        assert self.merging is not None
        command, updates = self.merging
        self.averaged |= {(name, update.round) for name, update in updates.items()}
        self.merging = None
        self.happens(AdapterReady(command.round, "adapter"))

    @precondition(lambda self: not self.over)
    @rule(seconds=st.sampled_from([0.5, 10.0, 21.0, 99.0]))
    def time_goes_by(self, seconds: float) -> None:
        self.now += seconds
        self.happens(Tick())

    @rule()
    def somebody_looks_on(self) -> None:
        """A run that is over answers nothing any more."""
        if self.coordinator.phase is Phase.OVER:
            assert self.coordinator.handle(Tick(), self.now) == []


AnyOrder.TestCase.settings = hypothesis_settings(
    max_examples=60, stateful_step_count=60, deadline=None
)
TestAnyOrder = AnyOrder.TestCase
