"""A round whose micro-batches overlap, as events: device, link both ways and edge work at once.

A device launches micro-batches as long as fewer than its window are under way, and takes answers in
the order they come else. Messages go one after the other on the link each way, and coding has
threads of its own. An edge serves one job at a time, first come, first served. So does everybody
behind it: a hop each way, and a stage.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

ARRIVED, ANSWERED, FREE = range(3)
EDGE = 0
"""The station of a device that is its edge."""


@dataclass(frozen=True, slots=True)
class Visit:
    """A job at a `station` that devices share: it arrives after `lag` seconds, and is served so
    many. Stations behind an edge are numbered in `sfl/cost/tiers.py`."""

    station: int
    lag: float
    serve: float

    @property
    def seconds(self) -> float:
        """Where nobody is in the way."""
        return self.lag + self.serve


@dataclass(frozen=True, slots=True)
class Lap:
    """A micro-batch from the device's own work to the edge's answer, in seconds.

    `up` and `down` keep the link busy; the lags are latency, and what codes a message. The edge
    has it for `serve`; it then goes on to the visits `behind`, of which the last is at the edge.
    """

    work: float
    up: float
    up_lag: float
    serve: float
    down: float
    down_lag: float
    encode: float = 0.0
    encode_back: float = 0.0
    behind: tuple[Visit, ...] = ()

    @property
    def there(self) -> float:
        """From the device's work to the edge's, with nobody in the way."""
        return self.encode + self.up + self.up_lag

    @property
    def back(self) -> float:
        """From the edge's work to the answer."""
        return self.encode_back + self.down + self.down_lag


@dataclass(frozen=True, slots=True)
class Flow:
    """A device's step: `count` micro-batches of these laps and a backward each, then the `end`."""

    laps: tuple[Lap, ...]
    backward: float
    end: float = 0.0
    count: int = 1
    window: int = 1
    edge: int = 0

    @property
    def in_turn(self) -> float:
        """Seconds of all parts, one after the other."""
        laps = sum(lap.work + lap.there + lap.serve + lap.back for lap in self.laps)
        laps += sum(visit.seconds for lap in self.laps for visit in lap.behind)
        return self.count * (laps + self.backward) + self.end

    @property
    def stations(self) -> int:
        """How many there are at least."""
        return 1 + max([self.edge, *(own.station for lap in self.laps for own in lap.behind)])

    @property
    def alone(self) -> float:
        """Seconds of a step with nobody else at the edge."""
        return self.in_turn if self.count == 1 else flow_ends([self], 1)[0]


@dataclass(slots=True)
class Progress:
    """Where a device is in its round."""

    steps_left: int
    launched: int = 0
    landed: int = 0
    up_free: float = 0.0
    down_free: float = 0.0
    idle: bool = False
    inbox: deque[int] = field(default_factory=deque)


def flow_ends(flows: Sequence[Flow], steps: int) -> list[float]:
    """When each device has done its steps, in seconds from the round's beginning."""
    return _Round(flows, steps).run()


class _Round:
    def __init__(self, flows: Sequence[Flow], steps: int) -> None:
        self._flows = flows
        self._free = [0.0] * max((flow.stations for flow in flows), default=1)
        self._at = [Progress(steps) for _ in flows]
        self._ends = [0.0] * len(flows)
        self._events: list[tuple[float, int, int, int, int, int]] = []
        self._number = 0

    def run(self) -> list[float]:
        for device in range(len(self._flows)):
            self._act(device, 0.0)
        while self._events:
            now, _, kind, device, lap, visit = heapq.heappop(self._events)
            if kind == ARRIVED:
                self._serve(device, lap, visit, now)
            elif kind == FREE:
                self._act(device, now)
            else:
                self._take(device, lap, now)
        return self._ends

    def _put(self, at: float, kind: int, device: int, lap: int = 0, visit: int = 0) -> None:
        self._number += 1
        heapq.heappush(self._events, (at, self._number, kind, device, lap, visit))

    def _act(self, device: int, now: float) -> None:
        """What the device does next, at a moment at which it does nothing."""
        flow, at = self._flows[device], self._at[device]
        if at.landed == flow.count:
            now += flow.end
            at.steps_left -= 1
            at.launched = at.landed = 0
            if not at.steps_left:
                self._ends[device] = now
                return
        if at.launched < flow.count and at.launched - at.landed < flow.window:
            at.launched += 1
            self._work(device, 0, now)
        elif at.inbox:
            lap = at.inbox.popleft() + 1
            if lap < len(flow.laps):
                self._work(device, lap, now)
            else:
                at.landed += 1
                self._put(now + flow.backward, FREE, device)
        else:
            at.idle = True

    def _work(self, device: int, lap: int, now: float) -> None:
        own, at = self._flows[device].laps[lap], self._at[device]
        done = now + own.work
        at.up_free = max(at.up_free, done + own.encode) + own.up
        self._put(at.up_free + own.up_lag, ARRIVED, device, lap)
        self._put(done, FREE, device)

    def _serve(self, device: int, lap: int, visit: int, now: float) -> None:
        """The edge's first job is visit 0, those behind it follow."""
        flow, at = self._flows[device], self._at[device]
        own = flow.laps[lap]
        station, serve = flow.edge, own.serve
        if visit:
            station, serve = own.behind[visit - 1].station, own.behind[visit - 1].serve
        done = max(now, self._free[station]) + serve
        self._free[station] = done
        if visit < len(own.behind):
            self._put(done + own.behind[visit].lag, ARRIVED, device, lap, visit + 1)
            return
        at.down_free = max(at.down_free, done + own.encode_back) + own.down
        self._put(at.down_free + own.down_lag, ANSWERED, device, lap)

    def _take(self, device: int, lap: int, now: float) -> None:
        at = self._at[device]
        at.inbox.append(lap)
        if at.idle:
            at.idle = False
            self._act(device, now)
