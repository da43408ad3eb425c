"""One device's step at one cut, part by part: what it computes, sends, waits for and receives.

Parts follow each other here. Micro-batches that overlap make a real step shorter.
"""

from __future__ import annotations

from dataclasses import dataclass

from sfl.cost.energy import Energy
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
    """A step: one leg in the vanilla topology, two in the U-shape, then the front's `backward`."""

    legs: tuple[Leg, ...]
    backward: float

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
        return self.backward + sum(leg.device + leg.up + leg.edge + leg.down for leg in self.legs)

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
    if workload.u_shaped:
        return _u_shaped(workload, device, edge, cut_layer, tail_layers)
    tokens, own, far = workload.tokens, device.node, edge.node
    front = workload.blocks(0, cut_layer)
    rest = workload.blocks(cut_layer, workload.num_layers)
    up = _message(workload, device.bits.activation, cut_layer)
    down = _message(workload, device.bits.gradient, cut_layer)
    leg = Leg(
        device=own.fixed + tokens * (own.embedding.forward + front * own.block.forward),
        up=device.link.up_seconds(up),
        edge=2 * far.fixed + tokens * (far.head.both + rest * far.block.both),
        down=device.link.down_seconds(down),
        bytes_up=up,
        bytes_down=down,
    )
    return StepCost((leg,), _backward(tokens, own, front))


def _u_shaped(
    workload: Workload, device: DeviceCost, edge: EdgeCost, cut_layer: int, tail_layers: int
) -> StepCost:
    tokens, own, far, bits = workload.tokens, device.node, edge.node, device.bits
    last = workload.num_layers - tail_layers
    front, middle = workload.blocks(0, cut_layer), workload.blocks(cut_layer, last)
    tail = workload.blocks(last, workload.num_layers)
    activation, gradient = (
        _message(workload, each, cut_layer) for each in (bits.activation, bits.gradient)
    )
    hidden, tail_gradient = (
        _message(workload, each, tail_layers) for each in (bits.hidden, bits.tail_gradient)
    )
    there = Leg(
        device=own.fixed + tokens * (own.embedding.forward + front * own.block.forward),
        up=device.link.up_seconds(activation),
        edge=far.fixed + tokens * middle * far.block.forward,
        down=device.link.down_seconds(hidden),
        bytes_up=activation,
        bytes_down=hidden,
    )
    back = Leg(
        device=2 * own.fixed + tokens * (own.head.both + tail * own.block.both),
        up=device.link.up_seconds(tail_gradient),
        edge=far.fixed + tokens * middle * far.block.backward,
        down=device.link.down_seconds(gradient),
        bytes_up=tail_gradient,
        bytes_down=gradient,
    )
    return StepCost((there, back), _backward(tokens, own, front))


def _backward(tokens: int, own: NodeCost, front: float) -> float:
    return own.fixed + tokens * (own.embedding.backward + front * own.block.backward)


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
