"""Fixtures of whole runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.house.fleets import SLOW, fleet
from tests.house.nodes import ByHand


@pytest.fixture
def by_hand(tmp_path: Path) -> Iterator[Callable[..., ByHand]]:
    started: list[ByHand] = []

    def start(slow: str = "", **sections: Any) -> ByHand:
        values = fleet(tmp_path, **sections)
        for entry in values["devices"]:
            if slow in (entry["name"], "all"):  # so that it is in the middle of a round for seconds
                entry["link"] = dict(SLOW)
        started.append(ByHand(tmp_path, values))
        return started[-1]

    yield start
    for nodes in started:
        nodes.stop()
