"""How long a process may take to start: as long as it is at work, and the user is told."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import psutil

from sfl.errors import RunFailed

SAY_EVERY = 5.0
"""Seconds between two lines about what is waited for."""
IDLE_AT_MOST = 60.0
"""Seconds in which a process that starts may use no CPU; what reads a slow disk uses some."""
START_AT_MOST = 1800.0
"""Seconds in all, for one that is busy and gets nowhere."""

Say = Callable[[str], None]


@dataclass(slots=True)
class Patience:
    """The wait for one process since `began`; `log` is named where it is given up.

    Knows no clock: `look` is told the time (seconds, monotonic) and the CPU seconds used so far.
    """

    what: str
    log: str
    say: Say
    began: float
    _work: float = field(default=0.0, init=False)
    _at_work: float = field(default=0.0, init=False)
    _said: float = field(default=0.0, init=False)

    def look(self, work: float, now: float) -> None:
        """Say how long it has been, now and then. Raises RunFailed where waiting makes no sense."""
        waited = now - self.began
        if work != self._work:
            self._work, self._at_work = work, waited
        if waited - self._at_work >= IDLE_AT_MOST:
            raise RunFailed(f"{self.what}: did nothing for {IDLE_AT_MOST:.0f} s; {self.log}")
        if waited >= START_AT_MOST:
            raise RunFailed(f"{self.what}: not done after {START_AT_MOST:.0f} s; {self.log}")
        if waited - self._said >= SAY_EVERY:
            self._said = waited
            self.say(f"{self.what}, {waited:.0f} s")


def cpu_seconds(processes: Iterable[int]) -> float:
    """CPU time of these processes together, user's and system's; 0 for those that are gone."""
    total = 0.0
    for pid in processes:
        with contextlib.suppress(psutil.Error):
            times = psutil.Process(pid).cpu_times()
            total += times.user + times.system
    return total
