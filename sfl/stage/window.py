"""How many micro-batches a device keeps in flight: as many as keep everybody busy, no more."""

from __future__ import annotations

import math

_WEIGHT = 0.25  # of the newest step in the running mean
_PIPELINED = 2  # one on its way while another is computed


class Window:
    """The bandwidth-delay product in micro-batches, and one more, up to what the edge grants.

    A step begins with nothing in flight, so its first micro-batch tells how long the way there and
    back is, and the answers to those launched along with it how fast link and edge take them (BBR's
    estimates, Cardwell et al., ACM Queue 2016). Where they are the slower part, way / pace keeps
    them busy; where the device is, way / forward keeps it busy until the first answer is there.
    What is in flight beyond that waits in a queue and holds memory on both sides.

    Times are seconds of one clock that does not go back. The order of answers does not depend on
    the size, so no bit does.
    """

    def __init__(self, granted: int) -> None:
        self.granted = granted
        self.size = granted
        self._needed = float(granted)
        self.begin_step()

    def begin_step(self) -> None:
        """Nothing is in flight."""
        self._launched: list[tuple[float, float]] = []
        self._arrived: list[float] = []
        self._answering = 0.0

    def launched(self, began: float, ended: float) -> None:
        """A micro-batch was computed and sent."""
        self._launched.append((began, ended))

    def answered(self, seconds: float) -> None:
        """The device worked so long on an answer."""
        self._answering += seconds

    def landed(self, arrived: float) -> None:
        """The last answer to the next micro-batch was there at that time, if not yet looked at."""
        self._arrived.append(arrived)

    def end_step(self) -> None:
        """Set the size for the next step; one answer alone tells no pace."""
        together = self._arrived[: self.size]
        if len(together) < 2 or together[-1] <= together[0]:
            return
        forward = sum(ended - began for began, ended in self._launched) / len(self._launched)
        own = forward + self._answering / len(self._launched)
        theirs = (together[-1] - together[0]) / (len(together) - 1)
        pace = theirs if theirs > own else forward
        way = together[0] - self._launched[0][1]
        needed = min(way / pace + 1.0, float(self.granted)) if pace > 0.0 else self.granted
        self._needed += _WEIGHT * (needed - self._needed)
        self.size = min(self.granted, max(_PIPELINED, math.ceil(self._needed)))
