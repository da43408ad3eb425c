"""Which of the run's edges are gone, and whether another may still come."""

from __future__ import annotations


class EdgeNames:
    """The run's edges by name."""

    def __init__(self, all_: tuple[str, ...], returns: bool) -> None:
        """`returns`: one that is gone may be started again, and is waited for."""
        self.all = all_
        self._returns = returns
        self._failed: set[str] = set()  # those whose stream is still to be closed
        self._gone: set[str] = set()

    def is_failed(self, edge: str) -> bool:
        """Whether its part is over though its stream is still open."""
        return edge in self._failed

    def here(self, edge: str) -> None:
        """An edge has its base."""
        self._gone.discard(edge)

    def failed(self, edge: str) -> bool:
        """An edge can't go on; whether that is the last of them."""
        self._failed.add(edge)
        return self.lost(edge)

    def refused(self, edge: str) -> bool:
        """An edge's part in the run is over; whether another is here or may still come."""
        return not self.failed(edge)

    def closed(self, edge: str) -> bool:
        """An edge's stream is closed; whether that was told before, when it failed."""
        known = edge in self._failed
        self._failed.discard(edge)
        return known

    def lost(self, edge: str) -> bool:
        """An edge is gone; whether no other is here or may still come."""
        self._gone.add(edge)
        return not self._returns and not set(self.all) - self._gone
