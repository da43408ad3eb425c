"""The pure scheduling model of an edge: one machine, jobs with known arrivals and tails.

A device's step is forward, link up, the edge, link down, backward; the next follows at once.
Orders are the edge's own (`sfl/stage/orders`), told the tails an edge would have measured. With one
step it is
`1 | r_j, q_j | Cmax`, scheduling with release and delivery times.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations

from sfl.stage.orders import ORDERS, Waiting


@dataclass(frozen=True, slots=True)
class Job:
    """Seconds of each part of a device's step; `serve_forward` is the forward's part of `serve`."""

    name: str
    forward: float
    up: float
    serve: float
    down: float
    backward: float
    serve_forward: float = 0.0

    @property
    def head(self) -> float:
        """From a step's beginning to its arrival at the edge (a)."""
        return self.forward + self.up

    @property
    def tail(self) -> float:
        """From the edge's answer to the step's end (q)."""
        return self.down + self.backward

    @property
    def own(self) -> float:
        """What a step takes besides the edge."""
        return self.head + self.tail


def at_speed(jobs: Sequence[Job], factor: float) -> list[Job]:
    """The same devices at an edge that takes `factor` times as long."""
    return [
        replace(job, serve=factor * job.serve, serve_forward=factor * job.serve_forward)
        for job in jobs
    ]


def predict(jobs: Sequence[Job], order: str, steps: int) -> dict[str, float]:
    """When each device has done its `steps`, in seconds from the round's beginning."""
    arrivals = [(job.head, number, 0) for number, job in enumerate(jobs)]
    heapq.heapify(arrivals)
    queue: list[tuple[int, int, int]] = []  # arrival's number, device, step
    served: defaultdict[str, float] = defaultdict(float)
    ends: dict[str, float] = {}
    now, number = 0.0, 0
    while arrivals or queue:
        if not queue:
            now = max(now, arrivals[0][0])
        while arrivals and arrivals[0][0] <= now:
            _, device, step = heapq.heappop(arrivals)
            queue.append((number, device, step))
            number += 1
        waiting = [
            Waiting(came, jobs[device].name, (steps - step) * jobs[device].own, served[str(device)])
            for came, device, step in queue
        ]
        chosen = ORDERS[order]
        _, device, step = queue.pop(chosen.choose(waiting))
        job = jobs[device]
        now += job.serve
        served[str(device)] += job.serve
        ends[job.name] = now + job.tail
        if step + 1 < steps:
            heapq.heappush(arrivals, (now + job.tail + job.head, device, step + 1))
    return ends


def least(jobs: Sequence[Job], steps: int) -> float:
    """No order can be faster: neither the edge nor any device is ever late."""
    edge = steps * sum(job.serve for job in jobs)
    around = min(job.head for job in jobs) + min(job.tail for job in jobs)
    return max(edge + around, max(steps * (job.own + job.serve) for job in jobs))


def best(jobs: Sequence[Job]) -> float:
    """The shortest single step over all orders, by trying them."""

    def length(chosen: Sequence[Job]) -> float:
        now, end = 0.0, 0.0
        for job in chosen:
            now = max(now, job.head) + job.serve
            end = max(end, now + job.tail)
        return end

    return min(length(chosen) for chosen in permutations(jobs))


def splitfed(jobs: Sequence[Job]) -> float:
    """A step with a barrier: all forwards as they come, then all backwards."""
    now = 0.0
    for job in sorted(jobs, key=lambda job: job.head):
        now = max(now, job.head) + job.serve_forward
    end = 0.0
    for job in sorted(jobs, key=lambda job: job.head):
        now += job.serve - job.serve_forward
        end = max(end, now + job.tail)
    return end


def sequential(jobs: Sequence[Job]) -> float:
    """A step of every device, one device after another."""
    return sum(job.own + job.serve for job in jobs)
