"""A link's rate by frames that follow one another, by the clock of who receives them."""

from __future__ import annotations

import pytest

from sfl.cost.shown import NO_SUMS, Sums
from sfl.metrics.stats import NodeStats
from sfl.metrics.transfers import FEW_BYTES, KEPT_OF_ALL, Burst, Held, LinkTimes

RATE = 1e6
FRAME = 100_000


def burst(sizes: list[int], rate: float = RATE) -> list[Sums]:
    """What each frame says, where frames arrive at that rate."""
    own, at, found = Burst(), 5.0, []
    for number, size in enumerate(sizes):
        at += size / rate
        found.append(own.frame(at, size, first=number == 0, last=number == len(sizes) - 1))
    return found


def test_the_frames_behind_the_first_tell_the_rate():
    *before, last = burst([FRAME, FRAME, FRAME, 40_000])
    assert before == [NO_SUMS] * 3
    assert last.size == 2 * FRAME + 40_000
    assert last.size / last.seconds == pytest.approx(RATE)


@pytest.mark.parametrize("sizes", [[FRAME], [FRAME, FEW_BYTES - 1]])
def test_few_bytes_tell_nothing(sizes: list[int]):
    assert burst(sizes)[-1] == NO_SUMS


def test_frames_that_were_all_there_at_once_tell_nothing():
    assert burst([FRAME, FRAME, FRAME], rate=float("inf"))[-1] == NO_SUMS


def test_a_burst_that_broke_off_is_not_part_of_the_next():
    own = Burst()
    own.frame(1.0, FRAME, first=True, last=False)
    own.frame(2.0, FRAME, first=False, last=False)
    own.frame(100.0, FRAME, first=True, last=False)
    assert own.frame(100.5, FRAME, first=False, last=True) == Sums.of(FRAME, 0.5)


def test_an_adapter_is_known_of_a_link_before_messages_are():
    link = LinkTimes()
    for number in range(3):
        link.adapter(1.0 + number * FRAME / RATE, FRAME, first=number == 0, last=number == 2)
    up, down = link.sums()
    assert up == NO_SUMS and down.size / down.seconds == pytest.approx(RATE)


def test_a_server_s_hop_has_the_messages_of_all_its_devices():
    """Those of many are under way at once: none of them is taken for what a broken link had."""
    link = NodeStats("e", "edge").link
    devices = [f"d{number}" for number in range(1000)]
    for number, name in enumerate(devices):
        link.posted((name, 0), 0.0, 1000 + number)
    for number, name in enumerate(devices):
        at = (number + 1) * 0.01
        link.answered((name, 0), at + 0.02, 500 + number, Held(at, at))
    up, down = link.sums()
    assert 0 < up.passes <= KEPT_OF_ALL and 0 < down.passes <= KEPT_OF_ALL
