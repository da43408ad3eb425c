"""Many edges under one cloud: a device goes to another one, and takes its session along."""

from __future__ import annotations

import json
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from sfl.errors import RunFailed
from sfl.report.records import RoundRecord, read_records
from sfl.transport.cloud.words import EdgeFailed
from tests.house.federation import Outcome, finished
from tests.house.fleets import LASTING, SLOW, fleet
from tests.house.nodes import ManyEdges
from tests.house.proxy import Proxy
from tests.house.reference import adapter, assert_same_bits
from tests.house.twin import Twin
from tests.house.waiting import until

pytestmark = pytest.mark.process  # each takes seconds

UNCODED = {"activation": "none", "gradient": "none"}
RUNS: dict[str, dict[str, Any]] = {
    "vanilla": {"codec": UNCODED},
    "u_shaped": {"codec": UNCODED, "run": {"topology": "u_shaped"}},
    "compact": {"codec": {"activation": "compact", "gradient": "compact", "adapter": "int8"}},
    "flora": {"codec": UNCODED, "aggregation": {"strategy": "flora"}},
    "three_tier": {"codec": UNCODED, "run": {"topology": "three_tier"}, "stages": {"cuts": [2]}},
}
NORTH, SOUTH = "north", "south"
BOTH = {NORTH: ["d0", "d1"], SOUTH: ["d2", "d3"]}


def twin_of(
    folder: Path,
    name: str,
    *,
    edges: dict[str, list[str]] = BOTH,
    store: Path | None = None,
    devices: dict[str, dict[str, Any]] | None = None,
    **sections: Any,
) -> Twin:
    """Four devices at two edges; snapshots in `store`, where there is one."""
    values = dict(RUNS[name])
    run = {"min_devices": 4, "edges": [NORTH, SOUTH], **values.pop("run", {})}
    run |= sections.pop("run", {})
    training = {"local_steps": 4, **sections.pop("training", {})}
    network = {"failover_seconds": 0.0, **sections.pop("network", {})}
    shared = {} if store is None else {"snapshots": f"file://{store}"}
    values = fleet(
        folder,
        4,
        run=run,
        training=training,
        network=network,
        edge={"name": NORTH, **shared},
        **values,
        **sections,
    )
    for device in values["devices"]:
        if run.get("topology") == "u_shaped":
            device["tail_layers"] = 1
        device |= (devices or {}).get(device["name"], {})
    return Twin(folder, values, edges=edges)


@cache
def undisturbed(name: str) -> dict[str, np.ndarray]:
    with TemporaryDirectory() as folder:
        return adapter(finished(twin_of(Path(folder), name).run()))


def at(outcome: Outcome) -> dict[str, tuple[str, int]]:
    """Where each device was in the end, and how often it had moved."""
    status = json.loads((outcome.folder / "status.json").read_text())
    return {own["name"]: (own["edge"], own["handovers"]) for own in status["devices"]}


@pytest.mark.parametrize("step", [0, 2])
@pytest.mark.parametrize("name", RUNS)
def test_an_edge_that_dies_loses_no_bit_of_its_devices(
    tmp_path: Path, name: str, step: int
) -> None:
    twin = twin_of(tmp_path, name, store=tmp_path / "store")
    twin.at("d2", 2, step, lambda _: twin.lose_edge(SOUTH))
    outcome = finished(twin.run())
    assert outcome.summary["faults"] == []
    assert_same_bits(adapter(outcome), undisturbed(name))
    assert at(outcome) == {
        "d0": (NORTH, 0),
        "d1": (NORTH, 0),
        "d2": (NORTH, 1),
        "d3": (NORTH, 1),
    }
    assert not any(path.is_file() for path in (tmp_path / "store").rglob("*"))


def test_devices_of_an_edge_that_has_lost_its_cloud_for_good_go_to_the_other_one(
    tmp_path: Path,
) -> None:
    twin = twin_of(tmp_path, "vanilla", store=tmp_path / "store", network={"rejoin_timeout": 1.0})

    def cut(_: str) -> None:
        twin.servers[SOUTH].cloud._new_channel = lambda: twin.services.aio_channel("nowhere")
        twin.loop.call_soon_threadsafe(twin.channels[SOUTH].cut)

    twin.at("d2", 2, 1, cut)
    outcome = finished(twin.run())
    assert at(outcome) == {"d0": (NORTH, 0), "d1": (NORTH, 0), "d2": (NORTH, 1), "d3": (NORTH, 1)}
    assert_same_bits(adapter(outcome), undisturbed("vanilla"))


