"""Cuts that move every round, on a whole federation: the fixed run's adapter, whatever is lost."""

from __future__ import annotations

import contextlib
import threading
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from sfl.report.journal import JournalReader
from sfl.rounds import Planned
from tests.house.federation import Outcome, finished, run
from tests.house.fleets import fleet
from tests.house.reference import adapter, assert_same_bits
from tests.house.twin import Twin

pytestmark = pytest.mark.process  # each takes seconds

UNCODED = {"activation": "none", "gradient": "none"}
ROUNDS, MOVED = 4, "d2"


def values_of(folder: Path, topology: str, policy: str = "random", **more: Any) -> dict[str, Any]:
    values = fleet(
        folder,
        run={"topology": topology, "rounds": ROUNDS, "min_devices": 2},
        training={"local_steps": 3, **more.pop("training", {})},
        **{"codec": UNCODED, "planner": {"policy": policy}, **more},
    )
    for device in values["devices"]:
        device["cut_range"] = [0, 2]
        if topology == "u_shaped":
            device |= {"tail_layers": 1, "tail_range": [0, 2]}
    return values


@cache
def fixed(topology: str, strategy: str = "fedavg") -> dict[str, np.ndarray]:
    with TemporaryDirectory() as name:
        more: dict[str, Any] = {"aggregation": {"strategy": strategy}}
        twin = Twin(Path(name), values_of(Path(name), topology, "fixed", **more))
        return adapter(finished(twin.run()))


def cuts(outcome: Outcome) -> list[dict[str, tuple[int, int]]]:
    """What the planner chose, round by round."""
    with contextlib.closing(JournalReader(outcome.folder)) as journal:
        events = [entry.event for entry in journal.entries()]
    planned = [event for event in events if isinstance(event, Planned)]
    return [{name: choice.at for name, choice in one.choices.items()} for one in planned]


def judged(outcome: Outcome, topology: str, strategy: str = "fedavg") -> None:
    assert outcome.summary["faults"] == []
    chosen = cuts(outcome)
    assert len(chosen) == ROUNDS
    assert all(len({one[name] for one in chosen}) > 1 for name in chosen[0]), "one never moved"
    assert chosen[1][MOVED] != chosen[0][MOVED] and chosen[2][MOVED] != chosen[1][MOVED], chosen
    assert_same_bits(adapter(outcome), fixed(topology, strategy))


TOPOLOGIES = ["vanilla", "u_shaped"]


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_cuts_that_move_every_round_change_no_bit(tmp_path: Path, topology: str) -> None:
    judged(finished(Twin(tmp_path, values_of(tmp_path, topology)).run()), topology)


@pytest.mark.parametrize("strategy", ["fedprox", "flora", "ffa_lora", "fedadam"])
def test_no_strategy_minds_a_cut_that_moves(tmp_path: Path, strategy: str) -> None:
    values = values_of(tmp_path, "vanilla", aggregation={"strategy": strategy})
    judged(finished(Twin(tmp_path, values).run()), "vanilla", strategy)


def killed(twin: Twin, device: str) -> None:
    """A device's process dies, and is started again."""
    threading.Timer(0.1, twin.loop.call_soon_threadsafe, [twin.start_device, device]).start()
    twin.lose(device)


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("dies", [False, True])
@pytest.mark.parametrize(("round_", "step"), [(2, 0), (3, 0), (3, 2)])
def test_who_is_lost_after_a_move_goes_back_to_the_point_before_it(
    tmp_path: Path, topology: str, dies: bool, round_: int, step: int
) -> None:
    twin = Twin(tmp_path, values_of(tmp_path, topology))
    twin.at(MOVED, round_, step, (lambda device: killed(twin, device)) if dies else twin.cut)
    judged(finished(twin.run()), topology)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_moved_part_goes_on_within_its_round(tmp_path: Path, topology: str) -> None:
    values = values_of(tmp_path, topology, recovery={"snapshot_steps": 1})
    twin = Twin(tmp_path, values)
    twin.at(MOVED, 3, 2, lambda device: killed(twin, device))
    outcome = finished(twin.run())
    judged(outcome, topology)
    log = (outcome.folder / "logs" / f"{MOVED}.log").read_text()
    assert "round 3 goes on after step" in log


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_real_processes_move_their_cuts(tmp_path: Path, topology: str) -> None:
    judged(finished(run(tmp_path, values_of(tmp_path, topology))), topology)


def selected(outcome: Outcome) -> list[set[str]]:
    """Who was to take part, round by round."""
    with contextlib.closing(JournalReader(outcome.folder)) as journal:
        events = [entry.event for entry in journal.entries()]
    planned = [event for event in events if isinstance(event, Planned)]
    return [{name for name, own in one.choices.items() if own.takes_part} for one in planned]


def test_who_was_not_chosen_keeps_its_moments_and_what_it_has_on_disk(tmp_path: Path) -> None:
    """Lost and back while others train, it goes on from its own last round, at another cut."""
    folders = [tmp_path / name for name in ("whole", "broken")]
    for folder in folders:
        folder.mkdir()
    planner = {"policy": "random", "select": 2}
    run = {"rounds": 6, "min_devices": 2}
    values = [values_of(folder, "vanilla") | {"planner": planner} for folder in folders]
    for own in values:
        own["run"] = {**own["run"], **run}
    whole = finished(Twin(folders[0], values[0]).run())
    chosen = selected(whole)
    assert all(len(names) == 2 for names in chosen) and len(chosen) == 6
    names = {"d0", "d1", "d2"}
    left_out = [(r, (names - own).pop()) for r, own in enumerate(chosen, 1) if r > 1]
    # One that has trained before, sits out, and trains again.
    round_, idle = next(
        (r, n)
        for r, n in left_out
        if any(n in own for own in chosen[: r - 1]) and any(n in own for own in chosen[r:])
    )
    busy = min(chosen[round_ - 1])
    twin = Twin(folders[1], values[1])
    twin.at(busy, round_, 1, lambda device: killed(twin, idle))
    outcome = finished(twin.run())
    assert f"device {idle} is away" in (outcome.folder / "logs" / "cloud.log").read_text()
    assert outcome.summary["faults"] == [] and selected(outcome) == chosen
    assert_same_bits(adapter(outcome), adapter(whole))
