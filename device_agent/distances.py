"""How far a device's edges are: measured beside what else it does."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from sfl.errors import SflError

log = logging.getLogger("sfl.device")

MOST_AT_ONCE = 8
RoundTrip = Callable[[str], float]
"""Seconds to the edge at an address and back. Raises SflError."""


def measured(edges: Mapping[str, str], round_trip: RoundTrip) -> dict[str, float]:
    """Seconds to edges, by name; those that do not answer are left out."""

    def one(entry: tuple[str, str]) -> tuple[str, float] | None:
        name, address = entry
        try:
            return name, round_trip(address)
        except SflError as error:
            log.info("edge %s at %s: %s", name, address, error)
            return None

    with ThreadPoolExecutor(MOST_AT_ONCE, "round-trip") as threads:
        found = list(threads.map(one, sorted(edges.items())))
    return dict(pair for pair in found if pair is not None)


class Distances:
    """The latest measurement; the next one is made on a thread of its own."""

    def __init__(self, round_trip: RoundTrip) -> None:
        self._round_trip = round_trip
        self._thread: threading.Thread | None = None
        self._latest: dict[str, float] = {}

    def begin(self, edges: Mapping[str, str]) -> None:
        """Measure these, unless that is under way."""
        if self._thread is not None and self._thread.is_alive():
            return
        self._thread = threading.Thread(
            target=self._measure, args=(dict(edges),), name="distances", daemon=True
        )
        self._thread.start()

    def take(self) -> dict[str, float]:
        """What was measured since this was asked last."""
        latest, self._latest = self._latest, {}
        return latest

    def _measure(self, edges: dict[str, str]) -> None:
        self._latest = measured(edges, self._round_trip)
