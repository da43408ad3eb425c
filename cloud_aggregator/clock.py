"""How long a run has been up."""

from __future__ import annotations

import time


class RunClock:
    """Counts seconds while this process runs, from where the run was when it was last heard of."""

    def __init__(self, begins_at: float = 0.0) -> None:
        self._zero = time.monotonic() - begins_at

    def now(self) -> float:
        """Seconds since the run began, less those that its cloud was away."""
        return time.monotonic() - self._zero
