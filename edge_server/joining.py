"""How an edge comes to a stream with the cloud: the first, and the next where one breaks."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter

from sfl.errors import AnotherRun, Corrupted, LinkLost, NameInUse, PeerUnavailable, SflError
from sfl.metrics.waits import Waits
from sfl.rounds.values import EdgeWelcome
from sfl.transport.cloud.link import CloudLink, CloudStream
from sfl.transport.dialling import MOST_CORRUPT, Absence, Pauses
from sfl.transport.frames.wire import ATTEMPT

log = logging.getLogger("sfl.edge")

AWAY = (LinkLost, PeerUnavailable, NameInUse)
"""What may be over when the cloud is dialled again."""
MOMENT = 0.1
"""Seconds that an attempt takes at least."""


class Joining:
    """One run's streams, one after the other."""

    def __init__(self, link: CloudLink, waits: Waits) -> None:
        self._link = link
        self._waits = waits
        self._pauses = Pauses()
        self._since = time.monotonic()  # when there was a stream last
        self._corrupt: Counter[int] = Counter()  # links that changed bytes, by round

    async def first(self, connect_timeout: float) -> CloudStream:
        """The first stream; a name that is in use may be free in a moment, and a link that broke
        there again. Raises SflError."""
        peer, words = self._link.peer, "to be connected"
        with self._waits.on(peer, "connection", words, connect_timeout, quiet=True):
            return await self._first(connect_timeout)

    async def _first(self, connect_timeout: float) -> CloudStream:
        end = time.monotonic() + connect_timeout
        while True:
            try:
                return await self._link.join(connect_timeout)
            except (NameInUse, LinkLost) as error:
                if time.monotonic() >= end:
                    raise
                log.info("%s; asking again", error)
            await asyncio.sleep(self._pauses.next())

    async def again(self, lost: SflError, welcome: EdgeWelcome, round_: int) -> CloudStream:
        """The next stream, once the one of `welcome` is lost in a round.

        Raises `lost` where that will not go away, Corrupted where it comes again and again in one
        round, PeerUnavailable where the cloud is not back within the run's `rejoin_timeout`,
        AnotherRun where it is in another run.
        """
        network = welcome.settings.network
        if not isinstance(lost, AWAY) or not network.rejoin_timeout:
            raise lost
        self._count(lost, round_)
        self._pauses.lasted(time.monotonic() - self._since)
        log.warning("%s; dialling it again for %g s", lost, network.rejoin_timeout)
        peer, seconds = self._link.peer, network.rejoin_timeout
        absence = Absence(peer, seconds, str(lost))
        with self._waits.on(peer, "return", "to be back", seconds, quiet=True):
            while (stream := await self._attempt(absence, welcome)) is None:
                absence.go_on()
        self._since = time.monotonic()
        log.info("joined the cloud again after %.1f s", self._since - absence.began)
        return stream

    def _count(self, lost: SflError, round_: int) -> None:
        """Links that change bytes are not used for ever."""
        self._corrupt[round_] += isinstance(lost, Corrupted)
        if self._corrupt[round_] > MOST_CORRUPT:
            often = f"{self._corrupt[round_]} links to it ended so in round {round_}"
            raise Corrupted(f"{lost}; {often}: no further one is tried")

    async def _attempt(self, absence: Absence, welcome: EdgeWelcome) -> CloudStream | None:
        """A new stream; None where there is none yet."""
        await asyncio.sleep(min(self._pauses.next(), max(0.0, absence.left)))
        patience = max(MOMENT, min(ATTEMPT, absence.left))
        try:
            stream = await self._link.join_again(welcome.run_key, patience)
        except AWAY as error:
            log.debug("%s", error)
            return None
        if (reason := _another(welcome, stream.welcome)) is not None:
            stream.hang_up()
            raise AnotherRun(reason)
        return stream


def _another(welcome: EdgeWelcome, now: EdgeWelcome) -> str | None:
    """Why the cloud is in another run than the one that this edge is in, if it is."""
    if (now.run_id, now.run_key) == (welcome.run_id, welcome.run_key):
        return None
    return (
        f"the cloud is in another run: {now.run_id}, and this edge was in {welcome.run_id}; "
        "start the edge again for the new one"
    )
