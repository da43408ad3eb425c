"""Answers over the cut: the device's blocks, its edge's, and the device's again in the U-shape.

A conversation's ids are the device's own, and enough to go on from: whatever an edge has forgotten,
or another edge never knew, is computed again.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from torch import Tensor

from sfl.errors import LinkLost, ProtocolError, Refused
from sfl.serving.sampling import GREEDY, Sampling
from sfl.stage.serving.front import FrontCache, FrontStage
from sfl.stage.serving.messages import (
    Answer,
    Later,
    Missing,
    Opened,
    Opening,
    Rows,
    Step,
    Tokens,
)
from sfl.stage.threads import compute_here
from sfl.transport.serve.link import ServeLink
from sfl.transport.serve.rows import chunk_tokens
from sfl.transport.serve.words import Closed

log = logging.getLogger("sfl.device")

P = ParamSpec("P")
R = TypeVar("R")

PATIENCE = 120.0
"""Seconds that an answer waits for room at its edge, and for the edge itself."""
MOST_KEPT = 16
"""Conversations whose keys and values this device keeps; the last used."""


@dataclass(slots=True)
class Talk:
    """A conversation: what both sides know of it. `sent` are the ids that the edge has rows of."""

    name: str
    adapter: str
    own: FrontCache
    sent: list[int] = field(default_factory=list)
    number: int = 0
    last_used: float = 0.0
    busy: bool = False
    opened_by: ServeLink | None = None
    """The stream it is open on, for so many tokens and with a sampling."""
    reserved: int = 0
    sampling: Sampling = GREEDY

    def is_open(self, link: ServeLink, end: int, sampling: Sampling) -> bool:
        """Whether the edge has it open, as it is wished."""
        return self.opened_by is link and self.reserved >= end and self.sampling == sampling


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be answered: a prompt's ids, by which adapter, and how long at most."""

    name: str
    ids: tuple[int, ...]
    max_tokens: int
    adapter: str = "base"
    sampling: Sampling = GREEDY


