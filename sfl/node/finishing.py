"""Work that SIGTERM lets come to a good end, for a while."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from sfl.node.process import Terminated

log = logging.getLogger("sfl")

GRACE = 10.0
"""Seconds after SIGTERM in which a piece of work may end."""


class Finishing:
    """SIGTERM strikes between two pieces of work, not amid one; after `grace` seconds there too.

    For the main thread, which signals strike; elsewhere it does nothing. A second SIGTERM strikes
    at once.
    """

    def __init__(self, grace: float = GRACE) -> None:
        self._grace = grace
        self._busy = self._heard = False

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Work of several pieces. Raises Terminated at its end, or in `between`."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {
            signal.SIGALRM: signal.signal(signal.SIGALRM, _strike),
            signal.SIGTERM: signal.signal(signal.SIGTERM, self._hear),
        }
        self._busy = True
        try:
            yield
        finally:
            self._busy = False
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._strike_if_heard()

    @contextlib.contextmanager
    def between(self) -> Iterator[None]:
        """Between two pieces, where it strikes at once. Raises Terminated."""
        busy, self._busy = self._busy, False
        self._strike_if_heard()
        yield
        self._busy = busy

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self._heard or not self._busy:
            raise Terminated
        self._heard = True
        signal.setitimer(signal.ITIMER_REAL, self._grace)
        log.info("SIGTERM: this step is finished first, for at most %g s", self._grace)

    def _strike_if_heard(self) -> None:
        if self._heard:
            self._heard = False
            raise Terminated


def _strike(number: int, frame: FrameType | None) -> None:
    raise Terminated
