"""Answers over the cut: the device's blocks, its edge's, and the device's again in the U-shape.

A conversation's ids are the device's own, and enough to go on from: whatever an edge has forgotten,
or another edge never knew, is computed again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from device_agent.serving.asking import Asker, Spoken, Talk, wait
from device_agent.serving.kept import Kept
from sfl.errors import LinkLost, Refused
from sfl.serving.sampling import GREEDY, Sampling
from sfl.stage.serving.conversations import MOST_OF_A_DEVICE
from sfl.stage.serving.front import FrontStage
from sfl.stage.serving.messages import Later
from sfl.stage.threads import compute_here
from sfl.transport.serve.link import ServeLink
from sfl.transport.serve.words import Closed

log = logging.getLogger("sfl.device")

P = ParamSpec("P")
R = TypeVar("R")

PATIENCE = 120.0
"""Seconds that an answer waits for room at its edge, and for the edge itself."""
MOST_CLOSINGS = 3
"""So often in a row an edge may close a conversation before a token: it was for newer ones."""


class AnotherAdapter(Refused):
    """The edge serves another adapter by now than an answer was begun with."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be answered: a prompt's ids, by which adapter, and how long at most.

    Without a name it is the conversation that the ids go on with, or a new one.
    """

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
        draft_tokens: int = 0,
        exact: bool = False,
    ) -> None:
        """`dial` opens a stream to the edge, or to another one. Raises SflError.

        With at most `draft_tokens` guesses at a time, where the stage has a drafter.
        """
        self.stage = stage
        self._asker = Asker(stage, self._compute, hidden_size, draft_tokens, exact)
        self._dial = dial
        self._context = context_length
        self._patience = patience
        self._link: ServeLink | None = None
        self._dialling: asyncio.Task[ServeLink] | None = None
        self._fetching = asyncio.Lock()
        self._turns = asyncio.Semaphore(MOST_OF_A_DEVICE)  # its edge takes no more at a time
        self.kept = Kept(stage, self._drop)
        self._thread = ThreadPoolExecutor(1, "compute", compute_here, (threads,))

    @property
    def spoken(self) -> Spoken:
        """What all answers took."""
        return self._asker.spoken

    async def link(self) -> ServeLink:
        """The stream to the edge; dialled where there is none, once for all who wait for it.

        Raises SflError.
        """
        if self._link is not None and self._link.lost is None:
            return self._link
        if self._dialling is None or self._dialling.done():
            self._dialling = asyncio.create_task(self._dial_again())
        return await asyncio.shield(self._dialling)

    async def _dial_again(self) -> ServeLink:
        if self._link is not None:
            await self._link.close()
        self._link = await self._dial()
        return self._link

    async def close(self) -> None:
        """Hang up."""
        if self._dialling is not None:
            self._dialling.cancel()
            await asyncio.wait({self._dialling})
        if self._link is not None:
            await self._link.close()
        self._thread.shutdown()

    async def answer(self, wish: Wish) -> AsyncGenerator[int, None]:
        """The ids that follow, as they come; the caller ends it. Raises SflError."""
        late = time.monotonic() + self._patience
        async with self._turns:
            ids = list(wish.ids)
            end = min(len(ids) + wish.max_tokens, self._context)
            while True:
                digest = await self._fetched(wish.adapter)
                try:
                    with self.kept.taken(wish.name, wish.adapter, digest, wish.ids) as talk:
                        await self.kept.have_room(talk, end, late)
                        while len(ids) < end:
                            for token in await self._next(talk, wish, ids, end):
                                ids.append(token)
                                yield token
                    return
                except AnotherAdapter:
                    if len(ids) > len(wish.ids):
                        raise

    def _drop(self, name: str) -> None:
        """Let the edge give back what it has of a conversation."""
        if self._link is not None:
            self._link.close_conversation(name)

    async def _fetched(self, adapter: str) -> str:
        """The digest of an adapter, once this device's part of it is here. Raises SflError."""
        late = time.monotonic() + self._patience
        while True:
            try:
                link = await self.link()
                if (digest := link.digest_of(adapter)) is None:
                    raise Refused(f"adapter {adapter!r:.80} is not served by {link.here.edge}")
                if not self.stage.has_adapter(adapter, digest):
                    async with self._fetching:
                        await self._fetch(link, adapter, digest)
                return digest
            except LinkLost as error:
                await self._again(late, f"adapter {adapter}", error)

    async def _fetch(self, link: ServeLink, adapter: str, digest: str) -> None:
        """This device's part of an adapter, where it has none yet, or another one's."""
        if self.stage.has_adapter(adapter, digest):
            return
        plan = self.stage.plan
        values, scaling = await link.fetch_adapter(
            adapter, plan.cut_layer, plan.tail_layers, self.stage.ends
        )
        await self._compute(self.stage.add_adapter, adapter, digest, values, scaling)

    # -- tokens --------------------------------------------------------------------------------

    async def _next(self, talk: Talk, wish: Wish, ids: Sequence[int], end: int) -> tuple[int, ...]:
        """The tokens behind `ids`, whatever has to be said again for it."""
        late, closings = time.monotonic() + self._patience, 0
        while True:
            try:
                link = await self.link()
                if not talk.is_open(link, end, wish.sampling):
                    _check_adapter(link, talk)
                    await self._asker.open(link, talk, wish.sampling, end, late)
                tokens = await self._asker.ask(link, talk, ids, wish.sampling, end)
            except LinkLost as error:
                await self._again(late, f"conversation {talk.name}", error)
                continue
            if isinstance(tokens, tuple):
                return tokens
            if isinstance(tokens, Later):
                await wait(tokens, late)
            elif isinstance(tokens, Closed) and (closings := closings + 1) > MOST_CLOSINGS:
                raise Refused(tokens.reason)
            elif time.monotonic() > late:
                raise Refused("the edge forgets it again and again; try again later")

    async def _again(self, late: float, what: str, error: LinkLost) -> None:
        """Wait a moment before the edge is asked again. Raises the error where it is too late."""
        if time.monotonic() > late:
            raise error
        log.warning("%s goes on: %s", what, error)
        await asyncio.sleep(0.2)

    async def _compute(self, job: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: job(*args, **kwargs))


def _check_adapter(link: ServeLink, talk: Talk) -> None:
    """Raises AnotherAdapter where what was said so far was said by another one of that name."""
    if link.digest_of(talk.adapter) != talk.digest:
        raise AnotherAdapter(
            f"{link.here.edge} serves another adapter {talk.adapter!r:.80} than this answer was "
            "begun with; ask again"
        )
