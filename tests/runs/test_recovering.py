"""A device whose link broke, or whose process died, ends in the undisturbed run's adapter."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from sfl.errors import SnapshotMissing
from sfl.rounds.values import Point
from sfl.stage.remembered import Remembered
from sfl.stage.snapshots import Snapshot
from tests.house.federation import Outcome, finished
from tests.house.fleets import LASTING, fleet
from tests.house.nodes import ByHand
from tests.house.reference import adapter, assert_same_bits
from tests.house.twin import Twin
from tests.house.waiting import until

pytestmark = pytest.mark.process  # each takes seconds

UNCODED = {"activation": "none", "gradient": "none"}
RUNS: dict[str, dict[str, Any]] = {
    "vanilla": {"codec": UNCODED},
    "u_shaped": {"codec": UNCODED, "run": {"topology": "u_shaped"}},
    "compact": {"codec": {"activation": "compact", "gradient": "compact"}},
    "adapter": {"codec": {**UNCODED, "adapter": "int8"}, "run": {"topology": "u_shaped"}},
    "fedprox": {"codec": UNCODED, "aggregation": {"strategy": "fedprox"}},
    "flora": {"codec": UNCODED, "aggregation": {"strategy": "flora"}},
}


def twin_of(folder: Path, name: str) -> Twin:
    values = dict(RUNS[name])
    run = {"min_devices": 2, **values.pop("run", {})}
    training = {"local_steps": 4, **values.pop("training", {})}
    values = fleet(folder, run=run, training=training, **values)
    if run.get("topology") == "u_shaped":
        for device in values["devices"]:
            device["tail_layers"] = 1
    return Twin(folder, values)


@cache
def undisturbed(name: str) -> dict[str, np.ndarray]:
    with TemporaryDirectory() as folder:
        return adapter(finished(twin_of(Path(folder), name).run()))


def killed(twin: Twin, device: str) -> None:
    """A device's process dies, and is started again."""
    threading.Timer(0.1, twin.loop.call_soon_threadsafe, [twin.start_device, device]).start()
    twin.lose(device)


def judged(twin: Twin, name: str) -> Outcome:
    outcome = finished(twin.run())
    assert outcome.summary["faults"] == []
    assert_same_bits(adapter(outcome), undisturbed(name))
    return outcome


@pytest.mark.parametrize("step", [0, 2])
@pytest.mark.parametrize("name", RUNS)
def test_a_link_that_breaks_changes_no_bit(tmp_path: Path, name: str, step: int) -> None:
    twin = twin_of(tmp_path, name)
    twin.at("d2", 2, step, twin.cut)
    outcome = judged(twin, name)
    log = (outcome.folder / "logs" / "d2.log").read_text()
    assert "model and data are still loaded" in log and log.count("with the model") == 1


@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize("name", RUNS)
def test_a_process_that_dies_and_is_started_again_changes_no_bit(
    tmp_path: Path, name: str, step: int
) -> None:
    twin = twin_of(tmp_path, name)
    twin.at("d2", 2, step, lambda device: killed(twin, device))
    judged(twin, name)


@pytest.mark.parametrize("topology", ["vanilla", "u_shaped"])
@pytest.mark.parametrize("dies", [False, True])
def test_a_part_goes_on_within_a_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, topology: str, dies: bool
) -> None:
    codec = {"activation": "compact", "gradient": "compact"}
    own = {"codec": codec, "run": {"topology": topology}, "training": {"max_grad_norm": 0.5}}
    monkeypatch.setitem(RUNS, topology, own)
    with TemporaryDirectory() as folder:
        expected = adapter(finished(twin_of(Path(folder), topology).run()))
    monkeypatch.setitem(RUNS, topology, {**own, "recovery": {"snapshot_steps": 1}})
    twin = twin_of(tmp_path, topology)
    twin.at("d2", 2, 3, (lambda device: killed(twin, device)) if dies else twin.cut)
    outcome = finished(twin.run())
    assert outcome.summary["faults"] == []
    assert_same_bits(adapter(outcome), expected)
    log = (outcome.folder / "logs" / "d2.log").read_text()
    assert re.search("round 2 goes on after step [23]", log), log


def test_two_devices_may_be_lost_at_once_and_one_again_and_again(tmp_path: Path) -> None:
    twin = twin_of(tmp_path, "compact")
    twin.at("d0", 3, 1, twin.cut)
    for round_, step in ((1, 2), (2, 1), (3, 1)):
        twin.at("d2", round_, step, twin.cut)
    judged(twin, "compact")


@pytest.mark.parametrize("side", ["device", "edge"])
def test_a_side_that_lacks_what_it_is_told_to_go_on_from_joins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    lacked: list[Point] = []
    go_on_from = Remembered.go_on_from

    def once(own: Remembered, after: Point, trains: bool) -> Snapshot | None:
        snapshots = own._snapshots
        assert snapshots is not None
        at_edge = snapshots._folder.parent.name == "edge"
        mine = snapshots._folder.name == "d2" and at_edge == (side == "edge")
        if mine and after.round == 1 and not lacked:
            lacked.append(after)
            raise SnapshotMissing("no snapshot of that is here")
        return go_on_from(own, after, trains)

    monkeypatch.setattr(Remembered, "go_on_from", once)
    outcome = judged(twin_of(tmp_path, "vanilla"), "vanilla")
    assert len(lacked) == 1
    assert "no snapshot of that is here" in outcome.logs()


def test_a_killed_process_started_again_ends_in_the_same_adapter(
    by_hand: Callable[..., ByHand], tmp_path: Path
) -> None:
    sections = {"training": LASTING}
    nodes = by_hand("d1", **sections)
    devices = [nodes.device(number) for number in range(3)]
    until(lambda: in_round(nodes, "d1", 2), "steps of round 2")
    devices[1].kill()
    devices[1].wait()
    until(lambda: "device d1 is away" in nodes.log("cloud"), "the cloud's word of it")
    nodes.device(1)
    outcome = finished(nodes.outcome())
    assert outcome.summary["faults"] == []
    back = "device d1 is back; it goes on after step 12 of round 1"
    assert back in nodes.log("cloud")
    whole = tmp_path / "whole"
    whole.mkdir()
    expected = finished(Twin(whole, fleet(whole, **sections)).run())
    assert_same_bits(adapter(outcome), adapter(expected))


def in_round(nodes: ByHand, name: str, round_: int) -> bool:
    """Whether a device is in the middle of a round."""
    status = nodes.status()
    steps = {own["name"]: own["step"] for own in status.get("devices", ())}
    return status.get("round", 0) == round_ and steps.get(name, 0) > 3


def test_a_run_that_is_over_leaves_no_snapshot(tmp_path: Path) -> None:
    twin = twin_of(tmp_path, "vanilla")
    judged(twin, "vanilla")
    assert not list(twin.cache.rglob("*.safetensors"))
