"""Graphs that are made: small ones of chance, whose every cut can be looked at, and blocks."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from math import inf

from sfl.planners.graph import Costs, Graph

Case = tuple[Graph, Costs]


def random_graph(draw: random.Random) -> Graph:
    """Up to 12 vertices: arcs at random, or blocks with branches and skips."""
    if draw.random() < 0.5:
        parents: list[list[int]] = [[]]
        for vertex in range(1, draw.randint(6, 12)):
            near = range(max(0, vertex - 4), vertex)
            parents.append(draw.sample(near, min(len(near), draw.choice((1, 1, 2, 3)))))
        return Graph(parents)
    parents = [[]]
    while len(parents) < 9:
        base, ends = len(parents) - 1, []
        for _ in range(draw.randint(1, 2)):
            parents.append([base])
            ends.append(len(parents) - 1)
        parents.append([*ends, base] if draw.random() < 0.6 else ends)
    return Graph(parents)


def random_costs(draw: random.Random, size: int) -> Costs:
    """A server that is slower or faster, vertex by vertex."""
    speed = draw.uniform(0.2, 6)
    server = [draw.uniform(0.1, 2) for _ in range(size)]
    device = [s * draw.choice((speed, speed * draw.uniform(0.5, 2))) for s in server]
    return Costs(device, [inf, *server[1:]], [draw.uniform(0.1, 3) for _ in range(size)])


def even_costs(draw: random.Random, size: int) -> Costs:
    """Neither side is quicker on the whole and values are cheap, so that the best cut is inside."""
    device, server = ([draw.uniform(0.1, 2.0) for _ in range(size)] for _ in range(2))
    return Costs(device, [inf, *server[1:]], [draw.uniform(0.02, 0.5) for _ in range(size)])


def enumerated(graph: Graph, costs: Costs) -> float:
    """The least over all sets that are closed under parents."""
    sets: list[frozenset[int]] = [frozenset({0})]
    for vertex in range(1, len(graph)):
        sets += [one | {vertex} for one in sets if set(graph.parents[vertex]) <= one]
    return min(seconds_of(graph, costs, one) for one in sets)


def seconds_of(graph: Graph, costs: Costs, mine: frozenset[int]) -> float:
    """Of a round, with these vertices on the device."""
    total = 0.0
    for vertex, children in enumerate(graph.children):
        total += (costs.device if vertex in mine else costs.server)[vertex]
        if vertex in mine and any(child not in mine for child in children):
            total += costs.cross[vertex]
    return total


def transformer(num_blocks: int, draw: random.Random | None) -> tuple[Graph, Costs]:
    """Blocks of attention, skip, MLP, skip; all alike, or each vertex with its own costs."""
    parents: list[list[int]] = [[]]
    device, server = [0.3], [inf]
    for _ in range(num_blocks):
        last = len(parents) - 1
        parents += [[last], [last + 1, last], [last + 2], [last + 3, last + 2]]
        device += [4.02, 0.05, 8.02, 0.05]
        server += [0.4, 0.01, 0.8, 0.01]
    parents.append([len(parents) - 1])
    device.append(20.0)
    server.append(2.0)
    cross = [1.0] * len(parents)
    if draw is not None:
        device = [value * draw.uniform(0.02, 0.3) for value in device]
        cross = [draw.uniform(0.2, 2.0) for _ in cross]
    return Graph(parents), Costs(device, server, cross)


def falling(num_blocks: int) -> tuple[Graph, Costs]:
    """The hardest for ours: no section can be left out, and none is like another one."""
    draw = random.Random(1)
    graph, _ = transformer(num_blocks, None)
    size = len(graph)
    server = [draw.uniform(0.1, 2.0) for _ in range(size)]
    cross = [3.0 - 2.9 * vertex / size for vertex in range(size)]
    return graph, Costs([0.999 * one for one in server], [inf, *server[1:]], cross)


def block_wise(graph: Graph, costs: Costs) -> Case:
    """A chain: what is between two articulations goes with the one that follows, as one block."""
    ends = graph.articulations
    blocks = [range(1), *(range(first + 1, last + 1) for first, last in pairwise(ends))]
    if ends[-1] < len(graph) - 1:
        blocks.append(range(ends[-1] + 1, len(graph)))
    chain = Graph([[], *([number] for number in range(len(blocks) - 1))])

    def whole(each: Sequence[float]) -> list[float]:
        return [sum(each[vertex] for vertex in block) for block in blocks]

    return chain, Costs(
        whole(costs.device), whole(costs.server), [costs.cross[block[-1]] for block in blocks]
    )
