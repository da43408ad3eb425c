"""The federation in one process (`tests.house.twin`): what it leaves, and what may go wrong."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.house.federation import finished
from tests.house.fleets import completions, device, fleet, settings, tiny
from tests.house.named import RUNS, Runs
from tests.house.reference import adapter, assert_same_bits
from tests.house.twin import Twin, played


def pair(folder: Path, topology: str) -> dict[str, Any]:
    values = settings(tiny("llama"), run={"topology": topology}, codec={"adapter": "int8 | zstd"})
    values["devices"] = [
        device(name, completions(folder / f"{name}.jsonl", seed), cut)
        for name, seed, cut in (("a", 1, 1), ("b", 2, 2))
    ]
    return values


@pytest.mark.process
@pytest.mark.parametrize("name", ["vanilla", "u_shaped"])
def test_one_process_leaves_the_adapter_that_processes_leave(
    runs: Runs, tmp_path: Path, name: str
) -> None:
    real = runs(name)
    twin = finished(played(tmp_path, RUNS[name].values(tmp_path)))
    assert_same_bits(adapter(twin), adapter(real))
    assert_same_bits(adapter(twin, "adapter_best"), adapter(real, "adapter_best"))
    of_real, of_twin = real.summary, twin.summary
    assert of_twin.keys() == of_real.keys()
    for key in ("eval_loss_before", "eval_loss_after", "tokens_trained", "faults"):
        assert of_twin[key] == of_real[key], key
    # Activations and gradients to the byte; a report's own statistics differ in their digits.
    for ours, theirs in zip(of_twin["devices"], of_real["devices"], strict=True):
        for way in ("bytes_up_by_role", "bytes_down_by_role"):
            for role in ("activation", "gradient", "evaluation"):
                assert ours[way].get(role) == theirs[way].get(role), (way, role)
    left = {path.name for path in real.folder.iterdir()} - {"nodes"}
    assert {path.name for path in twin.folder.iterdir()} == left


def test_a_device_that_is_lost_leaves_its_round_and_the_run_goes_on(tmp_path: Path) -> None:
    values = fleet(tmp_path, run={"min_devices": 2}, training={"local_steps": 4})
    values["network"] = {"rejoin_timeout": 0.0}
    twin = Twin(tmp_path, values)
    twin.at("d2", 2, 1, twin.lose)
    outcome = finished(twin.run())
    (fault,) = outcome.summary["faults"]
    assert (fault["round"], fault["node"]) == (2, "d2")
    assert "the stream broke" in fault["problem"]
    assert outcome.summary["rounds"] == 3


def test_a_link_that_breaks_is_dialled_again(tmp_path: Path) -> None:
    """What of the round was done is done again, and nobody can tell by the adapter."""
    values = fleet(tmp_path, run={"min_devices": 2}, training={"local_steps": 4})
    for name in ("cut", "whole"):
        (tmp_path / name).mkdir()
    twin, undisturbed = Twin(tmp_path / "cut", values), Twin(tmp_path / "whole", values)
    twin.at("d2", 1, 2, twin.cut)
    outcome = finished(twin.run())
    assert outcome.summary["faults"] == []
    assert "joining again" in (outcome.folder / "logs" / "d2.log").read_text()
    joined = [line for line in outcome.logs().splitlines() if "device d2 joined" in line]
    assert len(joined) == 2
    assert adapter_of(outcome) == adapter_of(finished(undisturbed.run()))


def adapter_of(outcome: Any) -> bytes:
    return (outcome.folder / "adapter" / "adapter_model.safetensors").read_bytes()


def slow(folder: Path, **network: Any) -> Twin:
    """A run whose device d2 stops computing in the first round."""
    values = fleet(
        folder,
        run={"min_devices": 2},
        training={"local_steps": 4},
        network={"idle_timeout": 90000.0, **network},
    )
    twin = Twin(folder, values)
    twin.at("d2", 1, 2, twin.hold)
    return twin


def test_a_round_closes_at_its_deadline_without_who_is_missing(tmp_path: Path) -> None:
    twin = slow(tmp_path, straggler_factor="off", round_timeout=1000.0)

    async def story(twin: Twin) -> None:
        await twin.until(
            lambda: twin.held == {"d2"} and twin.cloud.coordinator.state.open.num_done == 2
        )
        twin.move(999.0)
        await asyncio.sleep(0.01)
        assert twin.cloud.coordinator.round == 1
        twin.move(2.0)
        await twin.until(lambda: twin.cloud.coordinator.round == 2)
        twin.release("d2")

    outcome = finished(twin.run(story))
    (fault,) = outcome.summary["faults"]
    assert (fault["round"], fault["node"]) == (1, "d2")
    assert "1000 s" in fault["problem"]


def test_who_stands_still_is_left_out_once_the_others_are_done(tmp_path: Path) -> None:
    twin = slow(tmp_path, straggler_seconds=300.0)

    async def story(twin: Twin) -> None:
        await twin.until(lambda: twin.held == {"d2"} and twin.done() == {"d0", "d1"})
        while twin.cloud.coordinator.round == 1:
            twin.move(100.0)
            await asyncio.sleep(0.05)
        assert twin.clock.now >= 300.0
        twin.release("d2")

    outcome = finished(twin.run(story))
    (fault,) = outcome.summary["faults"]
    assert (fault["round"], fault["node"]) == (1, "d2")
    assert "nothing moved for" in fault["problem"]


def test_devices_of_two_edges_average_as_those_of_one(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one = finished(played(tmp_path / "one", pair(tmp_path, "vanilla")))
    values = pair(tmp_path, "vanilla")
    values["run"]["edges"] = ["north", "south"]
    values["edge"]["name"] = "north"
    twin = Twin(tmp_path / "two", values, edges={"north": ["a"], "south": ["b"]})
    two = finished(twin.run())
    assert_same_bits(adapter(two), adapter(one))
    assert {edge["name"] for edge in two.summary["edges"]} == {"north", "south"}


def test_a_run_goes_on_without_an_edge_that_is_lost(tmp_path: Path) -> None:
    values = fleet(tmp_path, run={"min_devices": 2, "edges": ["north", "south"]})
    values["training"]["local_steps"] = 4
    values["network"] = {"rejoin_timeout": 0.0}
    values["edge"]["name"] = "north"
    twin = Twin(tmp_path, values, edges={"north": ["d0", "d1"], "south": ["d2"]})
    twin.at("d2", 2, 1, lambda _: twin.lose_edge("south"))
    outcome = finished(twin.run())
    assert any(fault["node"] == "d2" for fault in outcome.summary["faults"])
    assert outcome.summary["rounds"] == 3
