"""Who holds up a round by doing nothing, by what the others took and by what its edge saw move."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from statistics import median

from sfl.config.run import NetworkSettings


@dataclass(slots=True)
class Stragglers:
    """Times of one round, in seconds. A slow device moves something now and then, and is waited
    for; one that moves nothing is not, once half of the round and `least` devices are done."""

    network: NetworkSettings
    least: int
    _began: float = 0.0
    _took: dict[str, float] = field(default_factory=dict)
    _moved: dict[str, tuple[int, float]] = field(default_factory=dict)
    _resting: set[str] = field(default_factory=set)

    def begin(self, now: float) -> None:
        """A round begins."""
        self._began = now
        for kept in (self._took, self._moved, self._resting):
            kept.clear()

    def moved(self, device: str, count: int, resting: bool, now: float) -> None:
        """Its edge has counted so many frames with a device so far; it may say that it rests."""
        if self._moved.get(device, (-1, 0.0))[0] != count:
            self._moved[device] = count, now
        (self._resting.add if resting else self._resting.discard)(device)

    def rests(self, device: str) -> bool:
        """Whether a device says that it rests: no offence."""
        return device in self._resting

    def late(self, done: Collection[str], rest: Collection[str], now: float) -> Mapping[str, str]:
        """Why those of the rest are left out that move nothing."""
        for name in done:
            self._took.setdefault(name, now - self._began)
        patience = self._patience(done, rest)
        return {
            name: f"nothing moved for {silent:.0f} s while {len(done)} of "
            f"{len(done) + len(rest)} devices finished the round (network.straggler_seconds, "
            "network.straggler_factor)"
            for name in rest
            if (silent := now - self._moved.get(name, (0, self._began))[1]) >= patience
        }

    def _patience(self, done: Collection[str], rest: Collection[str]) -> float:
        factor = self.network.straggler_factor
        if factor == "off" or len(done) < max(1, self.least, len(rest)):
            return math.inf
        took = median(self._took[name] for name in done)
        return max(self.network.straggler_seconds, factor * took)
