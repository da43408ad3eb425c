"""Messages to systemd: ready, alive, and what is being done (sd_notify(3), without its library)."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

ADDRESS = "NOTIFY_SOCKET"
WATCHDOG = "WATCHDOG_USEC"
WATCHDOG_PROCESS = "WATCHDOG_PID"


class Notifier:
    """Datagrams to the service manager's socket; without one, nothing is sent.

    `watchdog` is the seconds within which the manager wants to hear from this process, or None.
    """

    def __init__(self, address: str = "", watchdog: float | None = None) -> None:
        # A name that begins with @ is in Linux's abstract namespace, which no folder holds.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog = watchdog
        self._socket: socket.socket | None = None

    def ready(self) -> None:
        """The service is up: who is ordered after it may start."""
        self._send("READY=1")

    def stopping(self) -> None:
        """The service is on its way down."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Feed the watchdog, where there is one."""
        if self.watchdog is not None:
            self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """What `systemctl status` shows; one line."""
        self._send("STATUS=" + " ".join(text.split()))

    def close(self) -> None:
        """Nothing is sent any more."""
        self._address = ""
        if self._socket is not None:
            self._socket.close()

    def _send(self, message: str) -> None:
        if not self._address:
            return
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            # A manager that does not read must not hold the work up.
            self._socket.setblocking(False)
        try:
            self._socket.sendto(message.encode(), self._address)
        except OSError:
            return  # the manager restarts, or its queue is full: the next one counts


def notifier(environment: Mapping[str, str] = os.environ) -> Notifier:
    """The one that the service manager asked for in the environment of this very process."""
    microseconds = environment.get(WATCHDOG, "")
    meant = environment.get(WATCHDOG_PROCESS, str(os.getpid())) == str(os.getpid())
    watched = meant and microseconds.isdecimal() and int(microseconds) > 0
    return Notifier(environment.get(ADDRESS, ""), int(microseconds) / 1e6 if watched else None)
