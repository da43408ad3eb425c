"""`sfl plan` shows what a planner would do, from guesses or from what a run has shown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from sfl.cli.plan.asked import Asked, read_link
from sfl.cli.plan.command import as_dict, plan_and_show, sentences
from sfl.cli.plan.gather import Gathered, gather
from sfl.cli.plan.once import chosen_once
from sfl.cli.plan.shown import InState, shown_by
from sfl.config import load_run
from sfl.config.load import dump_toml, load_planned, read_run
from sfl.config.planner import PlannerSettings
from sfl.cost.values import LinkCost
from sfl.errors import ConfigError
from sfl.planners import PLANNERS
from sfl.planners.comparison import Comparison, compare
from sfl.planners.plans import Plan
from sfl.report.plans import PLANS
from tests.house.federation import sfl, write_config
from tests.house.fleets import completions, device, settings
from tests.house.paths import STORIES

SPEEDS = (2.0, 50.0)


def file(folder: Path, count: int = 3, **sections: Any) -> Path:
    """A run of devices that differ in nothing."""
    own = {"threads": 1, **sections.pop("own", {})}
    values = settings(STORIES, model={"max_length": 64}, **sections)
    values["devices"] = [
        device(f"d{number}", completions(folder / f"d{number}.jsonl", 1, 24), 2, **own)
        for number in range(count)
    ]
    return write_config(folder, values)


def asked(path: Path, **more: Any) -> Asked:
    return Asked(path, **{"speeds": SPEEDS, "figure": path.parent / "plan.svg", **more})


def planned(one: Asked) -> tuple[Gathered, Comparison]:
    gathered = gather(one, lambda what: None)
    planner = PLANNERS[gathered.config.planner.policy]
    configured = {entry.name: (2, 0) for entry in gathered.config.devices}
    return gathered, compare(gathered.state, planner.decide(gathered.state), configured)


@pytest.mark.parametrize(
    ("text", "rates"),
    [
        ("20mbit", (20.0, 20.0)),
        ("5/20mbit", (5.0, 20.0)),
        ("0.5Gbit", (500.0, 500.0)),
        ("250kbit", (0.25, 0.25)),
    ],
)
def test_a_link_is_read(text: str, rates: tuple[float, float]) -> None:
    assert read_link(text) == rates


@pytest.mark.parametrize("text", ["20", "mbit", "0mbit", "5/0mbit", "-1mbit", "5/mbit", "1tbit"])
def test_what_is_no_link_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="Write 20mbit") as raised:
        read_link(text)
    assert raised.value.field == "--link"


TIERS: dict[str, Any] = {"run": {"topology": "three_tier"}, "stages": {"cuts": [3]}}


def test_fleet_decides_where_no_planner_is_named_in_three_tiers_too(tmp_path: Path) -> None:
    """Though a run of three tiers takes no planner that moves cuts."""
    path = file(tmp_path, **TIERS)
    assert Asked(path).load().planner.policy == "fleet"
    assert Asked(path, policy="scan").load().planner.policy == "scan"
    assert Asked(path, policy="fixed").load().planner.policy == "fixed"
    with pytest.raises(ConfigError, match="a cut does not move in topology three_tier"):
        load_run(path, ["planner.policy=scan"])
    with pytest.raises(ConfigError, match="planner\\.policy"):
        Asked(path, policy="flet").load()
    assert Asked(file(tmp_path)).load().planner.policy == "fleet"


def test_three_tiers_are_foretold_part_by_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hop = {"up_mbit": 8.0, "down_mbit": 4.0, "delay_ms": 10.0}
    path = file(tmp_path, run=TIERS["run"], stages={"cuts": [3], **hop})
    one = asked(path, link="8/16mbit", stage_speed=100.0, policy="fixed")
    gathered, compared = planned(one)
    state, step = gathered.state, 4 * 64
    assert [cut.at for cut in state.devices[0].legal] == [(2, 0)]
    assert state.devices[0].stage_cuts == (3,)
    (stage,) = state.stages
    assert stage.cost.hop == LinkCost(1e6, 5e5, 0.01)
    (edge,) = state.edges
    assert edge.cost.node.block.both == pytest.approx(2 * stage.cost.node.block.both)
    own = compared.foretold.devices["d0"]
    bits = state.devices[0].cost.bits
    values, steps = step * state.workload.hidden_size, state.workload.steps
    up, down = values * bits.activation[0] / 8 / 1e6, values * bits.gradient[0] / 8 / 5e5
    assert own.alone["hop up"] == pytest.approx(steps * (up + 0.01))
    assert own.alone["hop down"] == pytest.approx(steps * (down + 0.01))
    node, blocks = stage.cost.node, state.workload.num_layers - 3
    assert own.alone["stage"] == pytest.approx(
        steps * step * (blocks * node.block.both + node.head.both)
    )
    assert compared.foretold.stages[0].load == pytest.approx(3 * own.alone["stage"])
    assert plan_and_show(one) == 0
    said = capsys.readouterr().out
    heading = next(line for line in said.splitlines() if line.lstrip().startswith("device"))
    wanted = ["up", "edge", "hop", "up", "stage", "hop", "down", "down", "exchange", "waits"]
    assert heading.split()[3:13] == wanted
    assert " 2, 3 " in said and "Stage 1 behind the edges computes" in said
    assert "stages.cuts = [" in said and "those of two tiers" not in said
    words = "".join(ElementTree.parse(tmp_path / "plan.svg").getroot().itertext())
    assert "d0, cut 2, hop up: " in words
    assert plan_and_show(replace(one, as_json=True)) == 0
    values_ = json.loads(capsys.readouterr().out)
    told = values_["devices"]["d0"]
    assert told["stage_cuts"] == [3] and told["hop_up_seconds"] == own.alone["hop up"]
    assert values_["stages"][0]["load_seconds"] == compared.foretold.stages[0].load


def test_stages_get_places_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = file(tmp_path, **TIERS, own={"stage_cut_range": [2, 4]})
    one = asked(path, stage_speed=500.0)
    gathered, compared = planned(one)
    assert [cut.cut_layer for cut in gathered.state.devices[0].cuts] == [1, 2, 3]
    chosen = compared.decision.devices
    assert {own.stage_cuts for own in chosen.values()} == {(2,)}, "a far quicker stage has more"
    assert plan_and_show(one) == 0
    assert " 1, 2 " in capsys.readouterr().out
    assert plan_and_show(asked(path, stage_speed=500.0, as_json=True)) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["devices"]["d0"]["stage_cuts"] == [2]


def test_cuts_of_a_run_are_chosen_by_what_another_one_has_shown(tmp_path: Path) -> None:
    path = file(tmp_path, **TIERS, own={"stage_cut_range": [2, 4]})
    for changes, field in (
        (["planner.policy=fleet"], "planner.costs"),
        (["planner.policy=fleet", "planner.costs=nobody"], "planner.costs"),
        (["planner.policy=card", "planner.costs=nobody"], "planner.policy"),
    ):
        with pytest.raises(ConfigError) as raised:
            chosen_once(load_planned(path, changes))
        assert raised.value.field == field
    before = tmp_path / "runs" / "before"
    before.mkdir(parents=True)
    (before / "config.toml").write_text(path.read_text())
    state = gather(asked(path, stage_speed=500.0), lambda what: None).state
    line = Plan(PLANNERS["fleet"].decide(state), False, state).as_json()
    (before / PLANS).write_text(line + "\n")
    changes = ["planner.policy=fleet", "planner.costs=before", f"run.output_dir={tmp_path}/runs"]
    config, said = chosen_once(load_planned(path, changes))
    assert said == "cuts by fleet, from what run before has shown: d0 1, 2; d1 1, 2; d2 1, 2"
    assert {(one.cut_layer, one.stage_cuts) for one in config.devices} == {(1, (2,))}
    again = read_run(dump_toml(config))  # as the run's folder has it
    assert again.planner == config.planner == PlannerSettings()
    assert again.devices == config.devices


def test_a_plan_of_three_tiers_has_cuts_before_the_stage(tmp_path: Path) -> None:
    gathered, compared = planned(asked(file(tmp_path, **TIERS), speeds=(50.0, 1.0)))
    assert [cut.at for cut in gathered.state.devices[0].legal] == [(1, 0), (2, 0)]
    assert {choice.cut_layer for choice in compared.decision.devices.values()} == {2}
    assert any("keeps its cuts" in note for note in gathered.notes)


def test_costs_are_from_speeds_and_links_and_the_models_own_work(tmp_path: Path) -> None:
    gathered, compared = planned(asked(file(tmp_path), link="8/16mbit"))
    state = gathered.state
    (edge,) = state.edges
    for own in state.devices:
        assert (own.cost.link.up, own.cost.link.down) == (1e6, 2e6)
        block, far = own.cost.node.block, edge.cost.node.block
        assert block.forward == pytest.approx(25 * far.forward)
        assert [cut.at for cut in own.legal] == [(number, 0) for number in range(1, 5)]
        memory = [cut.memory for cut in own.legal]
        assert memory == sorted(memory) and memory[0] > 300_000_000
    assert state.workload.steps == 4 and state.workload.tokens == 4 * 64
    assert not gathered.measured and "No run shows what nodes cost" in gathered.notes[0]
    assert {choice.cut_layer for choice in compared.decision.devices.values()} == {1}


def test_a_fast_device_at_a_slow_edge_keeps_more_blocks(tmp_path: Path) -> None:
    slow_edge = asked(file(tmp_path), speeds=(50.0, 1.0))
    gathered, compared = planned(slow_edge)
    assert {choice.cut_layer for choice in compared.decision.devices.values()} == {4}
    rivals = {rival.name: rival for rival in compared.rivals}
    assert rivals["as configured"].gain(compared.foretold.seconds) > 0.1
    said = "\n".join(sentences(gathered, compared))
    assert "  as configured: " in said and "the plan saves" in said
    assert "An edge needs" in said and "of memory at most" in said


def test_memory_bounds_what_is_chosen_and_whom_nothing_fits_is_told(tmp_path: Path) -> None:
    path = file(tmp_path)
    cuts = gather(asked(path), lambda what: None).state.devices[0].legal
    narrow = [f"devices.0.memory={cuts[1].memory}", "devices.1.memory=1000000"]
    gathered, compared = planned(asked(path, speeds=(50.0, 1.0), overrides=tuple(narrow)))
    chosen = compared.decision.devices
    assert chosen["d0"].cut_layer == 2 and chosen["d2"].cut_layer == 4
    assert not chosen["d1"].takes_part
    values = as_dict(gathered, compared)["devices"]
    assert values["d1"]["reason"].startswith("takes no part: the least of its cuts takes")
    assert any("d1 takes no part" in line for line in sentences(gathered, compared))
    assert values["d0"]["memory_bytes"] == cuts[1].memory


def test_steps_that_hang_on_the_data_are_assumed_and_that_is_said(tmp_path: Path) -> None:
    path = file(tmp_path)
    text = path.read_text().replace("local_steps = 4\n", "local_epochs = 1\n")
    path.write_text(text)
    gathered, _ = planned(asked(path))
    assert gathered.state.workload.steps == 10
    assert any("10 steps" in note for note in gathered.notes)


def test_costs_that_a_run_has_shown_are_used(tmp_path: Path) -> None:
    path = file(tmp_path)
    gathered = gather(asked(path), lambda what: None)
    slower = replace(gathered.state.devices[0].cost.link, up=12_345.0)
    first = gathered.state.devices[0]
    shown = replace(
        gathered.state,
        devices=(
            replace(first, cost=replace(first.cost, link=slower)),
            *gathered.state.devices[1:],
        ),
        workload=replace(gathered.state.workload, tokens=77, steps=9),
    )
    folder = tmp_path / "runs" / "before"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(path.read_text())
    line = Plan(PLANNERS["fleet"].decide(shown), False, shown).as_json()
    (folder / PLANS).write_text(line + "\n")
    again = gather(asked(path, run="before", output_dir=tmp_path / "runs"), lambda what: None)
    assert again.measured == {"d0", "d1", "d2"} and again.notes == ()
    assert again.state.devices[0].cost.link == slower
    assert again.state.workload.tokens == 77 and again.state.workload.steps == 4  # the file's
    seen = InState(shown)
    assert seen.step_tokens() == 77.0 and seen.device_cost("nobody") is None
    (folder / PLANS).unlink()
    with pytest.raises(ConfigError, match="shows no costs") as raised:
        shown_by("before", tmp_path / "runs")
    assert raised.value.field == "--from"


def test_the_table_and_the_figure_show_every_device(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = file(tmp_path)
    assert plan_and_show(asked(path)) == 0
    said = capsys.readouterr().out
    for name in ("d0", "d1", "d2"):
        assert f" {name} " in said
    assert "fleet: a round of" in said and "figure: " in said
    picture = ElementTree.parse(tmp_path / "plan.svg").getroot()
    words = "".join(picture.itertext())
    assert picture.tag.endswith("svg") and "A round planned by fleet" in words
    assert "d2, cut 1, up: " in words
    assert plan_and_show(asked(path, as_json=True)) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["policy"] == "fleet" and values["devices"].keys() == {"d0", "d1", "d2"}
    own = values["devices"]["d0"]
    parts = ("device", "up", "edge", "down", "exchange", "waits")
    assert own["round_seconds"] == pytest.approx(sum(own[f"{part}_seconds"] for part in parts))


@pytest.mark.process
def test_a_user_plans_from_the_command_line(tmp_path: Path) -> None:
    path, figure = file(tmp_path), tmp_path / "x.svg"
    own = ("--device-gflops", "2", "--edge-gflops", "50", "--figure", figure)
    done = sfl("plan", path, "--policy", "scan", "--link", "20mbit", "--json", *own)
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert values["policy"] == "scan" and figure.exists()
    for option, words in (
        (("--policy", "flet"), "planner.policy = 'flet'"),
        (("--link", "fast"), "--link = 'fast'"),
        (("--from", "nobody"), "--from = 'nobody': no such run"),
        (("--set", "devices.0.cut_range=[1, 9]"), "devices.d0.cut_range"),
    ):
        done = sfl("plan", path, *own, *option)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert words in done.stderr, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
