"""Whether and when a device that was not let in, or lost its link, dials again."""

from __future__ import annotations

import random

from sfl.errors import (
    AdapterRefused,
    Corrupted,
    LinkLost,
    NameInUse,
    PeerUnavailable,
    SflError,
)
from sfl.transport.dialling import MOST_CORRUPT

MOST_VAIN = 3
"""Links in a row that break before the edge has taken the device in for the first time."""
LONGEST_PAUSE = 10.0
"""Seconds between two dials, at most."""


class Patience:
    """Counts what went wrong since things last went well; no clock of its own.

    A device that was in a run dials for as long as the run waits for it.
    """

    def __init__(self, connect_timeout: float) -> None:
        self._connect_timeout = connect_timeout
        self._rejoin_timeout = 0.0
        self._vain = self._corrupt = 0
        self._back_by: float | None = None
        self._name_in_use_until: float | None = None
        self._refused: AdapterRefused | None = None

    def taken_in(self, rejoin_timeout: float = 0.0) -> None:
        """The edge has welcomed the device; a lost one is waited for `rejoin_timeout` seconds."""
        self._rejoin_timeout = rejoin_timeout
        self._vain, self._back_by, self._name_in_use_until = 0, None, None
        self._refused = None

    def round_done(self) -> None:
        """The device has done its part of a round."""
        self._corrupt = 0

    def refuse(self, error: AdapterRefused) -> None:
        """The device could not compute with a round's adapter, and waits for another one."""
        self._refused = error

    def unreached(self, error: PeerUnavailable, now: float) -> None:
        """Return where the edge may yet come back, else raise why it is gone.

        Where nobody is there any more most likely the run ended over what the device refused.
        """
        self._vain += 1
        if self._back_by is None or now > self._back_by:
            raise self._refused or error from None

    def left(self, now: float) -> float | None:
        """Seconds for which it is dialled again; None where that goes by attempts."""
        return None if self._back_by is None else max(0.0, self._back_by - now)

    def pause(self, shortest: float) -> float:
        """Seconds until the next dial: back-off with full jitter, from `shortest` on."""
        longest = min(LONGEST_PAUSE, shortest * 2.0 ** min(self._vain, 30))
        return random.uniform(0.0, longest)

    def spend(self, error: LinkLost | NameInUse, now: float) -> None:
        """Return where dialling again may help after this error, else raise it."""
        if not self._has_more(error, now):
            raise error

    def _has_more(self, error: SflError, now: float) -> bool:
        if isinstance(error, NameInUse):
            # After a broken link the old stream may still be held for a moment.
            if self._name_in_use_until is None:
                waits = max(self._connect_timeout, self._rejoin_timeout)
                self._name_in_use_until = now + waits
            return now <= self._name_in_use_until
        self._vain += 1
        if isinstance(error, Corrupted):
            self._corrupt += 1
        if self._rejoin_timeout and self._back_by is None:
            self._back_by = now + max(self._connect_timeout, self._rejoin_timeout)
        again = self._vain <= MOST_VAIN if self._back_by is None else now <= self._back_by
        return again and self._corrupt <= MOST_CORRUPT
