"""A planner that takes its time holds up its round, and nothing else."""

from __future__ import annotations

import gc
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloud_aggregator.host import EdgeHost
from cloud_aggregator.question import Question
from sfl.errors import RunFailed
from sfl.planners import PLANNERS, Planner, Proposal, State
from sfl.report.plans import PLANS, read_plans
from tests.house.federation import finished
from tests.house.fleets import fleet
from tests.house.retold import assert_retold
from tests.house.stills import assert_same_end, digest, over, stills_of
from tests.house.twin import Twin, played
from tests.house.waiting import PATIENCE

ROUNDS = 3


class Slow:
    """A planner that decides as another does, once a test has opened its gate."""

    def __init__(self, usual: Planner) -> None:
        self.usual = usual
        self.gate = threading.Event()
        self.asked: list[int] = []

    def __call__(self, state: State) -> Proposal:
        self.asked.append(state.round)
        if not self.gate.wait(PATIENCE):
            raise TimeoutError("the test never let it decide")
        return self.usual.propose(state)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    registry: Any = PLANNERS.built_in
    own = Slow(registry["random"])
    monkeypatch.setitem(registry, "random", Planner("random", own))
    yield own
    own.gate.set()


def values(folder: Path, **network: Any) -> dict[str, Any]:
    return fleet(
        folder,
        3,
        run={"rounds": ROUNDS},
        training={"local_steps": 2},
        planner={"policy": "random"},
        network={"heartbeat_interval": 0.05, **network},
    )


def status(twin: Twin) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((twin.folder / "status.json").read_text())
    return found


def cuts(folder: Path) -> list[dict[str, tuple[int, int]]]:
    plans = read_plans(folder / PLANS, "planner.plans")
    return [{name: own.at for name, own in p.decision.devices.items()} for p in plans]


def test_heartbeats_and_status_go_on_while_a_planner_decides(
    tmp_path: Path, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("held", "usual"):
        (tmp_path / name).mkdir()
    heard, original = [0], EdgeHost.heard

    def counted(own: EdgeHost, *said: Any) -> None:
        heard[0] += 1
        original(own, *said)

    monkeypatch.setattr(EdgeHost, "heard", counted)
    twin = Twin(tmp_path / "held", values(tmp_path / "held"))

    async def story(twin: Twin) -> None:
        await twin.until(lambda: slow.asked)
        seen, sequence = heard[0], status(twin)["sequence"]
        await twin.until(lambda: heard[0] > seen + 6 and status(twin)["sequence"] > sequence + 1)
        shown = status(twin)
        assert shown["phase"] == "planning" and shown["round"] == 0
        assert [(own["kind"], own["whom"]) for own in shown["waits"]] == [("planning", "cloud")]
        assert slow.asked == [1]
        slow.gate.set()

    outcome = finished(twin.run(story))
    assert slow.asked == [1, 2, 3] and outcome.summary["faults"] == []
    usual = finished(played(tmp_path / "usual", values(tmp_path / "usual")))
    assert digest(outcome.folder) == digest(usual.folder)
    assert cuts(outcome.folder) == cuts(usual.folder) and len(cuts(usual.folder)) == ROUNDS
    assert_retold(outcome.folder, tmp_path / "aside")


def test_a_device_that_is_cut_meanwhile_is_back_for_the_round(tmp_path: Path, slow: Slow) -> None:
    twin = Twin(tmp_path, values(tmp_path))

    async def story(twin: Twin) -> None:
        await twin.until(lambda: slow.asked)
        twin.cut("d1")
        await twin.until(lambda: "d1" in twin.cloud.coordinator.state.away)
        await twin.until(lambda: not twin.cloud.coordinator.state.away)
        slow.gate.set()

    outcome = finished(twin.run(story))
    assert slow.asked == [1, 2, 3] and outcome.summary["faults"] == []
    assert [own["rounds"] for own in outcome.summary["devices"]] == [ROUNDS] * 3


def test_a_planner_that_is_not_waited_for_is_not_asked_meanwhile(
    tmp_path: Path, slow: Slow
) -> None:
    twin = Twin(tmp_path, values(tmp_path, round_timeout=50.0))

    async def story(twin: Twin) -> None:
        await twin.until(lambda: slow.asked)
        twin.move(51.0)

    outcome = finished(twin.run(story))
    assert slow.asked == [1] and not (outcome.folder / PLANS).exists()
    late, *busy = (fault["problem"] for fault in outcome.summary["faults"])
    assert late.endswith("has not decided within round_timeout (50 s), so that cuts stay")
    assert busy == ["planner 'random' still decides on an earlier round, so that cuts stay"] * 2
    assert [own["rounds"] for own in outcome.summary["devices"]] == [ROUNDS] * 3


@pytest.mark.parametrize("how", ["stopped", "ended"])
def test_a_run_that_ends_meanwhile_waits_for_no_planner(
    tmp_path: Path, slow: Slow, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What it still decides then is nobody's; the same run, gone on with, asks again."""
    twin = Twin(tmp_path, values(tmp_path))

    async def story(twin: Twin) -> None:
        await twin.until(lambda: slow.asked)
        if how == "stopped":
            twin._cloud_task.cancel()
        else:
            twin.cloud.driver.failed(RunFailed("the disk is gone"))

    outcome = twin.run(story)
    assert outcome.code == (0 if how == "stopped" else 1) and slow.asked == [1]
    slow.gate.set()
    gc.collect()
    assert "never retrieved" not in caplog.text
    assert not (outcome.folder / PLANS).exists()
    if not over(outcome.folder):
        again = finished(Twin(tmp_path, {}, resume=outcome.folder).run())
        assert slow.asked == [1, 1, 2, 3] and len(cuts(again.folder)) == ROUNDS


def test_a_cloud_that_is_killed_while_it_decides_asks_again(tmp_path: Path) -> None:
    folder = tmp_path / "whole"
    folder.mkdir()
    whole, stills = stills_of(folder, values(folder), [(Question, "answer")])
    assert len(stills.taken) == ROUNDS
    for still, _ in stills.taken:
        outcome = finished(Twin(tmp_path, {}, resume=still).run())
        assert cuts(outcome.folder) == cuts(whole.folder)
        assert_same_end(outcome, whole)
