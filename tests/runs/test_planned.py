"""Runs with a planner: what it decided is carried out, kept, shown, and taken again."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from cloud_aggregator.averaging import Averaging, GlobalAdapter
from cloud_aggregator.records import RunRecords
from sfl.config import load_run
from sfl.planners import PLANNERS
from sfl.planners.plans import Plan
from sfl.report.plans import PLANS, read_plans
from tests.house.federation import finished, run, sfl, write_config
from tests.house.fleets import completions, device, fleet, settings, tiny
from tests.house.paths import STORIES
from tests.house.retold import assert_retold
from tests.house.stills import assert_same_end, over, stills_of
from tests.house.twin import Twin, played

ROUNDS = 4


def plans_of(folder: Path) -> list[Plan]:
    return read_plans(folder / PLANS, "planner.plans", with_state=True)


def chosen(plans: list[Plan]) -> list[set[str]]:
    """Who takes part, by round."""
    return [
        {name for name, own in plan.decision.devices.items() if own.takes_part} for plan in plans
    ]


def selecting(folder: Path, **planner: Any) -> dict[str, Any]:
    """Three devices, one of which is chosen for a round."""
    return fleet(
        folder,
        3,
        run={"rounds": ROUNDS},
        training={"local_steps": 2},
        planner={"policy": "ucb", "select": 1, **planner},
    )


def test_who_is_chosen_trains_and_nobody_else(tmp_path: Path) -> None:
    outcome = finished(played(tmp_path, selecting(tmp_path)))
    plans = plans_of(outcome.folder)
    taken = chosen(plans)
    assert [plan.decision.round for plan in plans] == [1, 2, 3, 4]
    assert all(len(names) == 1 for names in taken) and len(set.union(*taken)) == 3  # each is tried
    records = [
        json.loads(line) for line in (outcome.folder / "metrics.jsonl").read_text().splitlines()
    ]
    trained = [
        {r["node"] for r in records if r["kind"] == "device" and r["round"] == n and r["steps"]}
        for n in range(1, ROUNDS + 1)
    ]
    assert trained == taken
    summary = outcome.summary
    assert summary["rounds"] == ROUNDS and summary["faults"] == []
    assert [len(plan["out"]) for plan in summary["plans"]] == [2] * ROUNDS
    assert_retold(outcome.folder, tmp_path / "aside")


@pytest.mark.parametrize("policy", ["ucb", "random"])
def test_a_run_that_was_killed_decides_as_if_it_had_not_been(tmp_path: Path, policy: str) -> None:
    """Between any two writes: what the planner remembers is where the run is."""
    folder = tmp_path / "whole"
    folder.mkdir()
    writes = ((GlobalAdapter, "save"), (Averaging, "forget_before"), (RunRecords, "keep"))
    whole, stills = stills_of(folder, selecting(folder, policy=policy, select=2), writes)
    expected = [plan.decision.devices for plan in plans_of(whole.folder)]
    moved = {choice.at for devices in expected for choice in devices.values()}
    assert len(moved) == (1 if policy == "ucb" else 2)
    moments = [still for still, _ in stills.taken if not over(still)]
    assert len(moments) >= ROUNDS
    for still in moments[::2]:
        outcome = finished(Twin(tmp_path, {}, resume=still).run())
        plans = plans_of(outcome.folder)
        assert [plan.decision.devices for plan in plans] == expected, still
        assert_same_end(outcome, whole)


def test_the_decisions_of_a_run_are_repeated_by_another(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    drawn = fleet(
        tmp_path / "one",
        3,
        run={"rounds": 3},
        training={"local_steps": 2},
        planner={"policy": "ucb", "select": 2},
    )
    one = finished(played(tmp_path / "one", drawn))
    file = one.folder / PLANS
    again = {**drawn, "planner": {"policy": "recorded", "plans": str(file)}}
    other = finished(played(tmp_path / "other", again))
    assert chosen(plans_of(other.folder)) == chosen(plans_of(one.folder))
    weights = "adapter/adapter_model.safetensors"
    assert (other.folder / weights).read_bytes() == (one.folder / weights).read_bytes()


@pytest.mark.process
def test_cuts_move_where_that_pays_and_change_no_bit(tmp_path: Path) -> None:
    """Adapters cross slow links twice a round: the fewer blocks a device has, the shorter it is."""
    ends = {}
    for policy in ("off", "fleet"):
        folder = tmp_path / policy
        folder.mkdir()
        planner = {"policy": policy, "every_rounds": 2, "hysteresis": 0.0}
        values = settings(STORIES, run={"rounds": 4}, planner=planner, model={"max_length": 64})
        values["devices"] = [
            device(
                f"d{number}",
                completions(folder / f"d{number}.jsonl", number + 1, 24),
                4 - 2 * number,
                link={"up_mbit": 2.0, "down_mbit": 2.0},
            )
            for number in range(2)
        ]
        ends[policy] = finished(run(folder, values))
    outcome = ends["fleet"]
    first, later = plans_of(outcome.folder)
    assert (first.decision.round, later.decision.round) == (1, 3)
    assert first.decision.why.moved == () and "guess" in first.decision.why.note
    assert later.decision.why.moved and not later.decision.why.note
    assert later.decision.devices["d0"].cut_layer < 4
    cuts = {own["name"]: own["cuts"] for own in outcome.summary["devices"]}
    assert cuts["d0"] == [[1, 4, 0], [3, later.decision.devices["d0"].cut_layer, 0]]
    assert outcome.summary["faults"] == []
    weights = "adapter/adapter_model.safetensors"
    one, other = ((own.folder / weights).read_bytes() for own in ends.values())
    assert one == other
    assert_retold(outcome.folder, tmp_path / "aside")


@pytest.mark.process
def test_advice_is_said_and_kept_and_moves_nothing(tmp_path: Path) -> None:
    values = settings(
        STORIES,
        run={"rounds": 3},
        planner={"policy": "advice"},
        model={"max_length": 64},
    )
    values["devices"] = [
        device(
            f"d{number}",
            completions(tmp_path / f"d{number}.jsonl", number + 1, 24),
            1 + number,
            link={"up_mbit": 4.0, "down_mbit": 4.0, "delay_ms": 5},
        )
        for number in range(2)
    ]
    outcome = finished(run(tmp_path, values))
    plans = plans_of(outcome.folder)
    assert [plan.decision.round for plan in plans] == [1, 2, 3]
    for plan in plans:
        assert plan.advice and plan.state is not None
        assert PLANNERS["fleet"].decide(plan.state).devices == plan.decision.devices
        assert {d.name: d.at for d in plan.state.devices} == {"d0": (1, 0), "d1": (2, 0)}
        assert all(cut.memory > 50_000_000 for d in plan.state.devices for cut in d.cuts)
    assert "nothing is measured yet" in plans[0].decision.why.note
    summary, status = outcome.summary, json.loads((outcome.folder / "status.json").read_text())
    assert [d["cut_layer"] for d in summary["devices"]] == [1, 2]
    assert all(plan["measured"] > 0.0 for plan in summary["plans"])
    assert status["plan"].startswith("round 3 by fleet (advice): ")
    assert outcome.output.count("plan: round ") == 3
    assert "<h2>Plan</h2>" in (outcome.folder / "report.html").read_text()
    assert outcome.logs().count("would be planned: a round of") == 3
    assert_retold(outcome.folder, tmp_path / "aside")


@pytest.mark.process
def test_cuts_of_three_tiers_are_chosen_before_the_run_and_stay(tmp_path: Path) -> None:
    run_ = {"topology": "three_tier", "rounds": 2}
    values = fleet(tmp_path, 2, run=run_, stages={"cuts": [2]}, training={"local_steps": 6})
    values["model"]["path"] = str(tiny("llama", '{"num_hidden_layers": 5}'))
    for entry in values["devices"]:
        entry["stage_cut_range"] = [2, 4]
    shown = tmp_path / "shown"
    shown.mkdir()
    before = finished(played(shown, deepcopy(values)))
    planner = {"policy": "fleet", "costs": str(before.folder)}
    outcome = finished(run(tmp_path, {**values, "planner": planner}))
    assert "cuts by fleet, from what run" in outcome.output
    config = load_run(outcome.folder / "config.toml")
    assert config.planner.policy == "off" and not (outcome.folder / PLANS).exists()
    for entry in config.devices:
        (stage,) = entry.stage_cuts
        assert 2 <= stage <= 4 and 1 <= entry.cut_layer < stage
        assert f"{entry.name} {entry.cut_layer}, {stage}" in outcome.output
    told = {own["name"]: own["cut_layer"] for own in outcome.summary["devices"]}
    assert told == {entry.name: entry.cut_layer for entry in config.devices}


@pytest.mark.process
def test_a_plan_that_is_none_is_told_before_anything_starts(tmp_path: Path) -> None:
    values = fleet(tmp_path, 1, planner={"policy": "recorded", "plans": "none.jsonl"})
    for command in ("run", "doctor"):
        done = sfl(command, write_config(tmp_path, dict(values)))
        assert done.returncode in (1, 2) and "Traceback" not in done.stderr
        assert "planner.plans = 'none.jsonl': cannot be read" in done.stdout + done.stderr
    assert not (tmp_path / "runs" / "t" / "logs").exists()
