"""What is behind all edges: hops and stages, each of which serves one job at a time."""

from __future__ import annotations

from sfl.cost.tiers import DOWN, SERVED, UP, Behind, among, num_stations, station


class Deep:
    """First come, first served. So jobs have to be told in the order in which they arrive: with
    stages no edge runs ahead of the clock."""

    __slots__ = ("_free", "_num_edges", "busy")

    def __init__(self, num_edges: int = 1, num_stages: int = 0) -> None:
        count = num_stations(num_edges, num_stages)
        self._num_edges = num_edges
        self._free = [0.0] * count
        self.busy = [0.0] * count
        """Seconds, by station."""

    def serve(self, edge: int, own: int, at: float, seconds: float) -> float:
        """A job of somebody at that edge, at a station as it sees it; when it is done."""
        number = among(own, edge, self._num_edges)
        begin = max(at, self._free[number])
        self._free[number] = end = begin + seconds
        self.busy[number] += seconds
        return end

    def relay(
        self, edge: int, behind: Behind, blocks: int, block_bytes: float, at: float, way: int
    ) -> float:
        """Stages' parts of an adapter that leave at a time; when the last of them is there.

        `blocks` are those before the device's own end. A part crosses every hop up to its stage.
        """
        numbers = range(len(behind.stages))
        for number in numbers if way == UP else reversed(numbers):
            hop = behind.hops[number]
            size = (blocks - behind.cuts[number]) * block_bytes
            seconds = size / (hop.up if way == UP else hop.down)
            at = self.serve(edge, station(number, way), at, seconds) + hop.latency
        return at

    def seconds_of(self, stage: int) -> float:
        """That a stage has computed."""
        return self._most(stage, SERVED)

    def hop_seconds(self, stage: int) -> float:
        """That the busiest hop to it was busy, one way."""
        return max(self._most(stage, UP), self._most(stage, DOWN))

    def _most(self, stage: int, kind: int) -> float:
        edges = range(self._num_edges)
        at = {among(station(stage, kind), edge, self._num_edges) for edge in edges}
        return max(self.busy[number] for number in at)
