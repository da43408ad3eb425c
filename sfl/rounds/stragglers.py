"""Who holds up a round by doing nothing, by what the others took and by what its edge saw move."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from statistics import median

from sfl.config.network import NetworkSettings
from sfl.rounds.changed import changed
from sfl.rounds.ordered import Ordered


@dataclass(frozen=True, slots=True)
class Moved:
    """So many frames an edge has counted with a device, and since when; it may say it rests."""

    count: int
    since: float
    resting: bool


@dataclass(frozen=True)  # without slots: see `changed`
class Stragglers:
    """Times of one round, in seconds. A slow device moves something now and then, and is waited
    for; one that moves nothing is not, once half of the round and as many as it needs are done."""

    began: float = 0.0
    look_at: float = 0.0
    """Nobody can be late before, so that not every event looks at every device."""
    took: Ordered[str, float] = field(default_factory=Ordered)
    moved: Ordered[str, Moved] = field(default_factory=Ordered)

    @classmethod
    def begin(cls, now: float, network: NetworkSettings) -> Stragglers:
        """A round begins."""
        return cls(now, now + network.straggler_seconds)

    def heard(self, device: str, count: int, resting: bool, now: float) -> Stragglers:
        """Its edge has counted so many frames with a device so far; it may say that it rests."""
        before = self.moved.get(device)
        since = before.since if before is not None and before.count == count else now
        after = Moved(count, since, resting)
        return self if after == before else changed(self, moved=self.moved.put(device, after))

    def moved_now(self, device: str, now: float) -> Stragglers:
        """A device is back: what it did before does not count."""
        return changed(self, moved=self.moved.put(device, Moved(0, now, resting=False)))

    def done(self, device: str, now: float) -> Stragglers:
        """A device has delivered everything."""
        return changed(self, took=self.took.put(device, now - self.began))

    def without(self, device: str, network: NetworkSettings) -> Stragglers:
        """A device that had delivered everything does not count."""
        look_at = self.began + network.straggler_seconds
        return changed(self, look_at=look_at, took=self.took.without(device))

    def rests(self, device: str) -> bool:
        """Whether a device says that it rests: no offence."""
        return device in self.moved and self.moved[device].resting

    def late(
        self, rest: Collection[str], now: float, network: NetworkSettings
    ) -> tuple[Stragglers, Mapping[str, str]]:
        """Why those of the rest are left out that move nothing."""
        factor, done = network.straggler_factor, len(self.took)
        if factor == "off":
            return self, {}
        patience = max(network.straggler_seconds, factor * median(self.took.values()))
        since = {name: self._since(name) for name in rest}
        late = {
            name: f"nothing moved for {now - moved:.0f} s while {done} of "
            f"{done + len(rest)} devices finished the round (network.straggler_seconds, "
            "network.straggler_factor)"
            for name, moved in since.items()
            if now - moved >= patience
        }
        waited = [moved for name, moved in since.items() if name not in late]
        return changed(self, look_at=min(waited, default=now) + patience), late

    def _since(self, device: str) -> float:
        return self.moved[device].since if device in self.moved else self.began