def test_the_run_goes_on_without_an_edge_that_cannot_and_with_its_devices(tmp_path: Path) -> None:
    """And the stage behind it is not told that the run is over."""
    twin = twin_of(tmp_path, "three_tier", store=tmp_path / "store", stage={"threads": 1})

    def fails(_: str) -> None:
        twin.loop.call_soon_threadsafe(twin.servers[SOUTH].cloud.post, EdgeFailed("a full disk"))

    twin.at("d2", 2, 1, fails)
    outcome = finished(twin.run())
    assert at(outcome) == {"d0": (NORTH, 0), "d1": (NORTH, 0), "d2": (NORTH, 1), "d3": (NORTH, 1)}
    assert [(f["node"], f["problem"]) for f in outcome.summary["faults"]] == [
        ("edge", "edge south: a full disk")
    ]
    assert isinstance(twin.ended[SOUTH], RunFailed) and twin.ended["stage"] is None
    assert_same_bits(adapter(outcome), undisturbed("three_tier"))


def test_an_edge_whose_model_is_still_copied_is_started_again_and_its_devices_come_back(
    tmp_path: Path,
) -> None:
    twin = Twin(tmp_path, fleet(tmp_path, 2, run={"min_devices": 2}, edge={"name": NORTH}))
    model, there = twin.config.model.path, tmp_path / "copied"
    there.mkdir()
    edge = twin.config.edge.model_copy(update={"model": str(there)})
    twin.config = twin.config.model_copy(update={"edge": edge})

    async def story(twin: Twin) -> None:
        await twin.until(lambda: NORTH in twin.ended)
        assert "waiting for edge north to be started again" in twin.cloud.records.told.message
        shutil.copytree(model, there, dirs_exist_ok=True)
        twin.restart_edge(NORTH)

    outcome = finished(twin.run(story))
    assert [fault["node"] for fault in outcome.summary["faults"]] == ["edge"]
    assert {twin.ended["d0"], twin.ended["d1"]} == {None}


def test_without_a_store_what_is_lost_is_said(tmp_path: Path) -> None:
    twin = twin_of(tmp_path, "vanilla")
    twin.at("d2", 2, 1, lambda _: twin.lose_edge(SOUTH))
    outcome = finished(twin.run())
    said = {fault["node"]: fault["problem"] for fault in outcome.summary["faults"]}
    assert said.keys() == {"d2", "d3"}
    assert all("moments start afresh" in problem for problem in said.values())
    assert at(outcome)["d2"] == (NORTH, 1)


@pytest.mark.parametrize("name", RUNS)
def test_a_device_that_asks_goes_as_the_next_round_begins(tmp_path: Path, name: str) -> None:
    twin = twin_of(tmp_path, name, store=tmp_path / "store")
    for device in ("d0", "d3"):
        twin.at(device, 1, 2, lambda who: twin.agents[who].roaming.ask())
    outcome = finished(twin.run())
    assert outcome.summary["faults"] == []
    assert_same_bits(adapter(outcome), undisturbed(name))
    assert at(outcome) == {
        "d0": (SOUTH, 1),
        "d1": (NORTH, 0),
        "d2": (SOUTH, 0),
        "d3": (NORTH, 1),
    }


def test_what_edges_add_up_follows_their_devices(tmp_path: Path) -> None:
    """A device that has moved is in the sum of its new edge; the same bits as at the cloud."""
    found = {}
    for sums in ("by_edge", "at_edges"):
        (folder := tmp_path / sums).mkdir()
        own = {"store": folder / "store", "aggregation": {"sums": sums}}
        twin = twin_of(folder, "vanilla", **own)
        twin.at("d0", 1, 2, lambda who, twin=twin: twin.agents[who].roaming.ask())
        twin.at("d3", 2, 2, lambda _, twin=twin: twin.lose_edge(SOUTH))
        outcome = finished(twin.run())
        assert outcome.summary["faults"] == []
        assert at(outcome)["d0"] == (NORTH, 2) and at(outcome)["d3"] == (NORTH, 1)
        found[sums] = adapter(outcome)
    assert_same_bits(found["at_edges"], found["by_edge"])


