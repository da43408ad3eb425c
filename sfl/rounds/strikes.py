"""Who has offended how often, and who is out of the run for good."""

from __future__ import annotations

from dataclasses import dataclass, field

from sfl.rounds.messages import Cause


@dataclass(slots=True)
class Strikes:
    """Offences of each device; `limit` of them and it is not let in again in this run.

    Silence may be a link's: it is forgotten once the device has seen `limit` rounds to their end
    since. What a device sent is never forgotten.
    """

    limit: int
    out: dict[str, str] = field(default_factory=dict)
    """Devices that are out for good, and what each is told."""
    _offences: dict[str, int] = field(default_factory=dict)
    _silences: dict[str, int] = field(default_factory=dict)
    _seen_through: dict[str, int] = field(default_factory=dict)

    def note(self, device: str, cause: Cause, reason: str) -> str:
        """Count an offence; `reason` with what it means for the device."""
        match cause:
            case "link" | "adapter":
                return reason
            case "silence":
                counts = self._silences
                self._seen_through[device] = 0
            case "offence":
                counts = self._offences
        counts[device] = counts.get(device, 0) + 1
        count = self._silences.get(device, 0) + self._offences.get(device, 0)
        if count < self.limit:
            return f"{reason} (strike {count} of {self.limit})"
        return self.put_out(device, f"{reason} (strike {count} of {self.limit})")

    def put_out(self, device: str, reason: str) -> str:
        """Have a device out for good; `reason` with that."""
        self.out[device] = f"{reason}; it is out of this run for good"
        return self.out[device]

    def seen_through(self, device: str) -> None:
        """The device has brought a round to its end."""
        self._seen_through[device] = self._seen_through.get(device, 0) + 1
        if self._seen_through[device] >= self.limit:
            self._silences.pop(device, None)
