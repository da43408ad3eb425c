"""Links over time: functions of the time alone, weaker from further away."""

from __future__ import annotations

from itertools import pairwise
from statistics import fmean, median
from typing import Any

import pytest

from sfl.config.simulate import DeviceClass, RadioSettings
from sfl.simulate.chance import Chance
from sfl.simulate.channel import Radio, Straight, Waypoint, channel
from tests.house.simulated import PHONE


def _radio(**changes: Any) -> RadioSettings:
    return RadioSettings.model_validate(changes)


def test_draws_have_their_distribution() -> None:
    chance = Chance(7, "test")
    count = 20_000
    uniform = [chance.uniform(n) for n in range(count)]
    normal = [chance.normal(n) for n in range(count)]

    assert all(0.0 < one < 1.0 for one in uniform)
    assert fmean(uniform) == pytest.approx(0.5, abs=0.01)
    assert fmean(chance.exponential(n) for n in range(count)) == pytest.approx(1.0, abs=0.03)
    assert fmean(normal) == pytest.approx(0.0, abs=0.03)
    assert fmean(one * one for one in normal) == pytest.approx(1.0, abs=0.05)
    assert median(chance.factor(n, 0.5) for n in range(count)) == pytest.approx(1.0, abs=0.02)


def test_a_draw_is_its_keys_alone() -> None:
    assert Chance(7, "test").uniform(3) == Chance(7, "test").uniform(3)
    assert len({Chance(seed, "test").uniform(n) for seed in range(5) for n in range(5)}) == 25
    assert Chance(7, "test").factor(3, 0.0) == 1.0


def test_a_rate_is_shannons_where_nothing_fades() -> None:
    radio = _radio(
        bandwidth_mhz=10.0, efficiency=1.0, radius_m=100.0, nearest_m=99.999, exponent=2.0
    )
    up, down = Radio(radio, 1.0, 0, "d").rates(0.0)

    noise = -167.0 + 70.0
    gain = -(38.0 + 20.0 * 2.0)
    assert up == pytest.approx(10.0 * _log2(23.0 + gain - noise), rel=1e-3)
    assert down == pytest.approx(10.0 * _log2(43.0 + gain - noise), rel=1e-3)


def _log2(decibels: float) -> float:
    from math import log2

    return log2(1.0 + 10.0 ** (decibels / 10.0))


@pytest.mark.parametrize("mobility", ["still", "waypoint", "straight"])
def test_rates_do_not_depend_on_who_asked_before(mobility: str) -> None:
    radio = _radio(fading="rayleigh", shadowing_db=6.0, mobility=mobility, speed_mps=15.0)
    times = [0.0, 3.5, 10.0, 250.0, 1000.0]
    forward = Radio(radio, 1.0, 0, "d")
    backward = Radio(radio, 1.0, 0, "d")

    rates = [forward.rates(time) for time in times]

    assert [backward.rates(time) for time in reversed(times)] == rates[::-1]
    assert len(set(rates)) == len(times)


@pytest.mark.parametrize("kind", [Waypoint, Straight])
def test_who_moves_stays_in_the_cell_at_its_speed(kind: type[Waypoint | Straight]) -> None:
    radio = _radio(radius_m=200.0, speed_mps=10.0)
    way = kind(radio, Chance(1, "way"))
    places = [way.at(0.5 * number) for number in range(2_000)]

    assert all(x * x + y * y <= 200.0**2 * 1.0001 for x, y in places)
    moved = [((x - a) ** 2 + (y - b) ** 2) ** 0.5 for (a, b), (x, y) in pairwise(places)]
    assert median(moved) == pytest.approx(5.0, rel=0.01)


def test_rayleigh_fading_has_the_mean_of_none() -> None:
    still = Radio(_radio(), 1.0, 0, "d")
    fading = Radio(_radio(fading="rayleigh"), 1.0, 0, "d")

    assert still.rates(0.0) == still.rates(100.0)
    assert fading.rates(0.0) == fading.rates(0.9) != fading.rates(1.0)
    mean = fmean(fading.rates(float(number))[0] for number in range(4_000))
    # Capacity is concave: fading costs some of it (Jensen), and not much of a strong signal's.
    assert 0.7 * still.rates(0.0)[0] < mean < still.rates(0.0)[0]


def test_a_stated_link_is_as_stated_and_changes_by_its_jitter() -> None:
    steady = DeviceClass.model_validate(PHONE)
    shaky = DeviceClass.model_validate({**PHONE, "link_jitter": 0.3, "coherence": 2.0})

    assert channel(steady, 20.0, 60.0, 0, "d").rates(5.0) == (20.0, 60.0)
    one = channel(shaky, 20.0, 60.0, 0, "d")
    assert one.rates(0.0) == one.rates(1.9) != one.rates(2.0)
    up, down = one.rates(2.0)
    assert down == pytest.approx(3.0 * up)
