"""The whole graph as a network, and what others find its least cut to be.

A solver takes arcs, source and sink, and returns the cut's capacity. What a library needs as
integers is scaled to them: 30 bits for scipy, whose cut is then off by up to 3e-4, 50 for ortools.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from math import inf

from sfl.planners.flow import Arcs, source_side
from sfl.planners.graph import Costs, Graph

Arc = tuple[int, int, float]
Solver = Callable[[Sequence[Arc], int, int], float]


def arcs_of(graph: Graph, costs: Costs) -> tuple[list[Arc], int, int]:
    """Arcs, source and sink; v' carries what v sends across."""
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


def _finite(arcs: Sequence[Arc]) -> float:
    """The sum of all capacities that end."""
    return sum(capacity for *_, capacity in arcs if capacity < inf)


def _networkx(name: str) -> Solver:
    networkx = import_module("networkx")
    flow = getattr(import_module("networkx.algorithms.flow"), name)

    def solve(arcs: Sequence[Arc], source: int, sink: int) -> float:
        graph = networkx.DiGraph()
        for tail, head, capacity in arcs:
            if capacity == inf:
                graph.add_edge(tail, head)
            else:
                graph.add_edge(tail, head, capacity=capacity)
        value, _ = networkx.minimum_cut(graph, source, sink, flow_func=flow)
        return float(value)

    return solve


def _scipy() -> Solver:
    sparse, graphs = import_module("scipy.sparse"), import_module("scipy.sparse.csgraph")
    top = 2**30

    def solve(arcs: Sequence[Arc], source: int, sink: int) -> float:
        unit = top / 2 / _finite(arcs)
        tails, heads, capacities = zip(*arcs, strict=True)
        whole = [top if one == inf else round(one * unit) for one in capacities]
        size = sink + 1
        matrix = sparse.csr_array((whole, (tails, heads)), shape=(size, size), dtype="int32")
        return float(graphs.maximum_flow(matrix, source, sink, method="dinic").flow_value) / unit

    return solve


def _igraph() -> Solver:
    igraph = import_module("igraph")

    def solve(arcs: Sequence[Arc], source: int, sink: int) -> float:
        most = 1.0 + 2.0 * _finite(arcs)
        graph = igraph.Graph(sink + 1, [arc[:2] for arc in arcs], directed=True)
        capacities = [min(capacity, most) for *_, capacity in arcs]
        return float(graph.mincut(source, sink, capacity=capacities).value)

    return solve


def _ortools() -> Solver:
    flows = import_module("ortools.graph.python.max_flow")

    def solve(arcs: Sequence[Arc], source: int, sink: int) -> float:
        unit = 2**50 / _finite(arcs)
        tails, heads, capacities = zip(*arcs, strict=True)
        whole = [2**55 if one == inf else round(one * unit) for one in capacities]
        network = flows.SimpleMaxFlow()
        network.add_arcs_with_capacity(tails, heads, whole)
        if network.solve(source, sink) != network.OPTIMAL:
            raise ArithmeticError("ortools found no flow")
        network.get_source_side_min_cut()
        return float(network.optimal_flow()) / unit

    return solve


def linear_program() -> Solver:
    """The cut as a linear program, by HiGHS: a vertex is 1 at the source's side, 0 at the sink's.

    Raises ImportError without scipy.
    """
    optimize, sparse = import_module("scipy.optimize"), import_module("scipy.sparse")

    def solve(arcs: Sequence[Arc], source: int, sink: int) -> float:
        size = sink + 1
        entries: list[tuple[int, int, float]] = []
        costs = [0.0] * size
        for row, (tail, head, capacity) in enumerate(arcs):
            entries += [(row, tail, 1.0), (row, head, -1.0)]
            if capacity < inf:  # an arc that is cut pays; an endless one must not be
                entries.append((row, len(costs), -1.0))
                costs.append(capacity)
        rows, columns, values = zip(*entries, strict=True)
        matrix = sparse.csr_array((values, (rows, columns)), shape=(len(arcs), len(costs)))
        bounds = [(0.0, 1.0)] * size + [(0.0, None)] * (len(costs) - size)
        bounds[source], bounds[sink] = (1.0, 1.0), (0.0, 0.0)
        found = optimize.linprog(costs, matrix, [0.0] * len(arcs), bounds=bounds, method="highs")
        if not found.success:
            raise ArithmeticError(found.message)
        return float(found.fun)

    return solve


MAKERS: dict[str, Callable[[], Solver]] = {
    "our flow, whole graph": lambda: whole_dinic,
    "networkx boykov_kolmogorov": lambda: _networkx("boykov_kolmogorov"),
    "networkx preflow_push": lambda: _networkx("preflow_push"),
    "networkx dinitz": lambda: _networkx("dinitz"),
    "scipy maximum_flow": _scipy,
    "igraph mincut": _igraph,
    "ortools max_flow": _ortools,
    "scipy linprog (HiGHS)": linear_program,
}


def solvers() -> Iterator[tuple[str, Solver | None]]:
    """Each by name; None where its package is not here."""
    for name, make in MAKERS.items():
        try:
            yield name, make()
        except ImportError:
            yield name, None
