"""One device's step at one cut, part by part: what it computes, sends, waits for and receives.

Parts of one micro-batch follow each other; those of several overlap.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from sfl.cost.energy import Energy
from sfl.cost.flow import EDGE, Flow, Lap, Visit
from sfl.cost.tiers import (
    DOWN,
    NOTHING_BEHIND,
    SERVED,
    UP,
    Behind,
    hop_sizes,
    jobs_of,
    kind_of,
    message,
    visits,
)
from sfl.cost.values import DeviceCost, EdgeCost, NodeCost, Workload


@dataclass(frozen=True, slots=True)
class Leg:
    """From a device's own work to the edge's answer: seconds of each part, bytes each way.

    `edge` is the edge's first job; what follows it before the answer are the visits `behind`.
    """

    device: float
    up: float
    edge: float
    down: float
    bytes_up: float
    bytes_down: float
    behind: tuple[Visit, ...] = ()

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
        return sum(leg.edge for leg in self.legs) + sum(
            visit.serve for visit in self._behind if visit.station == EDGE
        )

    @property
    def hop_up(self) -> float:
        """Seconds of messages between servers, towards the loss."""
        return self._crossing(UP)

    @property
    def stage(self) -> float:
        """Seconds that the stages behind the edge compute for it."""
        return sum(self.busy(number) for number in self.stations if kind_of(number) == SERVED)

    @property
    def hop_down(self) -> float:
        """Seconds of messages between servers, back to the edge."""
        return self._crossing(DOWN)

    @property
    def stations(self) -> tuple[int, ...]:
        """Those behind the edge, by their numbers."""
        return tuple(sorted({own.station for own in self._behind} - {EDGE}))

    def busy(self, station: int) -> float:
        """Seconds that somebody behind the edge is busy with it."""
        return sum(own.serve for own in self._behind if own.station == station)

    @property
    def _behind(self) -> tuple[Visit, ...]:
        legs = self.legs
        if not legs[0].behind:
            return ()
        return tuple(visit for leg in legs for visit in leg.behind)

    def _crossing(self, way: int) -> float:
        """Of all hops that way: coding, the bytes, and the latency until the next one has them."""
        total = 0.0
        for leg in self.legs:
            for hop, there in pairwise(leg.behind):
                if hop.station != EDGE and kind_of(hop.station) == way:
                    total += hop.seconds + there.lag
        return total

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
        own = sum(leg.device + leg.up + leg.edge + leg.down for leg in self.legs)
        return self.backward + own + sum(visit.seconds for visit in self._behind)

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
    workload: Workload,
    device: DeviceCost,
    edge: EdgeCost,
    cut_layer: int,
    tail_layers: int = 0,
    behind: Behind = NOTHING_BEHIND,
) -> StepCost:
    """A step with the edge at its fastest clock, and with the stages behind it."""
    flow = flow_of(workload, device, edge, cut_layer, tail_layers, behind)
    sizes = _sizes(workload, device, cut_layer, tail_layers)
    legs = tuple(_leg(flow, lap, *size) for lap, size in zip(flow.laps, sizes, strict=True))
    overlap = 0.0 if flow.count == 1 else flow.in_turn - flow.alone
    return StepCost(legs, flow.count * flow.backward + flow.end, overlap)


def flow_of(
    workload: Workload,
    device: DeviceCost,
    edge: EdgeCost,
    cut_layer: int,
    tail_layers: int = 0,
    behind: Behind = NOTHING_BEHIND,
) -> Flow:
    """The same step as its micro-batches."""
    own, count = device.node, workload.micro_batches
    tokens, last = workload.tokens / count, workload.num_layers - tail_layers
    servers = (edge.node, *(stage.node for stage in behind.stages))
    parts = zip(
        _work(workload, own, cut_layer, last),
        jobs_of(workload, servers, behind.spans(cut_layer, last)),
        _sizes(workload, device, cut_layer, tail_layers),
        hop_sizes(workload, device, behind.cuts, tail_layers),  # of a micro-batch
        strict=True,
    )
    laps = []
    for work, jobs, (up, down), sizes in parts:
        follows = visits(jobs, servers, behind.hops, tokens, sizes) if sizes else ()
        size = up / count, down / count
        laps.append(_lap(device, edge.node, tokens, work, jobs.first, *size, follows))
    return Flow(
        tuple(laps),
        own.backward(tokens, workload.blocks(0, cut_layer)),
        own.step.seconds(cut_layer + tail_layers),
        count,
        workload.window or count,
    )


def _work(workload: Workload, own: NodeCost, cut_layer: int, last: int) -> tuple[float, ...]:
    """What a device does for a micro-batch before it sends anything: once, or twice in the
    U-shape."""
    tokens = workload.tokens / workload.micro_batches
    ahead = tokens * own.embedding.forward + own.forward(tokens, workload.blocks(0, cut_layer))
    if not workload.u_shaped:
        return (ahead,)
    tail = workload.blocks(last, workload.num_layers)
    end = tokens * own.head.both + own.forward(tokens, tail) + own.backward(tokens, tail)
    return ahead, end


def _lap(
    device: DeviceCost,
    far: NodeCost,
    tokens: float,
    work: float,
    serve: float,
    up: float,
    down: float,
    behind: tuple[Visit, ...],
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
        behind,
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
        behind=lap.behind
        and tuple(Visit(o.station, count * o.lag, count * o.serve) for o in lap.behind),
    )


def _sizes(
    workload: Workload, device: DeviceCost, cut_layer: int, tail_layers: int
) -> tuple[tuple[float, float], ...]:
    """Bytes up and down of each leg of a step."""
    bits = device.bits
    activation, gradient = (
        message(workload, each, cut_layer) for each in (bits.activation, bits.gradient)
    )
    if not workload.u_shaped:
        return ((activation, gradient),)
    hidden, tail_gradient = (
        message(workload, each, tail_layers) for each in (bits.hidden, bits.tail_gradient)
    )
    return ((activation, hidden), (tail_gradient, gradient))


def exchange_bytes(device: DeviceCost, cut_layer: int, tail_layers: int = 0) -> float:
    """Of the device's part of the adapter, once each way in a round."""
    return (cut_layer + tail_layers) * device.lora_bytes


def exchange_seconds(device: DeviceCost, cut_layer: int, tail_layers: int = 0) -> float:
    """Of the same, both ways."""
    size = exchange_bytes(device, cut_layer, tail_layers)
    return size / device.link.up + size / device.link.down


def device_energy(step: StepCost, device: DeviceCost) -> Energy:
    """Of one step at the device, which waits while the edge computes."""
    waits = step.edge + step.hop_up + step.stage + step.hop_down
    return device.power.energy(step.device, step.up, step.down, waits)
