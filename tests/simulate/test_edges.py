"""Devices of a simulated fleet that change their edge, as the real coordinator says."""

from __future__ import annotations

from typing import Any

import pytest

from sfl.rounds import Fault
from sfl.simulate.cloud import Cloud
from tests.house.simulated import EDGE, configured, file_of, played


def fleet(count: int, edges: int, **sections: Any) -> Any:
    own = {**file_of()["simulate"], "devices": count, "edge": {**EDGE, "count": edges}}
    return file_of(simulate=own, **sections)


@pytest.mark.parametrize(("count", "edges"), [(4, 2), (7, 3), (3, 3), (5, 1)])
def test_pairing_has_everybody_in_the_fewest_rounds(count: int, edges: int) -> None:
    rounds = -(-count // edges)
    file = fleet(count, edges, run={"rounds": rounds, "min_devices": 1})
    outcome, heard = played({**file, "planner": {"policy": "pairing"}})
    assert outcome.ok and not any(isinstance(entry.event, Fault) for entry in heard)
    assert sum(own.delivered for own in outcome.rounds) == count
    assert all(own.delivered == own.devices <= edges for own in outcome.rounds)


def test_the_least_loaded_edges_share_a_fleet() -> None:
    file = fleet(6, 3, run={"rounds": 1, "min_devices": 6, "placement": "least_loaded"})
    cloud = Cloud(*configured(file))
    cloud.begin()
    while not cloud.over:
        assert cloud.events.next()
    at = [place.edge for place in cloud.coordinator.state.places.values()]
    assert sorted(at.count(edge) for edge in set(at)) == [2, 2, 2]