def test_the_cloud_gives_a_device_the_edge_that_is_configured(tmp_path: Path) -> None:
    named = {"d0": {"edge": SOUTH}, "d3": {"edge": NORTH}}
    twin = twin_of(tmp_path, "vanilla", devices=named)
    outcome = finished(twin.run())
    assert_same_bits(adapter(outcome), undisturbed("vanilla"))
    # One that came before its edge was there is handed over as the first round begins.
    assert {name: edge for name, (edge, _) in at(outcome).items()} == {
        "d0": SOUTH,
        "d1": NORTH,
        "d2": SOUTH,
        "d3": NORTH,
    }
    moves = {name: handovers for name, (_, handovers) in at(outcome).items()}
    assert moves["d1"] == moves["d2"] == 0 and max(moves.values()) <= 1


def test_the_least_loaded_edge_gets_the_next_device(tmp_path: Path) -> None:
    everybody = {NORTH: ["d0", "d1", "d2", "d3"], SOUTH: []}
    twin = twin_of(tmp_path, "vanilla", edges=everybody, run={"placement": "least_loaded"})
    outcome = finished(twin.run())
    assert outcome.summary["faults"] == []
    assert_same_bits(adapter(outcome), undisturbed("vanilla"))
    edges = [edge for edge, _ in at(outcome).values()]
    assert edges.count(NORTH) == edges.count(SOUTH) == 2


def test_devices_go_to_the_nearest_edge_and_follow_as_they_move(tmp_path: Path) -> None:
    everybody = {NORTH: ["d0", "d1", "d2", "d3"], SOUTH: []}
    near = {"placement": "nearest"}
    twin = twin_of(tmp_path, "vanilla", edges=everybody, store=tmp_path / "store", run=near)
    for device, (north, south) in {
        "d0": (0.01, 0.05),
        "d1": (0.05, 0.01),
        "d2": (0.05, 0.01),
        "d3": (0.01, 0.05),
    }.items():
        twin.trips |= {(device, NORTH): north, (device, SOUTH): south}

    def walk(device: str) -> None:
        twin.trips |= {(device, NORTH): 0.004, (device, SOUTH): 0.03}

    twin.at("d2", 1, 3, walk)
    outcome = finished(twin.run())
    assert outcome.summary["faults"] == []
    assert_same_bits(adapter(outcome), undisturbed("vanilla"))
    assert {name: edge for name, (edge, _) in at(outcome).items()} == {
        "d0": NORTH,
        "d1": SOUTH,
        "d2": NORTH,
        "d3": NORTH,
    }


@pytest.mark.parametrize("every", [1, 2])
def test_pairing_gives_each_edge_one_device_a_round(tmp_path: Path, every: int) -> None:
    """SplitLLM: with N devices on M edges everybody has had a turn after N / M rounds."""
    twin = twin_of(
        tmp_path,
        "vanilla",
        edges={NORTH: ["d0", "d1", "d2", "d3"], SOUTH: []},
        store=tmp_path / "store",
        planner={"policy": "pairing", "every_rounds": every},
        run={"rounds": 4, "min_devices": 2},
    )
    outcome = finished(twin.run())
    assert outcome.summary["faults"] == []
    trained = {number: names for number, names in _who_trained(outcome).items() if number <= 4}
    assert [len(names) for names in trained.values()] == [2, 2, 2, 2]
    turns = Counter(name for names in trained.values() for name in names)
    assert turns == dict.fromkeys(("d0", "d1", "d2", "d3"), 2)
    if every == 1:
        assert trained[1] | trained[2] == trained[3] | trained[4] == {"d0", "d1", "d2", "d3"}


@cache
def whole(topology: str = "vanilla") -> dict[str, np.ndarray]:
    """What the same run comes to where nobody moves."""
    with TemporaryDirectory() as name:
        folder, run = Path(name), {**SECTIONS["run"], "topology": topology}
        values = fleet(folder, 4, **{**SECTIONS, "run": run})
        return adapter(finished(Twin(folder, values, edges=BOTH).run()))


