"""A link's rates and latency come out of two clocks and a queue, within 5%."""

from __future__ import annotations

import random

import pytest

from sfl.config.devices import LinkSettings
from sfl.cost.fit import fit_link
from sfl.cost.queueing import Sent, transfers
from sfl.cost.values import LinkCost
from sfl.transport.shaper import shaper

AHEAD = 71_234.5
"""Seconds that the edge's clock is ahead."""


def crossed(
    up: float,
    down: float,
    delay: float,
    pieces: int,
    *,
    evaluates: bool = True,
    alike: bool = False,
    noise: float = 0.0,
    steps: int = 12,
    per_token: int = 256,
) -> tuple[list[Sent], list[Sent]]:
    """A round of a device: steps of so many micro-batches, through the real shapers."""
    draw = random.Random(pieces)
    link = LinkSettings(up_mbit=up, down_mbit=down, delay_ms=delay)
    there, back = shaper(link, "up"), shaper(link, "down")
    assert there is not None and back is not None
    sent: tuple[list[Sent], list[Sent]] = ([], [])
    now = 10.0
    for step in range(steps):
        # Evaluation comes first, with answers of hardly any bytes.
        scored = evaluates and step < 3
        answers = []
        edge = 0.0
        for piece in range(pieces):
            size = per_token * (100 if alike else draw.randint(60, 140)) + 90
            now += 0.004
            arrived = there.admit(now, size)[1] + abs(draw.gauss(0, noise))
            edge = max(edge, arrived) + 0.012
            answer = 120 if scored else size
            came = back.admit(edge, answer)[1] + abs(draw.gauss(0, noise))
            answers.append(came)
            sent[0].append(Sent(now, arrived + AHEAD, size, piece == 0))
            sent[1].append(Sent(edge + AHEAD, came, answer, piece == 0))
        now = max(now, *answers) + 0.01
    return sent


@pytest.mark.parametrize("pieces", [1, 4])
@pytest.mark.parametrize(
    ("up", "down", "delay"), [(20, 5, 20), (5, 50, 3), (100, 100, 50), (1, 10, 0)]
)
def test_a_shaped_link_comes_out_at_its_settings(
    up: float, down: float, delay: float, pieces: int
) -> None:
    found = fit_link(transfers(*crossed(up, down, delay, pieces)), LinkCost(1e6, 1e6), 1.0)
    assert found.up == pytest.approx(up * 1e6 / 8, rel=1e-3)
    assert found.down == pytest.approx(down * 1e6 / 8, rel=1e-3)
    assert found.latency == pytest.approx(delay / 1e3, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("pieces", [1, 3])
def test_within_5_percent_where_threads_are_late(pieces: int) -> None:
    """Half a millisecond of the machine's own noise."""
    found = fit_link(transfers(*crossed(20, 5, 20, pieces, noise=5e-4)), LinkCost(1e6, 1e6), 1.0)
    assert found.up == pytest.approx(20e6 / 8, rel=0.05)
    assert found.down == pytest.approx(5e6 / 8, rel=0.05)
    assert found.latency == pytest.approx(0.02, rel=0.05)


def test_without_evaluation_lengths_tell() -> None:
    found = fit_link(transfers(*crossed(20, 5, 20, 1, evaluates=False)), LinkCost(1e6, 1e6), 1.0)
    assert (found.up, found.down) == pytest.approx((2.5e6, 6.25e5), rel=1e-3)


def test_messages_of_one_size_tell_what_both_ways_take_together() -> None:
    """That is all that there is to see: no latency is made up, and the round trip is right."""
    up, down = crossed(20, 5, 20, 1, evaluates=False, alike=True)
    found = fit_link(transfers(up, down), LinkCost(1e6, 1e6), 1.0)
    size = up[0].num_bytes
    true = 2 * 0.02 + size / 2.5e6 + size / 6.25e5
    assert found.up_seconds(size) + found.down_seconds(size) == pytest.approx(true, rel=1e-3)


def test_one_way_alone_tells_nothing() -> None:
    up, _ = crossed(20, 5, 20, 1)
    assert transfers(up, []) == [] and transfers([], []) == []
