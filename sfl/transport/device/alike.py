"""A round's adapter in bytes, made once for all devices of an edge that get the same of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import numpy as np

from sfl.transport.stream import Ready

Values = Mapping[str, np.ndarray]

MOST = 64
"""Different parts of one round's adapter that are kept: devices of as many plans and ranks."""


class Alike:
    """Frames of the latest round, by the values that they are of.

    Values are the same where they are one object. With a thousand devices their frames would else
    be most of an edge's memory. For one event loop.
    """

    def __init__(self) -> None:
        self._round = -1
        self._made: dict[int, tuple[Values, asyncio.Task[list[Ready]]]] = {}

    async def frames(
        self, values: Values, round_: int, make: Callable[[Values, int], list[Ready]]
    ) -> list[Ready]:
        """What `make` gives for these values, on a thread; raises what it raises."""
        if round_ != self._round:
            self._round, self._made = round_, {}
        if id(values) not in self._made:
            while len(self._made) >= MOST:
                del self._made[next(iter(self._made))]
            task = asyncio.create_task(asyncio.to_thread(make, values, round_))
            self._made[id(values)] = values, task  # held, so that no other object gets its id
        # A device that leaves meanwhile leaves the others theirs.
        return await asyncio.shield(self._made[id(values)][1])
