"""What a node shows of its costs: sums over what it timed, enough for least squares, as JSON.

Sums are small, and the difference of two is what came between them. So a node may count for as long
as it lives, and whoever listens looks at single rounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from sfl.cost.energy import Energy, Source

Purpose = Literal["training", "evaluation", "rehearsal"]
Part = Literal["collate", "forward", "backward", "step", "encode", "decode", "receive"]
Crossing = Literal["activation", "gradient", "hidden", "tail_gradient"]

PURPOSES: tuple[Purpose, ...] = get_args(Purpose)
PARTS: tuple[Part, ...] = get_args(Part)
CROSSINGS: tuple[Crossing, ...] = get_args(Crossing)
SOURCES: tuple[Source, ...] = get_args(Source)

MOST = 128
"""Kinds of passes that one node shows; those that it has not seen for longest go first."""
_LARGEST = 1e30
_MOST_BLOCKS = 1 << 16


@dataclass(frozen=True, slots=True)
class PassKey:
    """What was timed: a part of a step, for a purpose, through so many blocks.

    `embedding` and `head`: whether these were in it. Coding has neither, and no blocks. Nor has
    `receive`, what an edge took for a device's update: its size is bytes.
    """

    part: Part
    purpose: Purpose = "training"
    blocks: int = 0
    embedding: bool = False
    head: bool = False


RECEIVED = PassKey("receive")


@dataclass(frozen=True, slots=True)
class Sums:
    """Over passes of a `size` each, in tokens or bytes: what a straight line is fitted from.

    Several devices' micro-batches in one pass are each a part of it: `passes` counts such parts as
    less than 1, by their share of the tokens, and the squares are those of the whole pass. So the
    sum over the devices is the pass as it was.
    """

    passes: float = 0.0
    size: float = 0.0
    seconds: float = 0.0
    size_sq: float = 0.0
    size_seconds: float = 0.0
    seconds_sq: float = 0.0

    @classmethod
    def of(cls, size: float, seconds: float, share: float = 1.0) -> Sums:
        """One pass, or a device's share of one: `size` and `seconds` are the whole pass's."""
        return cls(
            share,
            share * size,
            share * seconds,
            share * size * size,
            share * size * seconds,
            share * seconds * seconds,
        )

    def __add__(self, other: Sums) -> Sums:
        return self.plus(other, 1.0)

    def __sub__(self, other: Sums) -> Sums:
        return self.plus(other, -1.0)

    def plus(self, other: Sums, times: float) -> Sums:
        """With another one, so many times."""
        return Sums(
            self.passes + times * other.passes,
            self.size + times * other.size,
            self.seconds + times * other.seconds,
            self.size_sq + times * other.size_sq,
            self.size_seconds + times * other.size_seconds,
            self.seconds_sq + times * other.seconds_sq,
        )

    def scaled(self, times: float) -> Sums:
        """Of so much weight."""
        return Sums().plus(self, times)

    @property
    def values(self) -> tuple[float, ...]:
        """All six."""
        return (
            self.passes,
            self.size,
            self.seconds,
            self.size_sq,
            self.size_seconds,
            self.seconds_sq,
        )

    def points(self) -> tuple[tuple[float, float, float], ...]:
        """(size, seconds, weight) of two passes, or one, that give the same straight line.

        They are on the line itself, one standard deviation of the size to either side of the mean.
        Where passes scatter, the line is nearer to one through nothing at size 0: by the error of
        its slope, against a slope that may be half as steep or half as steep again.
        """
        if self.passes <= 0.0:
            return ()
        size, seconds = self.size / self.passes, self.seconds / self.passes
        variance = self.size_sq / self.passes - size * size
        if variance <= 1e-6 * size * size:
            return ((size, seconds, self.passes),)
        wide, slope = math.sqrt(variance), self._slope(size, seconds, variance)
        half = self.passes / 2.0
        low, high = seconds - slope * wide, seconds + slope * wide
        return ((size - wide, low, half), (size + wide, high, half))

    def _slope(self, size: float, seconds: float, variance: float) -> float:
        """Of the line, between level and through nothing: no time is below 0."""
        plain = seconds / size
        slope = (self.size_seconds / self.passes - size * seconds) / variance
        if self.passes <= 2.0:
            return plain
        around = self.seconds_sq / self.passes - seconds * seconds - slope * slope * variance
        error = max(0.0, around) / (self.passes - 2.0) / variance
        trust = (SLOPE * plain) ** 2 / ((SLOPE * plain) ** 2 + error)
        return min(plain, max(0.0, plain + trust * (slope - plain)))


NO_SUMS = Sums()

SLOPE = 0.5
"""How far a slope is thought to be from that of a line through nothing, as a share of it."""

Passes = Mapping[PassKey, Sums]


@dataclass(frozen=True, slots=True)
class Crossed:
    """Messages of one role at one cut: values in them, and their bytes on the wire."""

    messages: int = 0
    values: int = 0
    num_bytes: int = 0

    def __add__(self, other: Crossed) -> Crossed:
        return Crossed(
            self.messages + other.messages,
            self.values + other.values,
            self.num_bytes + other.num_bytes,
        )

    def __sub__(self, other: Crossed) -> Crossed:
        return Crossed(
            self.messages - other.messages,
            self.values - other.values,
            self.num_bytes - other.num_bytes,
        )

    @property
    def bits(self) -> float | None:
        """Of one value."""
        return 8.0 * self.num_bytes / self.values if self.values else None


@dataclass(frozen=True, slots=True)
class Shown:
    """A node's costs since its process began; `threads` is 0 where it did not say.

    `up` and `down` are messages on a device's link, or on a server's hop to the stage behind it:
    bytes, and seconds without what they waited behind others. `crossed` are a device's tensors in
    training, with the cut that they crossed at: the blocks before it for `activation` and
    `gradient`, those after it for the other two.
    """

    passes: Passes = field(default_factory=dict)
    up: Sums = NO_SUMS
    down: Sums = NO_SUMS
    crossed: Mapping[tuple[Crossing, int], Crossed] = field(default_factory=dict)
    energy: Energy | None = None
    threads: int = 0

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show."""
        return self == NOTHING

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without what there is none of."""
        energy = self.energy
        values = {
            "passes": passes_to_rows(self.passes),
            "up": _rounded(self.up) if self.up.passes else None,
            "down": _rounded(self.down) if self.down.passes else None,
            "crossed": [
                [role, index, one.messages, one.values, one.num_bytes]
                for (role, index), one in self.crossed.items()
            ],
            "energy": None if energy is None else [round(energy.joules, 3), energy.source],
            "threads": self.threads,
        }
        return {name: value for name, value in values.items() if value}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Shown:
        """Read what `to_dict` wrote, from a peer that is not trusted.

        Raises ValueError, TypeError, KeyError or AttributeError.
        """
        crossed = values.get("crossed", [])
        if len(crossed) > MOST:
            raise ValueError(f"{len(crossed)} roles and cuts; {MOST} are allowed")
        return cls(
            passes=passes_from_rows(values.get("passes", [])),
            up=_sums(values.get("up", Sums().values)),
            down=_sums(values.get("down", Sums().values)),
            crossed=dict(_crossed(*row) for row in crossed),
            energy=_energy(values.get("energy")),
            threads=_whole(values.get("threads", 0)),
        )


NOTHING = Shown()


def passes_to_rows(passes: Passes) -> list[list[Any]]:
    """As lists for JSON."""
    return [
        [key.part, key.purpose, key.blocks, key.embedding + 2 * key.head, *_rounded(sums)]
        for key, sums in passes.items()
    ]


def passes_from_rows(rows: Any) -> dict[PassKey, Sums]:
    """What `passes_to_rows` wrote, from a peer. Raises ValueError or TypeError."""
    if not isinstance(rows, list) or len(rows) > MOST:
        raise ValueError(f"passes are a list of at most {MOST}")
    return dict(_pass(*row) for row in rows)


def between(now: Passes, before: Passes) -> dict[PassKey, Sums]:
    """What was timed since `before`; a count that fell began anew."""
    found = {}
    for key, sums in now.items():
        known = before.get(key)
        new = sums if known is None or known.passes > sums.passes + 1e-9 else sums - known
        if new.passes > 1e-9:
            found[key] = new
    return found


def _pass(part: Any, purpose: Any, blocks: Any, ends: Any, *sums: Any) -> tuple[PassKey, Sums]:
    if part not in PARTS or purpose not in PURPOSES or ends not in (0, 1, 2, 3):
        raise ValueError(f"{part!r:.40}, {purpose!r:.40} is no pass")
    if _whole(blocks) > _MOST_BLOCKS:
        raise ValueError(f"{blocks} blocks")
    return PassKey(part, purpose, blocks, bool(ends & 1), bool(ends & 2)), _sums(sums)


def _crossed(
    role: Any, index: Any, messages: Any, values: Any, num_bytes: Any
) -> tuple[tuple[Crossing, int], Crossed]:
    if role not in CROSSINGS or _whole(index) > _MOST_BLOCKS:
        raise ValueError(f"{role!r:.40} at {index!r:.40} is no crossing")
    return (role, index), Crossed(_whole(messages), _whole(values), _whole(num_bytes))


def _energy(value: Any) -> Energy | None:
    if value is None:
        return None
    joules, source = value
    if source not in SOURCES:
        raise ValueError(f"{source!r:.40} is no source of energy")
    return Energy(_amount(joules), source)


def _sums(values: Any) -> Sums:
    count = len(Sums.__slots__)
    if len(values) != count:
        raise ValueError(f"sums are {count} numbers")
    return Sums(*map(_amount, values))


def _rounded(sums: Sums) -> list[float]:
    """Twelve digits, so that the difference of two late sums still has some."""
    return [float(f"{value:.12g}") for value in sums.values]


def _amount(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value <= _LARGEST:  # NaN fails as well
        raise ValueError(f"{value!r:.40} is not an amount")
    return float(value)


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError(f"{value!r:.40} is not a count")
    return value