class Talker:
    """Answers wishes through one edge, several at a time."""

    def __init__(
        self,
        stage: FrontStage,
        dial: Callable[[], Awaitable[ServeLink]],
        context_length: int,
        hidden_size: int,
        patience: float = PATIENCE,
        threads: int = 1,
    ) -> None:
        """`dial` opens a stream to the edge, or to another one. Raises SflError."""
        self.stage = stage
        self._dial = dial
        self._context = context_length
        self._hidden = hidden_size
        self._patience = patience
        self._link: ServeLink | None = None
        self._dialling = asyncio.Lock()
        self._fetching = asyncio.Lock()
        self._talks: dict[str, Talk] = {}
        self._incarnation = secrets.token_hex(4)
        self._begun = 0
        self._thread = ThreadPoolExecutor(1, "compute", compute_here, (threads,))

    async def link(self) -> ServeLink:
        """The stream to the edge; dialled where there is none. Raises SflError."""
        async with self._dialling:
            if self._link is None or self._link.lost is not None:
                if self._link is not None:
                    await self._link.close()
                self._link = await self._dial()
            return self._link

    async def close(self) -> None:
        """Hang up."""
        if self._link is not None:
            await self._link.close()
        self._thread.shutdown()

    def name_for(self, adapter: str, ids: Sequence[int]) -> str:
        """The conversation that these ids go on with: what it has need not be sent again.

        One that has less than half of it stays for its own; a new one is made then.
        """
        idle = [one for one in self._talks.values() if not one.busy and one.adapter == adapter]
        shared = {one.name: _common(one.sent, ids) for one in idle}
        best = max(shared, key=shared.__getitem__, default=None)
        if best is not None and 2 * shared[best] >= len(self._talks[best].sent) > 0:
            return best
        self._begun += 1
        return f"{self._incarnation}-{self._begun}"

    async def answer(self, wish: Wish) -> AsyncGenerator[int, None]:
        """The ids that follow, as they come; the caller ends it. Raises SflError."""
        talk = await self._talk(wish)
        talk.busy = True
        try:
            ids = list(wish.ids)
            end = min(len(ids) + wish.max_tokens, self._context)
            while len(ids) < end:
                (token,) = await self._next(talk, wish, ids, end)
                ids.append(token)
                yield token
        finally:
            talk.busy, talk.last_used = False, time.monotonic()

    async def _talk(self, wish: Wish) -> Talk:
        found = self._talks.get(wish.name)
        if found is not None and found.busy:
            raise Refused(f"conversation {wish.name} is being answered already")
        if found is None or found.adapter != wish.adapter:
            await self._fetch(wish.adapter)
            if found is not None:
                found.own.let_go()
            found = Talk(wish.name, wish.adapter, self.stage.begin(wish.adapter))
            self._talks[wish.name] = found
        await self._make_room(found, min(len(wish.ids) + wish.max_tokens, self._context))
        return found

    async def _fetch(self, adapter: str) -> None:
        """This device's part of an adapter, where it has none yet."""
        async with self._fetching:
            if adapter in self.stage.parts[0].adapters:
                return
            plan = self.stage.plan
            values, scaling = await (await self.link()).fetch_adapter(
                adapter, plan.cut_layer, plan.tail_layers, self.stage.ends
            )
            await self._compute(self.stage.add_adapter, adapter, values, scaling)

    async def _make_room(self, talk: Talk, tokens: int) -> None:
        """On this device, at the cost of those that were used longest ago."""
        others = [one for one in self._talks.values() if one is not talk and not one.busy]
        others.sort(key=lambda one: one.last_used)
        fits = self.stage.has_room
        while others and (len(self._talks) > MOST_KEPT or not fits(talk.own, tokens)):
            oldest = others.pop(0)
            oldest.own.let_go()
            del self._talks[oldest.name]
        if not fits(talk.own, tokens):
            raise Refused(f"this device has no room for a conversation of {tokens} tokens now")
        talk.own.reserve(tokens)

    # -- one token --------------------------------------------------------------------------------

    async def _next(self, talk: Talk, wish: Wish, ids: Sequence[int], end: int) -> tuple[int, ...]:
        """The token behind `ids`, whatever has to be said again for it."""
        late = time.monotonic() + self._patience
        while True:
            try:
                link = await self.link()
                if not talk.is_open(link, end, wish.sampling):
                    await self._open(link, talk, wish, end, late)
                tokens = await self._ask(link, talk, ids, wish.sampling)
            except LinkLost as error:
                if time.monotonic() > late:
                    raise
                log.warning("conversation %s goes on: %s", talk.name, error)
                await asyncio.sleep(0.2)
                continue
            if isinstance(tokens, tuple):
                return tokens
            if isinstance(tokens, Later):
                await _wait(tokens, late)
            elif time.monotonic() > late:
                raise Refused("the edge forgets it again and again; try again later")

    async def _open(self, link: ServeLink, talk: Talk, wish: Wish, end: int, late: float) -> None:
        """Begin at the edge, or go on there. Raises Refused."""
        plan = self.stage.plan
        span = plan.middle
        opening = Opening(
            talk.name, talk.adapter, span.first, span.last, span.head, end, wish.sampling
        )
        while True:
            answer = await link.open(opening)
            match answer:
                case Opened(length, number):
                    self._forget(talk, min(length, len(talk.sent)))
                    talk.number = max(talk.number, number)
                    talk.opened_by, talk.reserved, talk.sampling = link, end, wish.sampling
                    return
                case Later():
                    await _wait(answer, late)
                case Closed(reason):
                    raise Refused(reason)

    def _forget(self, talk: Talk, length: int) -> None:
        """The edge knows so many tokens; more is of no use to what is behind it."""
        del talk.sent[length:]
        talk.own.truncate(len(talk.sent), len(talk.sent))

    async def _ask(
        self, link: ServeLink, talk: Talk, ids: Sequence[int], sampling: Sampling
    ) -> tuple[int, ...] | Later | None:
        """Send what the edge lacks; the token, or None where it is to be asked again."""
        self._forget(talk, min(_common(talk.sent, ids), len(ids) - 1))
        if self.stage.ends and talk.own.held < len(talk.sent):
            self._forget(talk, talk.own.held)
        size = chunk_tokens(link.here.prefill_chunk, self._hidden)
        tokens: tuple[int, ...] = ()
        while len(talk.sent) < len(ids):
            position = len(talk.sent)
            piece = list(ids[position : position + size])
            rows = await self._compute(self._rows, talk, ids, position, piece)
            wanted = int(position + len(piece) == len(ids))
            talk.number += 1
            answer = await link.step(Step(talk.name, talk.number, position, rows, wanted))
            match answer:
                case Missing(_, length):
                    self._forget(talk, length)
                    return None
                case Later():
                    return answer
                case Closed():
                    talk.opened_by = None
                    return None
            talk.sent += piece
            tokens = await self._tokens(talk, answer, wanted, sampling)
        return tokens

    def _rows(self, talk: Talk, ids: Sequence[int], position: int, piece: Sequence[int]) -> Tensor:
        """On the compute thread: rows of a piece, behind all that is before it."""
        own = talk.own
        own.truncate(position, position)
        if own.front < position:
            self.stage.rows(own, ids[own.front : position])
        return self.stage.rows(own, piece)

    async def _tokens(
        self, talk: Talk, answer: Answer, wanted: int, sampling: Sampling
    ) -> tuple[int, ...]:
        match answer:
            case Tokens(_, tokens) if not self.stage.ends and len(tokens) == wanted:
                return tokens
            case Rows(_, rows) if self.stage.ends:
                own = talk.own
                if len(rows) != own.front - own.held:
                    raise ProtocolError(f"{len(rows)} rows came back")
                return await self._compute(self.stage.tokens, own, rows, wanted, sampling)
        raise ProtocolError(f"{type(answer).__name__} was not expected")

    async def _compute(self, job: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: job(*args, **kwargs))


async def _wait(later: Later, late: float) -> None:
    """For room at the edge. Raises Refused where that takes too long."""
    if time.monotonic() + later.retry_after > late:
        raise Refused("the edge has no room for it now; try again later")
    await asyncio.sleep(later.retry_after)


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids both begin with."""
    return next(
        (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )
