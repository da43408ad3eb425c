"""What all streams from a server to the stage behind it need alike: each text is sent once.

A run's settings tell of every device, and so do the names of those that share an adapter. A stream
is opened for every device. With a text for each stream, the hop's bytes and a stage's memory and
time would grow with the square of the devices.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from sfl.config import RunSettings
from sfl.errors import ProtocolError
from sfl.transport.frames import contract, words

KEPT = 4
"""Texts that a stage knows: a run's change little, as when its rows' form is settled."""

T = TypeVar("T")


class SentOnce(Generic[T]):
    """A server's: the text of what it means, and its digest."""

    def __init__(self, write: Callable[[T], str]) -> None:
        self._write = write
        self._of: T | None = None
        self._text, self._digest = "", b""

    def text(self, meant: T) -> tuple[str, bytes]:
        """(text, SHA-256 of it); both are made once."""
        if self._of is not meant:
            self._text = self._write(meant)
            self._of, self._digest = meant, digest(self._text)
        return self._text, self._digest


class ReadOnce(Generic[T]):
    """A stage's: what servers mean, by the digest of its text; one object for all streams."""

    def __init__(self, what: str, read: Callable[[str], T]) -> None:
        """`read` may take a while, and raises ProtocolError; `what` names it all in messages."""
        self._what = what
        self._read_text = read
        self._known: OrderedDict[bytes, T] = OrderedDict()
        self._asked: dict[tuple[str, bytes], asyncio.Event] = {}

    async def of(self, server: str, wanted: bytes, ask: Callable[[], Awaitable[str]]) -> T:
        """What `server` means; one of its streams asks for it, and another one if that breaks.

        Raises ProtocolError where another text comes.
        """
        key = server, wanted
        while wanted not in self._known:
            if (asked := self._asked.get(key)) is not None:
                await asked.wait()
                continue
            over = self._asked[key] = asyncio.Event()
            try:
                self._keep(wanted, await self._read(wanted, await ask()))
            finally:
                del self._asked[key]
                over.set()
        self._known.move_to_end(wanted)
        return self._known[wanted]

    async def _read(self, wanted: bytes, text: str) -> T:
        if digest(text) != wanted:
            raise ProtocolError(f"{self._what} are others than were announced")
        return await asyncio.to_thread(self._read_text, text)

    def _keep(self, wanted: bytes, found: T) -> None:
        self._known.setdefault(wanted, found)  # another server may have been quicker
        while len(self._known) > KEPT:
            self._known.popitem(last=False)


def settings_sent() -> SentOnce[RunSettings]:
    """A server's text of its run's settings."""
    return SentOnce(words.to_settings)


def settings_read() -> ReadOnce[RunSettings]:
    """A stage's settings of the run that it is in."""
    return ReadOnce("the run's settings", lambda text: contract.run_settings(text))


def members_sent() -> SentOnce[tuple[str, ...]]:
    """A server's text of the devices that share an adapter in a round."""
    return SentOnce("\n".join)


def members_read() -> ReadOnce[tuple[str, ...]]:
    """A stage's names of the devices that share an adapter in a round."""
    return ReadOnce("who share an adapter", lambda text: tuple(text.split("\n")))


def digest(text: str) -> bytes:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).digest()
