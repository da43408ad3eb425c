"""A whole plan foretold: seconds, joules, bytes and memory, for each device and for each edge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sfl.cost.closed_loop import Turns, round_ends
from sfl.cost.energy import Energy
from sfl.cost.flow import EDGE, flow_ends
from sfl.cost.paced import paced
from sfl.cost.step import (
    StepCost,
    device_energy,
    exchange_bytes,
    exchange_seconds,
    flow_of,
    step_cost,
)
from sfl.cost.tiers import (
    DOWN,
    SERVED,
    UP,
    Behind,
    among,
    at_edge,
    num_stations,
    relayed_seconds,
    station,
)
from sfl.cost.values import DeviceCost, EdgeCost, StageCost, Workload


@dataclass(frozen=True, slots=True)
class Placed:
    """A device with a cut. `edge_clock` is the edge's while it serves this device, as a share of
    its fastest. `edge_share`: so much of the edge serves it beside others; None: the whole edge,
    one device at a time. `memory` are bytes that the device needs, as forecast elsewhere.
    `stage_cuts` are the blocks before each stage behind the edge."""

    name: str
    cost: DeviceCost
    edge: str
    cut_layer: int
    tail_layers: int = 0
    edge_clock: float = 1.0
    edge_share: float | None = None
    memory: int = 0
    stage_cuts: tuple[int, ...] = ()

    @property
    def edge_speed(self) -> float:
        """Of the edge for this device, as a share of the whole one at its fastest clock."""
        return self.edge_clock * (1.0 if self.edge_share is None else self.edge_share)


@dataclass(frozen=True, slots=True)
class DevicePrediction:
    """One device's round. `alone` are its seconds where nobody else is at the edge, by part.

    What micro-batches overlap is taken off all parts but the edge's. `seconds` include what it
    waits for others. `spread` is the standard deviation of its own and
    its link's share of `alone`, in seconds.
    """

    seconds: float
    alone: Mapping[str, float]
    bytes_up: float
    bytes_down: float
    energy: Energy
    memory: int
    spread: float

    @property
    def alone_seconds(self) -> float:
        """All parts."""
        return sum(self.alone.values())


@dataclass(frozen=True, slots=True)
class EdgePrediction:
    """One edge's round: seconds that it computes, and their energy."""

    load: float
    energy: Energy


@dataclass(frozen=True, slots=True)
class StagePrediction:
    """The round of a stage behind the edges: seconds that it computes for all of them, and that
    the busiest hop to it is busy one way."""

    load: float
    hop: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """A round of a plan. `bound` is the larger of the slowest device alone and the busiest of
    edges, stages and hops.

    No round is shorter than the bound. `seconds` add what devices wait for each other.
    """

    seconds: float
    bound: float
    devices: Mapping[str, DevicePrediction]
    edges: Mapping[str, EdgePrediction]
    stages: tuple[StagePrediction, ...] = ()

    @property
    def energy(self) -> Energy:
        """Of all nodes."""
        every = [one.energy for one in self.devices.values()]
        every += [one.energy for one in self.edges.values()]
        return sum(every[1:], every[0]) if every else Energy(0.0)

    @property
    def slowest(self) -> str:
        """The device that the round waits for; "" without devices."""
        return max(self.devices, key=lambda name: self.devices[name].seconds, default="")


def predict(
    workload: Workload,
    devices: Sequence[Placed],
    edges: Mapping[str, EdgeCost],
    stages: Sequence[StageCost] = (),
) -> Prediction:
    """A round of these devices; whoever takes no part is left out."""
    behind = [Behind(tuple(stages), one.stage_cuts) for one in devices]
    steps = [
        step_cost(workload, one.cost, edges[one.edge], one.cut_layer, one.tail_layers, own)
        for one, own in zip(devices, behind, strict=True)
    ]
    ends = _ends(workload, devices, edges, behind, steps)
    found, at_edges = {}, Counter(one.edge for one in devices)
    for one, own, step, end in zip(devices, behind, steps, ends, strict=True):
        sharing = (at_edges[one.edge], *[len(devices)] * len(stages))
        alone, among_all = (_exchange(workload, one, own, each) for each in ((), sharing))
        found[one.name] = _device(workload, one, step, end + among_all, alone)
    loads = {name: _edge(workload, name, edges[name], devices, steps) for name in edges}
    deep = _stages(workload, devices, edges, steps, len(stages))
    return Prediction(
        seconds=max((one.seconds for one in found.values()), default=0.0),
        bound=max(
            [one.alone_seconds for one in found.values()]
            + [one.load for one in loads.values()]
            + [max(one.load, one.hop) for one in deep],
            default=0.0,
        ),
        devices=found,
        edges=loads,
        stages=deep,
    )


def _exchange(workload: Workload, one: Placed, behind: Behind, sharing: Sequence[int]) -> float:
    """Of all parts of its adapter that cross a link; `sharing` each hop are so many devices."""
    last = workload.num_layers - one.tail_layers
    own = exchange_seconds(one.cost, one.cut_layer, one.tail_layers)
    return own + relayed_seconds(one.cost, behind, last, sharing)


