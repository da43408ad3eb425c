"""Three tiers and more, on a whole federation: the adapter of two tiers, bit for bit."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from sfl.stage.training.middle import MiddleGroup
from sfl.stage.training.team import Standing
from sfl.stage.training.vanilla import VanillaGroup
from tests.house.federation import finished, run
from tests.house.fleets import completions, device, fleet, settings, tiny
from tests.house.reference import adapter, assert_same_bits, reference
from tests.house.twin import Twin, played

pytestmark = [pytest.mark.usefixtures("quiet_peft"), pytest.mark.process]

UNCODED = {"activation": "none", "gradient": "none"}
ROUNDS = 3


def tiered(values: dict[str, Any], *cuts: int, u_shaped: bool = False) -> dict[str, Any]:
    """The same run with stages behind the edge."""
    topology = "three_tier_u_shaped" if u_shaped else "three_tier"
    values["run"] = {**values["run"], "topology": topology}
    return {**values, "stages": {"cuts": list(cuts)}}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("u_shaped", [False, True], ids=["vanilla", "u_shaped"])
def test_rounds_of_one_device_are_plain_training_bit_for_bit(
    tmp_path: Path, kind: str, u_shaped: bool
) -> None:
    data = completions(tmp_path / "train.jsonl", 1, same_length=kind == "gpt2")
    values = settings(tiny(kind))
    values["devices"] = [device("a", data, 1)]
    outcome = finished(played(tmp_path, tiered(values, 2, u_shaped=u_shaped)))
    assert_same_bits(adapter(outcome), reference(outcome).train("a"))


# -- fleets: two edges, unequal cuts, more tiers, codecs, clipping --------------------------------

THRIFTY = {
    "recompute": True,
    "resident_adapters": 1,
    "order": "longest_tail",
    "in_flight": 1,
    "memory": "4GB",
}
RUNS: dict[str, dict[str, Any]] = {
    "plain": {"codec": UNCODED},
    "u_shaped": {"codec": UNCODED},
    "clipped": {"codec": UNCODED, "training": {"max_grad_norm": 0.05, "micro_batches": 2}},
    "coded": {
        "codec": {
            "activation": "compact",
            "gradient": "compact",
            "stage_activation": "delta(bigram) | int8 | zstd",
            "stage_gradient": "stochastic(4) | zstd",
            "adapter": "int8",
        }
    },
    "within": {
        "codec": {"activation": "compact", "gradient": "compact", "stage_activation": "int8"},
        "recovery": {"snapshot_steps": 1},
        "training": {"max_grad_norm": 0.05, "micro_batches": 2},
    },
    "thrifty": {"codec": UNCODED, "edge": THRIFTY, "stage": THRIFTY},
}
DEEP = 6


def deep() -> Path:
    """A model with blocks for every tier."""
    return tiny("llama", f'{{"num_hidden_layers": {DEEP}}}')


EDGES = {"north": ["d0", "d1"], "south": ["d2", "d3"]}


def values_of(folder: Path, name: str, tiers: bool = True) -> dict[str, Any]:
    """Four devices at two edges, with cuts that are not alike on either hop."""
    own = {key: dict(section) for key, section in RUNS[name].items()}
    values = fleet(
        folder,
        4,
        **{
            **own,
            "model": {"path": str(deep())},
            "run": {"rounds": ROUNDS, "min_devices": 3, "edges": list(EDGES)},
            "training": {"local_steps": 3, **own.get("training", {})},
            "edge": {"name": "north", **own.get("edge", {})},
        },
    )
    u_shaped = name == "u_shaped"
    for number, entry in enumerate(values["devices"]):
        entry["cut_layer"] = 1 + number % 2
        entry["tail_layers"] = number % 2 if u_shaped else 0
        if tiers:
            entry["stage_cuts"] = [2 + number % 2 + number // 2]
    topology = "u_shaped" if u_shaped else "vanilla"
    if tiers:
        topology = "three_tier_u_shaped" if u_shaped else "three_tier"
    values["run"]["topology"] = topology
    return values


def twin_of(folder: Path, name: str, tiers: bool = True) -> Twin:
    return Twin(folder, values_of(folder, name, tiers), edges=EDGES)


@cache
def undisturbed(name: str) -> dict[str, np.ndarray]:
    with TemporaryDirectory() as folder:
        return judged(twin_of(Path(folder), name))


def judged(twin: Twin) -> dict[str, np.ndarray]:
    """The adapter of a run that ends well for all, stages too: they keep nothing of it."""
    outcome = finished(twin.run())
    assert outcome.summary["faults"] == []
    for name, stage in twin.stages.items():
        assert twin.ended[name] is None and stage.stats.round == ROUNDS + 1
        assert not list(twin.cache.glob(f"recovery/*/{name}"))
    return adapter(outcome)


@pytest.mark.parametrize("name", ["plain", "u_shaped"])
def test_two_edges_before_one_stage_are_two_tiers_bit_for_bit(tmp_path: Path, name: str) -> None:
    two = adapter(finished(twin_of(tmp_path, name, tiers=False).run()))
    assert_same_bits(undisturbed(name), two)


def test_what_saves_memory_and_who_is_served_next_change_no_bit_at_any_stage() -> None:
    assert_same_bits(undisturbed("thrifty"), undisturbed("plain"))


def test_batches_at_every_stage_equal_one_device_after_another_to_rounding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together: Counter[str] = Counter()
    for kind in (MiddleGroup, VanillaGroup):
        real = kind.run

        def run(group: Any, tasks: Any, real: Any = real) -> Any:
            together[f"{type(group).__name__} {getattr(group, 'kind', '')}"] += 1
            return real(group, tasks)

        monkeypatch.setattr(kind, "run", run)
    found = []
    for own in (1, 4):
        (tmp_path / str(own)).mkdir()
        values = fleet(
            tmp_path / str(own),
            4,
            codec=UNCODED,
            training={"local_steps": 3, "computation": "lean", "micro_batches": 2},
            edge={"batch_devices": own},
            stage={"batch_devices": own, "threads": 1},
        )
        found.append(adapter(finished(played(tmp_path / str(own), tiered(values, 2)))))
    assert len(together) >= 2, together
    for name, array in found[1].items():
        np.testing.assert_allclose(array, found[0][name], rtol=2e-2, atol=2e-4, err_msg=name)


def test_clipping_equals_two_tiers_to_rounding(tmp_path: Path) -> None:
    with TemporaryDirectory() as folder:
        two = adapter(finished(twin_of(Path(folder), "clipped", tiers=False).run()))
    for name, array in undisturbed("clipped").items():
        np.testing.assert_allclose(array, two[name], rtol=1e-3, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("u_shaped", [False, True], ids=["vanilla", "u_shaped"])
def test_four_and_five_tiers_are_two_bit_for_bit(tmp_path: Path, u_shaped: bool) -> None:
    found = []
    for number, cuts in enumerate([(), (2, 3), (2, 3, 4)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        values = fleet(folder, 2, codec=UNCODED, training={"local_steps": 3})
        values["model"]["path"] = str(deep())
        if cuts:
            values = tiered(values, *cuts, u_shaped=u_shaped)
        elif u_shaped:
            values["run"]["topology"] = "u_shaped"
        found.append(adapter(finished(played(folder, values))))
    assert_same_bits(found[1], found[0])
    assert_same_bits(found[2], found[0])


def test_a_run_too_short_for_a_heartbeat_has_what_its_stages_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_server.stage.BEAT", 60.0)
    values = fleet(tmp_path, 2, codec=UNCODED, training={"local_steps": 3})
    values["model"]["path"] = str(deep())
    values["run"]["rounds"] = 1
    values["network"] = {"heartbeat_interval": 30.0}
    outcome = finished(played(tmp_path, tiered(values, 2, 4)))
    stages = {one["name"]: one for one in outcome.summary["stages"]}
    assert sorted(stages) == ["stage", "stage2"]
    for one in stages.values():
        assert one["phases"]["backward"] > 0.0 and one["peak_rss_bytes"] > 0


# -- somebody is lost -----------------------------------------------------------------------------


def killed(twin: Twin, device: str) -> None:
    """A device's process dies, and is started again."""
    threading.Timer(0.1, twin.loop.call_soon_threadsafe, [twin.start_device, device]).start()
    twin.lose(device)


