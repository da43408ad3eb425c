"""Edges add up what their devices train: which sums are asked for, and what loses an update."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from unittest.mock import ANY

import pytest

from sfl.config import RunSettings
from sfl.report.standing import waits_of
from sfl.rounds import (
    AdapterReady,
    Aggregate,
    CloudRestarted,
    Command,
    Coordinator,
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
    Phase,
    Reduce,
    ReplayRound,
    ReportReceived,
    StartRound,
    SumReceived,
    Tick,
    UpdateReceived,
    UpdatesRefused,
)
from sfl.rounds.membership import MOST_VAIN
from sfl.rounds.values import BEGINNING, Length, Point
from tests.house.lost import ROUNDS, STEPS, join, settings
from tests.house.rebuilt import Rebuilt

LENGTH = Length(0.5, 2.0, 9)
HOME = {"d0": "e", "d1": "f", "d2": "e", "d3": "f"}
EDGES = {"e": ("d0", "d2"), "f": ("d1", "d3")}
ALL = dict.fromkeys(HOME, 10)


def at_edges(**sections: object) -> RunSettings:
    run = {"rounds": ROUNDS, "min_devices": 1, "edges": ["e", "f"]}
    return settings(4, run=run, aggregation={"sums": "at_edges"}, **sections)


def begun(config: RunSettings | None = None) -> Coordinator:
    """Two edges with two devices each, in the first round."""
    coordinator = Rebuilt(config or at_edges())
    for edge in EDGES:
        coordinator.handle(EdgeReady(edge, 4), 0.0)
    for name, edge in HOME.items():
        join(coordinator, name, 0.0, edge=edge)
    assert coordinator.phase is Phase.ROUND
    return coordinator


def delivered(coordinator: Coordinator, *names: str, now: float = 1.0) -> list[Command]:
    """Their edges keep their updates, and have measured them."""
    commands: list[Command] = []
    round_ = coordinator.round
    for name in names:
        for side in ("device", "edge"):
            event = UpdateReceived(name, side, round_, STEPS, LENGTH)
            commands += coordinator.handle(event, now)
        commands += coordinator.handle(ReportReceived(name, round_), now)
    return commands


def summed(coordinator: Coordinator, *edges: str, now: float = 2.0) -> list[Command]:
    state = coordinator.state
    number = state.open.reduction.number
    return [
        command
        for edge in edges
        for command in coordinator.handle(SumReceived(edge, state.round, number), now)
    ]


def kinds(commands: list[Command]) -> list[str]:
    return [type(command).__name__ for command in commands]


def test_each_edge_is_asked_once_and_the_last_sum_closes_the_round() -> None:
    coordinator = begun()
    assert delivered(coordinator, "d0", "d1", "d2") == []
    assert delivered(coordinator, "d3") == [Reduce(1, 1, EDGES, ALL)]
    assert coordinator.phase is Phase.AGGREGATING
    assert summed(coordinator, "f") == []
    assert summed(coordinator, "f") == []  # told twice
    assert coordinator.handle(SumReceived("e", 1, 7), 2.0) == []  # an order of another number
    assert coordinator.handle(SumReceived("g", 1, 1), 2.0) == []
    (aggregate,) = summed(coordinator, "e")
    assert aggregate == Aggregate(1, ALL, 1)
    updates = coordinator.updates_of(aggregate)
    assert {name: own.edge for name, own in updates.items()} == HOME
    assert {own.length for own in updates.values()} == {LENGTH}
    (start,) = coordinator.handle(AdapterReady(1, "adapter"), 3.0)
    assert isinstance(start, StartRound) and start.round == 2
    assert delivered(coordinator, *HOME)[-1] == Reduce(2, 1, EDGES, ALL)


def test_who_is_refused_is_in_no_sum() -> None:
    coordinator = begun()
    delivered(coordinator, *HOME)
    summed(coordinator, "f")
    evict, fault, again = coordinator.handle(UpdatesRefused(1, {"d0": "too long"}), 2.0)
    assert isinstance(evict, Evict) and isinstance(fault, Fault)
    left = dict.fromkeys(("d1", "d2", "d3"), 10)
    assert again == Reduce(1, 2, {"e": ("d2",), "f": ("d1", "d3")}, left)
    assert coordinator.handle(SumReceived("e", 1, 1), 2.0) == []  # of the first order
    assert summed(coordinator, "f", "e") == [Aggregate(1, left, 2)]


def test_who_offends_while_edges_add_up_is_in_no_sum() -> None:
    coordinator = begun()
    delivered(coordinator, *HOME)
    commands = coordinator.handle(DeviceOffended("d3", "no adapter"), 2.0)
    assert commands[-1] == Reduce(
        1, 2, {"e": ("d0", "d2"), "f": ("d1",)}, {"d0": 10, "d1": 10, "d2": 10}
    )


def test_a_device_that_is_lost_after_it_delivered_counts() -> None:
    coordinator = begun()
    delivered(coordinator, "d0", "d1", "d2")
    coordinator.handle(DeviceLost("d0", "left for good", "left"), 1.0)
    assert delivered(coordinator, "d3") == [Reduce(1, 1, EDGES, ALL)]
    assert summed(coordinator, "e", "f") == [Aggregate(1, ALL, 1)]


def test_an_edge_that_is_back_with_its_updates_is_asked_again() -> None:
    coordinator = begun()
    delivered(coordinator, *HOME)
    assert summed(coordinator, "f") == []
    coordinator.handle(EdgeLost("e", "its link broke"), 3.0)
    asked = coordinator.handle(EdgeReady("e", 4, keeps={"d0": 1, "d2": 1, "d9": 1}), 9.0)
    assert asked == [Reduce(1, 1, {"e": EDGES["e"]}, ALL)]
    assert coordinator.handle(EdgeReady("f", 4, keeps={"d1": 1, "d3": 1}), 9.0) == []  # has told
    assert summed(coordinator, "e") == [Aggregate(1, ALL, 1)]


def test_an_edge_that_is_back_without_an_update_has_it_trained_again() -> None:
    coordinator = begun()
    delivered(coordinator, *HOME)
    summed(coordinator, "f")
    coordinator.handle(EdgeLost("e", "killed"), 3.0)
    assert coordinator.handle(EdgeReady("e", 4, keeps={"d0": 0}), 9.0) == []
    assert coordinator.phase is Phase.ROUND
    for name in EDGES["e"]:
        replay = join(coordinator, name, 9.0, Point(1, STEPS))[-1]
        assert isinstance(replay, ReplayRound) and not replay.begun
        assert replay.after == {name: BEGINNING}  # what comes before the round
    assert delivered(coordinator, "d0", now=10.0) == []
    assert delivered(coordinator, "d2", now=10.0) == [Reduce(1, 2, EDGES, ALL)]
    assert summed(coordinator, "f", "e", now=11.0) == [Aggregate(1, ALL, 2)]


def test_a_device_finds_another_edge_while_the_one_with_its_update_is_away() -> None:
    coordinator = begun()
    delivered(coordinator, "d0", "d1", "d2")
    coordinator.handle(EdgeLost("e", "killed"), 3.0)
    replay = join(coordinator, "d0", 4.0, edge="f")[-1]
    assert isinstance(replay, ReplayRound) and set(replay.devices) == {"d0"}
    delivered(coordinator, "d0", now=5.0)
    assert delivered(coordinator, "d3", now=5.0) == [
        Reduce(1, 1, {"e": ("d2",), "f": ("d0", "d1", "d3")}, ALL)
    ]
    # Edge e is back after all, with both: d0 counts once, at f.
    (asked,) = coordinator.handle(EdgeReady("e", 4, keeps={"d0": 1, "d2": 1}), 6.0)
    assert asked == Reduce(1, 1, {"e": ("d2",)}, ALL)
    assert summed(coordinator, "e", "f", now=7.0) == [Aggregate(1, ALL, 1)]


def test_a_device_that_has_moved_before_its_edge_was_lost_joins_and_trains_again() -> None:
    coordinator = begun()
    delivered(coordinator, "d0")
    coordinator.handle(DeviceLost("d0", "moved"), 2.0)
    assert kinds(join(coordinator, "d0", 3.0, Point(1, STEPS), edge="f")) == [
        "Welcome",
        "DeviceBack",
    ]
    commands = coordinator.handle(EdgeLost("e", "burnt", returns=False), 4.0)
    assert [c.device for c in commands if isinstance(c, Evict)] == ["d0"]
    replay = join(coordinator, "d0", 5.0, Point(1, STEPS), edge="f")[-1]
    assert isinstance(replay, ReplayRound) and replay.after == {"d0": BEGINNING}
    assert set(coordinator.state.open.progress) == {"d0", "d1", "d3"}  # d2 went with its edge


def test_an_edge_that_is_not_back_in_time_takes_its_updates_along() -> None:
    coordinator = begun()
    delivered(coordinator, *HOME)
    summed(coordinator, "f")
    coordinator.handle(EdgeLost("e", "killed"), 3.0)
    assert coordinator.handle(Tick(), 22.9) == []
    commands = coordinator.handle(Tick(), 23.1)
    assert [fault.device for fault in commands if isinstance(fault, Fault)] == ["d0", "d2"]
    assert commands[-1] == Reduce(1, 2, {"f": ("d1", "d3")}, {"d1": 10, "d3": 10})
    assert summed(coordinator, "f", now=24.0) == [Aggregate(1, {"d1": 10, "d3": 10}, 2)]


def test_too_few_updates_that_are_left_stop_the_run_as_it_is() -> None:
    run = {"rounds": ROUNDS, "min_devices": 3, "edges": ["e", "f"]}
    coordinator = begun(settings(4, run=run, aggregation={"sums": "at_edges"}))
    delivered(coordinator, *HOME)
    coordinator.handle(EdgeLost("e", "killed"), 3.0)
    (end,) = coordinator.handle(Tick(), 30.0)
    assert isinstance(end, FinishRun) and not end.ok and "too few devices" in end.reason
    assert coordinator.state.end is None  # it may be gone on with


@pytest.mark.parametrize("there", [(), ("e",), ("e", "f")])
def test_a_cloud_that_was_stopped_asks_for_the_sums_that_it_lacks(there: tuple[str, ...]) -> None:
    coordinator = begun()
    delivered(coordinator, *HOME)
    summed(coordinator, *there)
    commands = coordinator.handle(CloudRestarted(), 5.0)
    all_there = [Aggregate(1, ALL, 1)] if len(there) == 2 else []
    assert [c for c in commands if isinstance(c, Aggregate | Reduce)] == all_there
    for edge, names in EDGES.items():
        asked = coordinator.handle(EdgeReady(edge, 4, keeps=dict.fromkeys(names, 1)), 6.0)
        lacks = [Reduce(1, 1, {edge: names}, ALL)] if edge not in there else []
        assert asked == lacks
    if len(there) < 2:
        lacking = [edge for edge in EDGES if edge not in there]
        assert summed(coordinator, *lacking, now=7.0) == [Aggregate(1, ALL, 1)]


def test_a_deadline_does_not_pass_while_an_edge_is_waited_for() -> None:
    network = {"rejoin_timeout": 300.0, "join_timeout": 30.0, "round_timeout": 100.0}
    coordinator = begun(at_edges(network=network))
    delivered(coordinator, *HOME)
    coordinator.handle(EdgeLost("e", "its link broke"), 90.0)
    assert coordinator.handle(Tick(), 200.0) == []
    asked = coordinator.handle(EdgeReady("e", 4, keeps={"d0": 1, "d2": 1}), 210.0)
    assert kinds(asked) == ["Reduce"]
    assert summed(coordinator, "f", "e", now=211.0) == [Aggregate(1, ALL, 1)]


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("least", [1, 4])
def test_an_edge_that_dies_in_every_sum_holds_up_no_run_for_ever(kept: bool, least: int) -> None:
    """Whether its devices train again each time or not; where too few are left the run stops."""
    run = {"rounds": ROUNDS, "min_devices": least, "edges": ["e", "f"]}
    coordinator = begun(settings(4, run=run, aggregation={"sums": "at_edges"}))
    delivered(coordinator, *HOME)
    summed(coordinator, "f")
    for number in range(MOST_VAIN):
        now = 3.0 + number
        coordinator.handle(EdgeLost("e", "killed"), now)
        keeps = dict.fromkeys(EDGES["e"], 1) if kept else {}
        coordinator.handle(EdgeReady("e", 4, keeps=keeps), now)
        for name in EDGES["e"]:
            join(coordinator, name, now, edge="e")
        if not kept:
            delivered(coordinator, *EDGES["e"], now=now)
            summed(coordinator, "f", now=now)
        assert coordinator.phase is Phase.AGGREGATING
    commands = coordinator.handle(EdgeLost("e", "killed"), 20.0)
    if least == 1:
        assert (
            Reduce(1, coordinator.state.open.reduction.number, {"f": EDGES["f"]}, ANY) in commands
        )
        return
    (end,) = [command for command in commands if isinstance(command, FinishRun)]
    assert not end.ok and "lost 11 times while its sum was waited for" in end.reason
    assert set(coordinator.progress) == set(HOME), "it may be gone on with"


def test_losses_before_an_average_do_not_count_after_it() -> None:
    coordinator = begun()
    delivered(coordinator, *HOME)
    coordinator.handle(EdgeLost("e", "killed"), 3.0)
    coordinator.handle(EdgeReady("e", 4, keeps=dict.fromkeys(EDGES["e"], 1)), 4.0)
    assert coordinator.state.vain
    summed(coordinator, "e", "f", now=5.0)
    coordinator.handle(AdapterReady(1, "a"), 6.0)
    assert not coordinator.state.vain


def test_the_status_names_the_edges_that_the_cloud_waits_for() -> None:
    coordinator = begun()
    delivered(coordinator, *HOME)
    state, config = coordinator.state, coordinator.settings
    assert [(own.whom, own.what) for own in waits_of(state, config)] == [
        ("edge e", "its sum of round 1"),
        ("edge f", "its sum of round 1"),
    ]
    coordinator.handle(EdgeLost("e", "killed"), 3.0)
    found = {own.whom: own.what for own in waits_of(coordinator.state, config)}
    assert found["edge e"] == "killed" and found["edge f"] == "its sum of round 1"
    assert set(found) == {"edge e", "edge f", "device d0", "device d2"}


# -- anything, in any order -----------------------------------------------------------------------


@dataclass
class Edge:
    """What an edge's process keeps, and whether the cloud hears it."""

    keeps: dict[str, int] = field(default_factory=dict)
    there: bool = True


