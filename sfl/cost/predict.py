"""A whole plan foretold: seconds, joules, bytes and memory, for each device and for each edge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sfl.cost.closed_loop import Turns, round_ends
from sfl.cost.energy import Energy
from sfl.cost.flow import Flow, flow_ends
from sfl.cost.paced import paced
from sfl.cost.step import (
    StepCost,
    device_energy,
    exchange_bytes,
    exchange_seconds,
    flow_of,
    step_cost,
)
from sfl.cost.values import DeviceCost, EdgeCost, Workload


@dataclass(frozen=True, slots=True)
class Placed:
    """A device with a cut. `edge_clock` is the edge's while it serves this device, as a share of
    its fastest. `edge_share`: so much of the edge serves it beside others; None: the whole edge,
    one device at a time. `memory` are bytes that the device needs, as forecast elsewhere."""

    name: str
    cost: DeviceCost
    edge: str
    cut_layer: int
    tail_layers: int = 0
    edge_clock: float = 1.0
    edge_share: float | None = None
    memory: int = 0

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
class Prediction:
    """A round of a plan. `bound` is the larger of the busiest edge and the slowest device alone.

    No round is shorter than the bound. `seconds` add what devices wait for each other.
    """

    seconds: float
    bound: float
    devices: Mapping[str, DevicePrediction]
    edges: Mapping[str, EdgePrediction]

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
    workload: Workload, devices: Sequence[Placed], edges: Mapping[str, EdgeCost]
) -> Prediction:
    """A round of these devices; whoever takes no part is left out."""
    steps = [
        step_cost(workload, one.cost, edges[one.edge], one.cut_layer, one.tail_layers)
        for one in devices
    ]
    exchanges = [exchange_seconds(one.cost, one.cut_layer, one.tail_layers) for one in devices]
    ends = _ends(workload, devices, edges, steps)
    found = {
        one.name: _device(workload, one, step, end + exchange)
        for one, step, end, exchange in zip(devices, steps, ends, exchanges, strict=True)
    }
    loads = {name: _edge(workload, name, edges[name], devices, steps) for name in edges}
    return Prediction(
        seconds=max((one.seconds for one in found.values()), default=0.0),
        bound=max(
            [one.alone_seconds for one in found.values()] + [one.load for one in loads.values()],
            default=0.0,
        ),
        devices=found,
        edges=loads,
    )


def _ends(
    workload: Workload,
    devices: Sequence[Placed],
    edges: Mapping[str, EdgeCost],
    steps: Sequence[StepCost],
) -> list[float]:
    """When each has done its steps: micro-batch by micro-batch, where there are several."""
    numbers = {name: number for number, name in enumerate(edges)}
    if workload.micro_batches > 1 and all(one.edge_share is None for one in devices):
        flows = [
            served_at(
                flow_of(workload, one.cost, edges[one.edge], one.cut_layer, one.tail_layers),
                one.edge_speed,
                numbers[one.edge],
            )
            for one in devices
        ]
        pieces = sum(flow.count for flow in flows)
        return paced(lambda steps: flow_ends(flows, steps, len(edges)), workload.steps, pieces)
    turns = [
        turns_of(step, one.edge_speed, numbers[one.edge], beside=one.edge_share is not None)
        for one, step in zip(devices, steps, strict=True)
    ]
    return paced(lambda steps: round_ends(turns, steps, len(edges)), workload.steps, len(turns))


def served_at(flow: Flow, speed: float, edge: int) -> Flow:
    """At an edge of that number, at that share of its fastest speed."""
    laps = tuple(replace(lap, serve=lap.serve / speed) for lap in flow.laps)
    return replace(flow, laps=laps, edge=edge)


def turns_of(step: StepCost, speed: float = 1.0, edge: int = 0, *, beside: bool = False) -> Turns:
    """A step as its edge sees it, at that share of its fastest speed, all micro-batches at once.

    Who is served `beside` others waits for nobody, and nobody for it.
    """
    visits, before, pace = [], 0.0, step.pace
    for leg in step.legs:
        serve, there = leg.edge / speed, pace * (before + leg.head)
        visits.append((there + serve, 0.0) if beside else (there, serve))
        before = leg.down
    return Turns(tuple(visits), pace * (before + step.backward), edge)


def _device(workload: Workload, one: Placed, step: StepCost, seconds: float) -> DevicePrediction:
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
            "down": steps * step.pace * step.down,
            "exchange": exchange_seconds(one.cost, one.cut_layer, one.tail_layers),
        },
        bytes_up=steps * step.bytes_up + exchange,
        bytes_down=steps * step.bytes_down + exchange,
        energy=Energy(steps * energy.joules, energy.source),
        memory=one.memory,
        spread=(own**2 + link**2) ** 0.5,
    )


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
