"""What is to happen, by time: one queue for what concerns the cloud, and one of each edge.

Edges do not see each other. So an edge's own queue may run ahead of the clock, as far as nothing
that concerns it comes from outside (a conservative parallel simulation; Chandy and Misra, 1979).
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from math import inf
from typing import Any

Act = Callable[..., object]
FIRST = -1
"""The rank of what belongs to no device."""


class Events:
    """Acts on a virtual clock, in seconds; what is due at one time comes by its rank, and then as
    it was told. `horizon`: before that time nothing comes from outside that is not in the queue.
    """

    __slots__ = ("_heap", "_number", "horizon", "now", "strict")

    def __init__(self) -> None:
        self.now = 0.0
        self.horizon = inf
        self.strict = False
        """No queue runs ahead of any other."""
        self._heap: list[tuple[float, int, int, Act, tuple[Any, ...]]] = []
        self._number = 0

    def at(self, time: float, rank: int, act: Act, *what: Any) -> None:
        """Have something done then; never before what is done now."""
        self._number = number = self._number + 1
        heappush(self._heap, (time if time > self.now else self.now, rank, number, act, what))

    def next(self) -> bool:
        """Do what is due next; whether there was anything."""
        if not self._heap:
            return False
        self.now, _, _, act, what = heappop(self._heap)
        act(*what)
        return True

    def limit(self) -> float:
        """How far a queue may run ahead, by what others do."""
        if not self.strict:
            return self.horizon
        return min(self.horizon, self._heap[0][0] if self._heap else inf)

    @property
    def count(self) -> int:
        """Of all acts so far, those to come included."""
        return self._number