class World:
    """A run of two edges to which anything happens: every round has every device's update once."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.now = 0.0
        self.edges = {edge: Edge() for edge in EDGES}
        self.work: dict[str, int] = {}
        self.points: dict[str, tuple[Point, ...]] = dict.fromkeys(HOME, ())
        self.lineage: dict[str, int] = {}
        self.closed: list[int] = []
        self.end: FinishRun | None = None
        self.to_aggregate: int | None = None
        network = {"rejoin_timeout": 1e4, "join_timeout": 1e4, "round_timeout": 1e5}
        self.coordinator = Rebuilt(at_edges(network=network))
        for edge in EDGES:
            self.happens(EdgeReady(edge, 4))
        for name, edge in HOME.items():
            self.join(name, edge)

    def happens(self, event: Event) -> None:
        for command in self.coordinator.handle(event, self.now):
            self.do(command)

    def do(self, command: Command) -> None:
        assert not isinstance(command, Fault), command
        match command:
            case StartRound() | ReplayRound():
                for name in command.devices:
                    edge = self.edges[self.coordinator.devices[name].edge]
                    assert edge.there
                    if not command.begun if isinstance(command, ReplayRound) else True:
                        expected = [p for p in self.points[name] if p.round < command.round]
                        assert command.after[name] == max(expected, default=BEGINNING)
                        edge.keeps.pop(name, None)
                    self.work[name] = command.round
                    self.lineage[name] = command.lineage[name]
            case Reduce():
                self.asked = command
            case Aggregate():
                assert sorted(command.contributions) == sorted(HOME)
                self.to_aggregate = command.round
            case Evict():
                self.work.pop(command.device, None)
            case FinishRun():
                self.end = command

    def join(self, name: str, edge: str) -> None:
        if not self.edges[edge].there:
            return
        self.happens(DeviceJoined(name, edge))
        if name in self.coordinator.devices and not self.coordinator.devices[name].ready:
            self.happens(DeviceReady(name, 10, points=self.points[name]))

    def step(self) -> None:
        self.now += 1.0
        self.dice.choice(
            [self.deliver] * 6
            + [self.sum] * 4
            + [self.average] * 3
            + [self.rejoin] * 6
            + [self.lose_device, self.lose_edge, self.edge_back, self.edge_back, self.restart]
        )()

    def deliver(self) -> None:
        here = [n for n in self.work if n in self.coordinator.devices]
        here = [n for n in here if self.coordinator.devices[n].ready]
        if not here:
            return
        name = self.dice.choice(sorted(here))
        round_, state = self.work.pop(name), self.coordinator.state
        if round_ != state.round or name not in state.open.progress:
            return
        if state.open.progress[name].steps.count:
            edge = state.roster.devices[name].edge
            self.edges[edge].keeps[name] = round_
            reached = Point(round_, STEPS, self.lineage[name])
            self.points[name] = (*self.points[name], reached)[-2:]
            for side in ("device", "edge"):
                event = UpdateReceived(name, side, round_, STEPS, LENGTH)
                self.happens(event)
        self.happens(ReportReceived(name, round_))

    def sum(self) -> None:
        state = self.coordinator.state
        own = state.open.reduction
        here = [edge for edge in own.missing if self.edges[edge].there]
        if state.phase is not Phase.AGGREGATING or not here:
            return
        edge = self.dice.choice(here)
        for name in own.edges[edge]:
            assert self.edges[edge].keeps.get(name) == state.round, (edge, name)
        self.happens(SumReceived(edge, state.round, own.number))

    def average(self) -> None:
        if self.to_aggregate is None or self.to_aggregate != self.coordinator.round:
            return
        round_, self.to_aggregate = self.to_aggregate, None
        assert self.coordinator.phase is Phase.AGGREGATING
        self.closed.append(round_)
        self.happens(AdapterReady(round_, "adapter"))

    def rejoin(self) -> None:
        gone = sorted(set(HOME) - set(self.coordinator.devices))
        if gone:
            self.join(self.dice.choice(gone), self.dice.choice(sorted(EDGES)))

    def lose_device(self) -> None:
        if here := sorted(self.coordinator.devices):
            name = self.dice.choice(here)
            self.work.pop(name, None)
            self.happens(DeviceLost(name, "its link broke"))

    def lose_edge(self) -> None:
        edge = self.dice.choice(sorted(EDGES))
        if not self.edges[edge].there:
            return
        self.edges[edge].there = False
        for name in self.coordinator.state.roster.at(edge):
            self.work.pop(name, None)
        if self.dice.random() < 0.5:
            self.edges[edge].keeps.clear()  # its process was killed
        self.happens(EdgeLost(edge, "lost"))

    def edge_back(self) -> None:
        for name, own in self.edges.items():
            if not own.there:
                own.there = True
                self.happens(EdgeReady(name, 4, keeps=dict(own.keeps)))
                return

    def restart(self) -> None:
        self.work.clear()
        for own in self.edges.values():
            own.there = False
        self.to_aggregate = None
        self.happens(CloudRestarted())


@pytest.mark.parametrize("seed", range(60))
def test_whatever_happens_every_update_counts_once(seed: int) -> None:
    world = World(seed)
    for _ in range(4000):
        world.step()
        if world.end is not None:
            break
    assert world.end == FinishRun(True, "every round closed")
    assert world.closed == list(range(1, ROUNDS + 1))


def test_settings_of_other_runs_ask_no_edge() -> None:
    config = settings(4, run={"rounds": ROUNDS, "min_devices": 1, "edges": ["e", "f"]})
    coordinator = begun(config)
    for name in HOME:
        commands = delivered(coordinator, name)
    assert commands == [Aggregate(1, ALL)]
    assert not coordinator.state.open.reduction.edges
