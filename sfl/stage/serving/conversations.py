"""All conversations at an edge, and who of them has pages. Used on the compute thread only."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from sfl.errors import Refused
from sfl.serving.room import Busy, Never, Rules, Tenant, make_room
from sfl.stage.serving.conversation import Conversation, ServingBase
from sfl.stage.serving.messages import Later, Opened, Opening
from sfl.stage.swapping import OnDisk

log = logging.getLogger("sfl.edge")

MOST_OF_A_DEVICE = 64
"""Conversations that one device may have open; opening one more closes its oldest."""
MOST_OPEN = 4096
"""The same of all devices; most of them have no pages."""
MOST_FILES = 1024
"""Conversations that are on the disk at a time: each has a file open, and peers need some, too."""
SPILLED_BYTES = 16 << 30


class Conversations:
    """Opens and closes them; who was not used for longest gives up its pages for others.

    With `spill` its keys and values go to a file without a name in that folder, and come back;
    without, or where files would have more than `spilled_bytes`, they are forgotten, and the device
    sends its rows again.
    """

    def __init__(
        self,
        base: ServingBase,
        rules: Rules,
        spill: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        spilled_bytes: int = SPILLED_BYTES,
    ) -> None:
        self.base = base
        self.spilled = self.forgotten = 0
        """How many gave up their pages, either way."""
        self._rules = rules
        self._spill = spill
        self._spilled_bytes = spilled_bytes
        self._clock = clock
        self._open: dict[tuple[str, str], Conversation] = {}

    def __len__(self) -> int:
        return len(self._open)

    def every(self) -> tuple[Conversation, ...]:
        """All of them, those without pages too."""
        return tuple(self._open.values())

    def open(self, device: str, opening: Opening) -> tuple[Conversation, Opened] | Later:
        """A conversation that is new, or goes on. Raises Refused."""
        self._check(opening)
        key = (device, opening.name)
        found = self._open.get(key)
        if found is not None and not _alike(found.opening, opening):
            self.close(device, opening.name)
            found = None
        new = found is None
        if found is None:
            self._make_place(device)
            found = Conversation(device, opening, self.base, self.enter, self._clock)
        before = found.opening
        found.begin_again(opening)
        if (later := self.enter(found)) is not None:
            found.begin_again(before)
            return later
        if new:
            self._open[key] = found
        return found, Opened(found.standing.length, found.standing.number)

    def close(self, device: str, name: str) -> None:
        """Give back what a conversation has, if it is there."""
        if (found := self._open.pop((device, name), None)) is not None:
            found.close()

    def close_all(self) -> None:
        """Give back what all of them have."""
        for device, name in list(self._open):
            self.close(device, name)

    def enter(self, conversation: Conversation) -> Later | None:
        """Have its pages, at the cost of others that nobody uses; or when to ask again."""
        wanted = self.base.pool.keeping.cost(conversation.wanted)
        more = wanted - conversation.cache.num_pages
        if more > 0:
            tenants = list(self._tenants(conversation))
            verdict = make_room(self._rules, conversation.device, more, tenants, self._clock())
            if isinstance(verdict, Busy):
                return Later(verdict.retry_after)
            if isinstance(verdict, Never):
                raise Refused(f"conversation {conversation.opening.name}: {verdict.reason}")
            for tenant in verdict.leaving:
                self._send_away(self._open[tenant.device, tenant.name])
        conversation.cache.reserve(conversation.wanted)
        if (spilled := conversation.spilled) is not None:
            conversation.spilled = None
            self._bring_back(conversation, spilled)
        return None

    def _tenants(self, asking: Conversation) -> Iterator[Tenant]:
        for (device, name), one in self._open.items():
            if one.cache.num_pages:
                busy = one is asking or one.pending > 0
                yield Tenant(device, name, one.cache.num_pages, one.last_used, busy)
        if asking.cache.num_pages and asking not in self._open.values():
            yield Tenant(asking.device, "", asking.cache.num_pages, 0.0, busy=True)

    def _check(self, opening: Opening) -> None:
        if opening.adapter not in self.base.adapters:
            known = ", ".join(sorted(self.base.adapters))
            raise Refused(f"adapter {opening.adapter!r} is not served here; there are: {known}")
        span = self.base.model.span
        fits = span.first <= opening.first < opening.last <= span.last
        if not fits or (opening.ends and not (span.head and opening.last == span.last)):
            raise Refused(
                f"blocks {opening.first} to {opening.last - 1} were asked for; "
                f"{span.first} to {span.last - 1} are here"
            )
        if (problem := opening.sampling.problem()) is not None:
            raise Refused(problem)
        keeping = self.base.pool.keeping
        if opening.reserved < 1 or keeping.cost(opening.reserved) > self._rules.total:
            room = keeping.longest(self._rules.total)
            raise Refused(
                f"room for {opening.reserved} tokens was asked for; there is room for {room} in all"
            )

    def _make_place(self, device: str) -> None:
        """For one more in the list, which is bounded. Raises Refused."""
        every = list(self._open.values())
        own = [one for one in every if one.device == device]
        for some, most in ((own, MOST_OF_A_DEVICE), (every, MOST_OPEN)):
            if len(some) < most:
                continue
            idle = [one for one in some if not one.pending]
            if not idle:
                raise Refused(f"{len(some)} conversations are open, and steps of all wait")
            oldest = min(idle, key=lambda one: one.last_used)
            self.close(oldest.device, oldest.opening.name)

    def _send_away(self, conversation: Conversation) -> None:
        if self._spill is not None and conversation.standing.length:
            try:
                spilled = OnDisk(conversation.cache.held(), self._spill)
            except OSError as error:
                log.warning("a conversation is forgotten, not spilled: %s", error)
            else:
                conversation.rest(spilled)
                self.spilled += 1
                self._thin_out()
                return
        conversation.forget()
        self.forgotten += 1

    def _thin_out(self) -> None:
        """Forget those on the disk that nobody has used for longest, beyond what is to be there."""
        files = {one: one.spilled.nbytes for one in self._open.values() if one.spilled is not None}
        total = sum(files.values())
        for count, one in enumerate(sorted(files, key=lambda one: one.last_used)):
            if total <= self._spilled_bytes and len(files) - count <= MOST_FILES:
                return
            total -= files[one]
            one.forget()

    def _bring_back(self, conversation: Conversation, spilled: OnDisk) -> None:
        try:
            conversation.cache.take_back(spilled.each())
        except OSError as error:
            log.warning("a conversation cannot be read back, and is computed again: %s", error)
            conversation.forget()
            conversation.cache.reserve(conversation.opening.reserved)
        finally:
            spilled.close()


class Openings:
    """One device's, for the engine: they take their turn among its and others' steps."""

    def __init__(self, device: str, conversations: Conversations) -> None:
        self.device = device
        self.served_seconds = 0.0
        self._conversations = conversations

    def handle(self, message: Opening) -> tuple[Conversation, Opened] | Later:
        """Open a conversation. Raises Refused."""
        return self._conversations.open(self.device, message)

    def group(self, message: Opening) -> None:
        """Each by itself."""


def _alike(one: Opening, other: Opening) -> bool:
    """Whether keys and values of one are those of the other."""
    return one == replace(other, reserved=one.reserved, sampling=one.sampling, exact=one.exact)
