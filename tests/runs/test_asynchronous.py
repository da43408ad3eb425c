"""Asynchronous runs: a slow device holds up nobody, and its update counts by its age."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sfl.report.journal import JournalReader
from sfl.report.records import NodeRecord, RoundRecord, read_records
from sfl.rounds import AdapterReady, DeviceReady
from tests.faults.lab import free_ports
from tests.house.fedbuff import KEEPING, assert_averages, averages, spool_is_kept
from tests.house.federation import Outcome, finished
from tests.house.fleets import fleet
from tests.house.forks import HOOK
from tests.house.nodes import ByHand
from tests.house.retold import assert_retold
from tests.house.twin import Twin, played
from tests.house.waiting import until

pytestmark = pytest.mark.process  # each takes seconds


def digest(folder: Path) -> str:
    adapter = folder / "adapter" / "adapter_model.safetensors"
    return hashlib.sha256(adapter.read_bytes()).hexdigest()


def overlapping(folder: Path, count: int, size: int, **sections: Any) -> dict[str, Any]:
    """A short run; an average takes `size` updates."""
    run = {"mode": "asynchronous", "rounds": 4, "min_devices": 1, **sections.pop("run", {})}
    aggregation = {"buffer_size": size, **sections.pop("aggregation", {})}
    training = {"local_steps": 3, **sections.pop("training", {})}
    return fleet(folder, count, run=run, aggregation=aggregation, training=training, **sections)


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", "ffa_lora"])
def test_with_a_buffer_for_all_it_is_the_synchronous_run_to_the_bit(
    tmp_path: Path, strategy: str
) -> None:
    own = {"strategy": strategy}
    both = []
    for mode in ("synchronous", "asynchronous"):
        folder = tmp_path / mode
        folder.mkdir()
        values = overlapping(folder, 2, 2, aggregation=own, run={"mode": mode, "rounds": 3})
        if mode == "synchronous":
            del values["aggregation"]["buffer_size"]
        both.append(finished(played(folder, values)))
    assert digest(both[0].folder) == digest(both[1].folder)
    told = [read_records(outcome.folder / "metrics.jsonl") for outcome in both]
    rows = [
        sorted(
            (r.round, r.device, r.train_loss or 0, r.eval_loss_sum, r.steps)
            for r in records
            if isinstance(r, RoundRecord)
        )
        for records in told
    ]
    assert rows[0] == rows[1]


def slow(twin: Twin, device: str, until_round: int) -> Callable[[Twin], Any]:
    """A device is held in its first round until the cloud is at a later one."""
    twin.at(device, 1, 1, twin.hold)

    async def story(twin: Twin) -> None:
        await twin.until(lambda: twin.cloud.coordinator.round >= until_round)
        twin.release(device)

    return story


def test_a_slow_device_holds_up_nobody_and_counts_by_its_age(tmp_path: Path) -> None:
    twin = Twin(tmp_path, overlapping(tmp_path, 3, 2, run={"rounds": 30}))
    with spool_is_kept():
        outcome = finished(twin.run(slow(twin, "d2", 4)))
    made = assert_averages(outcome.folder)
    old = {r: own["d2"] for r, own in made.items() if "d2" in own}
    assert next(iter(old)) > 3 and next(iter(old.values())) >= 3
    summary = outcome.summary
    assert summary["rounds"] == 30 and summary["failure"] is None and not summary["faults"]
    told = {device["name"]: device["staleness"] for device in summary["devices"]}
    assert told["d2"] == {
        "updates": len(old),
        "mean": sum(old.values()) / len(old),
        "most": max(old.values()),
    }
    records = read_records(outcome.folder / "metrics.jsonl")
    cloud = {r.round: r.staleness for r in records if isinstance(r, NodeRecord) and r.staleness}
    assert cloud == made
    trained = [r for r in records if isinstance(r, RoundRecord) and r.steps]
    assert len({(r.device, r.round) for r in trained}) == len(trained)
    assert not (outcome.folder / "adapter_best").exists()
    assert_retold(outcome.folder, tmp_path / "retold")


def test_an_update_that_is_too_old_is_told_and_does_not_count(tmp_path: Path) -> None:
    more = {"max_staleness": 1, "staleness_exponent": 1.0}
    values = overlapping(tmp_path, 3, 2, aggregation=more, run={"rounds": 12})
    twin = Twin(tmp_path, values)
    with spool_is_kept():
        outcome = finished(twin.run(slow(twin, "d2", 5)))
    made = assert_averages(outcome.folder, exponent=1.0)
    assert all(s <= 1 for own in made.values() for s in own.values())
    faults = [fault["problem"] for fault in outcome.summary["faults"]]
    assert any(f.startswith("its update of round 1 does not count:") for f in faults)


def test_a_lost_device_does_its_own_round_again(tmp_path: Path) -> None:
    twin = Twin(tmp_path, overlapping(tmp_path, 3, 2, run={"rounds": 12}))
    twin.at("d2", 1, 1, twin.hold)
    twin.at("d0", 3, 1, twin.lose)

    async def story(twin: Twin) -> None:
        await twin.until(lambda: "d0" in twin.ended)
        twin.start_device("d0")
        await twin.until(lambda: twin.cloud.coordinator.round >= 5)
        twin.cut("d2")  # it goes on from version 0, which is three rounds old
        twin.release("d2")

    with spool_is_kept():
        outcome = finished(twin.run(story))
    made = assert_averages(outcome.folder)
    assert 3 in {r - own["d0"] for r, own in made.items() if "d0" in own}
    assert 1 in {r - own["d2"] for r, own in made.items() if "d2" in own}


@pytest.mark.parametrize("policy", ["weighted", "drop"])
def test_an_update_that_misses_its_round_counts_by_policy(tmp_path: Path, policy: str) -> None:
    run = {"rounds": 8, "min_devices": 1}
    own, wait = {"late_updates": policy}, {"round_timeout": 30.0}
    training = {"local_steps": 3}
    twin = Twin(
        tmp_path, fleet(tmp_path, 3, run=run, training=training, aggregation=own, network=wait)
    )
    twin.at("d2", 1, 1, twin.hold)

    async def story(twin: Twin) -> None:
        await twin.until(lambda: twin.cloud.coordinator.state.open.num_done == 2)
        twin.move(31.0)
        await twin.until(lambda: twin.cloud.coordinator.round >= 3)
        twin.release("d2")

    with spool_is_kept():
        outcome = finished(twin.run(story))
    if policy == "drop":
        assert not any(averages(outcome.folder).values())
        assert "strike 1 of 3" in outcome.summary["faults"][0]["problem"]
        return
    made = assert_averages(outcome.folder)
    assert made[1] == {"d0": 0, "d1": 0}
    ages = {
        r - staleness["d2"]: staleness["d2"] for r, staleness in made.items() if "d2" in staleness
    }
    assert ages[1] >= 2
    assert all(not own[name] for own in made.values() for name in ("d0", "d1") if name in own)
    (fault,) = outcome.summary["faults"]
    assert fault["problem"].endswith("its update counts when it comes")


# -- in real processes -----------------------------------------------------------------------------


class Nodes(ByHand):
    """A cloud that keeps its spool. Cloud and edge are where they were when they start again."""

    def __init__(self, folder: Path, size: int, rounds: int) -> None:
        (folder / "hook.py").write_text(KEEPING)
        cloud, edge = free_ports(2)
        self.edge_lines = f'listen = "127.0.0.1:{edge}"\n'
        super().__init__(
            folder, with_a_slow_one(folder, size, rounds, cloud={"listen": f"127.0.0.1:{cloud}"})
        )
        self.devices = [self.device(number) for number in range(3)]

    def options(self, name: str) -> list[str]:
        return ["--resume", "auto"] if name == "cloud" else []

    def environment(self, name: str) -> dict[str, str]:
        return {HOOK: str(self.folder / "hook.py")} if name == "cloud" else {}

    def has_reached(self, round_: int) -> bool:
        return bool(self.status().get("round", 0) >= round_)

    def kill(self, victim: str) -> None:
        """SIGKILL; then it is started again by the same command."""
        was = {"cloud": self.cloud, "edge": self.edge}.get(victim, self.devices[0])
        was.kill()
        was.wait()
        if victim == "cloud":
            self.cloud = self.start("cloud", self.config)
        elif victim == "edge":
            self.edge = self.start("edge", self.edge_file)
        else:
            self.devices[0] = self.device(0)

    def killed(self, victims: dict[int, str]) -> Outcome:
        """The run's end; in each of these rounds somebody was killed."""
        try:
            for number, victim in victims.items():
                until(partial(self.has_reached, number), f"round {number}")
                time.sleep(0.1)
                self.kill(victim)
            outcome = finished(self.outcome())
            assert [device.wait(30) for device in self.devices] == [0, 0, 0]
        finally:
            self.stop()
        assert outcome.summary["failure"] is None
        return outcome