def in_round(nodes: ManyEdges, name: str, round_: int) -> bool:
    """Whether a device is in the middle of a round."""
    status = nodes.status()
    steps = {own["name"]: own["step"] for own in status.get("devices", ())}
    return status.get("round", 0) == round_ and steps.get(name, 0) > 3


@pytest.fixture
def by_hand(tmp_path: Path) -> Iterator[Callable[..., ManyEdges]]:
    started: list[ManyEdges] = []

    def start(sections: dict[str, Any], slow: str) -> ManyEdges:
        values = fleet(tmp_path, 4, **sections)
        for entry in values["devices"]:
            if entry["name"] == slow:  # so that it is in the middle of a round for seconds
                entry["link"] = dict(SLOW)
        started.append(ManyEdges(tmp_path, values, (NORTH, SOUTH)))
        return started[-1]

    yield start
    for nodes in started:
        nodes.stop()


SECTIONS: dict[str, Any] = {
    "run": {"min_devices": 4, "edges": [NORTH, SOUTH]},
    "training": LASTING,
    "network": {"failover_seconds": 1.0},
    "edge": {"name": NORTH},
}


@pytest.mark.parametrize("topology", ["vanilla", "u_shaped"])
def test_devices_of_an_edge_that_is_killed_go_to_the_other_one(
    by_hand: Callable[..., ManyEdges], tmp_path: Path, topology: str
) -> None:
    sections = SECTIONS | {"run": {**SECTIONS["run"], "topology": topology}}
    nodes = by_hand(sections, "d2")
    for number, edge in enumerate((NORTH, NORTH, SOUTH, SOUTH)):
        nodes.device(number, edge=nodes.addresses[edge])
    until(lambda: in_round(nodes, "d2", 2), "steps of round 2")
    nodes.edges[SOUTH].kill()
    outcome = finished(nodes.outcome())
    assert outcome.summary["faults"] == []
    assert "device d2 is back; it goes on after step 12 of round 1" in nodes.log("cloud")
    assert at(outcome)["d2"] == at(outcome)["d3"] == (NORTH, 1)
    assert_same_bits(adapter(outcome), whole(topology))
    assert not list((tmp_path / "store").rglob("*.safetensors"))


def test_a_device_that_is_told_to_asks_for_another_edge(
    by_hand: Callable[..., ManyEdges], tmp_path: Path
) -> None:
    nodes = by_hand(SECTIONS, "d1")
    edges = (NORTH, NORTH, SOUTH, SOUTH)
    devices = [nodes.device(n, edge=nodes.addresses[edge]) for n, edge in enumerate(edges)]
    until(lambda: in_round(nodes, "d1", 1), "steps of round 1")
    devices[1].send_signal(signal.SIGUSR1)
    outcome = finished(nodes.outcome())
    assert outcome.summary["faults"] == []
    assert at(outcome)["d1"] == (SOUTH, 1)
    assert_same_bits(adapter(outcome), whole())


def test_a_device_follows_the_shorter_round_trip(
    by_hand: Callable[..., ManyEdges], tmp_path: Path
) -> None:
    """A link grows long while the device trains, as that of one that walks away."""
    sections = SECTIONS | {"run": {**SECTIONS["run"], "placement": "nearest"}}
    nodes = by_hand(sections, "d3")
    with Proxy(nodes.addresses[NORTH]) as north, Proxy(nodes.addresses[SOUTH], trip=0.1) as south:
        listed = f'edges = {{{NORTH} = "{north.address}", {SOUTH} = "{south.address}"}}\n'
        for number in range(3):
            nodes.device(number, edge=nodes.addresses[NORTH])
        nodes.device(3, edge=south.address, more=listed)
        until(lambda: in_round(nodes, "d3", 1), "steps of round 1")
        assert nodes.places()["d3"] == (NORTH, 0)
        north.trip, south.trip = 0.1, 0.0
        outcome = finished(nodes.outcome())
    assert outcome.summary["faults"] == []
    assert at(outcome)["d3"] == (SOUTH, 1)
    assert_same_bits(adapter(outcome), whole())


def _who_trained(outcome: Outcome) -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for record in read_records(outcome.folder / "metrics.jsonl"):
        if isinstance(record, RoundRecord) and record.train_loss is not None:
            found.setdefault(record.round, set()).add(record.device)
    return dict(sorted(found.items()))
