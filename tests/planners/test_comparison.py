"""What would be simpler than a plan is foretold as the plan itself is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sfl.planners import PLANNERS, Choice, Decision
from sfl.planners.comparison import Rival, compare
from sfl.planners.state import foretold
from tests.house.planning import fleet


@given(st.integers(0, 10**6), st.booleans())
def test_rivals_are_what_they_are_called(seed: int, u_shaped: bool) -> None:
    state = fleet(seed, 3, u_shaped=u_shaped)
    configured = {device.name: device.legal[0].at for device in state.devices}
    decision = PLANNERS["fleet"].decide(state)
    compared = compare(state, decision, configured)
    rivals = {rival.name: rival.seconds for rival in compared.rivals}
    assert compared.foretold == foretold(state, decision.devices)
    assert rivals["as configured"] == rivals["fewest blocks"]
    alone = PLANNERS["scan"].propose(state).devices
    assert rivals["each device alone"] == foretold(state, alone).seconds
    common = set.intersection(*({cut.at for cut in device.legal} for device in state.devices))
    names = [name for name in rivals if name.endswith("for all")]
    assert len(names) == (1 if common else 0)
    for name in names:
        assert rivals[name] == min(
            foretold(state, {one.name: Choice(*at) for one in state.devices}).seconds
            for at in common
        )


def test_who_takes_no_part_is_in_no_rival() -> None:
    state = fleet(3)
    first = state.devices[0]
    out = {
        device.name: Choice(*device.legal[0].at, takes_part=device is first)
        for device in state.devices
    }
    configured = {device.name: device.legal[0].at for device in state.devices}
    compared = compare(state, Decision(1, "x", out), configured)
    alone = foretold(state, {first.name: out[first.name]}).seconds
    assert compared.rivals[0] == Rival("as configured", alone)


def test_a_gain_is_a_share_of_the_rival() -> None:
    assert Rival("x", 4.0).gain(3.0) == 0.25
    assert Rival("x", 4.0).gain(5.0) == -0.25
    assert Rival("x", 0.0).gain(3.0) == 0.0
