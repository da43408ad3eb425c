"""What is `auto` and hangs on links and cores: steps timed before round 1, and forgotten."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from sfl.config import RunSettings
from sfl.config.codec import AUTO_CODECS
from sfl.rounds.messages import Settle
from sfl.rounds.ordered import Ordered

_EXACT_BITS = {"none": 32.0, "bf16": 16.0}
"""What a value takes at most with codecs of which that is known beforehand."""

_MOST_MICRO_BATCHES = 8
_WORTH = 1.05  # more micro-batches, or a coarser codec, have to be faster by so much
_HOPELESS = 2.0  # times the quickest step: a codec expected to take so long is not tried

Choice = TypeVar("Choice", int, str)


@dataclass(frozen=True, slots=True)
class Timed:
    """What a device took with one codec: seconds a step, by number of micro-batches tried."""

    codec: str
    seconds: tuple[float, ...]
    value_bits: float | None = None
    """Bits a value of an activation that the device expected."""


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """Seconds a step that devices were seen to take, by codec and number of micro-batches.

    Codecs are tried from the smallest packets up. One is left out only where the bits it takes, at
    what more bits have cost so far, would double every device's step: timings err by several
    percent, so that one codec was a little slower says little of the next.
    """

    counts: tuple[int, ...]
    codecs: tuple[str, ...]
    timed: Ordered[str, tuple[Timed, ...]]
    """By device, in the order in which codecs were tried."""
    waiting: Ordered[str, bool]
    """Devices that have not timed this codec yet."""

    @classmethod
    def for_run(cls, settings: RunSettings, devices: Sequence[str]) -> Rehearsal | None:
        """What there is to try; None where every setting is given."""
        if settings.training.micro_batches != "auto" and not settings.codec.is_auto:
            return None
        codecs = tuple(reversed(AUTO_CODECS)) if settings.codec.is_auto else ("",)
        timed = Ordered[str, tuple[Timed, ...]].of((name, ()) for name in devices)
        return cls(_counts_to_try(settings), codecs, timed, _all(devices))

    @property
    def codec(self) -> str:
        """The codec that is tried now; empty where it is given."""
        return self.codecs[0]

    @property
    def devices(self) -> tuple[str, ...]:
        """Those that take part."""
        return tuple(self.timed)

    def note(self, device: str, seconds: tuple[float, ...], bits: float | None = None) -> Rehearsal:
        """Take what a device has timed; what was not asked for does not count."""
        if device not in self.waiting or len(seconds) != len(self.counts):
            return self
        timed = (*self.timed[device], Timed(self.codec, seconds, bits))
        return replace(
            self, timed=self.timed.put(device, timed), waiting=self.waiting.without(device)
        )

    def without(self, device: str) -> Rehearsal:
        """Forget a device that is not there any more."""
        timed, waiting = self.timed.without(device), self.waiting.without(device)
        return replace(self, timed=timed, waiting=waiting)

    def try_next(self) -> Rehearsal | None:
        """With the next codec that is worth a try; None if there is none."""
        left = self.codecs[1:]
        while left and all(_hopeless(left[0], timed) for timed in self.timed.values()):
            left = left[1:]
        return replace(self, codecs=left, waiting=_all(self.devices)) if left else None

    def choose(self) -> Settle:
        """The number of micro-batches that suits the slowest, and each device's codec at that."""
        quickest = [
            [min(times) for times in zip(*(own.seconds for own in timed), strict=True)]
            for timed in self.timed.values()
        ]
        slowest = {
            count: max(own[place] for own in quickest) for place, count in enumerate(self.counts)
        }
        count = _quick(slowest)[0]
        place = self.counts.index(count)
        codecs = {
            device: _quick({own.codec: own.seconds[place] for own in timed})[-1]
            for device, timed in self.timed.items()
        }
        return Settle(count, slowest, codecs if any(codecs.values()) else {})


def _all(devices: Iterable[str]) -> Ordered[str, bool]:
    return Ordered.of((name, True) for name in devices)


def _hopeless(codec: str, timed: Sequence[Timed]) -> bool:
    """Whether a device's step is expected to take far too long with this codec.

    A straight line through the last two codecs it timed: seconds over bits a value.
    """
    if len(timed) < 2:
        return False
    quickest = [min(own.seconds) for own in timed]
    quick, slow = quickest[-2:]
    few, many = (_bits(own) for own in timed[-2:])
    cost = max(0.0, slow - quick) / (many - few) if many > few else 0.0
    expected = slow + cost * (_EXACT_BITS.get(codec, many) - many)
    return expected > _HOPELESS * min(quickest)


def _bits(timed: Timed) -> float:
    """What a value took, as the device said; else as is known beforehand, if it is."""
    known = _EXACT_BITS.get(timed.codec, 0.0)
    return known if timed.value_bits is None else timed.value_bits


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
