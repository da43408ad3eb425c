"""Whose turn it is, and what the others wait for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sfl.jobs.placing import claimed, out_of_reach, placing
from sfl.jobs.turns import missing, turns
from sfl.jobs.values import AgentRole, Needs, Seat, Waiting


def seats(*given: Seat) -> dict[tuple[AgentRole, str], Seat]:
    return {(seat.role, seat.name): seat for seat in given}


def edge(name: str = "e", most: int = 2, *runs: str) -> Seat:
    return Seat("edge", name, most, "", frozenset(runs))


def device(name: str, most: int = 1, *runs: str, via: str = "") -> Seat:
    return Seat("device", name, most, via, frozenset(runs))


def job(run: str, *devices: str, least: int = 0, edges: tuple[str, ...] = ("e",)) -> Waiting:
    return Waiting(run, Needs(edges, devices, least or len(devices)))


def test_the_first_come_begin_and_one_more_waits_for_a_place_at_the_service() -> None:
    here = seats(edge("e", 9), device("a"), device("b"), device("c"))
    said = turns([job("1", "a"), job("2", "b"), job("3", "c")], here, 0, 2)
    assert said == {"1": "", "2": "", "3": "a place at the service: 2 of 2 runs are under way"}
    assert turns([job("3", "c")], here, 1, 2) == {"3": ""}


def test_who_waits_for_somebody_to_attach_holds_nobody_up() -> None:
    here = seats(edge(), device("b"))
    said = turns([job("1", "a"), job("2", "b")], here, 0, 1)
    assert said == {"1": "1 more of the devices a to attach", "2": ""}
    nobody = turns([job("1", "a", edges=("e", "f"))], {}, 0, 1)
    assert nobody == {"1": "edge e, f to attach"}


def test_enough_devices_are_enough() -> None:
    here = seats(edge(), device("a"), device("b", 1, "x"))
    assert turns([job("1", "a", "b", least=1)], here, 0, 2) == {"1": ""}
    said = turns([job("1", "a", "b", least=2)], here, 0, 2)
    assert said == {"1": "a place at device b, which has x"}
    assert missing(Needs(("e",), ("a", "b", "c"), 3), here) == "1 more of the devices c to attach"


def test_who_waits_for_a_place_keeps_it_from_those_that_come_later() -> None:
    here = seats(edge("e", 1, "x"), device("a"), device("b"))
    said = turns([job("1", "a"), job("2", "b")], here, 1, 3)
    assert said == {"1": "a place at edge e, which has x", "2": "a place at edge e, which has x, 1"}
    here = seats(edge("e", 2, "x"), device("a", 1, "x"), device("b"))
    said = turns([job("1", "a", "b"), job("2", "b")], here, 1, 3)
    assert said["1"] == "a place at device a, which has x"
    assert said["2"].startswith("a place at edge e, which has x, 1")


def test_a_device_at_another_edge_is_not_there() -> None:
    here = seats(edge(), edge("f"), device("a", via="f"))
    said = turns([job("1", "a")], here, 0, 1)["1"]
    assert said.endswith("to attach; a is at edge f, which is not in the run")


@given(
    st.lists(st.sets(st.sampled_from("abcd"), min_size=1), max_size=8),
    st.dictionaries(st.sampled_from("abcd"), st.integers(1, 3)),
    st.integers(1, 4),
    st.integers(0, 3),
)
def test_nobody_gets_more_than_there_is(
    wanted: list[set[str]], devices: dict[str, int], most: int, running: int
) -> None:
    here = seats(edge("e", 3), *(device(name, count) for name, count in devices.items()))
    waiting = [job(str(number), *sorted(names)) for number, names in enumerate(wanted)]
    said = turns(waiting, here, running, most)
    begun = [entry for entry in waiting if not said[entry.run]]
    assert len(begun) <= max(0, min(3, most - running))
    for name in "abcd":
        assert sum(name in entry.needs.devices for entry in begun) <= devices.get(name, 0)
    could = [entry for entry in waiting if not missing(entry.needs, here)]
    assert not could or running >= most or not said[could[0].run]


def test_who_computes_a_run_and_where() -> None:
    needs = Needs(("e", "f"), ("a", "b", "c"), 1)
    here = seats(
        edge("e", 1, "r"), edge("f"), device("a"), device("b", via="e"), device("c", 1, "x")
    )
    assert placing("r", needs, here, "", {}) == {}
    assert placing("r", needs, here, "h:1", {}) == {("edge", "e"): "h:1", ("edge", "f"): "h:1"}
    placed = placing("r", needs, here, "h:1", {"e": "h:2", "f": "h:3"})
    assert placed["device", "a"] == "h:2" and placed["device", "b"] == "h:2"
    assert ("device", "c") not in placed  # it has another run, and no place


def test_a_run_under_way_has_its_agents_before_they_know() -> None:
    needs = Needs(("e",), ("a", "b", "c", "x"), 1)
    here = seats(edge("e", 1), device("a"), device("b"), device("c", via="f"))
    found = claimed(here, {"r": (needs, [("device", "b")])})
    assert {seat.name for seat in found.values() if "r" in seat.runs} == {"e", "a"}
    said = turns([job("2", "b")], found, 1, 9)
    assert said == {"2": "a place at edge e, which has r"}


def test_a_run_goes_on_without_a_device_but_not_without_an_edge() -> None:
    needs = Needs(("e",), ("a", "b"), 1)
    assert out_of_reach(needs, {("device", "a"): "no"}) == ""
    both = {("device", "a"): "no", ("device", "b"): "never"}
    assert out_of_reach(needs, both) == (
        "0 of at least 1 devices are left; device a: no; device b: never"
    )
    assert out_of_reach(needs, {("edge", "e"): "gone"}) == "edge e: gone"
