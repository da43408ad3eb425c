"""A run to which anything may happen, in any order."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from sfl.rounds import (
    AdapterReady,
    Aggregate,
    CloudRestarted,
    Command,
    DeviceJoined,
    DeviceLost,
    DeviceReady,
    EdgeLost,
    EdgeReady,
    Event,
    Fault,
    FinishRun,
    Phase,
    ReplayRound,
    StartRound,
    Tick,
)
from sfl.rounds.values import BEGINNING, Point
from tests.house.losses import Losses
from tests.house.lost import ROUNDS, parts, settings
from tests.house.rebuilt import Rebuilt


class AnyOrder(RuleBasedStateMachine):
    """Losses, returns, restarts, doubled and late words in any order: each update counts once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.aggregated: list[Aggregate] = []
        self.over: FinishRun | None = None
        self.sent: list[Event] = []
        self.computing: dict[str, int] = {}
        """Devices that have been told a round, and which."""
        self.begun: dict[str, Point] = {}
        """What the edge keeps of each: the beginning of the round that it has begun last."""
        self.snapshots: dict[str, tuple[Point, ...]] = {}
        self.losses = Losses()

    @initialize(count=st.integers(1, 3))
    def begin(self, count: int) -> None:
        self.names = [f"d{n}" for n in range(count)]
        self.coordinator = Rebuilt(settings(count, rejoin=1000.0))
        self.happens(EdgeReady("e", 4))
        for name in self.names:
            self.join(name)

    def happens(self, event: Event) -> None:
        for command in self.coordinator.handle(event, self.now):
            self.do(command)

    def do(self, command: Command) -> None:
        assert not isinstance(command, Fault), command
        if isinstance(command, StartRound | ReplayRound):
            expected = self.snapshots
            for name in command.devices:
                assert name in self.coordinator.devices
                assert command.after[name] == max(expected.get(name, ()), default=BEGINNING)
                self.computing[name] = command.round
                begun = Point(command.round, 0, command.lineage[name])
                if isinstance(command, ReplayRound) and command.begun:
                    assert self.begun[name] == begun
                self.begun[name] = begun
        elif isinstance(command, Aggregate):
            assert sorted(command.contributions) == self.names
            assert self.aggregated[-1:] in ([], [command]) or command.round > self.last_round
            self.aggregated.append(command)
        elif isinstance(command, FinishRun):
            self.over = command

    @property
    def last_round(self) -> int:
        return self.aggregated[-1].round if self.aggregated else 0

    def join(self, name: str, kept: bool = False) -> None:
        """It comes back with what it remembers; its edge may have `kept` its round."""
        if not kept:
            self.computing.pop(name, None)
            self.begun.pop(name, None)
        points, begun = self.snapshots.get(name, ()), self.begun.get(name, BEGINNING)
        self.happens(DeviceJoined(name, "e"))
        self.happens(DeviceReady(name, 10, points=points, begun=begun))

    def reaches(self, name: str, round_: int, step: int) -> None:
        """Both ends write a snapshot, and keep the one before it."""
        reached = Point(round_, step, self.begun[name].lineage)
        self.snapshots[name] = (*self.snapshots.get(name, ())[-1:], reached)

    def here(self) -> list[str]:
        return sorted(self.coordinator.devices)

    def running(self) -> bool:
        return self.over is None

    @precondition(running)
    @rule(data=st.data(), many=st.integers(1, 3))
    def a_device_delivers(self, data: st.DataObject, many: int) -> None:
        here = [name for name in self.here() if name in self.computing]
        if not here or self.coordinator.phase not in (Phase.ROUND, Phase.FINAL):
            return
        name = data.draw(st.sampled_from(here))
        state = self.coordinator.state
        if self.computing[name] != state.round or name not in state.open.progress:
            return
        if (count := state.open.progress[name].steps.count) and many == 3:
            self.reaches(name, state.round, count)
        for event in parts(state, name)[:many]:
            self.sent.append(event)
            self.happens(event)
        if many == 3:
            del self.computing[name]
            self.losses.delivered(name)

    @precondition(lambda self: self.running() and self.sent)
    @rule(data=st.data())
    def something_comes_again(self, data: st.DataObject) -> None:
        event = data.draw(st.sampled_from(self.sent))
        device = event.device  # type: ignore[union-attr]
        # A word of this round is the same whether it comes first or again: only of one who is here.
        if device in self.coordinator.devices and event.round != self.coordinator.round:  # type: ignore[union-attr]
            before = self.coordinator.state
            self.happens(event)
            assert replace(self.coordinator.state, now=before.now) == before

    @precondition(running)
    @rule(data=st.data())
    def a_device_is_lost(self, data: st.DataObject) -> None:
        if names := self.losses.may(self.here()):
            name = data.draw(st.sampled_from(names))
            self.losses.note(name)
            self.happens(DeviceLost(name, "killed"))

    @precondition(running)
    @rule()
    def the_edge_is_lost(self) -> None:
        if self.coordinator.round and self.losses.may(here := self.here()) == here:
            self.losses.note(*here)
            self.happens(EdgeLost("e", "killed"))
            self.happens(EdgeReady("e", 4))

    @precondition(running)
    @rule()
    def the_link_to_the_edge_breaks(self) -> None:
        """Edge and devices go on, and are back at once."""
        here = self.here() if self.coordinator.round else []
        if here and here == self.losses.may(here):
            self.happens(EdgeLost("e", "it broke"))
            self.happens(EdgeReady("e", 4))
            for name in here:
                self.join(name, kept=True)

    @precondition(running)
    @rule()
    def the_cloud_is_restarted(self) -> None:
        self.losses.restarted()
        self.happens(CloudRestarted())
        self.happens(EdgeReady("e", 4))

    @precondition(running)
    @rule(data=st.data())
    def a_device_is_back(self, data: st.DataObject) -> None:
        if missing := sorted(set(self.names) - set(self.here())):
            self.join(data.draw(st.sampled_from(missing)))

    @precondition(running)
    @rule()
    def the_adapter_is_there(self) -> None:
        if self.coordinator.phase is Phase.AGGREGATING:
            self.happens(AdapterReady(self.coordinator.round, "adapter"))

    @precondition(running)
    @rule(seconds=st.floats(0.1, 2.0))
    def time_goes_by(self, seconds: float) -> None:
        """Forty times, and a round has still time left."""
        self.now += seconds
        self.happens(Tick())

    @rule()
    def somebody_looks_on(self) -> None:
        """A run that is over answers nothing any more."""
        if self.over is not None:
            assert self.coordinator.handle(Tick(), self.now) == []

    def teardown(self) -> None:
        """With everybody back the run comes to its end."""
        if not hasattr(self, "coordinator"):
            return
        for _ in range(4 * ROUNDS):
            for name in self.names:
                if name not in self.coordinator.devices and self.over is None:
                    self.join(name)
            self.the_adapter_is_there()
            for name in [n for n in self.here() if n in self.computing]:
                state = self.coordinator.state
                if self.computing[name] == state.round and name in state.open.progress:
                    if count := state.open.progress[name].steps.count:
                        self.reaches(name, state.round, count)
                    for event in parts(state, name):
                        self.happens(event)
        assert self.over is not None and self.over.ok, self.coordinator.state
        assert {command.round for command in self.aggregated} == set(range(1, ROUNDS + 1))
