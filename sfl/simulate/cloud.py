"""The run's real coordinator on a virtual clock, and what its commands come to in the fleet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import singledispatchmethod
from typing import Protocol

from sfl.config import RunConfig, RunSettings
from sfl.cost.tiers import DOWN, UP
from sfl.plan import HOLDERS
from sfl.planners.plans import Plan
from sfl.rounds import (
    AdapterReady,
    Aggregate,
    Command,
    Coordinator,
    DeviceMoved,
    EdgeReady,
    Event,
    Evict,
    Fact,
    FinishRun,
    HandOver,
    PlanRound,
    Reduce,
    Refuse,
    Rehearse,
    Rehearsed,
    ReplayRound,
    ReportReceived,
    Settle,
    StartRound,
    SumReceived,
    Tick,
    UpdateReceived,
    UseModel,
    Welcome,
)
from sfl.rounds.coordinator import nobody
from sfl.rounds.journal import Entry
from sfl.rounds.values import BEGINNING, RoundReport
from sfl.rounds.work import steps_of
from sfl.simulate.deadlines import Deadlines
from sfl.simulate.deep import Deep
from sfl.simulate.events import FIRST, Events
from sfl.simulate.fleet import Fleet
from sfl.simulate.floor import Floor
from sfl.simulate.ledger import Ledger, Outcome
from sfl.simulate.life import Life
from sfl.simulate.planning import Planning
from sfl.simulate.rehearsing import rehearse
from sfl.simulate.rounds import Order, Part, Parts
from sfl.simulate.unkept import Unkept
from sfl.simulate.worker import Worker
from sfl.stage.orders import ORDERS


class Tells(Protocol):
    """What nodes say of themselves."""

    def report(self, worker: Worker, order: Order, seconds: float) -> RoundReport | None:
        """A device's, of a round that took so many seconds."""

    def servers(self, round_: int) -> tuple[str, ...]:
        """Statistics of the cloud and of edges at a round's end, as JSON."""


class Silent:
    """Nobody asks how a round went."""

    def report(self, worker: Worker, order: Order, seconds: float) -> None:
        """Nothing."""

    def servers(self, round_: int) -> tuple[str, ...]:
        """Nothing."""
        return ()


