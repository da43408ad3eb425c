"""What a device and its edge do for one step, or for one evaluation: seconds and bytes, leg by leg.

A burst is a number of micro-batches, of which so many may be in flight. Each goes along all legs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from math import ceil

from sfl.cost.flow import EDGE, Visit
from sfl.cost.step import flow_of
from sfl.cost.tiers import NOTHING_BEHIND, Behind, Jobs, visits
from sfl.cost.values import DeviceCost, EdgeCost, Workload


@dataclass(frozen=True, slots=True)
class Stretch:
    """From a device's own work to the edge's answer, for one micro-batch; what follows the edge's
    first job is `behind` it.

    Messages are coded and decoded on threads of their own, so that this is only part of their way.
    """

    device: float
    bytes_up: float
    edge: float
    bytes_down: float
    encode: float = 0.0
    decode: float = 0.0
    encode_back: float = 0.0
    decode_back: float = 0.0
    behind: tuple[Visit, ...] = ()

    @property
    def coding(self) -> float:
        """Seconds of all four."""
        return self.encode + self.decode + self.encode_back + self.decode_back


@dataclass(frozen=True, slots=True)
class Stop:
    """A job of a burst at a station: the edge, or behind it. `stretch` is the one it is part of.

    `onward`: seconds until the next stop has it; None where the device gets an answer.
    """

    station: int
    seconds: float
    stretch: int
    onward: float | None = None


def _stops(stretches: tuple[Stretch, ...]) -> Iterator[Stop]:
    for number, each in enumerate(stretches):
        visits = (Visit(EDGE, 0.0, each.edge), *each.behind)
        for visit, following in zip_longest(visits, each.behind):
            onward = None if following is None else following.lag
            yield Stop(visit.station, visit.serve, number, onward)


@dataclass(frozen=True, slots=True)
class Burst:
    """`backward` follows each micro-batch's last answer at the device, `after` follows all.

    Sums are of all its micro-batches: seconds that the device computes, and that messages are
    coded; bytes each way.
    """

    count: int
    window: int
    stretches: tuple[Stretch, ...]
    backward: float
    after: float = 0.0
    trains: bool = True
    stops: tuple[Stop, ...] = field(init=False)
    in_flight: int = field(init=False)
    last: int = field(init=False)
    forward: float = field(init=False)
    device: float = field(init=False)
    coding: float = field(init=False)
    bytes_up: float = field(init=False)
    bytes_down: float = field(init=False)

    def __post_init__(self) -> None:
        own = sum(each.device for each in self.stretches)
        found = {
            "stops": tuple(_stops(self.stretches)),
            "in_flight": min(self.count, max(1, self.window)),
            "last": len(self.stretches) - 1,
            "forward": self.stretches[0].device,
            "device": self.count * (own + self.backward),
            "coding": self.count * sum(each.coding for each in self.stretches),
            "bytes_up": self.count * sum(each.bytes_up for each in self.stretches),
            "bytes_down": self.count * sum(each.bytes_down for each in self.stretches),
        }
        for name, value in found.items():
            object.__setattr__(self, name, value)


def training(
    workload: Workload,
    device: DeviceCost,
    edge: EdgeCost,
    at: tuple[int, int],
    after: float = 0.0,
    behind: Behind = NOTHING_BEHIND,
) -> Burst:
    """A training step at a cut; `after`: seconds that pass at its end beside the optimizer's."""
    flow, link = flow_of(workload, device, edge, *at, behind), device.link
    stretches = tuple(
        Stretch(
            lap.work,
            lap.up * link.up,
            lap.serve,
            lap.down * link.down,
            lap.encode,
            lap.up_lag - link.latency,
            lap.encode_back,
            lap.down_lag - link.latency,
            lap.behind,
        )
        for lap in flow.laps
    )
    return Burst(flow.count, flow.window, stretches, flow.backward, flow.end + after)


def evaluation(
    workload: Workload,
    device: DeviceCost,
    edge: EdgeCost,
    at: tuple[int, int],
    batches: float,
    bits: float,
    behind: Behind = NOTHING_BEHIND,
) -> Burst | None:
    """So many batches through all blocks, forward only, as many at once as may be in flight."""
    if not batches:
        return None
    cut_layer, tail = at
    count = ceil(batches)
    tokens, own, far = workload.tokens * batches / count, device.node, edge.node
    message = tokens * workload.hidden_size * bits / 8.0
    last, returned = workload.num_layers - tail, message if workload.u_shaped else 0.0
    front = own.forward(tokens, workload.blocks(0, cut_layer)) + tokens * own.embedding.forward
    jobs, follows = _scored(workload, edge, behind, cut_layer, last, tokens, (message, returned))
    there, into = own.encode.seconds(tokens), far.decode.seconds(tokens)
    lap = Stretch(front, message, jobs.first, returned, there, into, behind=follows)
    if not workload.u_shaped:
        return Burst(count, workload.window, (lap,), 0.0, trains=False)
    blocks = workload.blocks(last, workload.num_layers)
    end = own.forward(tokens, blocks) + tokens * own.head.forward
    back, here = far.encode.seconds(tokens), own.decode.seconds(tokens)
    lap = replace(lap, encode_back=back, decode_back=here)
    return Burst(count, workload.window, (lap,), end, trains=False)


def _scored(
    workload: Workload,
    edge: EdgeCost,
    behind: Behind,
    cut_layer: int,
    last: int,
    tokens: float,
    sizes: tuple[float, float],
) -> tuple[Jobs, tuple[Visit, ...]]:
    """What servers do for a batch that is only scored: what comes back is passed on."""
    servers = (edge.node, *(stage.node for stage in behind.stages))
    spans = behind.spans(cut_layer, last)
    each = [
        node.forward(tokens, workload.blocks(*span))
        for node, span in zip(servers, spans, strict=True)
    ]
    if not workload.u_shaped:
        each[-1] += tokens * servers[-1].head.forward
    jobs = Jobs(tuple(each[:-1]), each[-1], (0.0,) * len(behind.stages))
    return jobs, visits(jobs, servers, behind.hops, tokens, [sizes] * len(behind.stages))
