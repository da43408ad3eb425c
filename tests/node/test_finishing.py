"""SIGTERM lets a step come to its end, and no more than that."""

from __future__ import annotations

import signal
import time

import pytest

from sfl.node.finishing import Finishing
from sfl.node.process import Terminated


def strike() -> None:
    signal.raise_signal(signal.SIGTERM)


def test_a_step_ends_and_the_next_does_not_begin() -> None:
    finishing, done = Finishing(), []
    with pytest.raises(Terminated), finishing.working():
        for step in range(3):
            with finishing.between():
                pass
            if step == 1:
                strike()
            done.append(step)
    assert done == [0, 1]


def test_what_is_the_last_step_s_is_done_too() -> None:
    finishing, done = Finishing(), []
    with pytest.raises(Terminated), finishing.working():
        strike()
        done.append("delivered")
    assert done == ["delivered"]


def test_while_nothing_is_computed_it_strikes_at_once() -> None:
    finishing, done = Finishing(), []
    with pytest.raises(Terminated), finishing.working(), finishing.between():
        strike()
        done.append("never")
    assert not done


def test_a_step_that_does_not_end_is_ended() -> None:
    finishing = Finishing(grace=0.05)
    began = time.monotonic()
    with pytest.raises(Terminated), finishing.working():
        strike()
        time.sleep(30.0)
    assert time.monotonic() - began < 20.0


def test_a_second_one_strikes_at_once() -> None:
    finishing, done = Finishing(), []
    with pytest.raises(Terminated), finishing.working():
        strike()
        strike()
        done.append("never")
    assert not done


def test_whatever_ended_the_step_it_is_not_begun_again() -> None:
    finishing = Finishing()
    with pytest.raises(Terminated) as caught, finishing.working():
        strike()
        raise ConnectionError("the edge went, too")
    assert isinstance(caught.value.__context__, ConnectionError)


def test_nothing_of_it_stays() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGALRM)
    finishing = Finishing()
    with finishing.working(), finishing.between():
        pass
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGALRM)) == before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0.0
