"""Devices and edges paired anew in every round, after SplitLLM (2501.13318)."""

from __future__ import annotations

import random
from dataclasses import replace
from statistics import fmean

from benchmarks.planning.drawing import Line, Panel
from benchmarks.planning.rows import Choices, saved, table
from benchmarks.planning.shared_edge import shared_edge
from sfl.cost.values import EdgeCost, NodeCost, PassCost
from sfl.planners import PLANNERS, Choice, EdgeState, State
from sfl.planners.pairing import pairs
from sfl.planners.seconds import alone_seconds

PLANS = (
    "pairing",
    "random",
    "random groups, best pairs",
    "groups of like length, pairs at random",
    "each at its own edge",
)


def pairing_table() -> None:
    """A cycle in which each device trains once, as seconds over the baseline's."""
    print("### Pairing: N devices on M edges, seconds of a cycle, means of 20 scenes\n")
    row = table("N", "M", "rounds", *(f"over {one}" for one in PLANS[1:]))
    for count, num_edges in ((8, 2), (12, 4), (14, 4), (30, 6)):
        sums = [0.0] * len(PLANS)
        for seed in range(20):
            for number, value in enumerate(_cycles(seed, count, num_edges)):
                sums[number] += value
        row(count, num_edges, -(-count // num_edges), *(saved(sums[0], x) for x in sums[1:]))
    print()


def _cycles(seed: int, count: int, num_edges: int) -> list[float]:
    draw = random.Random(seed)
    base = shared_edge(5e12, 100.0, 2.1)
    devices = tuple(
        replace(
            base.devices[0],
            name=f"d{n}",
            edge="e0",
            at=(4, 0),
            cost=base.devices[draw.randrange(6)].cost,
        )
        for n in range(count)
    )
    edges = tuple(
        EdgeState(f"e{n}", EdgeCost(_times(base.edges[0].cost.node, 10 ** draw.uniform(-0.5, 0.5))))
        for n in range(num_edges)
    )
    state = replace(base, devices=devices, edges=edges)
    ours, now = 0.0, state
    for _ in range(-(-count // num_edges)):
        proposal = PLANNERS["pairing"].propose(now)
        ours += _slowest(state, {n: c for n, c in proposal.devices.items() if c.takes_part})
        now = replace(now, memory=proposal.memory)
    order = list(devices)
    draw.shuffle(order)
    groups = [order[at : at + num_edges] for at in range(0, count, num_edges)]
    names = [edge.name for edge in edges]
    at_random = sum(
        _slowest(state, {d.name: Choice(4, edge=e) for d, e in zip(group, names, strict=False)})
        for group in groups
    )
    paired = sum(
        _slowest(state, {n: Choice(4, edge=e) for n, e in pairs(state, group).items()})
        for group in groups
    )
    like = sorted(devices, key=lambda one: -alone_seconds(state, one, Choice(4)))
    alike = [like[at : at + num_edges] for at in range(0, count, num_edges)]
    for group in alike:
        draw.shuffle(group)
    unpaired = sum(
        _slowest(state, {d.name: Choice(4, edge=e) for d, e in zip(group, names, strict=False)})
        for group in alike
    )
    own = [devices[at : at + num_edges] for at in range(0, count, num_edges)]
    stays = sum(
        _slowest(state, {d.name: Choice(4, edge=e) for d, e in zip(group, names, strict=False)})
        for group in own
    )
    return [ours, at_random, paired, unpaired, stays]


def _times(node: NodeCost, factor: float) -> NodeCost:
    block = PassCost(node.block.forward * factor, node.block.backward * factor)
    return NodeCost(block, head=PassCost(node.head.forward * factor, node.head.backward * factor))


def _slowest(state: State, choices: Choices) -> float:
    by_name = {device.name: device for device in state.devices}
    return max(alone_seconds(state, by_name[name], one) for name, one in choices.items())


COUNTS = (4, 8, 12, 16, 20, 24, 28, 32)


def pairing_panels() -> list[Panel]:
    """Seconds of a cycle against devices, and what is saved over pairs at random."""
    means = {
        (count, edges): [
            fmean(each) for each in zip(*(_cycles(n, count, edges) for n in range(20)), strict=True)
        ]
        for count in COUNTS
        for edges in (2, 4)
    }

    def lines(edges: int) -> list[Line]:
        return [
            Line(title, COUNTS, [means[count, edges][number] for count in COUNTS], ours=not number)
            for number, title in enumerate(PLANS)
        ]

    return [
        Panel(f"{edges} edges", "devices", "seconds of a cycle", lines(edges)) for edges in (2, 4)
    ]
