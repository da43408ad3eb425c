"""The next tokens of a conversation: what its edge lacks is sent, with guesses at what follows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from sfl.errors import ProtocolError, Refused
from sfl.serving.sampling import GREEDY, Sampling
from sfl.serving.steps import chunk_tokens
from sfl.stage.serving.front import FrontCache, FrontStage, Guessing
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
from sfl.transport.serve.link import ServeLink
from sfl.transport.serve.words import Closed


@dataclass(slots=True)
class Talk:
    """A conversation: what both sides know of it. `sent` are the ids that the edge has rows of.

    `digest` tells its adapter from another one of that name.
    """

    name: str
    adapter: str
    digest: str
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

    def forget(self, length: int) -> None:
        """The edge knows so many tokens; more is of no use to what is behind it."""
        del self.sent[length:]
        self.own.truncate(len(self.sent), len(self.sent))


@dataclass(slots=True)
class Spoken:
    """Counts of all answers: tokens, and the round trips that brought them.

    Of `drafted` tokens `accepted` were what the model says.
    """

    tokens: int = 0
    round_trips: int = 0
    drafted: int = 0
    accepted: int = 0

    def add(self, tokens: int, drafted: int) -> None:
        """A round trip that brought so many."""
        self.tokens += tokens
        self.round_trips += 1
        self.drafted += drafted
        self.accepted += tokens - 1 if drafted else 0


class Compute(Protocol):
    """Runs a job on the device's compute thread."""

    def __call__(self, job: Callable[..., Any], *args: Any) -> Awaitable[Any]:
        """What it returns."""


class Asker:
    """Asks an edge for what follows."""

    def __init__(
        self,
        stage: FrontStage,
        compute: Compute,
        hidden_size: int,
        draft_tokens: int = 0,
        exact: bool = False,
    ) -> None:
        """With at most `draft_tokens` guesses at a time, where the stage has a drafter."""
        self.spoken = Spoken()
        self._stage = stage
        self._compute = compute
        self._hidden = hidden_size
        self._draft_tokens = 0 if stage.drafter is None else draft_tokens
        self._exact = exact

    async def open(
        self, link: ServeLink, talk: Talk, sampling: Sampling, end: int, late: float
    ) -> None:
        """Begin at the edge, or go on there. Raises Refused."""
        span = self._stage.plan.middle
        opening = Opening(
            talk.name,
            talk.adapter,
            span.first,
            span.last,
            span.head,
            end,
            sampling,
            self._exact,
        )
        while True:
            answer = await link.open(opening, talk.digest)
            match answer:
                case Opened(length, number):
                    talk.forget(min(length, len(talk.sent)))
                    talk.number = max(talk.number, number)
                    talk.opened_by, talk.reserved, talk.sampling = link, end, sampling
                    return
                case Later():
                    await wait(answer, late)
                case Closed(reason):
                    raise Refused(reason)

    async def ask(
        self, link: ServeLink, talk: Talk, ids: Sequence[int], sampling: Sampling, end: int
    ) -> tuple[int, ...] | Later | Closed | None:
        """The tokens behind `ids`, before `end`; else why they are to be asked for again."""
        talk.forget(min(common(talk.sent, ids), len(ids) - 1))
        if self._stage.ends and talk.own.held < len(talk.sent):
            talk.forget(talk.own.held)
        size = chunk_tokens(link.here.prefill_chunk, self._hidden)
        while True:
            known = ids[: len(talk.sent) + size]
            most = min(self._draft_tokens, end - len(ids) - 1, size + len(talk.sent) - len(known))
            guessing = Guessing(most if len(known) == len(ids) else 0, sampling, self._exact)
            rows, draft = await self._compute(self._rows, talk, known, guessing)
            wanted = len(draft) + 1 if len(known) == len(ids) else 0
            answer = await link.step(self._step(talk, rows, wanted, draft))
            match answer:
                case Missing(_, length):
                    talk.forget(length)
                    return None
                case Later():
                    return answer
                case Closed():
                    talk.opened_by = None
                    return answer
            tokens = await self._tokens(talk, answer, wanted, draft, guessing)
            talk.sent = [*known, *tokens[:-1]]
            talk.forget(len(talk.sent))  # what was guessed wrong
            if wanted:
                self.spoken.add(len(tokens), len(draft))
                return tokens

    def _step(self, talk: Talk, rows: Tensor, wanted: int, draft: tuple[int, ...]) -> Step:
        """The ids of a draft do not leave the device where the model's end is here."""
        talk.number += 1
        said = () if self._stage.ends else draft
        return Step(talk.name, talk.number, len(talk.sent), rows, wanted, len(draft), said)

    def _rows(
        self, talk: Talk, ids: Sequence[int], guessing: Guessing
    ) -> tuple[Tensor, tuple[int, ...]]:
        """On the compute thread: rows of what the edge lacks, behind all that is before it."""
        own, position = talk.own, len(talk.sent)
        own.truncate(position, position)
        if own.front < position:
            self._stage.rows(own, ids[own.front : position])
        return self._stage.rows_and_draft(own, ids, guessing)

    async def _tokens(
        self,
        talk: Talk,
        answer: Answer,
        wanted: int,
        draft: tuple[int, ...],
        guessing: Guessing,
    ) -> tuple[int, ...]:
        match answer:
            case Tokens(_, tokens) if not self._stage.ends and _sound(tokens, wanted, draft):
                return tokens
            case Rows(_, rows) if self._stage.ends:
                own = talk.own
                if len(rows) != own.front - own.held:
                    raise ProtocolError(f"{len(rows)} rows came back")
                found: tuple[int, ...] = await self._compute(
                    self._stage.tokens, own, rows, wanted, draft, guessing
                )
                return found
        raise ProtocolError(f"{type(answer).__name__} was not expected")


def _sound(tokens: Sequence[int], wanted: int, draft: Sequence[int]) -> bool:
    """Whether an edge's answer keeps the beginning of a draft, and has one token more."""
    if not draft:
        return len(tokens) == wanted
    return 1 <= len(tokens) <= wanted and tuple(tokens[:-1]) == tuple(draft[: len(tokens) - 1])


async def wait(later: Later, late: float) -> None:
    """For room at the edge. Raises Refused where that takes too long."""
    if time.monotonic() + later.retry_after > late:
        raise Refused("the edge has no room for it now; try again later")
    await asyncio.sleep(later.retry_after)


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids both begin with."""
    return next(
        (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )
