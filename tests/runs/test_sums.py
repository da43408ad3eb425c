"""Edges add up what their devices train: the adapter is the cloud's own sum of sums, to the bit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloud_aggregator.averaging import Averaging
from edge_server.host import DeviceHost
from edge_server.kept import Kept, KeptUpdates
from sfl.config import load_run
from sfl.node.certificates.authority import Authority
from sfl.node.certificates.identity import Role
from sfl.node.certificates.own import OwnCertificate, load_own, settings_in
from sfl.report.journal import SqliteJournal, read_journal
from sfl.rounds import AdapterReady, Phase
from sfl.rounds.values import Assignment, HeldUpdate, SumOrder
from sfl.transport import dialling
from sfl.transport.frames import chunks
from sfl.transport.frames.chunks import adapter_bytes, decode_adapter
from tests.house.cuts import Cuts, CutTwin
from tests.house.federation import Outcome, finished
from tests.house.fleets import completions, device, settings, tiny
from tests.house.nodes import ManyEdges
from tests.house.reference import adapter, assert_same_bits
from tests.house.stills import over, stills_of_twin
from tests.house.tls import give
from tests.house.twin import Twin
from tests.house.waiting import until

pytestmark = pytest.mark.process  # each takes seconds

EDGES = {"north": ["a", "c"], "south": ["b", "d"]}
APART = 19
"""Messages between two breaks of a link: more than it takes to join again."""


def values(folder: Path, sums: str, **sections: dict[str, Any]) -> dict[str, Any]:
    """Two edges with two devices each, of different cuts and numbers of examples."""
    own = {**sections, "aggregation": {"sums": sums, **sections.get("aggregation", {})}}
    found = settings(tiny("llama"), **own)
    tail = {"tail_layers": 1} if found["run"].get("topology") == "u_shaped" else {}
    found["run"]["edges"] = list(EDGES)
    found["edge"]["name"] = "north"
    found["devices"] = [
        device(name, completions(folder / f"{name}.jsonl", seed, 9 + 5 * seed), seed % 2, **tail)
        for seed, name in enumerate("abcd")
    ]
    return found


def twin(folder: Path, sums: str, kind: type[Twin] = Twin, **sections: dict[str, Any]) -> Twin:
    folder.mkdir()
    return kind(folder, values(folder, sums, **sections), edges=EDGES)


def averages(outcome: Outcome) -> list[AdapterReady]:
    journal = read_journal(load_run(outcome.folder / "config.toml"), outcome.folder)
    assert journal is not None
    events = [entry.event for entry in journal.entries()]
    journal.close()
    return [event for event in events if isinstance(event, AdapterReady)]


def sent(own: Twin) -> dict[str, int]:
    """Bytes of adapters and sums that each edge has sent the cloud."""
    return {
        name: server.stats.snapshot().bytes.up["adapter"] for name, server in own.servers.items()
    }


def delivered(own: Twin) -> set[str]:
    """Devices that have delivered all of the open round."""
    return {name for name, part in own.cloud.coordinator.progress.items() if part.done}


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"run": {"topology": "u_shaped"}},
        {"run": {"topology": "three_tier"}, "stages": {"cuts": [2]}},
        {"run": {"topology": "three_tier"}, "stages": {"cuts": [2], "adapters": "shared"}},
        {"codec": {"adapter": "int8"}},
        {"aggregation": {"strategy": "fedadam"}},
        {"aggregation": {"strategy": "ffa_lora"}},
        {"aggregation": {"max_update_norm": 0.02, "large_updates": "clip"}},
        {"aggregation": {"max_update_norm": "off"}},
        {"aggregation": {"max_weight_share": 0.3}},
    ],
    ids=lambda own: "-".join(str(v) for section in own.values() for v in section.values()),
)
def test_the_adapter_is_that_of_the_same_sums_made_at_the_cloud(
    tmp_path: Path, sections: dict[str, Any]
) -> None:
    cloud, edges = (twin(tmp_path / sums, sums, **sections) for sums in ("by_edge", "at_edges"))
    expected, found = finished(cloud.run()), finished(edges.run())
    assert_same_bits(adapter(found), adapter(expected))
    assert found.summary["faults"] == expected.summary["faults"]
    lengths = [own.norms for own in averages(found)]
    assert lengths == [own.norms for own in averages(expected)]
    flat = finished(twin(tmp_path / "flat", "flat", **sections).run())
    for name, array in adapter(flat).items():
        np.testing.assert_allclose(adapter(found)[name], array, rtol=1e-5, atol=1e-7)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The adapter of the same run, whose cloud adds up what edges send."""
    return adapter(finished(twin(tmp_path_factory.mktemp("sums") / "cloud", "by_edge").run()))


