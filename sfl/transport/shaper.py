"""A slower link than the real one: a rate and a delay, kept by the transport itself."""

from __future__ import annotations

from dataclasses import dataclass, field

from sfl.config.devices import LinkSettings

BITS = 8e-6  # megabits of a byte


@dataclass(slots=True)
class Shaper:
    """A token bucket of one message and a delay line; no clock of its own (seconds)."""

    megabits: float
    delay: float
    share: float = 1.0
    """Of the megabits, which a planner may have given others a part of."""
    _free: float = field(default=0.0, init=False)

    def admit(self, now: float, num_bytes: float) -> tuple[float, float]:
        """(when the link is free again, when the message arrives) for one that starts now."""
        begins = max(now, self._free)
        rate = self.megabits * self.share
        self._free = begins + (num_bytes * BITS / rate if rate else 0.0)
        return self._free, self._free + self.delay


def shaper(link: LinkSettings, direction: str) -> Shaper | None:
    """The shaper of one direction, None where the link is as it is."""
    rate = link.up_mbit if direction == "up" else link.down_mbit
    if not rate and not link.delay_ms:
        return None
    return Shaper(rate, link.delay_ms / 1000.0)
