"""The best cut of any model graph: exact, and quick because a cut is between two articulations.

A vertex is computed on the device or on the server. The device's vertices are closed under their
inputs. A round of n steps takes

    n (sum of device seconds + sum of server seconds + values that cross, each once) + what the
    device's own trained values take to be exchanged,

which is a minimum s-t cut (2507.01041). An articulation is a vertex that every path from the input
passes. If the last articulation of the device is x and the next one is y, all before x is the
device's and all from y on the server's. So the optimum is the least of: prefix, a small cut between
x and y, suffix. Equal blocks are solved once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf

from sfl.planners.flow import Arcs, source_side

FEW = 128
"""Cuts of a section up to which all are looked at; a flow is quicker for more."""


@dataclass(frozen=True, slots=True)
class Section:
    """Vertices between two articulations `first` and `last`; `last` is the graph's size at its end.

    `parents` are those of each inner vertex, and then of the last one, counted from `first`. `ways`
    are all its cuts where they are few: the device's inner vertices, the server's, and whose value
    crosses.
    """

    first: int
    last: int
    parents: tuple[tuple[int, ...], ...]
    ways: tuple[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]], ...] = ()


class Graph:
    """A model's vertices in topological order: 0 is the input, which the device holds.

    Raises ValueError where a vertex has no parent or one that follows it.
    """

    def __init__(self, parents: Sequence[Sequence[int]]) -> None:
        self.parents = tuple(tuple(sorted(set(each))) for each in parents)
        for vertex, each in enumerate(self.parents[1:], start=1):
            if not each or each[-1] >= vertex:
                raise ValueError(f"vertex {vertex} needs parents before it, not {each}")
        self.sections = tuple(self._sections())

    def __len__(self) -> int:
        return len(self.parents)

    @property
    def children(self) -> list[list[int]]:
        """Of each vertex."""
        found: list[list[int]] = [[] for _ in self.parents]
        for vertex, parents in enumerate(self.parents):
            for parent in parents:
                found[parent].append(vertex)
        return found

    @property
    def articulations(self) -> list[int]:
        """Vertices that every path from the input to an end passes."""
        furthest, found = -1, []
        for vertex, children in enumerate(self.children):
            if furthest <= vertex:
                found.append(vertex)
            furthest = max(furthest, children[-1] if children else len(self))
        return found

    def _sections(self) -> Iterator[Section]:
        known: dict[object, Section] = {}
        for first, last in pairwise([*self.articulations, len(self)]):
            within = self.parents[first + 1 : last + 1]
            parents = tuple(tuple(parent - first for parent in each) for each in within)
            shape = (last - first, parents)
            ways = known[shape].ways if shape in known else _ways(parents, last - first - 1)
            known[shape] = Section(first, last, parents, ways)
            yield known[shape]


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of a round, by vertex: on the device, on the server, and for its value to cross.

    `device` includes what its trained values take to be exchanged. `inf` forbids a side: of the
    device where the server has to hold it, of the server where the device has to. Who holds a
    vertex has to be able to hold what comes before it.
    """

    device: Sequence[float]
    server: Sequence[float]
    cross: Sequence[float]


def best_cut(graph: Graph, costs: Costs) -> tuple[float, frozenset[int]]:
    """Seconds of the best round, and the device's vertices. `inf` where none is possible."""
    suffix = _suffix(costs.server)
    best, where, inner = inf, 0, frozenset[int]()
    prefix = 0.0
    solved: dict[object, tuple[float, frozenset[int]]] = {}
    device, server, cross = costs.device, costs.server, costs.cross
    for number, section in enumerate(graph.sections):
        first, last = section.first, section.last
        prefix += device[first]
        if prefix + suffix[last] < best:  # a small cut is never negative
            key = (
                section.parents,
                cross[first],
                *device[first + 1 : last],
                *server[first + 1 : last],
                *cross[first + 1 : last],
            )
            found = solved.get(key)
            if found is None:
                found = solved[key] = _within(section, last < len(graph), costs)
            seconds = prefix + found[0] + suffix[last]
            if seconds < best:
                best, where, inner = seconds, number, found[1]
        prefix += sum(device[first + 1 : last])
    if best == inf:
        return inf, frozenset()
    start = graph.sections[where].first
    return best, frozenset(range(start + 1)) | frozenset(start + one for one in inner)


def _suffix(server: Sequence[float]) -> list[float]:
    found = [0.0] * (len(server) + 1)
    for vertex in range(len(server) - 1, -1, -1):
        found[vertex] = found[vertex + 1] + server[vertex]
    return found


def _within(section: Section, closed: bool, costs: Costs) -> tuple[float, frozenset[int]]:
    """The cut of one section: the device holds its first vertex, the server its last one.

    Seconds of its inner vertices and of what crosses, and the device's inner vertices, counted from
    the first. At the graph's end nobody needs to hold a last one.
    """
    first, inner = section.first, section.last - section.first - 1
    if section.ways:
        return _least(section, costs)
    arcs = Arcs(2 * (inner + 2) + 2)
    source, sink = 2 * (inner + 2), 2 * (inner + 2) + 1
    arcs.add(source, 0, inf)
    if closed:
        arcs.add(inner + 1, sink, inf)
    for vertex in range(1, inner + 1):
        arcs.add(source, vertex, costs.server[first + vertex])
        arcs.add(vertex, sink, costs.device[first + vertex])
    _precede(arcs, section, costs, inner + 2)
    seconds, side = source_side(arcs, source, sink)
    return seconds, frozenset(vertex for vertex in range(1, inner + 1) if side[vertex])


def _least(section: Section, costs: Costs) -> tuple[float, frozenset[int]]:
    """The best of all ways."""
    first, (device, server, cross) = section.first, (costs.device, costs.server, costs.cross)
    best, found = inf, section.ways[0][0]
    for mine, theirs, crossing in section.ways:
        seconds = 0.0
        for vertex in mine:
            seconds += device[first + vertex]
        for vertex in theirs:
            seconds += server[first + vertex]
        for vertex in crossing:
            seconds += cross[first + vertex]
        if seconds < best:
            best, found = seconds, mine
    return best, frozenset(found)


def _ways(
    parents: tuple[tuple[int, ...], ...], inner: int
) -> tuple[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]], ...]:
    """All sets of inner vertices that are closed under parents; () where they are many."""
    sets: list[frozenset[int]] = [frozenset({0})]
    for vertex in range(1, inner + 1):
        sets += [one | {vertex} for one in sets if one.issuperset(parents[vertex - 1])]
        if len(sets) > FEW:
            return ()
    found = []
    for one in sets:
        theirs = [child for child in range(1, len(parents) + 1) if child not in one]
        crossing = {parent for child in theirs for parent in parents[child - 1]} & one
        mine = tuple(sorted(one - {0}))
        inside = tuple(child for child in theirs if child <= inner)
        found.append((mine, inside, tuple(sorted(crossing))))
    return tuple(found)


def _precede(arcs: Arcs, section: Section, costs: Costs, width: int) -> None:
    """A vertex's value crosses once, to whichever of its children is the server's."""
    crossing = set()
    for child, parents in enumerate(section.parents, start=1):
        for parent in parents:
            if parent not in crossing:
                crossing.add(parent)
                arcs.add(parent, width + parent, costs.cross[section.first + parent])
            arcs.add(width + parent, child, inf)
            arcs.add(child, parent, inf)