Act = Callable[[Twin, str], None]
FAULTS: list[tuple[str, int, int, Act]] = [
    ("d2", 1, 1, lambda twin, device: twin.restart_edge("south")),
    ("d0", 2, 0, lambda twin, device: twin.cut(device)),
    ("d2", 2, 2, killed),
    ("d2", 3, 1, lambda twin, device: twin.cut_hop("south")),
    ("d1", 3, 2, lambda twin, device: twin.lose_stage("stage")),
]
"""Who does what as it begins a step of a round. All in one run: one each takes minutes."""


def disturbed(twin: Twin) -> dict[str, np.ndarray]:
    """The adapter of a run in which everybody is lost once."""
    done: list[str] = []
    for name, round_, step, act in FAULTS:

        def do(name: str, act: Act = act) -> None:
            done.append(name)
            act(twin, name)

        twin.at(name, round_, step, do)
    found = judged(twin)
    assert len(done) == len(FAULTS)
    return found


@pytest.mark.parametrize("name", ["plain", "coded", "u_shaped", "within"])
def test_whoever_is_lost_changes_no_bit(tmp_path: Path, name: str) -> None:
    assert_same_bits(disturbed(twin_of(tmp_path, name)), undisturbed(name))


# -- processes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("topology", ["three_tier", "three_tier_u_shaped"])
def test_processes_leave_what_this_process_does(tmp_path: Path, topology: str) -> None:
    values = fleet(tmp_path, 2, codec=UNCODED, training={"local_steps": 3})
    values = tiered(values, 2, u_shaped=topology != "three_tier")
    (tmp_path / "here").mkdir()
    here = finished(played(tmp_path / "here", deepcopy(values)))
    real = finished(run(tmp_path, values))
    assert_same_bits(adapter(real), adapter(here))
    stage = next(one for one in real.summary["stages"] if one["name"] == "stage")
    assert stage["peak_rss_bytes"] > 0


