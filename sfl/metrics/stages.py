"""What the stages behind a server have said last of themselves."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from sfl.metrics.snapshot import NodeSnapshot
from sfl.plan import MOST_STAGES


class StagesSaid:
    """The latest statistics of each, for as long as it is heard of; of no more than a plan has.

    `clock` gives seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._of: dict[str, tuple[float, NodeSnapshot]] = {}

    def heard(self, snapshot: NodeSnapshot) -> None:
        """A stage's statistics take the place of those before; of too many the oldest goes."""
        self._of.pop(snapshot.name, None)
        self._of[snapshot.name] = self._clock(), snapshot
        while len(self._of) > MOST_STAGES:
            del self._of[next(iter(self._of))]

    def latest(self, within: float) -> list[NodeSnapshot]:
        """Those heard in the last so many seconds, each with its age by now in seconds."""
        now = self._clock()
        self._of = {name: own for name, own in self._of.items() if now - own[0] < within}
        return [replace(own, age=own.age + now - at) for at, own in self._of.values()]
