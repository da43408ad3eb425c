"""Under pytest-xdist a module's half stays on one worker, as its fixtures expect."""

from __future__ import annotations

import pytest


def test_a_worker_takes_the_whole_half_of_a_module(request: pytest.FixtureRequest) -> None:
    if not hasattr(request.config, "workerinput") or not request.config.getvalue("loadgroup"):
        pytest.skip("not under pytest-xdist with --dist loadgroup")
    # The scheduler keeps together what has the same words after the last @.
    assert request.node.nodeid.endswith("@tests/test_workers.py")
