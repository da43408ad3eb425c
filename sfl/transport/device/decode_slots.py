"""Slots for decoded activations on one edge, given out in the run's order of devices."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from sfl.stage.orders import Order, Waiting
from sfl.stage.orders.slots import Claim, next_slot


class Claimant(Protocol):
    """A stream whose activations need slots."""

    def waiting(self, number: int) -> Waiting:
        """What an order goes by, of its activation that was the `number`th to arrive."""


@dataclass(slots=True)
class Held:
    """A stream's slots, and its activations that wait for one, in the order they came."""

    slots: int = 0
    queue: deque[tuple[int, asyncio.Future[None]]] = field(default_factory=deque)


class DecodeSlots:
    """At most `count` activations are decoded, over all streams; who is next is `next_slot`'s.

    Within a stream slots are given in the order they were asked for. To be used on one event loop.
    """

    def __init__(self, count: int, order: Order) -> None:
        self._free = count
        self._taken = 0
        self._order = order
        self._numbers: Iterator[int] = itertools.count()
        self._streams: dict[Claimant, Held] = {}

    def give_by(self, order: Order) -> None:
        """From now on slots are given in this order."""
        self._order = order

    def enter(self, stream: Claimant) -> None:
        """A stream is open: from now on a slot is kept for it while it holds none."""
        self._streams.setdefault(stream, Held())

    def leave(self, stream: Claimant) -> None:
        """A stream has ended: it gives back what it holds and waits for nothing."""
        held = self._streams.pop(stream, Held())
        for _, future in held.queue:
            future.cancel()
        self._put_back(held.slots)

    async def take(self, stream: Claimant) -> None:
        """Wait for a slot. Whoever is cancelled meanwhile may have been given one: it leaves."""
        self.enter(stream)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._streams[stream].queue.append((next(self._numbers), future))
        # Never at once: it would overtake those of its stream that were given one and sleep yet.
        loop.call_soon(self._give)
        await future

    def give_back(self, stream: Claimant) -> None:
        """One of the slots of a stream is free again; nothing where it has left."""
        held = self._streams.get(stream)
        if held is not None and held.slots:
            held.slots -= 1
            self._put_back(1)

    def _put_back(self, count: int) -> None:
        self._free += count
        self._taken -= count
        asyncio.get_running_loop().call_soon(self._give)

    def _give(self) -> None:
        """Give out slots for as long as somebody is to have one."""
        while True:
            claims = []
            for stream, held in self._streams.items():
                while held.queue and held.queue[0][1].cancelled():
                    held.queue.popleft()
                if held.queue:
                    number, _ = held.queue[0]
                    claims.append((held, Claim(stream.waiting(number), held.slots)))
            without = sum(not held.slots for held in self._streams.values())
            chosen = next_slot(
                self._order, [claim for _, claim in claims], self._free, self._taken, without
            )
            if chosen is None:
                return
            held, _ = claims[chosen]
            _, future = held.queue.popleft()
            held.slots += 1
            self._free -= 1
            self._taken += 1
            future.set_result(None)
