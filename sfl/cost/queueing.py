"""What a link takes for a message alone, from when messages were sent and when they arrived.

A message waits behind those that were sent before it, and the two ends of a link have two clocks.
With x when it was handed over, y when it was there by the receiver's clock and b its bytes:

    y = K + max(x, y' - K) + b r        K: latency, and how far the receiver's clock is ahead

where y' is the arrival before it: a queue with one server (Lindley, 1952). Messages that waited
tell r by b alone, those that did not tell K and r together. K of both ways together is twice the
latency, without the clocks, if it is the same both ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from sfl.cost.shown import Sums

ROUNDS = 8
"""Times that messages are told apart into those that waited and those that did not."""
FAR = 4.0
"""Times the median error: what is further off had another cause, and is left out."""
SMALL = 1e-6
LONGEST = 3600.0
"""Seconds that a message may take: whoever says more has no clock."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A message: handed over at `sent` by the sender's clock, there at `arrived` by the receiver's.

    `alone`: nothing was under way when it was sent but what is `before` it: messages whose arrival
    nobody tells, since the one before, each with when it was handed over and its bytes.
    """

    sent: float
    arrived: float
    num_bytes: int
    alone: bool = False
    before: tuple[tuple[float, int], ...] = ()

    def starts(self, per_byte: float) -> float:
        """When the link is free for it, at the sender."""
        free = self.sent
        done = float("-inf")
        for at, num_bytes in self.before:
            done = max(done, at) + per_byte * num_bytes
        return max(free, done)


@dataclass(frozen=True, slots=True)
class Transfer:
    """A message that was timed on the link alone: without what a peer held it."""

    seconds: float
    num_bytes: float
    up: bool
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Way:
    """One direction: seconds of each message beside its bytes, clocks and all; seconds a byte.

    `told`: whether the messages told both apart.
    """

    offset: float
    per_byte: float
    told: bool


def transfers(up: Sequence[Sent], down: Sequence[Sent]) -> list[Transfer]:
    """Each message as if it had had the link for itself; none unless both ways had some.

    Where messages of one direction are all of one size and none waited, its latency is taken to be
    none, and what is measured to be the bytes'.
    """
    ways = {True: sorted(up, key=_arrived), False: sorted(down, key=_arrived)}
    if not all(ways.values()):
        return []
    fitted = {way: fit_way(known) for way, known in ways.items()}
    offsets = _told(ways, fitted)
    latency = max(0.0, sum(offsets.values()) / 2.0)
    found = []
    for way, messages in ways.items():
        pairs = _alone(messages, offsets[way], fitted[way].per_byte)
        kept = _near(pairs, fitted[way].per_byte)
        found += [
            Transfer(latency + seconds, size, way)
            for size, seconds in kept
            if 0.0 < latency + seconds < LONGEST
        ]
    return found


def sums_of(found: Sequence[Transfer], up: bool) -> Sums:
    """Those of one direction."""
    parts = (Sums.of(one.num_bytes, one.seconds) for one in found if one.up is up)
    return sum(parts, Sums())


def fit_way(messages: Sequence[Sent]) -> Way:
    """K and r of one direction, its messages in the order of their arrival."""
    way = _first(messages)
    waited: list[bool] | None = None
    for _ in range(ROUNDS):
        before = waited
        waited = [False] + [
            not later.alone and one.arrived - way.offset > later.starts(way.per_byte)
            for one, later in pairwise(messages)
        ]
        way = _solved(messages, waited, way)
        if waited == before:
            break
    return way


def _arrived(message: Sent) -> float:
    return message.arrived


def _first(messages: Sequence[Sent]) -> Way:
    """From messages that certainly did not wait; of one size, all of it is taken for K.

    So a message is taken to have waited where it took longer than such a one, not before.
    """
    certain = [one for one in messages if one.alone and not one.before]
    alone = certain or [one for one in messages if one.alone] or list(messages[:1])
    rows = [(1.0, float(one.num_bytes), one.arrived - one.sent) for one in alone]
    return _least_squares(rows, Way(0.0, 0.0, False))


def _solved(messages: Sequence[Sent], waited: Sequence[bool], before: Way) -> Way:
    """Least squares, without what is far off."""
    rows = [_row(messages, number, late, before) for number, late in enumerate(waited)]
    way = _least_squares(rows, before)
    for _ in range(3):
        errors = [abs(value - way.offset * one - way.per_byte * size) for one, size, value in rows]
        most = FAR * median(errors) + SMALL
        near = [row for row, error in zip(rows, errors, strict=True) if error <= most]
        way = _least_squares(near, before)
    return way


Row = tuple[float, float, float]


def _row(messages: Sequence[Sent], number: int, late: bool, way: Way) -> Row:
    """1 or 0 for K, the bytes, and the seconds that both make."""
    one = messages[number]
    if late:
        return 0.0, one.num_bytes, one.arrived - messages[number - 1].arrived
    return 1.0, one.num_bytes, one.arrived - one.starts(way.per_byte)


def _least_squares(rows: Sequence[Row], before: Way) -> Way:
    """Of two unknowns; where rows tell their sum only, r stays and K follows."""
    base = min((value for one, _, value in rows if one), default=before.offset)
    count = sum(one for one, _, _ in rows)
    size = sum(one * b for one, b, _ in rows)
    squares = sum(b * b for _, b, _ in rows)
    seconds = sum(one * (value - base) for one, _, value in rows)
    both = sum(b * (value - base * one) for one, b, value in rows)
    if not count:
        return Way(before.offset, max(0.0, both / squares), False)
    rest = squares - size * size / count
    if rest <= 1e-4 * squares:
        return Way(base + (seconds - before.per_byte * size) / count, before.per_byte, False)
    per_byte = max(0.0, (both - size * seconds / count) / rest)
    return Way(base + (seconds - per_byte * size) / count, per_byte, True)


def _told(ways: dict[bool, list[Sent]], fitted: dict[bool, Way]) -> dict[bool, float]:
    """K of both ways; one that was not told has what leaves no latency."""
    offsets = {way: one.offset for way, one in fitted.items()}
    if all(one.told for one in fitted.values()):
        return offsets
    if not any(one.told for one in fitted.values()):
        whole = {way: _whole(known) for way, known in ways.items()}
        total = sum(seconds for seconds, _ in whole.values())
        size = sum(num_bytes for _, num_bytes in whole.values())
        return {way: seconds - total * b / size for way, (seconds, b) in whole.items()}
    lacking = next(way for way, one in fitted.items() if not one.told)
    return {**offsets, lacking: -offsets[not lacking]}


def _whole(messages: Sequence[Sent]) -> tuple[float, float]:
    """Seconds by two clocks and bytes, of a message that did not wait."""
    alone = [one for one in messages if one.alone] or list(messages)
    return (
        median(one.arrived - one.sent for one in alone),
        median(float(one.num_bytes) for one in alone),
    )


def _alone(messages: Sequence[Sent], offset: float, per_byte: float) -> list[tuple[int, float]]:
    """Bytes, and seconds on the link without waiting and without latency, of each."""
    free = float("-inf")
    found = []
    for one in messages:
        there = one.arrived - offset
        found.append((one.num_bytes, there - max(one.starts(per_byte), free)))
        free = there
    return found


def _near(pairs: Sequence[tuple[int, float]], per_byte: float) -> list[tuple[int, float]]:
    """Without those that something else has delayed."""
    errors = [seconds - per_byte * size for size, seconds in pairs]
    middle = median(errors)
    most = FAR * median(abs(error - middle) for error in errors) + SMALL
    kept = [p for p, e in zip(pairs, errors, strict=True) if abs(e - middle) <= most]
    return kept or list(pairs)
