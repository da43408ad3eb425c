"""A status with a thousand devices is written less often, so that the cloud has time for them."""

from __future__ import annotations

import pytest

from cloud_aggregator.records import Pace


def test_what_is_quick_is_done_each_time() -> None:
    pace = Pace(0.1)
    assert pace.is_due(0.0)
    pace.took(0.01, 0.01)
    assert pace.is_due(0.5)


@pytest.mark.parametrize("seconds", [0.2, 3.0])
def test_what_is_slow_takes_no_more_than_its_share(seconds: float) -> None:
    pace, now, spent = Pace(0.1), 0.0, 0.0
    while now < 1000.0:
        if pace.is_due(now):
            now, spent = now + seconds, spent + seconds
            pace.took(seconds, now)
        else:
            now += 0.01
    assert spent / now == pytest.approx(0.1, rel=0.1)
