"""Maximum flow by Dinic's algorithm, for the small graphs that are left between articulations."""

from __future__ import annotations

from math import inf


class Arcs:
    """A network that is built arc by arc; arc `a` runs against `a ^ 1`."""

    def __init__(self, num_vertices: int) -> None:
        self.out: list[list[int]] = [[] for _ in range(num_vertices)]
        self.heads: list[int] = []
        self.room: list[float] = []

    def add(self, tail: int, head: int, capacity: float) -> None:
        """An arc; a second one between the same vertices is another arc."""
        self.out[tail].append(len(self.heads))
        self.out[head].append(len(self.heads) + 1)
        self.heads += (head, tail)
        self.room += (capacity, 0.0)

    @property
    def least(self) -> float:
        """Room below which an arc counts as full."""
        finite = [room for room in self.room if room < inf]
        return 1e-12 * max(finite, default=0.0)


def source_side(arcs: Arcs, source: int, sink: int) -> tuple[float, list[bool]]:
    """The least cut's capacity, and for each vertex whether it is on the source's side.

    Infinite where an endless path leads from source to sink; the sides then mean nothing.
    """
    flow, least = 0.0, arcs.least
    while True:
        levels = _levels(arcs, source, sink, least)
        if levels[sink] < 0:
            return flow, [level >= 0 for level in levels]
        more = _blocking(arcs, source, sink, levels, least)
        if more == inf:
            return inf, [level >= 0 for level in levels]
        flow += more


def _levels(arcs: Arcs, source: int, sink: int, least: float) -> list[int]:
    """Arcs from the source, -1 where it cannot be reached."""
    levels = [-1] * len(arcs.out)
    levels[source] = 0
    queue = [source]
    for vertex in queue:
        for arc in arcs.out[vertex]:
            head = arcs.heads[arc]
            if arcs.room[arc] > least and levels[head] < 0:
                levels[head] = levels[vertex] + 1
                queue.append(head)
    return levels


def _blocking(arcs: Arcs, source: int, sink: int, levels: list[int], least: float) -> float:
    """Push along shortest paths until none is left."""
    pushed = 0.0
    rest = [list(reversed(out)) for out in arcs.out]
    path: list[int] = []
    vertex = source
    while True:
        if vertex == sink:
            flow = min(arcs.room[arc] for arc in path)
            if flow == inf:
                return inf
            pushed += flow
            vertex = _push(arcs, path, flow, least, source)
        elif not rest[vertex]:
            if vertex == source:
                return pushed
            vertex = arcs.heads[path.pop() ^ 1]
            rest[vertex].pop()
        else:
            arc = rest[vertex][-1]
            head = arcs.heads[arc]
            if arcs.room[arc] > least and levels[head] == levels[vertex] + 1:
                path.append(arc)
                vertex = head
            else:
                rest[vertex].pop()


def _push(arcs: Arcs, path: list[int], flow: float, least: float, source: int) -> int:
    """Along the path; it is cut back to before its first full arc. Returns where it then ends."""
    for arc in path:
        arcs.room[arc] -= flow
        arcs.room[arc ^ 1] += flow
    full = next((at for at, arc in enumerate(path) if arcs.room[arc] <= least), len(path))
    del path[full:]
    return arcs.heads[path[-1]] if path else source
