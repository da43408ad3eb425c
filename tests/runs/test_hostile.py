"""A device that lies about its examples or its update: what becomes of it, and of the others.

In one process, and once with real ones. Whatever the liar sends, the honest devices' run goes on.
Where nothing of the liar's counted, the adapter is what it is without it, bit for bit.
"""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from benchmarks.hostile_device import lying
from sfl.errors import SflError
from sfl.report.status import RunStatus
from sfl.transport.device.link import DeviceLink
from tests.house.federation import Outcome, finished
from tests.house.fleets import fleet
from tests.house.nodes import ByHand
from tests.house.paths import ROOT
from tests.house.twin import Twin, played
from tests.house.waiting import PATIENCE

pytestmark = pytest.mark.process

LIAR = ROOT / "benchmarks" / "hostile_device.py"
ROUNDS = 3


class Attacked(ByHand):
    """A run of two honest devices, with liars beside them."""

    def start_as(self, number: int, *options: str) -> subprocess.Popen[bytes]:
        """Start a device that lies, or holds back, as the options say."""
        name = self.values["devices"][number]["name"]
        file = self.folder / f"{name}.toml"
        file.write_text(
            f'[device]\nname = "{name}"\nedge = "{self.edge_address}"\nthreads = 1\n'
            f'train = "{self.folder / f"{name}.jsonl"}"\ncache_dir = "{self.folder / "cache"}"\n'
            "connect_timeout = 10\n"
        )
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, str(LIAR), str(file), *options], stdout=log, stderr=log, cwd=ROOT
            )
        self.processes.append(process)
        return process


def attacked(
    folder: Path, count: int, rounds: int, codec: dict[str, Any] | None = None, **aggregation: Any
) -> dict[str, Any]:
    folder.mkdir()
    return fleet(
        folder,
        count,
        run={"rounds": rounds, "min_devices": 2},
        training={"local_steps": 2},
        network={"join_timeout": 90.0, "rejoin_timeout": 5.0},
        aggregation=aggregation,
        codec=codec or {},
    )


def liar(**options: Any) -> type[DeviceLink]:
    """The link of a device that lies, or holds back, as `hostile_device.py` does."""
    usual = {"examples": None, "values": None, "moved": False, "from_round": 1, "seed": 0}
    return lying(Namespace(**{**usual, "holds": None, "until": None, **options}))


def bits(outcome: Outcome) -> dict[str, bytes]:
    """The adapter that a run left, bit for bit."""
    values = load_file(outcome.folder / "adapter" / "adapter_model.safetensors")
    return {name: array.tobytes() for name, array in values.items()}


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What two devices come to by themselves."""
    folder = tmp_path_factory.mktemp("honest") / "run"
    outcome = finished(played(folder, attacked(folder, 2, ROUNDS)))
    assert outcome.summary["faults"] == []
    return bits(outcome)


def is_back(folder: Path, name: str) -> bool:
    """Whether a device with a fault is here again, by one and the same status.

    It may be in time for the next round, and is "ready" for no moment that a status shows then.
    """
    status = RunStatus.read(folder / "status.json")
    if status is None or not any(name in fault for fault in status.faults):
        return False
    state = {device.name: device.state for device in status.devices}[name]
    return state in ("ready", "evaluating", "training", "done")


def test_liars_are_left_out_with_the_reason_and_the_others_adapter_is_theirs_alone(
    tmp_path: Path, honest: dict[str, bytes]
) -> None:
    folder, back = tmp_path / "run", tmp_path / "back"
    twin = Twin(folder, attacked(folder, 4, ROUNDS, strikes=2))
    twin.links["d1"] = liar(holds=2, until=back)
    twin.links["d2"] = liar(examples=1 << 63, values=0.5)
    twin.links["d3"] = liar(examples=100, values=1000.0)

    async def story(twin: Twin) -> None:
        # Round 2 ends once d3 is back: its second strike is the last round's, and the run ends.
        await twin.until(lambda: is_back(twin.folder, "d3"))
        back.touch()

    outcome = finished(twin.run(story))
    summary = outcome.summary
    assert summary["rounds"] == ROUNDS
    assert {fault["node"] for fault in summary["faults"]} == {"d2", "d3"}
    (said,) = (fault["problem"] for fault in summary["faults"] if fault["node"] == "d2")
    assert "it says it has 9223372036854775808 training examples" in said
    assert "aggregation.max_examples is 10000000" in said and "for good" in said
    first, last = (fault["problem"] for fault in summary["faults"] if fault["node"] == "d3")
    assert "its update has norm" in first and "strike 1 of 2" in first
    assert "strike 2 of 2" in last and "out of this run for good" in last
    for name, reason in (("d2", said), ("d3", last)):
        ended = twin.ended[name]
        assert isinstance(ended, SflError) and ended.exit_code == 1
        assert reason in (outcome.folder / "logs" / f"{name}.log").read_text(), "it is told why"
    assert "joining again" not in (outcome.folder / "logs" / "d2.log").read_text()
    assert bits(outcome) == honest


def test_an_adapter_that_nobody_can_compute_with_ends_the_run_with_that_and_no_device_crashes(
    tmp_path: Path,
) -> None:
    codec = {"activation": "fp16", "gradient": "fp16"}
    values = attacked(tmp_path / "run", 3, 3, codec, max_update_norm="off")
    nodes = Attacked(tmp_path / "run", values)
    try:
        devices = [nodes.device(number) for number in range(2)]
        nodes.start_as(2, "--examples", "100", "--values", "1000")
        outcome = nodes.outcome()
        assert outcome.code == 1, outcome.output
        failure, faults = outcome.summary["failure"], outcome.summary["faults"]
        assert "no device can compute with the result of round 1's adapter" in failure
        assert faults and {fault["round"] for fault in faults} == {2}
        for fault in faults:
            assert "of round 2, step 0" in fault["problem"] and "65504" in fault["problem"]
            assert fault["problem"] in failure
        for number, process in enumerate(devices):
            assert process.wait(PATIENCE) == 1
            assert "round 2" in nodes.log(f"d{number}").splitlines()[-1]
            assert "Traceback" not in nodes.log(f"d{number}")
    finally:
        nodes.stop()


def test_a_merged_adapter_that_is_not_finite_is_not_handed_out(tmp_path: Path) -> None:
    values = fleet(
        tmp_path,
        2,
        run={"rounds": 2},
        training={"local_steps": 2},
        aggregation={"strategy": "fedavgm", "server_learning_rate": 1e300},
    )
    outcome = played(tmp_path, values)
    assert outcome.code == 1, outcome.output
    failure = outcome.summary["failure"]
    assert "round 1 could not be averaged: base_model.model" in failure
    assert "of the merged adapter holds NaN or infinite values" in failure
    assert outcome.summary["rounds"] == 0