def _ends(
    workload: Workload,
    devices: Sequence[Placed],
    edges: Mapping[str, EdgeCost],
    behind: Sequence[Behind],
    steps: Sequence[StepCost],
) -> list[float]:
    """When each has done its steps: micro-batch by micro-batch, where there are several."""
    numbers = {name: number for number, name in enumerate(edges)}
    if workload.micro_batches > 1 and all(one.edge_share is None for one in devices):
        flows = [
            at_edge(
                flow_of(workload, one.cost, edges[one.edge], one.cut_layer, one.tail_layers, own),
                one.edge_speed,
                numbers[one.edge],
                len(edges),
            )
            for one, own in zip(devices, behind, strict=True)
        ]
        pieces = sum(flow.count for flow in flows)
        return paced(lambda steps: flow_ends(flows, steps), workload.steps, pieces)
    turns = [
        turns_of(
            step, one.edge_speed, numbers[one.edge], len(edges), beside=one.edge_share is not None
        )
        for one, step in zip(devices, steps, strict=True)
    ]
    count = num_stations(len(edges), max((len(own.stages) for own in behind), default=0))
    return paced(lambda steps: round_ends(turns, steps, count), workload.steps, len(turns))


def turns_of(
    step: StepCost, speed: float = 1.0, edge: int = 0, num_edges: int = 1, *, beside: bool = False
) -> Turns:
    """A step as its edge sees it, at that share of its fastest speed, all micro-batches at once.

    Who is served `beside` others at the edge waits there for nobody, and nobody for it.
    """
    found, stations, before, pace = [], [], 0.0, step.pace
    for leg in step.legs:
        jobs = [(EDGE, pace * (before + leg.head), leg.edge)]
        jobs += [(own.station, pace * own.lag, own.serve) for own in leg.behind]
        for number, lag, seconds in jobs:
            serve = seconds / speed if number == EDGE else pace * seconds
            free = beside and number == EDGE
            found.append((lag + serve, 0.0) if free else (lag, serve))
            stations.append(among(number, edge, num_edges))
        before = leg.down
    at = tuple(stations) if step.stations else ()
    return Turns(tuple(found), pace * (before + step.backward), edge, at)


def _stages(
    workload: Workload,
    devices: Sequence[Placed],
    edges: Mapping[str, EdgeCost],
    steps: Sequence[StepCost],
    num_stages: int,
) -> tuple[StagePrediction, ...]:
    """Each stage for all devices, and each hop for those that share it."""
    numbers = {name: number for number, name in enumerate(edges)}
    busy = [0.0] * num_stations(len(edges), num_stages)
    for one, step in zip(devices, steps, strict=True):
        for own in step.stations:
            busy[among(own, numbers[one.edge], len(edges))] += workload.steps * step.busy(own)

    def most(stage: int, *kinds: int) -> float:
        at = {among(station(stage, k), e, len(edges)) for k in kinds for e in numbers.values()}
        return max(busy[number] for number in at)

    return tuple(
        StagePrediction(most(number, SERVED), most(number, UP, DOWN))
        for number in range(num_stages)
    )


def _device(
    workload: Workload, one: Placed, step: StepCost, seconds: float, exchange_alone: float
) -> DevicePrediction:
    steps, exchange = workload.steps, exchange_bytes(one.cost, one.cut_layer, one.tail_layers)
    energy = device_energy(step, one.cost)
    own = steps * step.device * one.cost.node.spread
    link = steps * (step.up + step.down) * one.cost.link.spread
    return DevicePrediction(
        seconds=seconds,
        alone={
            "device": steps * step.pace * step.device,
            "up": steps * step.pace * step.up,
            "edge": steps * step.edge / one.edge_speed,
            **_deep(steps * step.pace, step),
            "down": steps * step.pace * step.down,
            "exchange": exchange_alone,
        },
        bytes_up=steps * step.bytes_up + exchange,
        bytes_down=steps * step.bytes_down + exchange,
        energy=Energy(steps * energy.joules, energy.source),
        memory=one.memory,
        spread=(own**2 + link**2) ** 0.5,
    )


def _deep(steps: float, step: StepCost) -> dict[str, float]:
    """What is behind the edge; nothing in two tiers."""
    if not step.stations:
        return {}
    parts = {"hop up": step.hop_up, "stage": step.stage, "hop down": step.hop_down}
    return {name: steps * seconds for name, seconds in parts.items()}


def _edge(
    workload: Workload,
    name: str,
    edge: EdgeCost,
    devices: Sequence[Placed],
    steps: Sequence[StepCost],
) -> EdgePrediction:
    there = [
        (one, workload.steps * step.edge)
        for one, step in zip(devices, steps, strict=True)
        if one.edge == name
    ]
    joules = (edge.clock.energy(seconds, one.edge_clock).joules for one, seconds in there)
    in_turn = (seconds / one.edge_speed for one, seconds in there if one.edge_share is None)
    beside = (seconds / one.edge_speed for one, seconds in there if one.edge_share is not None)
    return EdgePrediction(
        load=sum(in_turn) + max(beside, default=0.0),
        energy=Energy(sum(joules), edge.clock.source),
    )
