"""Jobs that wait at an edge, by the run's setting `edge.order`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Protocol

from sfl.stage.orders import FirstCome, Order, Waiting
from sfl.stage.orders.waiting import Ranked

Job = tuple["Waits", int, int]
"""Who waits, the attempt that it is of, and the stop of its burst."""


class Waits(Protocol):
    """Whoever has a job here."""

    life: int

    def waiting(self, number: int) -> Waiting:
        """The job as orders see it."""


class Line(Protocol):
    """Jobs that have arrived; there is always one that is next."""

    def __len__(self) -> int:
        """How many wait."""

    def put(self, job: Job, number: int) -> None:
        """One has arrived."""

    def take(self) -> Job:
        """The next one."""


class Arrivals:
    """First come, first served."""

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job: Job, number: int) -> None:
        """Behind all others."""
        self._jobs.append(job)

    def take(self) -> Job:
        """The first."""
        return self._jobs.popleft()


class Heap:
    """For an order that ranks each job by itself."""

    def __init__(self, order: Ranked) -> None:
        self._rank: Callable[[Waiting], tuple[float, int]] = order.rank
        self._jobs: list[tuple[tuple[float, int], int, Job]] = []

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job: Job, number: int) -> None:
        """Where its rank is."""
        heappush(self._jobs, (self._rank(job[0].waiting(number)), number, job))

    def take(self) -> Job:
        """The least by rank: what was served since may have moved it back."""
        jobs = self._jobs
        while True:
            rank, number, job = heappop(jobs)
            now = self._rank(job[0].waiting(number))
            if now <= rank or not jobs:
                return job
            heappush(jobs, (now, number, job))


class Crowd:
    """For an order of which nobody knows how it chooses."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._jobs: list[tuple[Job, int]] = []

    def __len__(self) -> int:
        return len(self._jobs)

    def put(self, job: Job, number: int) -> None:
        """Behind all others."""
        self._jobs.append((job, number))

    def take(self) -> Job:
        """Whichever it chooses of those whose devices are still there."""
        there = [own for own in self._jobs if own[0][0].life == own[0][1]]
        if not there:
            return self._jobs.pop()[0]
        chosen = there[self._order.choose([job[0].waiting(number) for job, number in there])]
        self._jobs = [own for own in there if own is not chosen]
        return chosen[0]


def line_of(order: Order) -> Line:
    """A line in which that order takes the least work."""
    if isinstance(order, FirstCome):
        return Arrivals()
    return Heap(order) if isinstance(order, Ranked) else Crowd(order)
