"""A device among the edges of its run: where it goes, and what it says of that."""

from __future__ import annotations

import logging
import time
from functools import partial

from device_agent.distances import Distances, RoundTrip, measured
from device_agent.edges import Edges
from sfl.config import DeviceConfig, RunSettings
from sfl.errors import Elsewhere
from sfl.metrics.stats import NodeStats
from sfl.node.certificates.own import OwnCertificate
from sfl.rounds.values import RoundTrips
from sfl.transport.bulk.probe import round_trip
from sfl.transport.device.link import Joined

log = logging.getLogger("sfl.device")

TRIPS_TIMEOUT = 5.0
"""Seconds in which an edge has to answer whose round trip is measured."""


class Roaming:
    """Follows the cloud to other edges, and finds one where its own is gone."""

    def __init__(
        self,
        config: DeviceConfig,
        stats: NodeStats,
        insecure: bool,
        own: OwnCertificate | None,
        trip: RoundTrip | None = None,
    ) -> None:
        """`trip` measures how far an edge is. Raises ConfigError."""
        self.edges = Edges(config)
        self.round_trips: RoundTrips = {}
        """As the device says when it joins."""
        self._stats = stats
        self._trip = trip or partial(
            round_trip, insecure=insecure, timeout=TRIPS_TIMEOUT, own=own, proxy=config.proxy
        )
        self._distances = Distances(self._trip)
        self._asks = False

    def ask(self) -> None:
        """Ask for another edge from the next round on; for a signal's handler."""
        self._asks = True

    def taken_in(self, joined: Joined) -> None:
        """An edge has taken the device in."""
        self._stats.at_edge(joined.edge)
        seconds = joined.settings.network.failover_seconds
        self.edges.taken_in(joined.edge, joined.edges, seconds)

    def missed(self) -> bool:
        """The edge was dialled in vain; whether there is another one to dial now."""
        if not self.edges.missed(time.monotonic()):
            return False
        log.warning("going on to the edge at %s", self.edges.address)
        return True

    def go(self, elsewhere: Elsewhere) -> None:
        """To another edge, as the cloud has said: the nearest, where it names several."""
        there = self.edges.among(elsewhere.edges)
        if len(elsewhere.edges) > 1:
            trips = self.round_trips = measured(there, self._trip)
            there = {name: there[name] for name in sorted(trips, key=lambda name: trips[name])[:1]}
        if there:
            self.edges.go(*there.values())
        else:
            log.warning("none of these edges can be dialled: %s", ", ".join(elsewhere.edges))

    def begin_round(self, settings: RunSettings) -> None:
        """Measure while the round is under way, where the run wants to know."""
        if settings.run.placement == "nearest" and len(self.edges.known) > 1:
            self._distances.begin(self.edges.known)

    def told(self) -> tuple[RoundTrips, str]:
        """What the report of a round says: how far edges are, and at which one it asks to be."""
        trips = self._distances.take()
        if not self._asks:
            return trips, ""
        self._asks = False
        if not (edge := self.edges.another(trips)):
            log.warning("this device knows of no other edge (device.edges)")
        return trips, edge
