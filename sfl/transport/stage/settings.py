"""Runs' settings between a server and the stage behind it: each text is sent and read once.

They tell of every device of the run, and a stream is opened for every device. With a text for each
stream, a stage's memory and time would grow with the square of the devices.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from sfl.config import RunSettings
from sfl.errors import LinkLost, ProtocolError, SflError
from sfl.transport.frames import contract, words

KEPT = 4
"""Texts that a stage knows: a run's change little, as when its rows' form is settled."""


class SettingsSent:
    """A server's: the text of its run's settings, and its digest."""

    def __init__(self) -> None:
        self._of: RunSettings | None = None
        self._text, self._digest = "", b""

    def text(self, settings: RunSettings) -> tuple[str, bytes]:
        """(text, SHA-256 of it); both are made once."""
        if self._of is not settings:
            self._text = words.to_settings(settings)
            self._of, self._digest = settings, digest(self._text)
        return self._text, self._digest


class SettingsRead:
    """A stage's: settings by the digest of their text, one object for all streams."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, RunSettings] = OrderedDict()
        self._asked: dict[tuple[str, bytes], asyncio.Future[None]] = {}

    async def of(
        self, server: str, wanted: bytes, ask: Callable[[], Awaitable[str]]
    ) -> RunSettings:
        """The settings that `server` means; they are asked for on one of its streams.

        Raises ProtocolError where another text comes, LinkLost where that other stream breaks.
        """
        key = server, wanted
        while wanted not in self._known:
            if (asked := self._asked.get(key)) is not None:
                await asyncio.shield(asked)
                continue
            self._asked[key] = asyncio.get_running_loop().create_future()
            try:
                self._keep(wanted, await self._read(wanted, await ask()))
            except BaseException as error:
                lost = LinkLost(f"the run's settings did not come: {error}")
                self._asked[key].set_exception(error if isinstance(error, SflError) else lost)
                self._asked[key].exception()  # there may be nobody who waits
                raise
            else:
                self._asked[key].set_result(None)
            finally:
                del self._asked[key]
        self._known.move_to_end(wanted)
        return self._known[wanted]

    async def _read(self, wanted: bytes, text: str) -> RunSettings:
        if digest(text) != wanted:
            raise ProtocolError("the run's settings are others than were announced")
        return await asyncio.to_thread(contract.run_settings, text)

    def _keep(self, wanted: bytes, settings: RunSettings) -> None:
        self._known.setdefault(wanted, settings)  # another server may have been quicker
        while len(self._known) > KEPT:
            self._known.popitem(last=False)


def digest(text: str) -> bytes:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).digest()
