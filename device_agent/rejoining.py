"""Whether a device that was not let in, or lost its link, dials again."""

from __future__ import annotations

from sfl.errors import (
    AdapterRefused,
    Corrupted,
    LinkLost,
    NameInUse,
    PeerUnavailable,
    SflError,
)

MOST_VAIN = 3
"""Links in a row that break before the edge has taken the device in."""
MOST_CORRUPT = 5
"""Links that end over changed bytes before another round is done: such a link is not usable."""


class Patience:
    """Counts what went wrong since things last went well; no clock of its own."""

    def __init__(self, connect_timeout: float) -> None:
        self._connect_timeout = connect_timeout
        self._vain = self._corrupt = 0
        self._name_in_use_until: float | None = None
        self._refused: AdapterRefused | None = None

    def taken_in(self) -> None:
        """The edge has welcomed the device."""
        self._vain, self._name_in_use_until, self._refused = 0, None, None

    def round_done(self) -> None:
        """The device has done its part of a round."""
        self._corrupt = 0

    def refuse(self, error: AdapterRefused) -> None:
        """The device could not compute with a round's adapter, and waits for another one."""
        self._refused = error

    def why(self, error: PeerUnavailable) -> SflError:
        """What is told where nobody is there any more: most likely the run ended over that."""
        return self._refused or error

    def spend(self, error: LinkLost | NameInUse, now: float) -> None:
        """Return where dialling again may help after this error, else raise it."""
        if not self._has_more(error, now):
            raise error

    def _has_more(self, error: SflError, now: float) -> bool:
        if isinstance(error, NameInUse):
            # After a broken link the old stream may still be held for a moment.
            if self._name_in_use_until is None:
                self._name_in_use_until = now + self._connect_timeout
            return now <= self._name_in_use_until
        self._vain += 1
        if isinstance(error, Corrupted):
            self._corrupt += 1
        return self._vain <= MOST_VAIN and self._corrupt <= MOST_CORRUPT
