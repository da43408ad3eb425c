"""Steps that a device times before the first round, for what is `auto`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sfl.cost.values import DeviceCost
from sfl.rounds import Rehearse
from sfl.simulate.costs import value_bits
from sfl.simulate.life import Life
from sfl.simulate.worker import Worker

if TYPE_CHECKING:
    from sfl.simulate.cloud import Cloud


def rehearse(cloud: Cloud, life: Life, command: Rehearse) -> None:
    """Have a device time a step of each number of micro-batches, beside all others that do."""
    if life.there and life.alive:
        Attempts(cloud, life, command).next()


class Attempts:
    """One device's steps, one number of micro-batches after another."""

    def __init__(self, cloud: Cloud, life: Life, command: Rehearse) -> None:
        self._cloud, self._life, self._counts = cloud, life, list(command.counts)
        self._cost, self._bits = _coded(cloud, life, command.codec)
        self._seconds: list[float] = []
        self._began = 0.0

    def next(self) -> None:
        """The next number, or all are timed."""
        cloud, life = self._cloud, self._life
        if len(self._seconds) == len(self._counts):
            cloud.rehearsed(life, tuple(self._seconds), self._bits)
            return
        count = self._counts[len(self._seconds)]
        at = cloud.parts.at(life.own, None)
        made = cloud.parts.step(life.own, self._cost, at, count, cloud.settings)
        burst = replace(made, trains=False)
        self._began = cloud.events.now
        life.working.begin(((burst, 1),), self._began, self._timed)

    def _timed(self, worker: Worker, now: float) -> None:
        self._seconds.append(now - self._began)
        self.next()


def _coded(cloud: Cloud, life: Life, codec: str) -> tuple[DeviceCost, float]:
    """A device's costs with a codec that is tried, and bits of an activation's value."""
    cost = life.own.cost
    if codec:
        codecs = cloud.settings.codecs(life.name, 1, codec)
        cost = replace(cost, bits=value_bits(cloud.stated.bits, codecs))
    cut_layer, _ = cloud.parts.at(life.own, None)
    bits = cost.bits.activation
    return cost, bits[min(cut_layer, len(bits) - 1)]
