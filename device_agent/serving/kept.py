"""The conversations that a device keeps, and the room that it has for their keys and values."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Iterator, Sequence

from device_agent.serving.asking import Talk, common
from sfl.errors import Refused
from sfl.stage.serving.front import FrontStage

MOST_KEPT = 16
"""Conversations whose keys and values this device keeps; the last used."""
GLANCE = 1.0
"""Seconds between two looks at whether there is room, if nobody says so before."""


class Kept:
    """Who has room: those that are answered, and of the others those that were used last."""

    def __init__(self, stage: FrontStage, dropped: Callable[[str], None]) -> None:
        """`dropped` is told the name of a conversation that is kept no longer."""
        self._stage = stage
        self._dropped = dropped
        self._talks: dict[str, Talk] = {}
        self._freed = asyncio.Event()
        self._incarnation = secrets.token_hex(4)
        self._begun = 0

    @contextlib.contextmanager
    def taken(self, name: str, adapter: str, digest: str, ids: Sequence[int]) -> Iterator[Talk]:
        """A conversation for one answer: that of a name, or the one that these ids go on with.

        Raises Refused where it is being answered already.
        """
        name = name or self._name_for(adapter, ids)
        talk = self._talks.get(name)
        if talk is not None and talk.busy:
            raise Refused(f"conversation {name} is being answered already")
        if talk is None or (talk.adapter, talk.digest) != (adapter, digest):
            if talk is not None:
                talk.own.let_go()
            talk = self._talks[name] = Talk(name, adapter, digest, self._stage.begin(adapter))
        talk.busy = True
        try:
            yield talk
        finally:
            talk.busy, talk.last_used = False, time.monotonic()
            self._freed.set()

    async def have_room(self, talk: Talk, tokens: int, late: float) -> None:
        """Have it, once answers that are under way leave it. Raises Refused where that is late."""
        while not self._make_room(talk, tokens):
            if time.monotonic() > late or not any(one is not talk for one in self._in_use()):
                raise Refused(f"this device has no room for a conversation of {tokens} tokens now")
            self._freed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GLANCE):
                    await self._freed.wait()

    def _make_room(self, talk: Talk, tokens: int) -> bool:
        """At the cost of those that were used longest ago; whether there is room then."""
        others = [one for one in self._talks.values() if not one.busy]
        others.sort(key=lambda one: one.last_used)
        fits = self._stage.has_room
        while others and (len(self._talks) > MOST_KEPT or not fits(talk.own, tokens)):
            oldest = others.pop(0)
            oldest.own.let_go()
            del self._talks[oldest.name]
            self._dropped(oldest.name)
        if not fits(talk.own, tokens):
            return False
        talk.own.reserve(tokens)
        return True

    def _in_use(self) -> list[Talk]:
        return [one for one in self._talks.values() if one.busy]

    def _name_for(self, adapter: str, ids: Sequence[int]) -> str:
        """The conversation that these ids go on with: what it has need not be sent again.

        One that has less than half of it stays for its own; a new one is made then.
        """
        idle = [one for one in self._talks.values() if not one.busy and one.adapter == adapter]
        shared = {one.name: common(one.sent, ids) for one in idle}
        best = max(shared, key=shared.__getitem__, default=None)
        if best is not None and 2 * shared[best] >= len(self._talks[best].sent) > 0:
            return best
        self._begun += 1
        return f"{self._incarnation}-{self._begun}"
