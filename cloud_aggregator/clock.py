"""How long a run has been up."""

from __future__ import annotations

import time
from collections.abc import Callable


class RunClock:
    """Counts seconds of `clock` while this process runs, from where the run was before."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, begins_at: float = 0.0) -> None:
        self._clock = clock
        self._zero = clock() - begins_at

    def now(self) -> float:
        """Seconds since the run began, less those that its cloud was away."""
        return self._clock() - self._zero