# -- one adapter for all at the last stage --------------------------------------------------------


def shared(folder: Path) -> Twin:
    values = values_of(folder, "plain")
    for entry in values["devices"]:
        entry.pop("stage_cuts")
    values["stages"] = {"cuts": [3], "adapters": "shared"}
    return Twin(folder, values, edges=EDGES)


class Later:
    """A clock that a test sets on."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


def stuck(folder: Path, clock: Later, disturbed: str = "") -> dict[str, np.ndarray]:
    """The adapter of a run in which d1 is there and computes nothing of round 1 after a step."""
    twin = shared(folder)
    twin.at("d1", 1, 1, twin.hold)
    twin.at("d0", 1, 2, twin.hold)  # so that d1 is back before the next round begins
    if disturbed == "device, edge":
        twin.at("d0", 1, 2, twin.cut)
        twin.at("d2", 2, 1, lambda device: twin.restart_edge("south"))
    if disturbed == "stage":
        twin.at("d0", 1, 2, lambda device: twin.lose_stage("stage"))

    def team() -> Standing:
        sharing = twin.stages["stage"].host._sharing
        assert sharing is not None
        return sharing.team.standing

    async def story(twin: Twin) -> None:
        await twin.until(lambda: "d1" in twin.held and team().behind == ("d1",))
        await asyncio.sleep(1.0)  # the stage has looked
        clock.ahead += 400.0
        await twin.until(lambda: "d1" not in twin.cloud.coordinator.progress)
        twin.release("d1")
        await twin.until(lambda: twin.cloud.coordinator.state.roster.num_ready == 4)
        twin.release("d0")

    outcome = finished(twin.run(story))
    (fault,) = outcome.summary["faults"]
    assert fault["node"] == "d1" and "nothing of device d1 moved" in fault["problem"]
    assert "strike 1 of 3" in fault["problem"] and fault["round"] == 1
    return adapter(outcome)


def test_who_is_stuck_is_left_behind_alone_and_the_others_replay_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Later()
    monkeypatch.setattr("edge_server.sharing.time", clock)
    found = []
    for disturbed in ("", "device, edge", "stage"):
        folder = tmp_path / f"run of {disturbed}"
        folder.mkdir()
        found.append(stuck(folder, clock, disturbed))
    assert_same_bits(found[1], found[0])
    assert_same_bits(found[2], found[0])


def test_a_shared_adapter_is_the_same_whoever_is_lost(tmp_path: Path) -> None:
    with TemporaryDirectory() as folder:
        wanted = judged(shared(Path(folder)))
    assert_same_bits(disturbed(shared(tmp_path)), wanted)


def test_a_stage_lowers_what_devices_have_in_flight(tmp_path: Path) -> None:
    values = fleet(tmp_path, 1, codec=UNCODED, training={"local_steps": 2, "micro_batches": 4})
    values = tiered(values, 2)
    values["run"]["rounds"] = 1
    values |= {"network": {"credits": 4}, "stage": {"threads": 1, "credits": 2}}
    twin, seen = Twin(tmp_path, values), []

    def look(device: str) -> None:
        servers = (*twin.servers.values(), *twin.stages.values())
        seen.extend(own.service.streams[device].end.credits.count for own in servers)

    twin.at("d0", 1, 1, look)
    finished(twin.run())
    assert seen == [2, 2]
