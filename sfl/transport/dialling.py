"""Dialling a peer: how long a node goes on, when it says so, and when it asks why nobody answers.

gRPC makes the connection; here it is only waited for. A look at what stands in the way is a
connection of its own, so it is taken only once gRPC's has failed, one at a time, and ever more
rarely: a link that is merely slow costs its server nothing.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

import grpc
import grpc.aio

from sfl.errors import PeerUnavailable, Refused

log = logging.getLogger(__name__)

SAY_EVERY = 5.0
"""Seconds between two lines about what is waited for."""
FIRST_LOOK, GROWTH, LATEST_LOOK = 0.25, 2.0, 10.0
"""Seconds after a failure until the first look, and how looks become rarer."""
GLANCE = 0.05
"""Seconds between two glances at a look that is under way, or at a channel."""
SHORTEST_PAUSE, LONGEST_PAUSE = 0.2, 5.0
"""Seconds that the first pause between two attempts takes at most, and that any does."""
MOST_CORRUPT = 5
"""Links that end over changed bytes in one round, at most: more, and such a link is not usable."""
LASTED = 10.0
"""Seconds that a link is to last before the pauses begin anew."""

Why = Callable[[], str | None]


def nothing_known() -> str | None:
    """What there is to say of a peer that nobody can look at."""
    return None


class Dial:
    """One attempt to reach a peer, from its beginning to `timeout`; the caller does the waiting.

    `why` tells what stands in the way that waiting will not fix. It may take seconds, and runs on
    a thread of its own. A connection that is refused counts after `refused_after` seconds already.
    """

    def __init__(
        self,
        peer: str,
        timeout: float,
        why: Why = nothing_known,
        refused_after: float | None = None,
    ) -> None:
        self._peer, self._timeout, self._why = peer, timeout, why
        now = time.monotonic()
        self._believes = None if refused_after is None else now + refused_after
        self._end, self._say = now + timeout, now + SAY_EVERY
        self._pause, self._next_look = FIRST_LOOK, now + FIRST_LOOK
        self._look: Future[str | None] | None = None
        self._found: str | None = None  # by the look before

    def go_on(self, failed: bool) -> None:
        """Say that it waits, and look why, where either is due; `failed`: gRPC has tried in vain.

        Raises PeerUnavailable, Refused.
        """
        now = time.monotonic()
        self._take_look()
        if now >= self._end:
            raise PeerUnavailable(f"{self._peer} did not answer within {self._timeout:g} s")
        if failed and self._believes is not None and now >= self._believes:
            raise PeerUnavailable(f"{self._peer} does not answer")
        if failed and self._look is None and now >= self._next_look:
            self._look = _on_own_thread(self._why)
        if now >= self._say:
            self._say += SAY_EVERY
            log.info("waiting for %s (%.0f s left)", self._peer, self._end - now)

    def _take_look(self) -> None:
        if self._look is None or not self._look.done():
            return
        before, self._found = self._found, self._look.result()
        self._look = None
        if self._found is not None and self._found == before:
            raise Refused(f"{self._peer}: {self._found}")
        # A server that is killed during a look seems to refuse: it has to do so twice.
        again = self._found is not None
        self._pause = FIRST_LOOK if again else min(LATEST_LOOK, self._pause * GROWTH)
        self._next_look = time.monotonic() + self._pause


def wait_for_peer(
    channel: grpc.Channel,
    peer: str,
    timeout: float,
    why: Why = nothing_known,
    refused_after: float | None = None,
) -> None:
    """Wait until a channel is connected. Raises PeerUnavailable, Refused."""
    dial = Dial(peer, timeout, why, refused_after)
    ready, failed = threading.Event(), threading.Event()

    def seen(state: grpc.ChannelConnectivity) -> None:
        if state is grpc.ChannelConnectivity.READY:
            ready.set()
        elif state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            failed.set()

    channel.subscribe(seen, try_to_connect=True)
    try:
        while not ready.wait(GLANCE):
            dial.go_on(failed.is_set())
    finally:
        channel.unsubscribe(seen)


async def wait_for_peer_aio(
    channel: grpc.aio.Channel, peer: str, timeout: float, why: Why = nothing_known
) -> None:
    """The same on an event loop."""
    dial = Dial(peer, timeout, why)
    failed = False
    while (state := channel.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
        failed = failed or state is grpc.ChannelConnectivity.TRANSIENT_FAILURE
        dial.go_on(failed)
        await asyncio.sleep(GLANCE)


async def connected_aio(channel: grpc.aio.Channel, peer: str, seconds: float) -> None:
    """One attempt on an event loop. Raises PeerUnavailable where it fails, or takes too long."""
    end = time.monotonic() + seconds
    while (state := channel.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
        failed = state is grpc.ChannelConnectivity.TRANSIENT_FAILURE
        if failed or time.monotonic() >= end:
            raise PeerUnavailable(f"{peer} does not answer")
        await asyncio.sleep(GLANCE)


class Pauses:
    """How long to wait before each attempt to reach a peer that was there.

    Full jitter: anything up to a bound that doubles, so that those who lost the same peer do not
    all come back at once.
    """

    def __init__(self, longest: float = LONGEST_PAUSE) -> None:
        self._bound = SHORTEST_PAUSE
        self._longest = longest

    def next(self) -> float:
        """Seconds before the next attempt."""
        bound, self._bound = self._bound, min(self._longest, 2 * self._bound)
        return random.uniform(0.0, bound)

    def lasted(self, seconds: float) -> None:
        """The link that is lost now had lasted so long."""
        if seconds >= LASTED:
            self._bound = SHORTEST_PAUSE


class Absence:
    """A peer that was there is not: how long it is dialled again, and when that is said."""

    def __init__(self, peer: str, seconds: float, reason: str) -> None:
        self._peer, self._seconds, self._reason = peer, seconds, reason
        self.began = time.monotonic()
        self._say = self.began + SAY_EVERY

    @property
    def left(self) -> float:
        """Seconds that it is still dialled."""
        return self.began + self._seconds - time.monotonic()

    def go_on(self) -> None:
        """Say that it is waited for, where that is due. Raises PeerUnavailable at the end."""
        if self.left <= 0:
            late = f"not back within rejoin_timeout ({self._seconds:g} s)"
            raise PeerUnavailable(f"{self._reason}; {late}")
        if time.monotonic() >= self._say:
            self._say += SAY_EVERY
            log.info("waiting for %s (%.0f s left)", self._peer, self.left)


def _on_own_thread(why: Why) -> Future[str | None]:
    """What a look finds, or raises; a process does not wait for it to end."""
    found: Future[str | None] = Future()

    def look() -> None:
        try:
            found.set_result(why())
        except Exception as error:  # noqa: BLE001 - raised where it is taken
            found.set_exception(error)

    threading.Thread(target=look, name="link-look", daemon=True).start()
    return found
