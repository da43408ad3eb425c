"""What a stage is told and refuses, and modes of a run with three tiers, on a whole federation."""

from __future__ import annotations

import tomllib
from contextlib import closing
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from sfl.config import load_run
from sfl.errors import Refused
from sfl.report.fitting import fitted_of
from sfl.report.journal import JournalReader
from sfl.report.observing import Observing
from sfl.report.plans import read_plans
from sfl.report.records import RoundRecord, read_records
from sfl.stage.training import Team
from tests.house.federation import Outcome, finished
from tests.house.fleets import fleet, tiny
from tests.house.reference import adapter, assert_same_bits
from tests.house.twin import Twin, played

pytestmark = pytest.mark.process


def values_of(folder: Path, count: int = 2, **sections: Any) -> dict[str, Any]:
    """Devices at one edge, and a stage behind it."""
    own: dict[str, dict[str, Any]] = {
        "run": {"topology": "three_tier", "rounds": 2, "min_devices": 1},
        "stages": {"cuts": [2]},
        "training": {"local_steps": 2},
        "stage": {"threads": 1},
    }
    names = own.keys() | sections.keys()
    both_of = {name: {**own.get(name, {}), **sections.get(name, {})} for name in names}
    return fleet(folder, count, **both_of)


def two_tiers(values: dict[str, Any]) -> dict[str, Any]:
    """The same run without a stage."""
    found = deepcopy(values)
    found["run"]["topology"] = "vanilla"
    return {name: own for name, own in found.items() if name not in ("stages", "stage")}


def both(folder: Path, values: dict[str, Any]) -> tuple[Outcome, Outcome]:
    """A run in three tiers, and the same in two."""
    for name in ("three", "two"):
        (folder / name).mkdir()
    three = finished(played(folder / "three", deepcopy(values)))
    return three, finished(played(folder / "two", two_tiers(values)))


# -- who is refused -----------------------------------------------------------------------------


def test_a_stage_with_another_model_is_refused_and_the_devices_leave(tmp_path: Path) -> None:
    other = str(tiny("llama", '{"rms_norm_eps": 0.001}'))
    twin = Twin(tmp_path, values_of(tmp_path, stage={"model": other}))

    async def story(twin: Twin) -> None:
        await twin.until(lambda: twin.ended.keys() >= {"d0", "d1"})
        assert {"d0", "d1"} <= twin.cloud.coordinator.state.losses.keys()
        twin.move(1000.0)

    outcome = twin.run(story)
    assert outcome.code != 0
    for name in ("d0", "d1"):
        ended = twin.ended[name]
        assert isinstance(ended, Refused)
        assert "stage.model of stage stage is another model than edge edge has" in str(ended)


# -- a member that the stage has left out -------------------------------------------------------


def test_who_is_left_out_at_the_stage_does_not_come_back_for_ever(tmp_path: Path) -> None:
    """The stage may see a loss long before the cloud: the device is sent away a few times only."""
    values = values_of(tmp_path, 3, stages={"adapters": "shared"})
    twin = Twin(tmp_path, values)

    def left_out(device: str) -> None:
        sharing = twin.stages["stage"].host._sharing
        assert sharing is not None
        team: Team = sharing.team
        twin.loop.call_soon_threadsafe(team.leave_out, device)
        twin.cut(device)

    twin.at("d1", 1, 1, left_out)
    outcome = finished(twin.run())
    (fault,) = outcome.summary["faults"]
    assert fault["node"] == "d1" and "goes on without device d1" in fault["problem"]
    assert twin.ended["d1"] is None  # the next round had it again


# -- modes of a run -----------------------------------------------------------------------------


def test_an_asynchronous_run_has_the_adapter_of_two_tiers(tmp_path: Path) -> None:
    values = values_of(tmp_path, 1, run={"mode": "asynchronous", "rounds": 3})
    three, two = both(tmp_path, values)
    assert_same_bits(adapter(three), adapter(two))


def test_scores_are_those_of_two_tiers(tmp_path: Path) -> None:
    """Rounds that only evaluate go through the stage, too."""
    three, two = both(tmp_path, values_of(tmp_path))
    assert scores(three) == scores(two)
    assert len(scores(three)) == 2 * (2 + 1)


def scores(outcome: Outcome) -> dict[tuple[int, str], float | None]:
    records = read_records(outcome.folder / "metrics.jsonl")
    return {(r.round, r.device): r.eval_loss for r in records if isinstance(r, RoundRecord)}


def test_what_is_auto_is_rehearsed_through_the_stage(tmp_path: Path) -> None:
    values = values_of(
        tmp_path,
        training={"local_steps": 3, "micro_batches": "auto"},
        codec={"activation": "auto", "gradient": "auto"},
    )
    timed = finished(played(tmp_path, deepcopy(values)))
    assert "timing steps of 1, 2, 4 micro-batches" in timed.logs()
    assert load_run(timed.folder / "config.toml").training.micro_batches in (1, 2, 4)
    chosen = tomllib.loads((timed.folder / "config.toml").read_text())
    chosen["run"]["output_dir"] = str(tmp_path / "again")
    (tmp_path / "again").mkdir()
    again = finished(played(tmp_path / "again", chosen))
    assert "timing steps" not in again.logs()
    assert_same_bits(adapter(again), adapter(timed))


def test_what_a_stage_has_shown_is_what_planners_and_simulations_take(tmp_path: Path) -> None:
    """Advice is asked for in every round, with cuts that end before the stage."""
    hop_limit = {"up_mbit": 8.0, "down_mbit": 8.0}
    steps, advice = {"local_steps": 6}, {"policy": "advice"}
    values = values_of(tmp_path, planner=advice, stages=hop_limit, training=steps)
    done = finished(played(tmp_path, values))
    seen = Observing()
    with closing(JournalReader(done.folder)) as journal:
        entries = list(journal.entries())
    for entry in entries:
        seen.take(entry)
    node = seen.stage_node("stage")
    assert node is not None and node.block.both > 0.0 and node.head.both > 0.0
    hop = seen.stage_hop("stage")
    assert hop is not None and 0.0 < hop.up < 1.5e6 and 0.0 < hop.down < 1.5e6
    assert fitted_of(entries).stages == (node,) and fitted_of(entries).hops == (hop,)
    plans = read_plans(done.folder / "plans.jsonl", "--from", with_state=True)
    assert len(plans) == values["run"]["rounds"]
    last = plans[-1].state
    assert last is not None and all(plan.advice for plan in plans)
    (stage,) = last.stages
    assert stage.name == "stage" and stage.cost.node.threads == node.threads
    assert stage.cost.hop.up not in (0.0, 1e6), "as it was measured, not as it is stated"
    for own in last.devices:
        assert all(cut.cut_layer < own.stage_cuts[0] for cut in own.cuts)
        assert own.cost.handover == 0.0
    assert {"hop up", "stage", "hop down"} <= set(plans[-1].decision.why.parts)