def with_a_slow_one(folder: Path, size: int, rounds: int, **sections: Any) -> dict[str, Any]:
    """Three devices; the steps of d2 take 40 ms more."""
    run, training = {"rounds": rounds}, {"local_steps": 20}
    values = overlapping(folder, 3, size, run=run, training=training, **sections)
    values["devices"][2]["link"] = {"delay_ms": 20.0}
    return values


def test_a_killed_cloud_goes_on_and_every_average_is_what_its_journal_says(tmp_path: Path) -> None:
    outcome = Nodes(tmp_path, size=2, rounds=8).killed({3: "cloud", 5: "cloud"})
    made = assert_averages(outcome.folder)
    assert len(made) == 8 and averages(outcome.folder) == made
    old = [s for own in made.values() for name, s in own.items() if name == "d2"]
    assert max(old, default=0) >= 1  # versions went on without the slow one


@pytest.mark.parametrize(
    ("size", "kills"), [(2, {2: "d0"}), (2, {2: "edge"}), (3, {2: "d0", 3: "edge"})], ids=str
)
def test_a_killed_device_or_edge_goes_on_and_every_average_is_what_its_journal_says(
    tmp_path: Path, size: int, kills: dict[int, str]
) -> None:
    outcome = Nodes(tmp_path, size, rounds=5).killed(kills)
    made = assert_averages(outcome.folder)
    assert len(made) == 5
    faults = [fault["problem"] for fault in outcome.summary["faults"]]
    assert not [fault for fault in faults if "afresh" in fault or "in common" in fault]
    with contextlib.closing(JournalReader(outcome.folder)) as journal:
        events = [entry.event for entry in journal.entries()]
    _, *back = [n for n, e in enumerate(events) if isinstance(e, DeviceReady) and e.device == "d0"]
    assert len(back) >= len(kills)  # once more if the last adapter was there before its update
    since = events[back[len(kills) - 1] :]
    later = [e for e in since if isinstance(e, AdapterReady) and "d0" in e.staleness]
    assert later, "what it trained after it was killed never counted"
    if size == 3:  # every average takes all: the run of nobody killed, to the bit
        whole = tmp_path / "whole"
        whole.mkdir()
        undisturbed = finished(played(whole, with_a_slow_one(whole, size, rounds=5)))
        assert digest(outcome.folder) == digest(undisturbed.folder)