class Cloud:
    """Feeds the coordinator, and has done what it says; `over` once the run has ended."""

    def __init__(
        self,
        config: RunConfig,
        fleet: Fleet,
        hear: Callable[[Entry], object] = nobody,
        tells: Tells | None = None,
        *,
        recorded: Sequence[Plan] = (),
        strict: bool = False,
    ) -> None:
        """`recorded` are another run's decisions. `strict`: no edge runs ahead of the clock; none
        does where edges share a stage."""
        stated = fleet.settings
        self.settings: RunSettings = config.settings
        self.stated, self.batch = stated, fleet.batch
        self.latency = stated.cloud.latency_ms / 1000.0
        self.over = False
        self.num_events = 0
        self.events = Events()
        self.coordinator = Coordinator(self.settings, journal=Unkept(), hear=hear)
        order = ORDERS[config.edge.order]
        self.deep = Deep(len(fleet.edges), len(fleet.stages))
        shared = self.deep if fleet.stages else None
        self.floors = {
            name: Floor(name, order, self.events, place, shared)
            for place, name in enumerate(fleet.edges)
        }
        self._sides = HOLDERS[: 2 + len(fleet.stages)]
        self.lives = {
            own.name: Life(own, Worker(own, self.floors[own.edge]), self, self.events)
            for own in fleet.devices
        }
        self.parts = Parts(fleet, self.settings)
        self.planning = Planning(self, fleet, recorded)
        workers = [life.working for life in self.lives.values()]
        floors = list(self.floors.values())
        deep = self.deep, len(fleet.stages)
        self._ledger = Ledger(workers, floors, stated.edge.watts, *deep)
        self._end = FinishRun(False, "")
        self._orders: dict[str, tuple[Order, Part, float]] = {}
        self._fleet = fleet
        self._tells: Tells = Silent() if tells is None else tells
        self._deadlines = Deadlines(
            self.coordinator,
            self.events,
            lambda: self.happened(Tick()),
            strict=strict or bool(fleet.stages),
        )

    # -- events in ------------------------------------------------------------------------------

    def begin(self) -> None:
        """Edges are there, and devices dial them."""
        for name in self.floors:
            self.happened(EdgeReady(name, self._fleet.shape.num_layers, "simulated"))
        for life in self.lives.values():
            life.begin()

    def happened(self, event: Event) -> None:
        """Tell the coordinator, and do what it says."""
        if self.over:
            return
        if self._deadlines.may_look():
            self._tell_moves()
        self.num_events += 1
        commands = self.coordinator.handle(event, self.events.now)
        for command in commands:
            self.do(command)
        for command in commands:
            self._answer(command)
        self._deadlines.set()

    def _answer(self, command: Command) -> None:
        """What the cloud itself has to say of a command, once all are done."""
        if isinstance(command, UseModel):
            self.happened(AdapterReady(0, "adapters/round-0000"))
        elif isinstance(command, PlanRound):
            self.happened(self.planning.decide(command))

    def steps(self, round_: int) -> int:
        """That every device does in a round."""
        return steps_of(self.settings, self.stated.examples, round_).count

    def tell(self, fact: Fact) -> None:
        """What decides nothing is heard of, too."""
        self.coordinator.tell(fact, self.events.now)

    @property
    def outcome(self) -> Outcome:
        """Of the run that is over."""
        end = self._end
        return self._ledger.outcome(end.ok, end.reason, self.events.now, self.num_events)

    def _tell_moves(self) -> None:
        """Edges count what moves; it matters only where somebody is about to be left out."""
        for name in self.coordinator.state.open.rest:
            moved = DeviceMoved(name, self.lives[name].working.moved)
            self.coordinator.handle(moved, self.events.now)

    # -- commands out ---------------------------------------------------------------------------

    @singledispatchmethod
    def do(self, command: Command) -> None:
        """Most commands are only told of."""

    @do.register
    def _(self, command: Welcome) -> None:
        self._later(command.device, self.lives[command.device].welcomed)

    @do.register
    def _(self, command: Refuse) -> None:
        life = self.lives[command.device]
        if command.elsewhere:
            own = life.working.edge.name
            to = own if len(command.elsewhere) > 1 else command.elsewhere[0]
            self._later(command.device, life.handed_over, self.floors[to])
        else:
            self._later(command.device, life.refused, command.in_use)

    @do.register
    def _(self, command: HandOver) -> None:
        self._ledger.begins(self.coordinator.round, 1, self.events.now)
        life = self.lives[command.device]
        self._later(command.device, life.handed_over, self.floors[command.to])

    @do.register
    def _(self, command: Evict) -> None:
        self._orders.pop(command.device, None)
        self._later(command.device, self.lives[command.device].evicted, command.final)

    @do.register
    def _(self, command: Settle) -> None:
        self.settings = self.settings.settled(command.micro_batches, command.codecs)

    @do.register
    def _(self, command: Rehearse) -> None:
        for name in command.devices:
            rehearse(self, self.lives[name], command)

    @do.register(StartRound | ReplayRound)
    def _(self, command: StartRound | ReplayRound) -> None:
        at, choices = self._at_edges(), command.choices
        if isinstance(command, StartRound):
            self._ledger.begins(command.round, len(command.devices), self.events.now)
        for name, steps in command.devices.items():
            after, lineage = command.after.get(name, BEGINNING), command.lineage.get(name, 0)
            chosen = choices.get(name)
            order = Order(command.round, steps, command.evaluate, after, lineage, chosen)
            self._work(self.lives[name], order, at)

    @do.register
    def _(self, command: Aggregate) -> None:
        due = self.events.now + self.stated.cloud.averaging_seconds
        self.events.at(due, FIRST, self._averaged, command)

    @do.register
    def _(self, command: Reduce) -> None:
        shape, rank = self._fleet.shape, self.settings.lora.rank
        adapter = shape.num_layers * shape.lora_bytes(0, rank)
        for edge, names in command.edges.items():
            size = adapter * (2 if len(names) > 1 else 1)  # float64; of one device its own values
            due = self.events.now + self.latency + self._to_cloud(size)
            received = SumReceived(edge, command.round, command.number)
            self.events.at(due, FIRST, self.happened, received)

    @do.register
    def _(self, command: FinishRun) -> None:
        self.over, self._end = True, command

    def _later(self, device: str, act: Callable[..., object], *what: object) -> None:
        """Once a message has gone between cloud and edge."""
        worker = self.lives[device].working
        worker.edge.at(self.events.now + self.latency, worker.own.place, act, *what)

    def _averaged(self, command: Aggregate) -> None:
        updates = self.coordinator.updates_of(command)
        staleness = (
            {name: own.staleness(command.round) for name, own in updates.items()}
            if self.settings.counts_late_updates
            else {}
        )
        self._ledger.closes(command.round, len(updates), self.events.now)
        name = f"adapters/round-{command.round:04d}"
        servers = self._tells.servers(command.round)
        ready = AdapterReady(command.round, name, servers=servers, staleness=staleness)
        self.happened(ready)

    # -- rounds ---------------------------------------------------------------------------------

    def _at_edges(self) -> float:
        """When edges have the adapter of a round."""
        rate = self.stated.cloud.mbit
        shape = self._fleet.shape
        size = shape.num_layers * shape.lora_bytes(0, self.settings.lora.rank)
        return self.events.now + self.latency + (size * 8e-6 / rate if rate else 0.0)

    def _work(self, life: Life, order: Order, at: float) -> None:
        """A device begins with a round, or goes on with it."""
        worker, own = life.working, life.own
        if not (life.there and life.alive):
            return
        worker.stop()
        part = self.parts.of(own, order, self.settings)
        worker.speed, worker.beside = part.edge_speed, part.beside
        worker.slower = life.slower(order.round)
        worker.share = part.share
        self._orders[own.name] = order, part, self.events.now
        life.begins(order)
        here = worker.receive(self._relayed(worker, at, UP), part.exchange)
        worker.begin(part.bursts, here, self._trained)

    def _trained(self, worker: Worker, now: float) -> None:
        """A device has done its steps; what it has to send goes to its edge, and on to the cloud.

        Its round's end is on both disks before anybody is told of it.
        """
        order, part, _ = self._orders[worker.own.name]
        size = part.exchange if order.steps.count else 0.0
        kept = self.settings.sums_at_edges
        sent = worker.send(now, size)
        if order.steps.count:
            sent = max(sent, self._relayed(worker, now, DOWN))
        due = sent + self._to_cloud(0.0 if kept else size)
        worker.edge.at(due, worker.own.place, self._delivered, worker, worker.life)

    def _relayed(self, worker: Worker, at: float, way: int) -> float:
        """When stages' parts of a device's adapter have crossed the hops behind its edge."""
        own = worker.own
        behind, blocks = self.parts.behind(own), self._fleet.shape.num_layers
        tail = self.parts.at(own, self.coordinator.state.choices.get(own.name))[1]
        return self.deep.relay(
            worker.edge.place, behind, blocks - tail, own.cost.lora_bytes, at, way
        )

    def _to_cloud(self, size: float) -> float:
        rate = self.stated.cloud.mbit
        return self.latency + (size * 8e-6 / rate if rate else 0.0)

    def _delivered(self, worker: Worker, attempt: int) -> None:
        """The order of a real run: the device's part, its report, its edge's part."""
        if attempt != worker.life:
            return
        name = worker.own.name
        order, _, began = self._orders.pop(name)
        seconds = self.events.now - began
        count, life = order.steps.count, self.lives[name]
        worker.meter.finished(seconds, count > 0)
        life.ended(order)
        report = ReportReceived(name, order.round, self._tells.report(worker, order, seconds))
        device, *servers = (UpdateReceived(name, side, order.round, count) for side in self._sides)
        delivered: tuple[Event, ...] = (device, report, *servers) if count else (report,)
        for event in delivered:
            self.happened(event)

    def rehearsed(self, life: Life, seconds: tuple[float, ...], bits: float) -> None:
        """A device has timed steps."""
        self._later(life.name, self.happened, Rehearsed(life.name, seconds, bits))
