"""Long rounds are foretold from shorter ones: as quickly, and as well."""

from __future__ import annotations

import random

import pytest

from sfl.cost.closed_loop import Turns, round_ends
from sfl.cost.paced import LEAST_STEPS, MOST_PLAYED, paced


def fleet(count: int, seed: int) -> list[Turns]:
    rng = random.Random(seed)
    draw = lambda most: rng.uniform(0.01, most)  # noqa: E731
    return [Turns(((draw(2.0), draw(0.4)),), draw(1.0)) for _ in range(count)]


def test_a_short_round_is_played_whole() -> None:
    turns = fleet(5, 1)
    assert paced(lambda steps: round_ends(turns, steps), 20, len(turns)) == round_ends(turns, 20)


@pytest.mark.parametrize("seed", range(6))
def test_a_long_round_is_foretold_from_shorter_ones(seed: int) -> None:
    turns = fleet(40, seed)
    told = paced(lambda steps: round_ends(turns, steps), 1000, len(turns))
    for foretold, played in zip(told, round_ends(turns, 1000), strict=True):
        assert foretold == pytest.approx(played, rel=0.02)


def test_what_is_played_has_a_bound() -> None:
    played: list[int] = []

    def play(steps: int) -> list[float]:
        played.append(steps)
        return [float(steps)]

    assert paced(play, 10**7, 10) == [1e7]
    assert paced(play, 10**7, 10**6) == [1e7]
    assert max(played) == MOST_PLAYED // 10 and min(played) == LEAST_STEPS // 2
