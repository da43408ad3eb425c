"""Lines of `plans.jsonl`: a decision can be read, and taken again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfl.errors import ConfigError
from sfl.planners import PLANNERS, Choice, Decision, State
from sfl.planners.plans import Plan, recorded_for
from sfl.report.plans import PLANS, PlanFile, complete_plans, read_plans, recorded_plans
from tests.house.planning import fleet


def plan(round_: int, **cuts: int) -> Plan:
    return Plan(Decision(round_, "fleet", {name: Choice(cut) for name, cut in cuts.items()}))


@given(
    st.integers(0, 10**6),
    st.sampled_from(["fleet", "scan", "card", "open", "ucb", "random", "two_timescale"]),
    st.booleans(),
)
def test_a_decision_is_taken_again_from_its_line(seed: int, policy: str, advice: bool) -> None:
    state = fleet(seed, 3, u_shaped=seed % 2 == 0)
    decision = PLANNERS[policy].decide(state)
    line = Plan(decision, advice, state).as_json()
    assert "\n" not in line
    back = Plan.from_json(line)
    assert back == Plan(decision, advice, state)
    assert back.state is not None and PLANNERS[policy].decide(back.state) == decision
    assert Plan.from_json(line.encode(), with_state=False) == Plan(decision, advice)


@given(st.integers(0, 10**6))
def test_a_rounded_state_is_the_same_to_six_digits_and_shorter(seed: int) -> None:
    state = fleet(seed, 3)
    short = state.rounded()
    assert short.rounded() == short and State.from_json(short.as_json()) == short
    assert len(short.as_json()) < 0.9 * len(state.as_json())
    for own, whole in zip(short.devices, state.devices, strict=True):
        assert replace(own, cost=whole.cost) == whole
        assert own.cost.link.up == pytest.approx(whole.cost.link.up, rel=1e-5)
        assert own.cost.bits.activation == pytest.approx(whole.cost.bits.activation, rel=1e-5)
        assert own.cost.node.head.both == pytest.approx(whole.cost.node.head.both, rel=1e-5)


def test_cuts_are_short_rows_and_older_lines_are_read() -> None:
    state = fleet(1, 1)
    (own,) = state.devices
    line = json.loads(state.as_json())
    assert line["devices"][0]["cuts"] == [[*cut] for cut in own.cuts]
    line["devices"][0]["cuts"] = [cut._asdict() for cut in own.cuts]
    assert State.from_json(json.dumps(line)) == state


def test_a_file_has_the_latest_decision_of_each_round(tmp_path: Path) -> None:
    file = PlanFile(tmp_path)
    assert not (tmp_path / PLANS).exists()
    told = [plan(1, a=1), plan(2, a=2), plan(2, a=3)]
    for one in told:
        file.append(one.as_json())
    file.close()
    assert read_plans(tmp_path / PLANS, "planner.plans") == [told[0], told[2]]


def test_a_torn_file_is_completed(tmp_path: Path) -> None:
    lines = [plan(1, a=1).as_json(), plan(2, a=2).as_json()]
    complete_plans(tmp_path, [])
    assert not (tmp_path / PLANS).exists()
    (tmp_path / PLANS).write_text(lines[0] + "\n" + lines[1][:20])
    complete_plans(tmp_path, lines)
    assert (tmp_path / PLANS).read_text().splitlines() == lines


def test_a_round_has_what_was_chosen_last_before_it() -> None:
    told = [plan(1, a=1, b=1), plan(4, b=3)]
    for round_, cuts in {1: (1, 1), 3: (1, 1), 4: (1, 3), 9: (1, 3)}.items():
        found = recorded_for(told, round_)
        assert (found["a"].cut_layer, found["b"].cut_layer) == cuts
    assert recorded_for(told, 0) == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read: No such file"),
        ("", "has no decision"),
        ("[1]\n", "line 1 is no decision"),
        ('{"round": 1, "policy": "fleet", "devices": {}}\nx\n', "line 2 is no decision"),
        ('{"round": 1}\n', "line 1 is no decision"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / PLANS
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=words) as raised:
        recorded_plans("recorded", str(path))
    assert raised.value.field == "planner.plans" and raised.value.value == str(path)
    assert recorded_plans("fleet", str(path)) == ()
