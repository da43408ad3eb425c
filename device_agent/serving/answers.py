"""From a caller's words to ids, and from ids to words: all of it on the device."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Literal

from device_agent.serving.talk import Talker, Wish
from sfl.data.tokenizer import Tokenizer
from sfl.errors import DataError
from sfl.metrics.serving import Ending, ServingCount
from sfl.serving.requests import Asked, BadRequest
from sfl.serving.text import RunningText


@dataclass(slots=True)
class Account:
    """How an answer ended, and what it took; complete once all of it was said."""

    prompt_tokens: int
    completion_tokens: int = 0
    finish_reason: Literal["stop", "length"] = "length"


@dataclass(frozen=True, slots=True)
class Prepared:
    """An answer that can be begun: its prompt's ids, how many tokens may follow, its model."""

    ids: tuple[int, ...]
    max_tokens: int
    asked: Asked
    since: float = field(default_factory=time.monotonic)
    """When it was asked, in seconds of `time.monotonic`."""


class Answerer:
    """Answers what callers ask, with the models that the edge serves."""

    def __init__(
        self,
        talker: Talker,
        tokenizer: Tokenizer,
        context_length: int,
        count: ServingCount | None = None,
    ) -> None:
        self.talker = talker
        self.count = count or ServingCount()
        self._tokenizer = tokenizer
        self._context = context_length

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""
        return self._tokenizer.markers.stop_ids

    async def models(self) -> tuple[str, ...]:
        """Names of what can be asked. Raises SflError."""
        return tuple(name for name, _ in (await self.talker.link()).here.adapters)

    async def prepare(self, asked: Asked) -> Prepared:
        """Look at what is asked before a word is said. Raises BadRequest, SflError."""
        since = time.monotonic()
        known = await self.models()
        if asked.model not in known:
            raise BadRequest("model", f"{asked.model!r:.80} is none of {', '.join(known)}")
        ids = await asyncio.to_thread(self._ids, asked)  # others' answers go on meanwhile
        here = (await self.talker.link()).here
        room = self._room(len(ids), here.room)
        most = min(room, here.max_tokens)
        return Prepared(ids, min(asked.max_tokens or most, most), asked, since)

    def _room(self, tokens: int, room: int) -> int:
        """How many may follow so many of a prompt. Raises BadRequest where it is none."""
        bounds = (self._context, "the model's context is"), (room, "the edge has room for")
        most, what = min(bounds)
        if not 0 < tokens < most:
            raise BadRequest("messages", f"{tokens} tokens, and {what} {most}")
        return most - tokens

    async def pieces(self, prepared: Prepared, account: Account) -> AsyncGenerator[str, None]:
        """The answer in pieces of text, as it comes. Raises SflError."""
        self.count.began(len(prepared.ids))
        ending: Ending = "failed"
        try:
            async with aclosing(self._pieces(prepared, account)) as pieces:
                async for piece in pieces:
                    yield piece
            ending = account.finish_reason
        except (GeneratorExit, asyncio.CancelledError):
            ending = "left"
            raise
        finally:
            self.count.ended(ending)

    async def _pieces(self, prepared: Prepared, account: Account) -> AsyncGenerator[str, None]:
        asked, ids, last = prepared.asked, prepared.ids, prepared.since
        text = RunningText(self._tokenizer.decode, ids, asked.stops)
        sampling = asked.sampling(secrets.randbits(63))
        wish = Wish("", ids, prepared.max_tokens, asked.model, sampling)
        async with aclosing(self.talker.answer(wish)) as answer:
            async for token in answer:
                now = time.monotonic()
                self.count.token(now - last, first=not account.completion_tokens)
                last = now
                account.completion_tokens += 1
                if token in self.stop_ids:
                    account.finish_reason = "stop"
                    break
                if piece := text.add(token):
                    yield piece
                if text.stopped:
                    account.finish_reason = "stop"
                    return
        if piece := text.end():
            yield piece
        if text.stopped:
            account.finish_reason = "stop"

    def _ids(self, asked: Asked) -> tuple[int, ...]:
        tokenizer = self._tokenizer
        if isinstance(asked.prompt, str):
            return (*tokenizer.prefix, *tokenizer.encode([asked.prompt])[0])
        if not tokenizer.has_chat_template:
            said = "\n".join(content for _, content in asked.prompt)
            return (*tokenizer.prefix, *tokenizer.encode([said])[0])
        messages = [{"role": role, "content": content} for role, content in asked.prompt]
        try:
            return tuple(tokenizer.encode([tokenizer.render(messages, True)])[0])
        except DataError as error:
            raise BadRequest("messages", error.problem) from None
