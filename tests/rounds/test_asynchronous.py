"""Asynchronous runs: nobody waits for a slow device, and each update counts once, by its age."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from pydantic import ValidationError

from sfl.config import RunSettings
from sfl.rounds import (
    AdapterReady,
    Aggregate,
    CloudRestarted,
    Command,
    DeviceAway,
    DeviceBack,
    DeviceJoined,
    DeviceLost,
    DeviceOffended,
    DeviceReady,
    EdgeLost,
    EdgeReady,
    Event,
    Evict,
    Fault,
    FinishRun,
    ReplayRound,
    Report,
    StartRound,
    Tick,
    Update,
    UpdatesRefused,
    Welcome,
)
from sfl.rounds.values import BEGINNING, Point
from tests.house.asynchronous import (
    ROUNDS,
    STEPS,
    average,
    begun,
    deliver,
    join,
    merged,
    parts,
    settings,
    steps,
)
from tests.house.losses import Losses
from tests.house.lost import as_of_one_past
from tests.house.rebuilt import Rebuilt


def test_nobody_waits_for_the_slow_one_and_its_update_counts_by_its_age() -> None:
    coordinator = begun(settings())
    assert deliver(coordinator, "d0") == []  # it has nothing newer to begin from
    (aggregate,) = deliver(coordinator, "d1")
    assert merged(coordinator, aggregate) == {"d0": 1, "d1": 1}
    (start,) = average(coordinator)
    assert as_of_one_past(start) == StartRound(
        2, {n: steps(2) for n in ("d0", "d1")}, "none", dict.fromkeys(("d0", "d1"), Point(1, STEPS))
    )
    assert deliver(coordinator, "d0") == []
    start, aggregate = deliver(coordinator, "d2")  # its first: it goes on with the newest at once
    assert as_of_one_past(start) == StartRound(2, {"d2": steps(2)}, "none", {"d2": Point(1, STEPS)})
    assert merged(coordinator, aggregate) == {"d0": 2, "d2": 1}
    assert [u.staleness(2) for u in coordinator.updates_of(aggregate).values()] == [0, 1]


def test_who_delivers_while_an_average_is_made_goes_on_and_counts_in_the_next() -> None:
    coordinator = begun(settings(4, 2))
    deliver(coordinator, "d0")
    deliver(coordinator, "d1")
    assert deliver(coordinator, "d2") == []
    assert deliver(coordinator, "d3") == []
    start, aggregate = average(coordinator)
    assert list(start.devices) == ["d0", "d1", "d2", "d3"]
    assert merged(coordinator, aggregate) == {"d2": 1, "d3": 1}


def test_an_average_has_one_update_of_a_device() -> None:
    coordinator = begun(settings(4, 3))
    for name in ("d0", "d1", "d2"):
        deliver(coordinator, name)
    (start,) = deliver(coordinator, "d3")[:1] or average(coordinator)
    assert "d3" in start.devices  # its first waits, and it has begun its second
    assert deliver(coordinator, "d3") == []
    assert deliver(coordinator, "d0") == []
    (aggregate,) = deliver(coordinator, "d1")
    assert merged(coordinator, aggregate) == {"d0": 2, "d1": 2, "d3": 1}
    average(coordinator)
    deliver(coordinator, "d0")
    _, aggregate = deliver(coordinator, "d2")
    assert merged(coordinator, aggregate) == {"d0": 3, "d2": 2, "d3": 2}


def test_with_a_buffer_for_all_rounds_are_those_of_a_synchronous_run() -> None:
    values = settings(3, 3).model_dump()
    values["run"]["mode"], values["aggregation"]["buffer_size"] = "synchronous", None
    runs = [begun(settings(3, 3)), begun(RunSettings.model_validate(values))]
    told: list[list[Command]] = [[], []]
    for coordinator, commands in zip(runs, told, strict=True):
        for _ in range(ROUNDS):
            for name in ("d1", "d0", "d2"):
                commands += deliver(coordinator, name)
            commands += average(coordinator)
        for name in ("d1", "d0", "d2"):
            commands += deliver(coordinator, name)
    assert told[0] == told[1]
    assert told[0][-1] == FinishRun(True, "every round closed")


def test_who_is_at_work_when_the_last_adapter_is_there_evaluates_it() -> None:
    coordinator = begun(settings())
    for _ in range(ROUNDS):
        deliver(coordinator, "d0")
        deliver(coordinator, "d1")
        commands = average(coordinator)
    reason = "the run's last adapter was there before its update"
    assert commands[:2] == [DeviceAway("d2", reason, 20.0), Evict("d2", reason)]
    assert coordinator.handle(DeviceLost("d2", "evicted"), 2.0) == [
        Report("waiting for d2")
    ]  # it was told before
    commands = join(coordinator, "d2", 3.0)
    assert commands[:2] == [Welcome("d2"), DeviceBack("d2", BEGINNING)]
    (start,) = [c for c in commands if isinstance(c, StartRound)]
    assert start.round == ROUNDS + 1 and list(start.devices) == ["d0", "d1", "d2"]
    for name in ("d0", "d1"):
        deliver(coordinator, name)
    assert deliver(coordinator, "d2") == [FinishRun(True, "every round closed")]


def test_a_lost_device_does_its_own_part_again() -> None:
    coordinator = begun(settings())
    deliver(coordinator, "d0")
    deliver(coordinator, "d1")
    average(coordinator)
    assert coordinator.handle(DeviceLost("d2", "killed"), 2.0) == [DeviceAway("d2", "killed", 20.0)]
    assert join(coordinator, "d2", 3.0) == [
        Welcome("d2"),
        DeviceBack("d2", BEGINNING),
        ReplayRound(1, {"d2": steps(1)}, "all", {"d2": BEGINNING}),
    ]
    coordinator.handle(DeviceLost("d0", "killed"), 4.0)
    replay = join(coordinator, "d0", 5.0, Point(1, STEPS))[-1]
    assert replay == ReplayRound(2, {"d0": steps(2)}, "none", {"d0": Point(1, STEPS)})


def test_a_device_that_was_not_back_in_time_begins_with_the_newest() -> None:
    coordinator = begun(settings())
    coordinator.handle(DeviceLost("d2", "killed"), 2.0)
    deliver(coordinator, "d0")
    deliver(coordinator, "d1")
    average(coordinator)
    (fault,) = coordinator.handle(Tick(), 22.0)
    assert fault == Fault(2, "d2", "killed; not back within rejoin_timeout (20 s)")
    start = join(coordinator, "d2", 30.0)[-1]
    assert as_of_one_past(start) == StartRound(2, {"d2": steps(2)}, "none", {"d2": BEGINNING})


def test_a_device_that_had_delivered_waits_where_it_was() -> None:
    coordinator = begun(settings())
    deliver(coordinator, "d0")
    coordinator.handle(DeviceLost("d0", "killed"), 2.0)
    back = join(coordinator, "d0", 3.0)  # its snapshots are gone, and its update is not
    assert [type(command) for command in back] == [Welcome, Fault, DeviceBack]
    (aggregate,) = deliver(coordinator, "d1")
    assert merged(coordinator, aggregate) == {"d0": 1, "d1": 1}


def test_with_fewer_devices_than_the_buffer_holds_an_average_takes_those() -> None:
    coordinator = begun(settings(3, 3))
    deliver(coordinator, "d0")
    deliver(coordinator, "d1")
    coordinator.handle(DeviceLost("d2", "killed"), 2.0)
    assert coordinator.handle(Tick(), 21.0) == []
    fault, aggregate = coordinator.handle(Tick(), 22.0)
    assert isinstance(fault, Fault) and merged(coordinator, aggregate) == {"d0": 1, "d1": 1}


def test_without_enough_devices_the_run_ends_after_a_while() -> None:
    coordinator = begun(settings(2, 2, run={"min_devices": 2}))
    deliver(coordinator, "d0")
    coordinator.handle(DeviceLost("d1", "broken", "left"), 2.0)
    assert coordinator.handle(Tick(), 31.0) == []
    (end,) = coordinator.handle(Tick(), 32.0)
    few = "round 1 has 1 of at least 2 updates, and no device is at work"
    assert end == FinishRun(False, f"{few}; d1: broken")


def test_a_device_that_never_delivers_is_given_up() -> None:
    coordinator = begun(settings())
    for now in (40.0, 80.0):
        deliver(coordinator, "d0", now)
        deliver(coordinator, "d1", now)
        average(coordinator, now)
    commands = coordinator.handle(Tick(), 100.0)
    assert [type(command) for command in commands] == [Evict, Fault]
    assert "not done within round_timeout (100 s)" in commands[1].reason
    assert coordinator.state.part_of("d2") is None and coordinator.handle(Tick(), 101.0) == []


def test_a_refused_update_does_not_count_and_the_buffer_fills_again() -> None:
    coordinator = begun(settings())
    deliver(coordinator, "d0")
    deliver(coordinator, "d1")
    commands = coordinator.handle(UpdatesRefused(1, {"d0": "too long"}), 2.0)
    assert [type(command) for command in commands] == [Evict, Fault]
    (aggregate,) = deliver(coordinator, "d2")
    assert merged(coordinator, aggregate) == {"d1": 1, "d2": 1}
    join(coordinator, "d0", 3.0, Point(1, STEPS))  # for the next round
    assert "d0" in average(coordinator)[0].devices


def test_what_an_offender_has_delivered_does_not_count() -> None:
    coordinator = begun(settings())
    deliver(coordinator, "d0")
    coordinator.handle(DeviceOffended("d0", "nonsense"), 2.0)
    assert deliver(coordinator, "d1") == []
    (aggregate,) = deliver(coordinator, "d2")
    assert merged(coordinator, aggregate) == {"d1": 1, "d2": 1}


def test_an_update_that_is_too_old_does_not_count_and_that_is_told() -> None:
    coordinator = begun(settings(aggregation={"max_staleness": 1}))
    for _ in range(2):
        deliver(coordinator, "d0")
        deliver(coordinator, "d1")
        average(coordinator)
    fault, start = deliver(coordinator, "d2")
    said = "its update of round 1 does not count: 2 adapters were made since it began"
    assert fault == Fault(3, "d2", f"{said} (aggregation.max_staleness = 1)")
    assert as_of_one_past(start) == StartRound(
        3, {"d2": steps(3)}, "sample", {"d2": Point(1, STEPS)}
    )
    assert not coordinator.state.buffer.waiting


def test_a_restarted_cloud_averages_the_same_again() -> None:
    coordinator = begun(settings(4, 2))
    deliver(coordinator, "d0")
    due = deliver(coordinator, "d1")
    deliver(coordinator, "d2")
    assert coordinator.handle(CloudRestarted(), 3.0)[-1:] == due
    coordinator.handle(EdgeReady("e", 4), 4.0)
    replayed = [c for c in join(coordinator, "d3", 5.0) if isinstance(c, ReplayRound)]
    assert [command.round for command in replayed] == [1]
    assert not average(coordinator)  # all that could go on are away yet, but for d3, at work
    start = join(coordinator, "d2", 5.0, Point(1, STEPS))[-1]
    assert as_of_one_past(start) == StartRound(2, {"d2": steps(2)}, "none", {"d2": Point(1, STEPS)})


def test_adapters_that_devices_work_from_are_needed() -> None:
    coordinator = begun(settings())
    assert coordinator.state.needed_adapter == 0
    for _ in range(2):
        deliver(coordinator, "d0")
        deliver(coordinator, "d1")
        average(coordinator)
    assert coordinator.state.needed_adapter == 0  # of d2
    deliver(coordinator, "d2")
    assert coordinator.state.needed_adapter == 0  # its update waits
    deliver(coordinator, "d0")
    average(coordinator)
    assert coordinator.state.needed_adapter == 2


@pytest.mark.parametrize(
    ("problem", "sections"),
    [
        (
            "aggregation.buffer_size: at most the number of devices",
            {"aggregation": {"buffer_size": 4}},
        ),
        ("run.min_devices: at most aggregation.buffer_size", {"run": {"min_devices": 3}}),
        (
            "aggregation.late_updates: it is for synchr",
            {"aggregation": {"late_updates": "weighted"}},
        ),
        ("network.straggler_factor: nobody waits", {"network": {"straggler_factor": 2.0}}),
        ("run.mode: strategy 'flora' gives", {"aggregation": {"strategy": "flora"}}),
        ("run.mode: strategy 'flexlora' gives", {"aggregation": {"strategy": "flexlora"}}),
        (
            "aggregation.buffer_size: median needs 3 devices in every average",
            {"aggregation": {"strategy": "median"}, "run": {"min_devices": None}},
        ),
        ("aggregation.buffer_size: it is for asynchronous", {"run": {"mode": "synchronous"}}),
        (
            "aggregation.max_staleness: a late update does not count in this run",
            {
                "run": {"mode": "synchronous"},
                "aggregation": {"buffer_size": None, "max_staleness": 3},
            },
        ),
        (
            "aggregation.late_updates: strategy 'flora' gives",
            {
                "run": {"mode": "synchronous"},
                "aggregation": {
                    "buffer_size": None,
                    "late_updates": "weighted",
                    "strategy": "flora",
                },
            },
        ),
    ],
)
def test_what_does_not_go_together_is_refused(problem: str, sections: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as raised:
        settings(**sections)
    assert problem in str(raised.value)


def test_what_a_buffer_holds_by_default() -> None:
    assert [settings(count, None).buffer_size for count in (1, 2, 5)] == [1, 1, 3]
    assert settings(5, None, run={"min_devices": None}).min_devices == 3
    assert settings(5, 5, run={"min_devices": None}).min_devices == 4
    robust = settings(5, None, aggregation={"strategy": "krum"}, run={"min_devices": None})
    assert robust.buffer_size == 5


def test_an_old_change_counts_less() -> None:
    half = settings().aggregation
    assert [half.staleness_weight(s) for s in (0, 3)] == [1.0, 0.5]
    assert settings(aggregation={"staleness_exponent": 0.0}).aggregation.staleness_weight(9) == 1.0
    assert math.isclose(half.staleness_weight(1), 2**-0.5)


def test_who_is_too_slow_later_has_delivered_all_the_same() -> None:
    coordinator = begun(settings(4, 3, network={"round_timeout": 100.0}))
    for name in ("d0", "d1", "d2"):
        deliver(coordinator, name)
    average(coordinator)
    deliver(coordinator, "d3", 90.0)  # it waits for the next average
    deliver(coordinator, "d0", 95.0)
    coordinator.handle(Tick(), 120.0)
    commands = coordinator.handle(Tick(), 191.0)
    (fault,) = [command for command in commands if isinstance(command, Fault)]
    assert fault.device == "d3" and "round_timeout" in fault.reason
    (aggregate,) = [command for command in commands if isinstance(command, Aggregate)]
    assert merged(coordinator, aggregate) == {"d0": 2, "d3": 1}


class AnyOrder(RuleBasedStateMachine):
    """Losses, returns, restarts, doubled and late words in any order: each update counts once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.over: FinishRun | None = None
        self.sent: list[Event] = []
        self.computing: dict[str, int] = {}
        """Devices that have been told a round, and which."""
        self.lineage: dict[str, int] = {}
        self.snapshots: dict[str, tuple[Point, ...]] = {}
        self.delivered: set[tuple[str, int]] = set()
        self.averaged: set[tuple[str, int]] = set()
        self.merging: tuple[Aggregate, dict[str, Update]] | None = None
        self.evicted: set[str] = set()
        self.losses = Losses()

    @initialize(count=st.integers(1, 4), data=st.data())
    def begin(self, count: int, data: st.DataObject) -> None:
        self.names = [f"d{n}" for n in range(count)]
        size = data.draw(st.integers(1, count))
        self.coordinator = Rebuilt(settings(count, size, rejoin=1000.0))
        self.happens(EdgeReady("e", 4))
        for name in self.names:
            self.join(name)

    def happens(self, event: Event) -> None:
        for command in self.coordinator.handle(event, self.now):
            self.do(command)
        while self.evicted:
            name = self.evicted.pop()
            self.computing.pop(name, None)
            self.losses.note(name)
            self.happens(DeviceLost(name, "evicted"))

    def do(self, command: Command) -> None:
        assert not isinstance(command, Fault), command
        if isinstance(command, StartRound | ReplayRound):
            for name in command.devices:
                assert name in self.coordinator.devices
                known = self.snapshots.get(name, ())
                assert command.after[name] == max(known, default=BEGINNING)
                assert (name, command.round) not in self.delivered
                assert all(p.round < command.round for p in known)
                assert name not in self.computing
                self.computing[name] = command.round
                self.lineage[name] = command.lineage[name]
        elif isinstance(command, Aggregate):
            made = command, self.coordinator.updates_of(command)
            assert self.merging in (None, made)  # a restarted cloud makes the same again
            self.merging = made
            assert len(made[1]) >= self.coordinator.settings.buffer_size
            for name, update in made[1].items():
                assert (name, update.round) in self.delivered - self.averaged
        elif isinstance(command, Evict):
            self.evicted.add(command.device)
        elif isinstance(command, FinishRun):
            self.over = command

    def join(self, name: str) -> None:
        self.computing.pop(name, None)
        self.happens(DeviceJoined(name, "e"))
        self.happens(DeviceReady(name, 10, points=self.snapshots.get(name, ())))

    def here(self) -> list[str]:
        return sorted(self.coordinator.devices)

    def running(self) -> bool:
        return self.over is None

    @precondition(running)
    @rule(data=st.data(), many=st.integers(1, 3))
    def a_device_delivers(self, data: st.DataObject, many: int) -> None:
        here = [name for name in self.here() if name in self.computing]
        if here:
            self.deliver(data.draw(st.sampled_from(here)), many)

    def deliver(self, name: str, many: int = 3) -> None:
        own = self.coordinator.state.part_of(name)
        assert own is not None and own.round == self.computing[name]
        if own.steps.count and many == 3:
            reached = Point(own.round, own.steps.count, self.lineage[name])
            self.snapshots[name] = (*self.snapshots.get(name, ())[-1:], reached)
            self.delivered.add((name, own.round))
        if many == 3:
            del self.computing[name]
            self.losses.delivered(name)
        for event in parts(self.coordinator.state, name)[:many]:
            self.sent.append(event)
            self.happens(event)

    @precondition(lambda self: self.running() and self.sent)
    @rule(data=st.data())
    def something_comes_again(self, data: st.DataObject) -> None:
        event: Any = data.draw(st.sampled_from(self.sent))
        if (event.device, event.round) in self.delivered:
            before = self.coordinator.state
            self.happens(event)
            assert self.coordinator.state.buffer == before.buffer

    @precondition(running)
    @rule(data=st.data())
    def a_device_is_lost(self, data: st.DataObject) -> None:
        if names := self.losses.may(self.here()):
            name = data.draw(st.sampled_from(names))
            self.computing.pop(name, None)
            self.losses.note(name)
            self.happens(DeviceLost(name, "killed"))

    @precondition(running)
    @rule()
    def the_edge_is_lost(self) -> None:
        if self.coordinator.round and self.losses.may(here := self.here()) == here:
            self.computing.clear()
            self.losses.note(*here)
            for command in self.coordinator.handle(EdgeLost("e", "killed"), self.now):
                if not isinstance(command, Fault):  # an edge's loss is told, whatever comes of it
                    self.do(command)
            self.happens(EdgeReady("e", 4))

    @precondition(running)
    @rule()
    def the_cloud_is_restarted(self) -> None:
        self.computing.clear()
        self.losses.restarted()
        self.happens(CloudRestarted())
        self.happens(EdgeReady("e", 4))

    @precondition(running)
    @rule(data=st.data())
    def a_device_is_back(self, data: st.DataObject) -> None:
        if missing := sorted(set(self.names) - set(self.here())):
            self.join(data.draw(st.sampled_from(missing)))

    @precondition(lambda self: self.running() and self.merging)
    @rule()
    def the_adapter_is_there(self) -> None:
        assert self.merging is not None
        command, updates = self.merging
        self.averaged |= {(name, update.round) for name, update in updates.items()}
        self.merging = None
        self.happens(AdapterReady(command.round, "adapter"))

    @precondition(running)
    @rule(seconds=st.floats(0.1, 1.0))
    def time_goes_by(self, seconds: float) -> None:
        self.now += seconds
        self.happens(Tick())

    @rule()
    def somebody_looks_on(self) -> None:
        """A run that is over answers nothing any more."""
        if self.over is not None:
            assert self.coordinator.handle(Tick(), self.now) == []

    def teardown(self) -> None:
        """With everybody back the run comes to its end, and only what came last did not count."""
        if not hasattr(self, "coordinator"):
            return
        waits: set[tuple[str, int]] = set()
        for _ in range(20 * ROUNDS):
            if self.over is not None:
                break
            for name in self.names:
                if name not in self.coordinator.devices and self.over is None:
                    self.join(name)
            if self.merging is not None:
                if self.merging[0].round == ROUNDS:
                    waiting = self.coordinator.state.buffer.waiting
                    waits = {(n, u.round) for n, own in waiting.items() for u in own}
                self.the_adapter_is_there()
            for name in [n for n in self.here() if n in self.computing]:
                if name in self.computing and name in self.coordinator.devices:
                    self.deliver(name)
        assert self.over is not None and self.over.ok, self.coordinator.state
        unaveraged = self.delivered - self.averaged
        assert len(unaveraged) <= 2 * len(self.names) and waits <= unaveraged


AnyOrder.TestCase.settings = hypothesis_settings(
    max_examples=60, stateful_step_count=40, deadline=None
)
TestAnyOrder = AnyOrder.TestCase
