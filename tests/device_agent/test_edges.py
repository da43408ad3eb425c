"""Which edge a device dials, and when it goes on to another one."""

from __future__ import annotations

import pytest

from device_agent.edges import MOMENT, REFUSED, Edges
from sfl.config import DeviceConfig
from sfl.errors import ConfigError

NORTH, SOUTH, WEST = "10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"
ALL = {"north": NORTH, "south": SOUTH, "west": WEST}


def edges(edge: str = NORTH, **listed: str) -> Edges:
    return Edges(DeviceConfig(name="d", edge=edge, edges=listed))


def test_a_device_with_one_edge_dials_that_for_as_long_as_it_may() -> None:
    own = edges()
    assert (own.address, own.patience(60.0, 0.0), own.refused_after) == (NORTH, 60.0, None)
    assert not own.missed(0.0) and not own.missed(1000.0)
    own.taken_in("north", {"north": NORTH}, 10.0)
    assert not own.missed(0.0) and not own.missed(1000.0)
    assert own.address == NORTH and own.another({}) == ""


def test_at_first_it_tries_one_after_the_other() -> None:
    own = edges("", **ALL)
    assert own.address == NORTH and own.refused_after == REFUSED
    assert own.patience(60.0, 0.0) == 20.0
    assert own.missed(1.0) and own.address == SOUTH
    assert own.missed(2.0) and own.address == WEST
    assert not own.missed(3.0) and own.address == NORTH  # all are tried: patience has its say
    assert own.missed(4.0) and own.address == SOUTH


def test_the_edge_that_it_was_at_has_some_time_to_be_back() -> None:
    own = edges()
    own.taken_in("north", ALL, 10.0)
    assert not own.missed(100.0) and own.address == NORTH
    assert own.patience(60.0, 104.0) == 6.0 and own.refused_after is None
    assert not own.missed(109.0)
    assert own.patience(60.0, 200.0) == MOMENT
    assert own.missed(110.0) and own.address == SOUTH
    assert own.patience(60.0, 111.0) == 20.0 and own.refused_after == REFUSED
    own.taken_in("south", ALL, 10.0)
    assert not own.missed(200.0) and own.address == SOUTH


def test_it_learns_of_edges_as_they_come() -> None:
    own = edges()
    own.taken_in("north", {"north": "127.0.0.1:9", "south": ""}, 0.0)
    assert own.known == {"north": NORTH} and not own.missed(0.0)
    own.hear({"north": "127.0.0.1:9", "south": SOUTH})
    assert own.known == {"north": NORTH, "south": SOUTH} and own.name == "north"
    assert own.missed(1.0) and own.address == SOUTH


def test_of_the_clouds_edges_it_goes_to_those_in_its_own_list() -> None:
    told = {"south": "192.168.0.1:7", "east": "192.168.0.2:7", "west": ""}
    assert edges().among(told) == {"south": "192.168.0.1:7", "east": "192.168.0.2:7"}
    listed = edges(NORTH, south=SOUTH, west=WEST)
    assert listed.among(told) == {"south": SOUTH, "west": WEST}
    listed.taken_in("north", told, 0.0)
    assert listed.known == {"south": SOUTH, "west": WEST}


def test_it_asks_for_the_nearest_or_the_next() -> None:
    own = edges()
    own.go(SOUTH)
    own.taken_in("south", ALL, 0.0)
    assert own.another({}) == "west"
    assert own.another({"north": 0.1, "west": 0.2, "south": 0.0}) == "north"
    own.go(WEST)
    own.taken_in("west", ALL, 0.0)
    assert own.another({}) == "north"


def test_a_file_that_names_no_edge_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"device\.edge"):
        edges("")
