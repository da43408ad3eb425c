"""A device's own board: its sensors into the statistics, and rests when its settings say so."""

from __future__ import annotations

import logging
import threading
import time
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from sfl.config.pausing import PauseSettings
from sfl.metrics.stats import NodeStats
from sfl.node.board import Board, read_board
from sfl.node.notify import Notifier
from sfl.node.pausing import Pause, blind_rules, decide
from sfl.node.watched import start_watched

log = logging.getLogger("sfl.device")


class BoardWatch:
    """Looks at the board every few seconds, on a thread of its own; a context.

    The thread also feeds the service manager's watchdog, so a process that hangs as a whole is
    started again. `rest` is for the thread that computes; links live on others and stay up.
    """

    def __init__(
        self, settings: PauseSettings, stats: NodeStats, service: Notifier, root: Path
    ) -> None:
        self.settings, self.stats, self.service, self.root = settings, stats, service, root
        self._pause: Pause | None = None
        self._since = 0.0
        self._may_compute = threading.Event()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._broken: Exception | None = None

    def __enter__(self) -> Self:
        board = self._look()
        for name in blind_rules(self.settings, board):
            log.warning(
                "pause.%s: nothing on this machine can answer it, so it has no effect", name
            )
        self._thread = start_watched("board", self._watch, self._break)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        self.service.stopping()
        self.service.close()

    def rest(self) -> None:
        """Return when the device may compute: at once, or when what it rests for is over.

        Raises what ended the watch, which nobody could wait for any more.
        """
        self._may_compute.wait()
        if self._broken is not None:
            raise self._broken

    def _break(self, error: Exception) -> None:
        self._broken = error
        self._may_compute.set()

    def _watch(self) -> None:
        """Look as often as the settings say, and feed the watchdog at least twice as asked."""
        watchdog = self.service.watchdog
        tick = self.settings.check_interval
        if watchdog is not None:
            tick = min(tick, watchdog / 2)
        next_look = time.monotonic() + self.settings.check_interval
        while not self._over.wait(tick):
            self.service.alive()
            if time.monotonic() >= next_look:
                self._look()
                next_look = time.monotonic() + self.settings.check_interval

    def _look(self) -> Board:
        """Read, decide, and tell what changed."""
        try:
            board = read_board(self.root, self.settings.metered)
        except Exception as error:  # noqa: BLE001 - no sensor ends a device, or its rests
            log.warning("the board's sensors cannot be read: %s", error)
            board = self.stats.board
        self.stats.board = board
        self.stats.meter.read()  # watts change between two reports
        was = self._pause
        self._pause = decide(self.settings, board, datetime.now().time(), was)
        self.stats.paused = "" if self._pause is None else self._pause.reason
        if self._pause is None:
            self._go_on(was)
        else:
            self._stop(self._pause, was)
        return board

    def _stop(self, pause: Pause, was: Pause | None) -> None:
        self._may_compute.clear()
        self.service.status(f"paused: {pause.text}")
        if was is None:
            self._since = time.monotonic()
        if was is None or was.reason != pause.reason:
            log.warning("paused (%s): %s", pause.reason, pause.text)

    def _go_on(self, was: Pause | None) -> None:
        if was is not None:
            log.warning("continues after a pause of %.0f s", time.monotonic() - self._since)
            self.service.status("goes on")
        self._may_compute.set()
