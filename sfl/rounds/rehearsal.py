"""What is `auto` and hangs on links and cores: steps timed before round 1, and forgotten."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from sfl.config import RunSettings
from sfl.config.run import AUTO_CODECS
from sfl.rounds.messages import Settle

_MOST_MICRO_BATCHES = 8
_WORTH = 1.05  # more micro-batches, or a coarser codec, have to be faster by so much

Choice = TypeVar("Choice", int, str)


@dataclass(slots=True)
class Rehearsal:
    """Seconds a step that devices were seen to take, by codec and number of micro-batches.

    Codecs are tried from the smallest packets up, as long as some device gains by it.
    """

    counts: tuple[int, ...]
    codecs: tuple[str, ...]
    devices: tuple[str, ...]
    seconds: dict[str, dict[str, tuple[float, ...]]] = field(default_factory=dict)

    @classmethod
    def for_run(cls, settings: RunSettings, devices: Sequence[str]) -> Rehearsal | None:
        """What there is to try; None where every setting is given."""
        if settings.training.micro_batches != "auto" and not settings.codec.is_auto:
            return None
        codecs = tuple(reversed(AUTO_CODECS)) if settings.codec.is_auto else ("",)
        return cls(_counts_to_try(settings), codecs, tuple(devices))

    @property
    def codec(self) -> str:
        """The codec that is tried now; empty where it is given."""
        return self.codecs[0]

    def note(self, device: str, seconds: tuple[float, ...]) -> None:
        """Take what a device has timed; what was not asked for does not count."""
        if device in self.devices and len(seconds) == len(self.counts):
            self.seconds.setdefault(device, {}).setdefault(self.codec, seconds)

    def keep(self, devices: Container[str]) -> None:
        """Forget whoever is not there any more."""
        self.devices = tuple(name for name in self.devices if name in devices)

    @property
    def late(self) -> tuple[str, ...]:
        """Who has not timed this codec yet."""
        return tuple(d for d in self.devices if self.codec not in self.seconds.get(d, ()))

    def try_next(self) -> bool:
        """Go on to the next codec, if there is one and the last served anybody."""
        best = [{c: min(s) for c, s in self.seconds[d].items()} for d in self.devices]
        served = any(self.codec in _quick(own) for own in best)
        self.codecs = self.codecs[1:]
        return bool(self.codecs) and served

    def choose(self) -> Settle:
        """The number of micro-batches that suits the slowest, and each device's codec at that."""
        slowest = {
            count: max(min(s[place] for s in self.seconds[d].values()) for d in self.devices)
            for place, count in enumerate(self.counts)
        }
        count = _quick(slowest)[0]
        place = self.counts.index(count)
        codecs = {
            device: _quick({c: seconds[place] for c, seconds in self.seconds[device].items()})[-1]
            for device in self.devices
        }
        return Settle(count, slowest, codecs if any(codecs.values()) else {})


def _counts_to_try(settings: RunSettings) -> tuple[int, ...]:
    """1, 2, 4, ... as far as batch and credits go, or the number that is given."""
    if settings.training.micro_batches != "auto":
        return (settings.training.micro_batches,)
    most = min(settings.training.batch_size, settings.network.credits, _MOST_MICRO_BATCHES)
    return tuple(1 << power for power in range(most.bit_length()))


def _quick(seconds: Mapping[Choice, float]) -> list[Choice]:
    """The choices that are within a few percent of the fastest, in their order."""
    fastest = min(seconds.values())
    return [choice for choice, own in seconds.items() if own <= _WORTH * fastest]
