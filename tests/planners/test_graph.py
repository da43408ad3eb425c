"""The best cut of a graph against every closed set of vertices."""

from __future__ import annotations

import random
from math import inf

import pytest
from hypothesis import given, settings

from sfl.planners import graph as graphs
from sfl.planners.flow import Arcs, source_side
from sfl.planners.graph import Costs, Graph, best_cut
from tests.house.planning import seeds


def random_graph(draw: random.Random) -> Graph:
    """Blocks with branches and skips, or arcs at random."""
    if draw.random() < 0.5:
        size = draw.randint(2, 9)
        parents: list[list[int]] = [[]]
        for vertex in range(1, size):
            near = range(max(0, vertex - 4), vertex)
            parents.append(draw.sample(near, min(len(near), draw.choice((1, 1, 2, 3)))))
        return Graph(parents)
    parents = [[]]
    for _ in range(draw.randint(1, 3)):
        base, ends = len(parents) - 1, []
        for _ in range(draw.randint(1, 2)):
            last = base
            for _ in range(draw.randint(1, 2)):
                parents.append([last])
                last = len(parents) - 1
            ends.append(last)
        if draw.random() < 0.6:
            ends.append(base)
        parents.append(ends)
    return Graph(parents)


def random_costs(draw: random.Random, size: int) -> Costs:
    """Some vertices may be held on one side only."""
    device = [draw.uniform(0.1, 4) for _ in range(size)]
    server = [inf, *(draw.uniform(0.1, 2) for _ in range(size - 1))]
    if draw.random() < 0.4:
        for vertex in range(draw.randint(1, size), size):
            device[vertex] = inf
    return Costs(device, server, [draw.uniform(0.1, 3) for _ in range(size)])


def seconds(graph: Graph, costs: Costs, mine: set[int]) -> float:
    """What the definition says."""
    total = 0.0
    for vertex, children in enumerate(graph.children):
        total += (costs.device if vertex in mine else costs.server)[vertex]
        if vertex in mine and any(child not in mine for child in children):
            total += costs.cross[vertex]
    return total


def enumerated(graph: Graph, costs: Costs) -> float:
    """The least over all sets that are closed under parents."""
    sets: list[set[int]] = [{0}]
    for vertex in range(1, len(graph)):
        sets += [one | {vertex} for one in sets if set(graph.parents[vertex]) <= one]
    return min(seconds(graph, costs, one) for one in sets)


@pytest.mark.parametrize("few", [graphs.FEW, 0], ids=["looked at", "by flow"])
@given(seed=seeds)
@settings(max_examples=200, deadline=None)
def test_the_best_cut_is_the_least_of_all(few: int, seed: int):
    """Whether small sections are enumerated or not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, "FEW", few)
        _is_least(seed)


def _is_least(seed: int) -> None:
    draw = random.Random(seed)
    graph = random_graph(draw)
    costs = random_costs(draw, len(graph))
    found, mine = best_cut(graph, costs)
    assert found == pytest.approx(enumerated(graph, costs), rel=1e-9)
    assert seconds(graph, costs, set(mine)) == pytest.approx(found, rel=1e-9)
    assert all(set(graph.parents[vertex]) <= mine for vertex in mine)


def test_articulations_of_residual_blocks():
    """Each block's end is one, and what a skip jumps over is none."""
    graph = Graph([[], [0], [1, 0], [2], [3, 2], [4]])
    assert graph.articulations == [0, 2, 4, 5]


def test_a_value_that_several_children_read_crosses_once():
    graph = Graph([[], [0], [0], [1, 2]])
    costs = Costs([1.0, inf, inf, inf], [inf, 1.0, 1.0, 1.0], [5.0, 9.0, 9.0, 0.0])
    assert best_cut(graph, costs) == (1.0 + 5.0 + 3.0, frozenset({0}))


def test_what_no_side_can_hold_has_no_cut():
    graph = Graph([[], [0], [1]])
    assert best_cut(graph, Costs([inf, 1, 1], [inf, 1, 1], [0, 0, 0])) == (inf, frozenset())


@pytest.mark.parametrize("parents", [[[], []], [[], [2], [0]], [[], [1]]])
def test_a_graph_has_to_be_in_order(parents: list[list[int]]):
    with pytest.raises(ValueError, match="needs parents before it"):
        Graph(parents)


def test_an_endless_path_is_said():
    arcs = Arcs(2)
    arcs.add(0, 1, inf)
    assert source_side(arcs, 0, 1)[0] == inf


@given(seed=seeds)
@settings(max_examples=60, deadline=None)
def test_flow_is_networkxs(seed: int):
    """On networks of any shape."""
    import networkx

    draw = random.Random(seed)
    size = draw.randint(3, 8)
    arcs, known = Arcs(size), networkx.DiGraph()
    known.add_nodes_from(range(size))
    for tail in range(size):
        for head in range(size):
            if tail != head and draw.random() < 0.5:
                capacity = draw.choice((0.0, draw.uniform(0, 5)))
                arcs.add(tail, head, capacity)
                known.add_edge(tail, head, capacity=capacity)
    value, side = source_side(arcs, 0, size - 1)
    assert value == pytest.approx(networkx.maximum_flow_value(known, 0, size - 1), abs=1e-9)
    assert side[0] and not side[-1]
