"""A step behind the edge: each server on the way to the loss and back, and each hop both ways.

A server relays without waiting: it sends its result on and takes the next job. So every server, and
every hop each way, is a station of its own that serves one job at a time, first come, first served.
An edge has a hop of its own to the first stage. A stage serves all edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from sfl.cost.flow import EDGE, Flow, Visit
from sfl.cost.values import DeviceCost, LinkCost, NodeCost, StageCost, Workload

UP, SERVED, DOWN = range(3)
"""What a station behind the edge is: a hop towards a stage, that stage, the hop back from it."""


@dataclass(frozen=True, slots=True)
class Behind:
    """The stages behind a device's edge, the first one first, and the blocks before each."""

    stages: tuple[StageCost, ...] = ()
    cuts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        assert len(self.stages) == len(self.cuts)

    @property
    def hops(self) -> tuple[LinkCost, ...]:
        """To each stage."""
        return tuple(stage.hop for stage in self.stages)

    def spans(self, cut_layer: int, last: int) -> list[tuple[int, int]]:
        """The blocks of the edge and of each stage, of `cut_layer..last-1`."""
        if not self.cuts:
            return [(cut_layer, last)]
        return list(pairwise((cut_layer, *self.cuts, last)))


NOTHING_BEHIND = Behind()


# -- stations --------------------------------------------------------------------------------------


def station(stage: int, kind: int) -> int:
    """The number of a station, stages counted from 0, as one device sees it."""
    return 1 + 3 * stage + kind


def kind_of(number: int) -> int:
    """What a station behind the edge is."""
    return (number - 1) % 3


def among(number: int, edge: int, num_edges: int) -> int:
    """The number of a device's station among those of all edges, of which its own is `edge`.

    Edges come first, then their hops towards the first stage, then those back.
    """
    if number == EDGE:
        return edge
    if number == station(0, UP):
        return num_edges + edge
    if number == station(0, DOWN):
        return 2 * num_edges + edge
    return 3 * num_edges + number


def num_stations(num_edges: int, num_stages: int) -> int:
    """Of all edges and all stages."""
    return 3 * num_edges + station(num_stages, UP) if num_stages else num_edges


def at_edge(flow: Flow, speed: float, edge: int, num_edges: int = 1) -> Flow:
    """A step at an edge of that number, at that share of the edge's fastest speed."""
    laps = tuple(
        replace(
            lap,
            serve=lap.serve / speed,
            behind=tuple(
                replace(
                    visit,
                    station=among(visit.station, edge, num_edges),
                    serve=visit.serve / (speed if visit.station == EDGE else 1.0),
                )
                for visit in lap.behind
            ),
        )
        for lap in flow.laps
    )
    return replace(flow, laps=laps, edge=edge)


# -- seconds of servers ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Jobs:
    """Seconds of the servers for a micro-batch: of each but the last on the way `there`, of the
    last at the `turn`, and of each but the last on the way `back`."""

    there: tuple[float, ...]
    turn: float
    back: tuple[float, ...]

    @property
    def first(self) -> float:
        """The edge's, before anything goes on from it."""
        return self.there[0] if self.there else self.turn


def jobs_of(
    workload: Workload, servers: Sequence[NodeCost], spans: Sequence[tuple[int, int]]
) -> tuple[Jobs, ...]:
    """For each lap of a micro-batch: one with the loss at the last server, two in the U-shape."""
    count = workload.micro_batches
    tokens = workload.tokens / count
    ahead, back = [], []
    for own, (first, end) in zip(servers, spans, strict=True):
        blocks = workload.blocks(first, end)
        ahead.append(own.forward(tokens, blocks))
        back.append(own.backward(tokens, blocks) + own.step.seconds(end - first) / count)
    far = servers[-1]
    nothing = (0.0,) * (len(servers) - 1)
    if not workload.u_shaped:
        turn = ahead[-1] + tokens * far.head.both + back[-1]
        return (Jobs(tuple(ahead[:-1]), turn, tuple(back[:-1])),)
    return (
        Jobs(tuple(ahead[:-1]), ahead[-1], nothing),
        Jobs(nothing, back[-1], tuple(back[:-1])),
    )


# -- the way ---------------------------------------------------------------------------------------


def visits(
    jobs: Jobs,
    servers: Sequence[NodeCost],
    hops: Sequence[LinkCost],
    tokens: float,
    sizes: Sequence[tuple[float, float]],
) -> tuple[Visit, ...]:
    """All that follows the edge's first job; `sizes` are bytes of a message over each hop, towards
    its stage and back."""
    there = (*jobs.there[1:], jobs.turn)
    hop_by_hop = [*zip(hops, pairwise(servers), sizes, strict=True)]
    found = []
    for stage, (hop, (before, after), (up, _)) in enumerate(hop_by_hop):
        lag = hop.latency + after.decode.seconds(tokens)
        found += [
            Visit(station(stage, UP), before.encode.seconds(tokens), up / hop.up),
            Visit(station(stage, SERVED), lag, there[stage]),
        ]
    for stage, (hop, (before, after), (_, down)) in reversed([*enumerate(hop_by_hop)]):
        lag = hop.latency + before.decode.seconds(tokens)
        found += [
            Visit(station(stage, DOWN), after.encode.seconds(tokens), down / hop.down),
            Visit(station(stage - 1, SERVED) if stage else EDGE, lag, jobs.back[stage]),
        ]
    return tuple(found)


def hop_sizes(
    workload: Workload, device: DeviceCost, cuts: Sequence[int], tail_layers: int
) -> tuple[tuple[tuple[float, float], ...], ...]:
    """Bytes of a micro-batch over each hop towards its stage and back, for each lap."""
    if not cuts:
        return ((), ()) if workload.u_shaped else ((),)
    bits = device.bits if device.hop_bits is None else device.hop_bits
    count = workload.micro_batches
    forward = [message(workload, bits.activation, cut) / count for cut in cuts]
    gradient = [message(workload, bits.gradient, cut) / count for cut in cuts]
    if not workload.u_shaped:
        return (tuple(zip(forward, gradient, strict=True)),)
    hidden, tail = (
        message(workload, each, tail_layers) / count for each in (bits.hidden, bits.tail_gradient)
    )
    return tuple((own, hidden) for own in forward), tuple((tail, own) for own in gradient)


def message(workload: Workload, bits: tuple[float, ...], index: int) -> float:
    """Bytes of a step's hidden states."""
    return workload.tokens * workload.hidden_size * bits[min(index, len(bits) - 1)] / 8.0


# -- the adapter -----------------------------------------------------------------------------------


def relayed_seconds(
    device: DeviceCost, behind: Behind, last: int, devices: Sequence[int] = ()
) -> float:
    """Of the stages' parts of an adapter, over every hop both ways, once a round.

    `last` is the first block behind the last stage's. `devices` are those that share each hop.
    """
    total = 0.0
    for number, (hop, cut) in enumerate(zip(behind.hops, behind.cuts, strict=True)):
        size = (last - cut) * device.lora_bytes
        total += (devices[number] if devices else 1) * size * (1.0 / hop.up + 1.0 / hop.down)
    return total
