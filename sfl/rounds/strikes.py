"""Who has offended how often, and who is out of the run for good."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field, replace

from sfl.rounds.messages import Cause
from sfl.rounds.ordered import Ordered


@dataclass(frozen=True, slots=True)
class Silences:
    """How often a device was silent, and the rounds it has seen to their end since."""

    count: int = 0
    seen_through: int = 0


@dataclass(frozen=True, slots=True)
class Strikes:
    """Offences of each device; `limit` of them and it is not let in again in this run.

    Silence may be a link's: it is forgotten once the device has seen `limit` rounds to their end
    since. What a device sent is never forgotten.
    """

    limit: int
    out: Ordered[str, str] = field(default_factory=Ordered)
    """Devices that are out for good, and what each is told."""
    offences: Ordered[str, int] = field(default_factory=Ordered)
    silences: Ordered[str, Silences] = field(default_factory=Ordered)

    def note(self, device: str, cause: Cause, reason: str) -> tuple[Strikes, str]:
        """Count an offence; `reason` with what it means for the device."""
        if cause in ("link", "adapter", "left"):
            return self, reason
        counted = self._counted(device, cause)
        count = counted.offences.get(device, 0) + counted.silences.get(device, Silences()).count
        said = f"{reason} (strike {count} of {self.limit})"
        return (counted, said) if count < self.limit else counted.put_out(device, said)

    def _counted(self, device: str, cause: Cause) -> Strikes:
        if cause == "offence":
            count = self.offences.get(device, 0) + 1
            return replace(self, offences=self.offences.put(device, count))
        silent = Silences(self.silences.get(device, Silences()).count + 1)
        return replace(self, silences=self.silences.put(device, silent))

    def put_out(self, device: str, reason: str) -> tuple[Strikes, str]:
        """Have a device out for good; `reason` with that."""
        said = f"{reason}; it is out of this run for good"
        return replace(self, out=self.out.put(device, said)), said

    def seen_through(self, devices: Container[str]) -> Strikes:
        """These devices have brought a round to its end."""
        silences = self.silences
        for device, silent in self.silences.items():
            if device in devices:
                seen = Silences(silent.count, silent.seen_through + 1)
                forgotten = seen.seen_through >= self.limit
                silences = silences.without(device) if forgotten else silences.put(device, seen)
        return replace(self, silences=silences)
