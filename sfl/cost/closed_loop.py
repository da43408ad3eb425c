"""A round as events: devices take turns at their edges; a step begins where the last one ended."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Turns:
    """One device's steps. `visits`: seconds until it arrives at edge number `edge`, and seconds
    that it is served there; `end`: seconds from the last answer to the step's end. `stations`: the
    number of who serves each visit, where that is not always the edge."""

    visits: tuple[tuple[float, float], ...]
    end: float
    edge: int = 0
    stations: tuple[int, ...] = ()

    def station(self, visit: int) -> int:
        """Who serves that visit."""
        return self.stations[visit] if self.stations else self.edge


def round_ends(devices: Sequence[Turns], steps: int, num_edges: int = 1) -> list[float]:
    """When each device has done its steps, in seconds from the round's beginning.

    An edge serves one job at a time, first come, first served. So does any other of the
    `num_edges` stations, such as a link that devices share.
    """
    free = [0.0] * num_edges
    left = [steps] * len(devices)
    ends = [0.0] * len(devices)
    arrivals = [(turns.visits[0][0], number, 0) for number, turns in enumerate(devices)]
    heapq.heapify(arrivals)
    while arrivals:
        arrival, number, visit = arrivals[0]
        turns = devices[number]
        station = turns.station(visit)
        now = max(arrival, free[station]) + turns.visits[visit][1]
        free[station] = now
        visit += 1
        if visit == len(turns.visits):
            visit, now = 0, now + turns.end
            left[number] -= 1
        if not left[number]:
            ends[number] = now
            heapq.heappop(arrivals)
        else:
            heapq.heapreplace(arrivals, (now + turns.visits[visit][0], number, visit))
    return ends