def test_edges_send_one_sum_each_and_no_update(
    tmp_path: Path, expected: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    files: set[str] = set()
    forget = Averaging.forget_before

    def seen(own: Averaging, *rounds: Any) -> None:
        files.update(path.name for path in own.spool.folder.glob("*/*"))
        forget(own, *rounds)

    monkeypatch.setattr(Averaging, "forget_before", seen)
    cloud, edges = twin(tmp_path / "cloud", "by_edge"), twin(tmp_path / "edges", "at_edges")
    finished(cloud.run())
    assert files == {f"{name}.{side}.safetensors" for name in "abcd" for side in ("device", "edge")}
    files.clear()
    assert_same_bits(adapter(finished(edges.run())), expected)
    assert files == {f"{name}.sum-1.safetensors" for name in EDGES}
    values = 4 * sum(array.size for array in expected.values())
    rounds = 2
    for name, size in sent(edges).items():
        # Two devices in float32 are as many bytes as their sum in float64; with more it is less.
        assert 2 * values * rounds < size < 2 * values * rounds * 1.25
        assert size <= sent(cloud)[name]


@pytest.mark.parametrize("later", [False, True], ids=["lost", "arrived"])
def test_a_link_to_the_cloud_that_breaks_at_any_message_changes_no_bit(
    tmp_path: Path,
    expected: dict[str, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    later: bool,
) -> None:
    monkeypatch.setattr(dialling, "SHORTEST_PAUSE", 0.01)
    monkeypatch.setattr(dialling, "LONGEST_PAUSE", 0.02)
    monkeypatch.setattr(chunks, "FRAME_BYTES", 20_000)
    broken: set[str] = set()
    for first in range(5, 5 + APART, 4):
        cuts = Cuts(lambda number, at=first: number in range(at, at + 5 * APART, APART), later)
        folder = tmp_path / str(first)
        folder.mkdir()
        own = CutTwin(folder, values(folder, "at_edges"), cuts, EDGES)
        assert_same_bits(adapter(finished(own.run())), expected)
        broken |= set(cuts.done)
    assert len(broken) >= 3


def test_a_device_that_is_lost_after_it_delivered_counts(
    tmp_path: Path, expected: dict[str, np.ndarray]
) -> None:
    own = twin(tmp_path / "lost", "at_edges", run={"rounds": 1})
    own.at("d", 1, 3, own.hold)

    async def story(twin: Twin) -> None:
        await twin.until(lambda: delivered(twin) >= {"a"} and twin.held == {"d"})
        twin.lose("a")
        await twin.until(lambda: "a" in twin.ended)
        twin.release("d")
        await twin.until(lambda: twin.cloud.coordinator.phase is Phase.WAITING)
        twin.start_device("a")

    outcome = finished(own.run(story))
    alone = finished(twin(tmp_path / "whole", "by_edge", run={"rounds": 1}).run())
    assert_same_bits(adapter(outcome), adapter(alone))


def kill(twin: Twin, edge: str) -> None:
    """As its process is: it never finds its cloud again."""
    nowhere = twin.services.aio_channel("nowhere")
    link: Any = twin.servers[edge].cloud
    link._new_channel = lambda: nowhere
    twin.lose_edge(edge)


@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
def test_an_edge_that_is_killed_has_what_it_kept_trained_again(
    tmp_path: Path, expected: dict[str, np.ndarray], closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cloud has heard of updates that die with their edge, before a round closes or after."""
    own = twin(tmp_path / "killed", "at_edges")
    again: list[str] = []
    if not closed:
        own.at("d", 1, 3, own.hold)
    dies = asyncio.Event()
    add_up = DeviceHost.add_up

    def held_up(host: DeviceHost, order: SumOrder) -> None:
        if "a" in order.shares and not dies.is_set():
            dies.set()
        else:
            add_up(host, order)

    if closed:
        monkeypatch.setattr(DeviceHost, "add_up", held_up)

    async def story(twin: Twin) -> None:
        if closed:
            await twin.until(dies.is_set)
        else:
            await twin.until(lambda: delivered(twin) >= {"a", "c"} and twin.held == {"d"})
        task = twin._edge_tasks["north"]
        kill(twin, "north")
        await asyncio.wait({task})
        for name in EDGES["north"]:
            twin.at(name, 1, 0, again.append)
        twin._edge_tasks["north"] = twin.loop.create_task(twin._edge("north"))
        await twin.until(lambda: len(again) == 2)
        twin.release("d")

    outcome = finished(own.run(story))
    assert sorted(again) == ["a", "c"]
    assert_same_bits(adapter(outcome), expected)
    assert [fault for fault in outcome.summary["faults"] if fault["node"]] == []


@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
def test_devices_of_an_edge_that_dies_train_again_at_another_one(
    tmp_path: Path, expected: dict[str, np.ndarray], closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With their sessions, by a store that edges share. Added up elsewhere: equal to rounding."""
    network = {"failover_seconds": 0.0}
    edge = {"snapshots": f"file://{tmp_path / 'store'}"}
    own = twin(tmp_path / "dies", "at_edges", network=network, edge=edge)
    dies = asyncio.Event()
    add_up = DeviceHost.add_up

    def dying(host: DeviceHost, order: SumOrder) -> None:
        if "a" in order.shares and order.round == 2 and not dies.is_set():
            dies.set()
        else:
            add_up(host, order)

    if closed:
        monkeypatch.setattr(DeviceHost, "add_up", dying)
    else:
        own.at("d", 2, 3, own.hold)

    async def story(twin: Twin) -> None:
        if closed:
            await twin.until(dies.is_set)
        else:
            await twin.until(lambda: delivered(twin) >= {"a", "c"} and twin.held == {"d"})
        kill(twin, "north")
        await twin.until(lambda: set("ac") <= set(twin.cloud.coordinator.state.roster.at("south")))
        twin.release("d")

    outcome = finished(own.run(story))
    assert [fault for fault in outcome.summary["faults"] if fault["node"]] == []
    for name, array in adapter(outcome).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-6, atol=1e-8)
    assert set(averages(outcome)[-1].norms) == set("abcd")


class Signed(Twin):
    """Devices sign what they deliver."""

    @cached_property
    def authority(self) -> Authority:
        return Authority.init(self.folder / "ca")[0]

    def certificate(self, role: Role, name: str) -> OwnCertificate | None:
        folder = self.folder / "certs" / name
        if not folder.exists():
            give(self.authority, folder, role, name, *(() if role == "device" else ("127.0.0.1",)))
        return load_own("tls", settings_in(folder, name), role, name)


def test_devices_sign_updates_that_stay_at_their_edge(
    tmp_path: Path, expected: dict[str, np.ndarray]
) -> None:
    outcome = finished(twin(tmp_path / "signed", "at_edges", Signed).run())
    assert_same_bits(adapter(outcome), expected)
    assert outcome.summary["faults"] == []


def test_an_edge_cannot_say_that_a_device_delivered_what_it_did_not_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = KeptUpdates.measure

    def forged(own: KeptUpdates, told: Assignment, parts: Any) -> tuple[Kept, HeldUpdate]:
        kept, held = measure(own, told, parts)
        return kept, replace(held, digest=bytes(32)) if held.device == "a" else held

    monkeypatch.setattr(KeptUpdates, "measure", forged)
    run = {"rounds": 1, "min_devices": 3}
    outcome = finished(twin(tmp_path / "forged", "at_edges", Signed, run=run).run())
    assert "edge north: its update is not signed by it" in outcome.logs()
    assert any(fault["node"] == "a" for fault in outcome.summary["faults"])


def test_an_edge_whose_sum_is_longer_than_the_updates_in_it_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_up = KeptUpdates.add_up

    def forged(own: KeptUpdates, devices: Any) -> bytes:
        values = decode_adapter(add_up(own, devices))
        if {one.device for one in devices} == {"a", "c"}:
            values = {name: 1.5 * array for name, array in values.items()}
        return adapter_bytes(values)

    monkeypatch.setattr(KeptUpdates, "add_up", forged)
    run, network = {"rounds": 1, "min_devices": 2}, {"rejoin_timeout": 0.0}
    own = twin(tmp_path / "forged", "at_edges", run=run, network=network)
    outcome = finished(own.run())
    said = "sum of edge north: its mean has changed by"
    assert said in outcome.logs() and "sum of edge north" in str(own.ended["north"])
    assert {fault["node"] for fault in outcome.summary["faults"]} >= {"a", "c"}
    (first, last) = averages(outcome)
    assert (first.round, set(last.norms)) == (0, {"b", "d"})


def test_an_update_that_is_too_long_is_refused_and_in_no_sum(tmp_path: Path) -> None:
    run, bound = {"rounds": 1, "min_devices": 2}, {"max_update_norm": 0.3}
    cloud, edges = (
        twin(tmp_path / sums, sums, run=run, aggregation=bound) for sums in ("by_edge", "at_edges")
    )
    expected, found = finished(cloud.run()), finished(edges.run())
    assert_same_bits(adapter(found), adapter(expected))
    told = [(fault["node"], fault["problem"]) for fault in found.summary["faults"]]
    assert told == [(fault["node"], fault["problem"]) for fault in expected.summary["faults"]]
    assert any("its update has norm" in problem for _, problem in told)


def test_a_cloud_killed_between_any_two_writes_goes_on(
    tmp_path: Path, expected: dict[str, np.ndarray]
) -> None:
    """With its edges, so that what they kept is trained again."""
    own = twin(tmp_path / "whole", "at_edges")
    whole, stills = stills_of_twin(tmp_path, own, [(SqliteJournal, "_write")])
    assert_same_bits(adapter(finished(whole)), expected)
    for still, _ in stills.taken[::4]:
        if over(still):
            continue
        resumed = Twin(tmp_path, {}, EDGES, resume=still)
        assert_same_bits(adapter(finished(resumed.run())), expected)


@pytest.fixture
def by_hand() -> Iterator[Callable[[Path, dict[str, Any]], ManyEdges]]:
    """Starts a run's nodes as processes."""
    started: list[ManyEdges] = []

    def start(folder: Path, own: dict[str, Any]) -> ManyEdges:
        nodes = ManyEdges(folder, own, list(EDGES))
        started.append(nodes)
        for number, name in enumerate("abcd"):
            edge = next(edge for edge, names in EDGES.items() if name in names)
            nodes.device(number, edge=nodes.addresses[edge])
        return nodes

    yield start
    for nodes in started:
        nodes.stop()


@pytest.mark.parametrize("sums", ["by_edge", "at_edges"])
def test_real_processes_of_two_edges(
    tmp_path: Path, expected: dict[str, np.ndarray], by_hand: Any, sums: str
) -> None:
    outcome = finished(by_hand(tmp_path, values(tmp_path, sums)).outcome())
    assert_same_bits(adapter(outcome), expected)


def test_a_real_edge_that_is_killed_with_its_updates(tmp_path: Path, by_hand: Any) -> None:
    more: dict[str, dict[str, Any]] = {
        "training": {"local_steps": 20},
        "network": {"failover_seconds": 1.0},
    }
    (tmp_path / "killed").mkdir()
    own = values(tmp_path / "killed", "at_edges", **more)
    own["devices"][3]["link"] = {"delay_ms": 40}  # d is in the middle of a round for seconds
    nodes = by_hand(tmp_path / "killed", own)

    def has_updates() -> bool:
        status = nodes.status()
        steps = {own["name"]: own["step"] for own in status.get("devices", ())}
        return status.get("round") == 2 and steps["a"] == steps["c"] == 20 and steps["d"] < 15

    until(has_updates, "updates that an edge keeps")
    nodes.edges["north"].kill()
    outcome = finished(nodes.outcome())
    assert outcome.summary["faults"] == []
    whole = adapter(finished(twin(tmp_path / "whole", "by_edge", Twin, **more).run()))
    for name, array in adapter(outcome).items():
        np.testing.assert_allclose(array, whole[name], rtol=1e-5, atol=1e-7)
