"""The best cut of model graphs: against enumeration, and its time beside other solvers.

    python -m benchmarks.mincut

Times are the least of several, in CPU milliseconds. networkx builds its graph within them, since
capacities are part of it.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from math import inf

from sfl.planners.flow import Arcs, source_side
from sfl.planners.graph import Costs, Graph, best_cut

SIZES = (12, 32, 100)
Arc = tuple[int, int, float]
Solver = Callable[[Sequence[Arc], int, int], float]


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


def enumerated(graph: Graph, costs: Costs) -> float:
    """The least over all sets that are closed under parents."""
    sets: list[frozenset[int]] = [frozenset({0})]
    for vertex in range(1, len(graph)):
        sets += [one | {vertex} for one in sets if set(graph.parents[vertex]) <= one]
    return min(_seconds(graph, costs, one) for one in sets)


def _seconds(graph: Graph, costs: Costs, mine: frozenset[int]) -> float:
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


def arcs_of(graph: Graph, costs: Costs) -> tuple[list[Arc], int, int]:
    """The whole graph as a network: v' carries what v sends across."""
    size = len(graph)
    source, sink, found = 2 * size, 2 * size + 1, list[Arc]()
    for vertex in range(size):
        found.append((source, vertex, costs.server[vertex]))
        found.append((vertex, sink, costs.device[vertex]))
    for vertex, children in enumerate(graph.children):
        if children:
            found.append((vertex, size + vertex, costs.cross[vertex]))
        for child in children:
            found += [(size + vertex, child, inf), (child, vertex, inf)]
    return found, source, sink


def whole_dinic(arcs: Sequence[Arc], source: int, sink: int) -> float:
    """Our own flow on the whole graph, not decomposed."""
    network = Arcs(sink + 1)
    for arc in arcs:
        network.add(*arc)
    return source_side(network, source, sink)[0]


def networkx_solver(name: str) -> Solver:
    """One of its algorithms."""
    import networkx
    from networkx.algorithms import flow

    def solve(arcs: Sequence[Arc], source: int, sink: int) -> float:
        graph = networkx.DiGraph()
        for tail, head, capacity in arcs:
            if capacity == inf:
                graph.add_edge(tail, head)
            else:
                graph.add_edge(tail, head, capacity=capacity)
        value, _ = networkx.minimum_cut(graph, source, sink, flow_func=getattr(flow, name))
        return float(value)

    return solve


def solvers() -> dict[str, Solver]:
    """Ours without its sections, and networkx's."""
    found: dict[str, Solver] = {"our flow, whole graph": whole_dinic}
    for name in ("boykov_kolmogorov", "preflow_push", "dinitz"):
        found[f"networkx {name}"] = networkx_solver(name)
    return found


def milliseconds(work: Callable[[], object], budget: float = 0.3) -> float:
    """The least of several, in CPU time."""
    best, spent, runs = inf, 0.0, 0
    while runs < 2 or (spent < budget and runs < 200):
        begin = time.process_time()
        work()
        taken = time.process_time() - begin
        best, spent, runs = min(best, taken), spent + taken, runs + 1
    return 1e3 * best


def exactness(count: int) -> None:
    """How many optima enumeration finds that ours misses."""
    draw = random.Random(7)
    wrong, worst, largest = 0, 0.0, 0
    for _ in range(count):
        graph = random_graph(draw)
        costs = random_costs(draw, len(graph))
        found, mine = best_cut(graph, costs)
        best = enumerated(graph, costs)
        excess = max(abs(found / best - 1.0), abs(_seconds(graph, costs, mine) / best - 1.0))
        wrong += excess > 1e-9
        worst, largest = max(worst, excess), max(largest, len(graph))
    print("| graphs | vertices, at most | wrong | largest relative difference |")
    print("|---|---|---|---|")
    print(f"| {count} | {largest} | {wrong} | {worst:.0e} |\n")


def times() -> None:
    """Milliseconds by number of blocks."""
    titles = [*(f"{size} blocks" for size in SIZES), "100 unlike", "100, each cut better"]
    print(f"| solver, milliseconds | {' | '.join(titles)} | relative difference |")
    print("|---|" + "---|" * (len(titles) + 1))
    cases = [transformer(size, None) for size in SIZES]
    cases += [transformer(SIZES[-1], random.Random(3)), falling(SIZES[-1])]
    ours = [best_cut(*case)[0] for case in cases]
    row = " | ".join(f"{milliseconds(partial(best_cut, *case)):.2f}" for case in cases)
    print(f"| **ours, between articulations** | {row} | |", flush=True)
    built = [milliseconds(partial(Graph, graph.parents)) for graph, _ in cases]
    print(f"| (building our graph, once a model) | {' | '.join(f'{x:.2f}' for x in built)} | |")
    for name, solve in solvers().items():
        cells, apart = [], 0.0
        for case, own in zip(cases, ours, strict=True):
            network = arcs_of(*case)
            apart = max(apart, abs(solve(*network) / own - 1.0))
            cells.append(f"{milliseconds(partial(solve, *network)):.2f}")
        print(f"| {name} | {' | '.join(cells)} | {apart:.0e} |", flush=True)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graphs", type=int, default=1000)
    chosen = parser.parse_args()
    exactness(chosen.graphs)
    times()


if __name__ == "__main__":
    main()
