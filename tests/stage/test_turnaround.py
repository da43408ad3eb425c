"""How long a device takes by itself, as its edge sees it."""

from __future__ import annotations

import pytest

from sfl.stage.orders.turnaround import Turnaround


def test_it_is_a_running_mean_of_what_follows_an_answer_alone() -> None:
    turnaround = Turnaround()
    turnaround.arrived(1.0, 0)  # answers nothing
    assert turnaround.tail(3) == 0.0
    turnaround.answered(2.0)
    turnaround.arrived(4.0, 0)
    assert turnaround.tail(3) == pytest.approx(6.0)
    turnaround.answered(5.0)
    turnaround.arrived(6.0, 1)  # it had others in flight: no measurement
    assert turnaround.tail(1) == pytest.approx(2.0)
    turnaround.arrived(6.0, 0)
    assert turnaround.tail(1) == pytest.approx(2.0 + 0.3 * (1.0 - 2.0))


def test_a_round_before_is_not_measured_against() -> None:
    turnaround = Turnaround()
    turnaround.answered(1.0)
    turnaround.begin_round()
    turnaround.arrived(100.0, 0)
    assert turnaround.tail(1) == 0.0


def test_at_least_one_step_is_left() -> None:
    turnaround = Turnaround()
    turnaround.answered(0.0)
    turnaround.arrived(2.0, 0)
    assert turnaround.tail(0) == turnaround.tail(1) == 2.0
