"""An edge at work: it serves one job at a time, and is never idle while one waits."""

from __future__ import annotations

from heapq import heappop, heappush
from math import inf
from typing import TYPE_CHECKING

from sfl.cost.flow import EDGE
from sfl.simulate.deep import Deep
from sfl.simulate.events import FIRST, Act, Events
from sfl.simulate.lines import line_of
from sfl.stage.orders import Order

if TYPE_CHECKING:
    from sfl.simulate.worker import Worker


class Floor:
    """One edge, with the jobs that are on their way to it, or to what is behind it. `busy` are
    seconds that it computed.

    What is due here runs ahead of the cloud's clock until something comes from outside: `outside`
    says when that is.
    """

    __slots__ = (
        "_deep",
        "_due",
        "_events",
        "_free",
        "_goes_at",
        "_jobs",
        "_line",
        "_number",
        "busy",
        "name",
        "place",
    )

    def __init__(
        self, name: str, order: Order, events: Events, place: int = 0, deep: Deep | None = None
    ) -> None:
        """`place`: its number among all edges; None `deep` where nothing is behind them."""
        self.name = name
        self.place = place
        self.busy = 0.0
        self._deep = deep
        self._events = events
        self._line = line_of(order)
        self._jobs: list[tuple[float, int, Worker, int, int]] = []
        """On their way: when each is here, its number, whose it is, its attempt, its stop."""
        self._due: list[float] = []
        """When something comes from outside."""
        self._free = 0.0
        self._number = 0
        self._goes_at = inf

    # -- from outside ---------------------------------------------------------------------------

    def at(self, time: float, rank: int, act: Act, *what: object) -> None:
        """Have something done that concerns this edge, and others too."""
        heappush(self._due, time)
        self._events.at(time, rank, self._outside, act, what)

    def _outside(self, act: Act, what: tuple[object, ...]) -> None:
        heappop(self._due)
        act(*what)
        self.go_later()

    def go_later(self) -> None:
        """There is work: it begins when the first of it is due."""
        first = self._first()
        if first < self._goes_at:
            self._goes_at = first
            self._events.at(first, FIRST, self._go, first)

    def _go(self, at: float) -> None:
        if at == self._goes_at:
            self._goes_at = inf
            barrier = self._due[0] if self._due else inf
            self._run(min(barrier, self._events.limit()))
            self.go_later()

    def _first(self) -> float:
        arrives = self._jobs[0][0] if self._jobs else inf
        return min(arrives, self._free) if len(self._line) else arrives

    # -- its own work ---------------------------------------------------------------------------

    def arrives(self, at: float, worker: Worker, stop: int) -> None:
        """A job of a device will be here then."""
        self._number = number = self._number + 1
        heappush(self._jobs, (at, number, worker, worker.life, stop))

    def _run(self, limit: float) -> None:
        """What is due before `limit`, and at the least what is due now.

        Who arrives just when the edge is free is there when it chooses.
        """
        jobs, line, now = self._jobs, self._line, self._events.now
        while True:
            arrives = jobs[0][0] if jobs else inf
            if len(line) and self._free < arrives:
                if self._free >= limit and self._free > now:
                    return
                self._take()
            elif arrives == inf or (arrives >= limit and arrives > now):
                return
            else:
                at, number, worker, life, stop = heappop(jobs)
                if life == worker.life:
                    self._arrived(at, number, worker, stop)
                limit = min(limit, self._due[0]) if self._due else limit

    def _arrived(self, at: float, number: int, worker: Worker, stop: int) -> None:
        if self._deep is not None:
            station, seconds = worker.behind(stop)
            if station != EDGE:
                worker.served_at(stop, self._deep.serve(self.place, station, at, seconds))
                return
        if worker.held_until > at:
            self.arrives(worker.resumed(at), worker, stop)
        elif worker.beside:
            seconds = worker.served_seconds(stop)
            self.busy += seconds
            worker.served_at(stop, at + seconds)
        elif at >= self._free and not len(self._line):
            self._serve(worker, stop, at)
        else:
            self._line.put((worker, worker.life, stop), number)

    def _take(self) -> None:
        """The edge is free, and somebody waits, or has waited until it was lost."""
        worker, life, stop = self._line.take()
        if life == worker.life:
            self._serve(worker, stop, self._free)  # type: ignore[arg-type]

    def _serve(self, worker: Worker, stop: int, begin: float) -> None:
        seconds = worker.served_seconds(stop)
        self._free = end = begin + seconds
        self.busy += seconds
        worker.served += seconds
        worker.served_at(stop, end)
