"""Which edge a device dials: its first choice, the one it was sent to, or another one if that is
gone."""

from __future__ import annotations

from collections.abc import Mapping

from sfl.config import DeviceConfig
from sfl.errors import ConfigError

MOMENT = 0.5
"""Seconds that a device tries an edge at least."""
REFUSED = 2.0
"""Seconds after which a device that has another choice takes it that nobody listens there."""


class Edges:
    """The edges that a device knows of, and the one that it dials; no clock of its own.

    Where its own file lists edges, it goes to no other.
    """

    def __init__(self, config: DeviceConfig) -> None:
        """Raises ConfigError where the file names none."""
        if not config.edge and not config.edges:
            problem = "this device has no edge to dial"
            raise ConfigError("device.edge", config.edge, problem, "Set it to its host:port.")
        self._listed = dict(config.edges)
        self._told: dict[str, str] = {}
        self._own: dict[str, str] = {}  # as it dials the one that it is at
        self.address = config.edge or next(iter(config.edges.values()))
        self._home = self.address  # where it was taken in last, or is to be at first
        self._failover = 0.0
        self._was_in = False
        self._lost_at: float | None = None
        self._tried: set[str] = set()

    @property
    def name(self) -> str:
        """Of the edge that it dials, where that is known."""
        return next((name for name, at in self.known.items() if at == self.address), "")

    @property
    def known(self) -> dict[str, str]:
        """Addresses by name."""
        return self._listed or self._told

    def taken_in(self, edge: str, edges: Mapping[str, str], failover_seconds: float) -> None:
        """An edge has taken the device in, and told where the run's edges are."""
        self._own = {edge: self.address} if edge else {}
        self.hear(edges)
        self._home, self._was_in = self.address, True
        self._failover, self._lost_at = failover_seconds, None
        self._tried.clear()

    def hear(self, edges: Mapping[str, str]) -> None:
        """These edges of the run are there now."""
        self._told = {name: at for name, at in edges.items() if at} | self._own

    def among(self, edges: Mapping[str, str]) -> dict[str, str]:
        """Those of the edges that the cloud names to which this device goes, as it dials them."""
        if self._listed:
            return {name: self._listed[name] for name in edges if name in self._listed}
        return {name: at for name, at in edges.items() if at}

    def go(self, address: str) -> None:
        """Dial that one from now on."""
        self.address = address

    def another(self, trips: Mapping[str, float]) -> str:
        """The name of another edge than its own: the nearest, or the next; empty: none is known."""
        others = [name for name, at in self.known.items() if at != self.address]
        measured = [(trips[name], name) for name in others if name in trips]
        if measured:
            return min(measured)[1]
        after = [name for name in others if name > self.name]
        return min(after or others, default="")

    def patience(self, connect_timeout: float, now: float) -> float:
        """Seconds for which the edge is dialled now."""
        if not self._others:
            return connect_timeout
        if self._was_in and self.address == self._home:
            spent = 0.0 if self._lost_at is None else now - self._lost_at
            return max(MOMENT, min(connect_timeout, self._failover - spent))
        return max(MOMENT, connect_timeout / (1 + len(self._others)))

    @property
    def refused_after(self) -> float | None:
        """Seconds after which a refused connection counts; None: it may be there in a moment."""
        waits = not self._others or (self._was_in and self.address == self._home)
        return None if waits else REFUSED

    def missed(self, now: float) -> bool:
        """The edge was dialled in vain, or its link broke; whether another one is dialled next."""
        if self._lost_at is None:
            self._lost_at = now
        at_home = self._was_in and self.address == self._home
        if not self._others or (at_home and now - self._lost_at < self._failover):
            return False
        self._tried.add(self.address)
        left = [address for address in self._others if address not in self._tried]
        if not left:  # once more, from the first on
            self._tried.clear()
            self.address = self._home
            return False
        self.address = left[0]
        return True

    @property
    def _others(self) -> list[str]:
        """Addresses beside the one that it dials, home first."""
        there = dict.fromkeys((self._home, *self.known.values()))
        return [address for address in there if address != self.address]
