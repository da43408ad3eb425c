"""A device that its configured cut does not fit takes part, where a planner may move the cut."""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from pathlib import Path
from typing import Any

import pytest

from device_agent import agent
from sfl.cli.launch.preflight import check_budgets
from sfl.errors import ConfigError
from sfl.models.folder import open_model
from sfl.models.memory.device_budget import device_load, fit_device
from sfl.planners import PLANNERS, Planner, Proposal, State
from sfl.report.plans import PLANS, read_plans
from tests.house.federation import finished
from tests.house.fleets import fleet
from tests.house.stills import digest
from tests.house.twin import Twin, played, prepared

BASE = 100_000_000
CUT = 2
"""Blocks that every device is configured to have, of three."""


def values(folder: Path, memory: int | None, **sections: Any) -> dict[str, Any]:
    """`memory` is what the second of two devices may use; both cut their batches to pieces."""
    found = fleet(folder, 2, **{"training": {"local_steps": 2}, **sections})
    for own in found["devices"]:
        own |= {"cut_layer": CUT, "micro_batches": 4}
    if memory is not None:
        found["devices"][1]["memory"] = memory
    return found


def least(folder: Path, cut_layer: int, base: int, returned: bool) -> int:
    """What a device needs for so many blocks, whatever it does to take less."""
    config = prepared(folder, values(folder, None))
    model, entry = open_model(config.model.path), config.devices[1]
    load = device_load(model, config.settings, config.rank(entry.name), "float32", "none")
    plan = config.settings.plan(entry.name, model.num_layers, cut_layer)

    def fits(memory: int) -> bool:
        own = entry.model_copy(update={"memory": memory})
        with contextlib.suppress(ConfigError):
            fit_device(model, plan, load, own, base, returned)
            return True
        return False

    return bisect_left(range(2 * BASE), True, key=fits)


def room(folder: Path, base: int = BASE, returned: bool = False) -> int:
    """For one block, and not for two; `returned`: freed memory goes back to the system."""
    one, two = least(folder, 1, base, returned), least(folder, CUT, base, returned)
    assert base < one < two
    return one


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    monkeypatch.setattr(agent, "working_bytes", lambda: BASE)
    for name in ("small", "usual"):
        (tmp_path / name).mkdir()
    return tmp_path / "small", tmp_path / "usual"


def _raises(state: State) -> Proposal:
    raise RuntimeError("out of ideas")


@pytest.mark.parametrize("planner", ["random", "failing"])
@pytest.mark.parametrize("micro_batches", [1, "auto"])
def test_it_joins_with_the_first_cut_that_fits_and_changes_no_bit(
    folders: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    planner: str,
    micro_batches: int | str,
) -> None:
    registry: Any = PLANNERS.built_in
    if planner == "failing":
        monkeypatch.setitem(registry, "random", Planner("random", _raises))
    small, usual = folders
    sections: dict[str, Any] = {
        "planner": {"policy": "random"},
        "training": {"local_steps": 2, "micro_batches": micro_batches},
    }
    memory = room(small)
    outcome = finished(played(small, values(small, memory, **sections)))
    faults = [fault["problem"] for fault in outcome.summary["faults"]]
    assert len(faults) == (3 if planner == "failing" else 0)
    assert all("out of ideas" in problem for problem in faults)
    if planner != "failing":
        first = read_plans(outcome.folder / PLANS, "planner.plans", with_state=True)[0]
        assert first.state is not None
        assert {own.name: own.at for own in first.state.devices} == {"d0": (2, 0), "d1": (1, 0)}
        cuts = {own["name"]: own["cuts"] for own in outcome.summary["devices"]}
        assert cuts["d1"] == [[1, 1, 0]]
    if micro_batches == 1:  # else timings choose the pieces
        sections["planner"] = {"policy": "off"}
        assert digest(outcome.folder) == digest(
            finished(played(usual, values(usual, None, **sections))).folder
        )


def test_a_device_that_comes_back_is_let_in_with_its_own_cut(folders: tuple[Path, Path]) -> None:
    small, usual = folders
    planner = {"planner": {"policy": "random"}}
    twin = Twin(small, values(small, room(small), **planner))
    twin.at("d1", 2, 1, twin.cut)
    outcome = finished(twin.run())
    assert {own["name"]: own["cuts"] for own in outcome.summary["devices"]}["d1"] == [[1, 1, 0]]
    expected = finished(played(usual, values(usual, None)))
    assert digest(outcome.folder) == digest(expected.folder)


@pytest.mark.parametrize("policy", ["off", "advice", "ucb", "fleet"])
def test_before_a_run_starts_it_is_told_only_where_no_cut_may_move(
    folders: tuple[Path, Path], policy: str
) -> None:
    """What the process takes by itself is left out there."""
    small, _ = folders
    memory = room(small, base=0, returned=True)
    config = prepared(small, values(small, None, planner={"policy": policy}))
    first, second = config.devices
    second = second.model_copy(update={"memory": memory})
    config = config.model_copy(update={"devices": (first, second)})
    model = open_model(config.model.path)
    if policy == "fleet":
        check_budgets(config, model)
    else:
        with pytest.raises(ConfigError, match=r"devices\.d1\.memory"):
            check_budgets(config, model)
