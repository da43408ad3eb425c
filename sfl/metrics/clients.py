"""How many clients `/metrics` serves at once, and for how long: each takes a thread."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

MOST = 32
"""At once; who comes then takes the place of the one that has been there for longest."""
SECONDS = 10.0
"""For a handshake, a request and its answer together, however slowly they come."""


class Clients:
    """Those being served; thread-safe."""

    def __init__(self, most: int = MOST, seconds: float = SECONDS) -> None:
        self._most = most
        self._seconds = seconds
        self._lock = threading.Lock()
        self._open: dict[int, tuple[float, socket.socket]] = {}
        """When each came, oldest first, and a hold on its connection that outlives TLS's own."""
        self._leaving: set[int] = set()

    def enter(self, request: socket.socket) -> bool:
        """Whether a client is served, for which the longest served may have to go."""
        with self._lock:
            if len(self._open) >= 2 * self._most:
                return False  # those that have to go are still going
            try:
                own = request.dup()
            except OSError:
                return False  # this process is out of files
            staying = [key for key in self._open if key not in self._leaving]
            if len(staying) >= self._most:
                self._hang_up(staying[0])
            self._open[id(request)] = time.monotonic(), own
            return True

    def leave(self, request: socket.socket) -> None:
        """A client has been served, or was not."""
        with self._lock:
            _, own = self._open.pop(id(request), (0.0, None))
            self._leaving.discard(id(request))
        if own is not None:
            own.close()

    def end_late(self) -> None:
        """Hang up on whoever takes too long."""
        with self._lock:
            began = time.monotonic() - self._seconds
            for key, (since, _) in list(self._open.items()):
                if since < began:
                    self._hang_up(key)

    def _hang_up(self, key: int) -> None:
        self._leaving.add(key)
        with contextlib.suppress(OSError):  # it has gone by itself
            self._open[key][1].shutdown(socket.SHUT_RDWR)
