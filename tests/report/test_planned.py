"""What a planner decided, in summary and report: cuts by round, foretold beside measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sfl.planners import Choice, Decision, Why
from sfl.planners.plans import Plan
from sfl.report.html import render_report
from sfl.report.live import LiveView
from sfl.report.planned import cuts_over_rounds, plan_summaries
from sfl.report.records import RoundRecord
from sfl.report.status import RunStatus
from sfl.report.summary import RunSummary, build_summary
from tests.house.report_sample import HOMES, sample_records, sample_settings

MAPLE, BIRCH, CEDAR = HOMES


def plan(round_: int, cuts: dict[str, int], advice: bool = False, **why: object) -> Plan:
    reasons = replace(Why(4.5, 4.0, BIRCH, {"device": 4.0, "exchange": 0.5}), **why)  # type: ignore[arg-type]
    choices = {name: Choice(cut) for name, cut in cuts.items()}
    return Plan(Decision(round_, "fleet", choices, why=reasons), advice)


PLANS = [
    plan(1, {MAPLE: 1, BIRCH: 2, CEDAR: 1}, note="a guess"),
    plan(3, {MAPLE: 1, BIRCH: 4, CEDAR: 1}, moved=(BIRCH,), gain=0.2),
    plan(5, {MAPLE: 3, BIRCH: 4}, moved=(MAPLE,)),
]


def summary_of(plans: list[Plan]) -> RunSummary:
    settings = sample_settings()
    records = sample_records()
    return build_summary(
        settings, "sample", records, [], train_seconds=60.0, wall_seconds=70.0, plans=plans
    )


def test_cuts_are_told_where_they_change() -> None:
    assert cuts_over_rounds(PLANS) == {
        MAPLE: ((1, 1, 0), (5, 3, 0)),
        BIRCH: ((1, 2, 0), (3, 4, 0)),
        CEDAR: ((1, 1, 0),),
    }
    assert cuts_over_rounds([replace(one, advice=True) for one in PLANS]) == {}


def test_a_round_that_was_decided_twice_has_its_last_decision() -> None:
    again = plan(3, {BIRCH: 3})
    assert cuts_over_rounds([*PLANS[:2], again])[BIRCH] == ((1, 2, 0), (3, 3, 0))
    assert [one.round for one in plan_summaries([*PLANS[:2], again], [])] == [1, 3]


def test_what_was_foretold_stands_beside_what_was_measured() -> None:
    records = [one for one in sample_records() if isinstance(one, RoundRecord)]
    slowest = {
        number: max(r.seconds for r in records if r.round == number) for number in range(1, 7)
    }
    found = plan_summaries(PLANS, records)
    assert [one.foretold for one in found] == [4.0] * 3  # without the adapters' exchange
    for one, held in zip(found, ((1, 2), (3, 4), (5, 6)), strict=True):
        assert one.measured == pytest.approx(sum(slowest[n] for n in held) / 2)
    assert found[1].moved == (BIRCH,) and found[1].gain == 0.2 and found[1].slowest == BIRCH
    assert plan_summaries([plan(9, {MAPLE: 1})], records)[0].measured is None


def test_a_summary_has_the_plans_and_the_last_cuts(tmp_path: Path) -> None:
    summary = summary_of(PLANS)
    assert [device.cut_layer for device in summary.devices] == [3, 4, 1]
    summary.write(tmp_path / "summary.json")
    assert RunSummary.read(tmp_path / "summary.json") == summary
    (values, *_) = json.loads((tmp_path / "summary.json").read_text())["plans"]
    assert values["policy"] == "fleet" and values["round"] == 1


def test_a_summary_from_before_there_were_planners_is_read(tmp_path: Path) -> None:
    values = summary_of([]).to_dict()
    del values["plans"]
    for device in values["devices"]:
        del device["cuts"]
    assert RunSummary.from_dict(values) == summary_of([])


def test_a_report_shows_cuts_and_seconds() -> None:
    page = render_report(summary_of(PLANS), sample_records(), "")
    assert f"{BIRCH}, round 2: 2" in page and f"{BIRCH}, round 3: 4" in page
    assert f"{MAPLE}, round 6: 3" in page and "foretold, round 5: 4" in page
    assert "The planner fleet made 3 decisions and 2 moves." in page
    assert "<td>20.0%</td>" in page and "a guess" in page


def test_a_report_of_advice_shows_no_cuts_that_were_not_there() -> None:
    page = render_report(summary_of([plan(1, {MAPLE: 3}, True, moved=(MAPLE,))]), [], "")
    assert "no cut was moved, and 1 moves were advised" in page
    assert "Blocks at the front of each device" not in page


def test_a_run_without_a_planner_has_no_plan() -> None:
    assert "<h2>Plan</h2>" not in render_report(summary_of([]), sample_records(), "")


def test_who_looks_on_reads_each_decision_once(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    status = RunStatus("r", "training", 3, 6, plan=PLANS[1].in_short)
    with LiveView(Console(force_terminal=False)) as view:
        view.update(status)
        view.update(replace(status, round=4))
    said = capsys.readouterr().out
    assert said.count("plan: ") == 1
    assert f"plan: round 3 by fleet: 4.5 s, waits for {BIRCH}; moves {BIRCH}" in said


def test_few_words_name_few_devices() -> None:
    moved = tuple(f"d{number}" for number in range(9))
    short = plan(2, {}, True, moved=moved).in_short
    moves = "moves d0, d1, d2 and 6 more"
    assert short == f"round 2 by fleet (advice): 4.5 s, waits for {BIRCH}; {moves}"
