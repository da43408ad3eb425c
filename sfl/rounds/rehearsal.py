"""What is `auto` and hangs on links and cores: steps timed before round 1, and forgotten."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from sfl.config import RunSettings
from sfl.config.codec import AUTO_CODECS
from sfl.rounds.messages import Settle

_EXACT_BITS = {"none": 32.0, "bf16": 16.0}
"""What a value takes at most with codecs of which that is known beforehand."""

_MOST_MICRO_BATCHES = 8
_WORTH = 1.05  # more micro-batches, or a coarser codec, have to be faster by so much
_HOPELESS = 2.0  # times the quickest step: a codec expected to take so long is not tried

Choice = TypeVar("Choice", int, str)


@dataclass(slots=True)
class Rehearsal:
    """Seconds a step that devices were seen to take, by codec and number of micro-batches.

    Codecs are tried from the smallest packets up. One is left out only where the bits it takes, at
    what more bits have cost so far, would double every device's step: timings err by several
    percent, so that one codec was a little slower says little of the next.
    """

    counts: tuple[int, ...]
    codecs: tuple[str, ...]
    devices: tuple[str, ...]
    seconds: dict[str, dict[str, tuple[float, ...]]] = field(default_factory=dict)
    bits: dict[str, dict[str, float]] = field(default_factory=dict)
    """Bits a value of an activation that devices expect, by codec."""

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

    def note(self, device: str, seconds: tuple[float, ...], bits: float | None = None) -> None:
        """Take what a device has timed; what was not asked for does not count."""
        if device in self.devices and len(seconds) == len(self.counts):
            self.seconds.setdefault(device, {}).setdefault(self.codec, seconds)
            if bits is not None:
                self.bits.setdefault(device, {}).setdefault(self.codec, bits)

    def keep(self, devices: Container[str]) -> None:
        """Forget whoever is not there any more."""
        self.devices = tuple(name for name in self.devices if name in devices)

    @property
    def late(self) -> tuple[str, ...]:
        """Who has not timed this codec yet."""
        return tuple(d for d in self.devices if self.codec not in self.seconds.get(d, ()))

    def try_next(self) -> bool:
        """Go on to the next codec that is worth a try, if there is one."""
        self.codecs = self.codecs[1:]
        while self.codecs and all(self._hopeless(device) for device in self.devices):
            self.codecs = self.codecs[1:]
        return bool(self.codecs)

    def _hopeless(self, device: str) -> bool:
        """Whether the device's step is expected to take far too long with the codec at hand.

        A straight line through the last two codecs it timed: seconds over bits a value.
        """
        seconds = [(codec, min(own)) for codec, own in self.seconds[device].items()]
        if len(seconds) < 2:
            return False
        (before, quick), (last, slow) = seconds[-2:]
        known = _EXACT_BITS | self.bits.get(device, {})
        few, many = known.get(before, 0.0), known.get(last, 0.0)
        cost = max(0.0, slow - quick) / (many - few) if many > few else 0.0
        expected = slow + cost * (_EXACT_BITS.get(self.codec, many) - many)
        return expected > _HOPELESS * min(time for _, time in seconds)

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
