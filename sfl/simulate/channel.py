"""A device's link over time: path loss, shadowing, fading and where the device is."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, hypot, log2, log10, pi, sin, sqrt
from typing import Protocol

from sfl.config.simulate import DeviceClass, RadioSettings
from sfl.simulate.chance import Chance

UNLIMITED = 1e6
"""Megabits a second of a link that nobody limits."""


class Channel(Protocol):
    """Rates in megabits a second, up and down, as a function of the time."""

    @property
    def steady(self) -> bool:
        """Whether they are always the same."""

    def rates(self, now: float) -> tuple[float, float]:
        """Those of that time."""


class Wire:
    """Stated rates, which may differ from one interval to the next."""

    steady = True

    def __init__(self, up: float, down: float) -> None:
        self._both = up, down

    def rates(self, now: float) -> tuple[float, float]:
        """Always the same."""
        return self._both


class Unsteady:
    """Stated rates with a factor that is drawn for each interval; both ways alike."""

    steady = False

    def __init__(self, up: float, down: float, kind: DeviceClass, chance: Chance) -> None:
        self._up, self._down = up, down
        self._kind, self._chance = kind, chance

    def rates(self, now: float) -> tuple[float, float]:
        """The same within an interval."""
        kind = self._kind
        factor = self._chance.factor(int(now / kind.coherence), kind.link_jitter)
        return self._up * factor, self._down * factor


class Still:
    """A device that stays where it is, anywhere in the cell."""

    def __init__(self, radio: RadioSettings, chance: Chance) -> None:
        self._place = anywhere(radio, chance, 0)

    def at(self, now: float) -> tuple[float, float]:
        """Metres from the edge, east and north."""
        return self._place


class Waypoint:
    """From one random place of the cell to the next, without a rest (random waypoint model)."""

    def __init__(self, radio: RadioSettings, chance: Chance) -> None:
        self._radio, self._chance = radio, chance
        self._leg, self._begins = 0, 0.0
        self._from, self._to = anywhere(radio, chance, 0), anywhere(radio, chance, 1)

    def at(self, now: float) -> tuple[float, float]:
        """Metres from the edge. Who asks for an earlier time than before has it walk again."""
        if now < self._begins:
            self._leg, self._begins = 0, 0.0
            self._from, self._to = (anywhere(self._radio, self._chance, leg) for leg in (0, 1))
        while now > self._begins + (taken := self._seconds()):
            self._begins += taken
            self._leg += 1
            self._from, self._to = self._to, anywhere(self._radio, self._chance, self._leg + 1)
        share = (now - self._begins) / taken if taken else 0.0
        (x, y), (to_x, to_y) = self._from, self._to
        return x + share * (to_x - x), y + share * (to_y - y)

    def _seconds(self) -> float:
        (x, y), (to_x, to_y) = self._from, self._to
        return max(1e-3, hypot(to_x - x, to_y - y) / self._radio.speed_mps)


class Straight:
    """At a constant velocity along a chord of the cell, again and again."""

    def __init__(self, radio: RadioSettings, chance: Chance) -> None:
        self._offset = radio.radius_m * (2.0 * chance.uniform(0) - 1.0)
        self._half = max(1.0, sqrt(radio.radius_m**2 - self._offset**2))
        self._angle = 2.0 * pi * chance.uniform(1)
        self._begin = 2.0 * self._half * chance.uniform(2)
        self._speed = radio.speed_mps

    def at(self, now: float) -> tuple[float, float]:
        """Metres from the edge."""
        along = (self._begin + self._speed * now) % (2.0 * self._half) - self._half
        c, s = cos(self._angle), sin(self._angle)
        return along * c - self._offset * s, along * s + self._offset * c


def anywhere(radio: RadioSettings, chance: Chance, number: int) -> tuple[float, float]:
    """A place of the cell, every area as likely."""
    distance = radio.radius_m * sqrt(chance.uniform(2 * number))
    angle = 2.0 * pi * chance.uniform(2 * number + 1)
    return distance * cos(angle), distance * sin(angle)


class Way(Protocol):
    """Where a device is."""

    def at(self, now: float) -> tuple[float, float]:
        """Metres from the edge, east and north."""


WAYS: dict[str, Callable[[RadioSettings, Chance], Way]] = {
    "still": Still,
    "waypoint": Waypoint,
    "straight": Straight,
}
"""By `radio.mobility`."""


class Radio:
    """A rate by Shannon's capacity, from the signal's strength where the device is."""

    steady = False

    def __init__(self, radio: RadioSettings, coherence: float, *key: str | int) -> None:
        self._radio, self._coherence = radio, coherence
        moving = radio.mobility if radio.speed_mps else "still"
        self._way = WAYS[moving](radio, Chance(*key, "place"))
        self._fading, self._shadowing = Chance(*key, "fading"), key
        self._interval, self._both = -1, (0.0, 0.0)

    def rates(self, now: float) -> tuple[float, float]:
        """The same within an interval."""
        interval = int(now / self._coherence)
        if interval != self._interval:
            self._interval = interval
            self._both = self._of(interval)
        return self._both

    def _of(self, interval: int) -> tuple[float, float]:
        radio = self._radio
        gain = self._gain_db(*self._way.at(interval * self._coherence))
        noise = radio.noise_dbm_hz + 10.0 * log10(radio.bandwidth_mhz * 1e6)
        fading = self._fading.exponential(interval) if radio.fading == "rayleigh" else 1.0
        up = self._capacity(radio.power_dbm + gain - noise, fading)
        return up, self._capacity(radio.edge_power_dbm + gain - noise, fading)

    def _capacity(self, decibels: float, fading: float) -> float:
        ratio = fading * 10.0 ** (decibels / 10.0)
        return max(1e-3, self._radio.efficiency * self._radio.bandwidth_mhz * log2(1.0 + ratio))

    def _gain_db(self, x: float, y: float) -> float:
        """Path loss, and what buildings add at this place."""
        radio = self._radio
        distance = max(radio.nearest_m, hypot(x, y))
        gain = -(radio.loss_db + 10.0 * radio.exponent * log10(distance))
        if radio.shadowing_db:
            side = radio.shadowing_m
            place = Chance(*self._shadowing, "shadow", int(x // side), int(y // side))
            gain += radio.shadowing_db * place.normal(0)
        return gain


def channel(kind: DeviceClass, up: float, down: float, *key: str | int) -> Channel:
    """A device's, by its class and its own stated rates."""
    if kind.radio is not None:
        return Radio(kind.radio, kind.coherence, *key)
    if kind.link_jitter:
        return Unsteady(up, down, kind, Chance(*key, "link"))
    return Wire(up, down)
