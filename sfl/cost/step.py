"""One device's step at one cut, part by part: what it computes, sends, waits for and receives.

Parts of one micro-batch follow each other; those of several overlap.
"""

from __future__ import annotations

from dataclasses import dataclass

from sfl.cost.energy import Energy
from sfl.cost.flow import Flow, Lap
from sfl.cost.values import DeviceCost, EdgeCost, NodeCost, Workload


@dataclass(frozen=True, slots=True)
class Leg:
    """From a device's own work to the edge's answer: seconds of each part, bytes each way."""

    device: float
    up: float
    edge: float
    down: float
    bytes_up: float
    bytes_down: float

    @property
    def head(self) -> float:
        """Until it arrives at the edge."""
        return self.device + self.up


@dataclass(frozen=True, slots=True)
class StepCost:
    """A step: one leg in the vanilla topology, two in the U-shape, then the front's `backward`.

    All micro-batches are in them. `overlap` are seconds that parts of several micro-batches pass at
    once, with nobody else at the edge. The optimizer's step is part of the backward.
    """

    legs: tuple[Leg, ...]
    backward: float
    overlap: float = 0.0

    @property
    def device(self) -> float:
        """Seconds that the device computes."""
        return self.backward + sum(leg.device for leg in self.legs)

    @property
    def up(self) -> float:
        """Seconds of messages to the edge."""
        return sum(leg.up for leg in self.legs)

    @property
    def edge(self) -> float:
        """Seconds that the edge computes for it."""
        return sum(leg.edge for leg in self.legs)

    @property
    def down(self) -> float:
        """Seconds of messages to the device."""
        return sum(leg.down for leg in self.legs)

    @property
    def seconds(self) -> float:
        """The whole step, where nobody else is at the edge."""
        return self._in_turn - self.overlap

    @property
    def _in_turn(self) -> float:
        return self.backward + sum(leg.device + leg.up + leg.edge + leg.down for leg in self.legs)

    @property
    def pace(self) -> float:
        """What is left of the seconds beside the edge's, where they overlap: of 1."""
        beside = self._in_turn - self.edge
        return 1.0 - self.overlap / beside if beside > 0.0 else 1.0

    @property
    def bytes_up(self) -> float:
        """To the edge."""
        return sum(leg.bytes_up for leg in self.legs)

    @property
    def bytes_down(self) -> float:
        """To the device."""
        return sum(leg.bytes_down for leg in self.legs)


def step_cost(
    workload: Workload, device: DeviceCost, edge: EdgeCost, cut_layer: int, tail_layers: int = 0
) -> StepCost:
    """A step with the edge at its fastest clock."""
    flow = flow_of(workload, device, edge, cut_layer, tail_layers)
    sizes = _sizes(workload, device, cut_layer, tail_layers)
    legs = tuple(_leg(flow, lap, *size) for lap, size in zip(flow.laps, sizes, strict=True))
    overlap = 0.0 if flow.count == 1 else flow.in_turn - flow.alone
    return StepCost(legs, flow.count * flow.backward + flow.end, overlap)


def flow_of(
    workload: Workload, device: DeviceCost, edge: EdgeCost, cut_layer: int, tail_layers: int = 0
) -> Flow:
    """The same step as its micro-batches."""
    own, far, count = device.node, edge.node, workload.micro_batches
    tokens = workload.tokens / count
    front = workload.blocks(0, cut_layer)
    ahead = tokens * own.embedding.forward + own.forward(tokens, front)
    update = far.step.seconds(workload.num_layers - cut_layer - tail_layers) / count
    if workload.u_shaped:
        last = workload.num_layers - tail_layers
        middle, tail = workload.blocks(cut_layer, last), workload.blocks(last, workload.num_layers)
        end = tokens * own.head.both + own.forward(tokens, tail) + own.backward(tokens, tail)
        work: tuple[float, ...] = (ahead, end)
        serve: tuple[float, ...] = (
            far.forward(tokens, middle),
            far.backward(tokens, middle) + update,
        )
    else:
        rest = workload.blocks(cut_layer, workload.num_layers)
        work = (ahead,)
        both = far.forward(tokens, rest) + far.backward(tokens, rest)
        serve = (both + tokens * far.head.both + update,)
    sizes = _sizes(workload, device, cut_layer, tail_layers)
    laps = (
        _lap(device, far, tokens, did, served, up / count, down / count)
        for did, served, (up, down) in zip(work, serve, sizes, strict=True)
    )
    return Flow(
        tuple(laps),
        own.backward(tokens, front),
        own.step.seconds(cut_layer + tail_layers),
        count,
        workload.window or count,
    )


def _lap(
    device: DeviceCost,
    far: NodeCost,
    tokens: float,
    work: float,
    serve: float,
    up: float,
    down: float,
) -> Lap:
    own, link = device.node, device.link
    return Lap(
        work,
        up / link.up,
        link.latency + device.handover + far.decode.seconds(tokens),
        serve,
        down / link.down,
        link.latency + own.decode.seconds(tokens),
        own.encode.seconds(tokens),
        far.encode.seconds(tokens),
    )


def _leg(flow: Flow, lap: Lap, bytes_up: float, bytes_down: float) -> Leg:
    """All micro-batches' laps; what codes a message is part of its way."""
    count = flow.count
    return Leg(
        device=count * lap.work,
        up=count * lap.there,
        edge=count * lap.serve,
        down=count * lap.back,
        bytes_up=bytes_up,
        bytes_down=bytes_down,
    )


def _sizes(
    workload: Workload, device: DeviceCost, cut_layer: int, tail_layers: int
) -> tuple[tuple[float, float], ...]:
    """Bytes up and down of each leg of a step."""
    bits = device.bits
    activation, gradient = (
        _message(workload, each, cut_layer) for each in (bits.activation, bits.gradient)
    )
    if not workload.u_shaped:
        return ((activation, gradient),)
    hidden, tail_gradient = (
        _message(workload, each, tail_layers) for each in (bits.hidden, bits.tail_gradient)
    )
    return ((activation, hidden), (tail_gradient, gradient))


def _message(workload: Workload, bits: tuple[float, ...], index: int) -> float:
    """Bytes of a step's hidden states."""
    return workload.tokens * workload.hidden_size * bits[min(index, len(bits) - 1)] / 8.0


def exchange_bytes(device: DeviceCost, cut_layer: int, tail_layers: int = 0) -> float:
    """Of the device's part of the adapter, once each way in a round."""
    return (cut_layer + tail_layers) * device.lora_bytes


def exchange_seconds(device: DeviceCost, cut_layer: int, tail_layers: int = 0) -> float:
    """Of the same, both ways."""
    size = exchange_bytes(device, cut_layer, tail_layers)
    return size / device.link.up + size / device.link.down


def device_energy(step: StepCost, device: DeviceCost) -> Energy:
    """Of one step at the device, which waits while the edge computes."""
    return device.power.energy(step.device, step.up, step.down, step.edge)
