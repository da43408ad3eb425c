"""What a device and its edge do for one step, or for one evaluation: seconds and bytes, leg by leg.

A burst is a number of micro-batches, of which so many may be in flight. Each goes along all legs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sfl.cost.step import StepCost, step_cost
from sfl.cost.values import DeviceCost, EdgeCost, Workload


@dataclass(frozen=True, slots=True)
class Stretch:
    """From a device's own work to the edge's answer, for one micro-batch."""

    device: float
    bytes_up: float
    edge: float
    bytes_down: float


@dataclass(frozen=True, slots=True)
class Burst:
    """`backward` follows each micro-batch's last answer at the device, `after` follows all.

    Sums are of all its micro-batches: seconds that the device computes, bytes each way.
    """

    count: int
    window: int
    stretches: tuple[Stretch, ...]
    backward: float
    after: float = 0.0
    trains: bool = True
    in_flight: int = field(init=False)
    last: int = field(init=False)
    forward: float = field(init=False)
    bytes_first: float = field(init=False)
    device: float = field(init=False)
    bytes_up: float = field(init=False)
    bytes_down: float = field(init=False)

    def __post_init__(self) -> None:
        own = sum(each.device for each in self.stretches)
        found = {
            "in_flight": min(self.count, max(1, self.window)),
            "last": len(self.stretches) - 1,
            "forward": self.stretches[0].device,
            "bytes_first": self.stretches[0].bytes_up,
            "device": self.count * (own + self.backward),
            "bytes_up": self.count * sum(each.bytes_up for each in self.stretches),
            "bytes_down": self.count * sum(each.bytes_down for each in self.stretches),
        }
        for name, value in found.items():
            object.__setattr__(self, name, value)


def step_burst(step: StepCost, micro_batches: int, window: int, after: float) -> Burst:
    """A training step in equal pieces. What every pass takes besides is cut into pieces, too."""
    pieces = float(micro_batches)
    stretches = tuple(
        Stretch(
            leg.device / pieces, leg.bytes_up / pieces, leg.edge / pieces, leg.bytes_down / pieces
        )
        for leg in step.legs
    )
    return Burst(micro_batches, window, stretches, step.backward / pieces, after)


def training(
    workload: Workload,
    device: DeviceCost,
    edge: EdgeCost,
    at: tuple[int, int],
    micro_batches: int,
    window: int,
    after: float = 0.0,
) -> Burst:
    """A training step at a cut; `after`: seconds that pass at its end."""
    return step_burst(step_cost(workload, device, edge, *at), micro_batches, window, after)


def evaluation(
    workload: Workload,
    device: DeviceCost,
    edge: EdgeCost,
    at: tuple[int, int],
    batches: float,
    window: int,
    bits: float,
) -> Burst | None:
    """So many batches through all blocks, forward only; the answer to the last one is small."""
    if not batches:
        return None
    cut_layer, tail = at
    tokens, own, far = workload.tokens, device.node, edge.node
    message = tokens * workload.hidden_size * bits / 8.0
    last = workload.num_layers - tail
    front = own.fixed + tokens * (
        own.embedding.forward + workload.blocks(0, cut_layer) * own.block.forward
    )
    middle = far.fixed + tokens * workload.blocks(cut_layer, last) * far.block.forward
    count = max(1, round(batches + 0.499))
    part = batches / count
    if not workload.u_shaped:
        middle += tokens * far.head.forward
        there = Stretch(part * front, part * message, part * middle, 0.0)
        return Burst(count, window, (there,), 0.0, trains=False)
    end = tokens * (
        own.head.forward + workload.blocks(last, workload.num_layers) * own.block.forward
    )
    there = Stretch(part * front, part * message, part * middle, part * message)
    return Burst(count, window, (there,), part * (own.fixed + end), trains=False)
