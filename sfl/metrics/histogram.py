"""How often values were how large: counts by bucket, as Prometheus reads them."""

from __future__ import annotations

import bisect
import threading
from dataclasses import dataclass
from typing import Any

from sfl.metrics.checked import amount, count

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of durations, in seconds; a last bucket holds what is longer."""
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Upper bounds of how many there were."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """`buckets` has one count per bound plus one for what is above, not cumulated."""

    bounds: tuple[float, ...]
    buckets: tuple[int, ...]
    total: float = 0.0

    def to_list(self) -> list[Any]:
        """Plain values for JSON; the bounds are known."""
        return [self.total, list(self.buckets)]

    @classmethod
    def from_list(cls, values: Any, bounds: tuple[float, ...]) -> Histogram:
        """What `to_list` gave. Raises ValueError, TypeError."""
        total, buckets = values
        if len(buckets) != len(bounds) + 1:
            raise ValueError(f"a histogram has {len(bounds) + 1} buckets")
        return cls(bounds, tuple(map(count, buckets)), amount(total))


NO_SECONDS = Histogram(BUCKETS, (0,) * (len(BUCKETS) + 1))
NO_SIZES = Histogram(SIZES, (0,) * (len(SIZES) + 1))


class Counted:
    """A histogram that grows; thread-safe."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._lock = threading.Lock()
        self._total = 0.0
        self._buckets = [0] * (len(bounds) + 1)

    def observe(self, value: float) -> None:
        """Count one value."""
        bucket = bisect.bisect_left(self._bounds, value)
        with self._lock:
            self._total += value
            self._buckets[bucket] += 1

    def snapshot(self) -> Histogram:
        """All values so far."""
        with self._lock:
            return Histogram(self._bounds, tuple(self._buckets), self._total)
