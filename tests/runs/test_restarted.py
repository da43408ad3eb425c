"""A node of `sfl run` that is killed is started again, and the run ends as if nothing had been."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from tests.house.federation import Outcome, finished
from tests.house.fleets import LASTING, fleet, lasting
from tests.house.forks import HOOK, Process
from tests.house.nodes import launched, left_running, node_process
from tests.house.reference import adapter, assert_same_bits
from tests.house.twin import played
from tests.house.waiting import PATIENCE, until

pytestmark = pytest.mark.process


@cache
def undisturbed(devices: int, rounds: int) -> dict[str, np.ndarray]:
    """The adapter of a run that nothing happens to."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        values = fleet(folder, devices, run={"rounds": rounds}, training=LASTING)
        return adapter(finished(played(folder, values)))


@pytest.mark.parametrize(
    ("name", "options"), [("d1", ()), ("edge", ()), ("cloud", ()), ("cloud", ("--tls",))]
)
def test_a_killed_node_is_started_again_and_the_run_ends_well(
    tmp_path: Path, name: str, options: tuple[str, ...]
) -> None:
    values = lasting(tmp_path)
    for node in (values["edge"], *values["devices"]):
        node["cache_dir"] = str(tmp_path / "cache")
    process = launched(tmp_path, values, *options)
    folder = tmp_path / "runs" / "t"

    def in_round_two() -> bool:
        status = json.loads((folder / "status.json").read_text())
        return status["round"] == 2 and any(d["step"] > 2 for d in status["devices"])

    until(in_round_two, "steps of round 2")
    node_process(tmp_path, name).kill()
    output, errors = process.communicate(timeout=2 * PATIENCE)
    logs = "\n".join(f"--- {p.name}\n{p.read_text()}" for p in folder.glob("logs/*.log"))
    assert process.returncode == 0, output + errors + logs
    assert f"{name}: killed by SIGKILL; restart 1 of 3 in 1 s\n" in output
    assert "killed by SIGKILL; restart 1 of 3\n" in (folder / "logs" / f"{name}.log").read_text()
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["failure"], summary["rounds"]) == (None, 3)
    outcome = Outcome(process.returncode, output, folder)
    assert_same_bits(adapter(outcome), undisturbed(3, 3))
    if name != "edge":
        assert summary["faults"] == []
    assert not left_running(tmp_path)


BROKEN = """
from pathlib import Path

from cloud_aggregator.averaging import GlobalAdapter

known = GlobalAdapter.save


def broken(own, round_, *more):
    times = Path({times!r})
    done = int(times.read_text()) if times.exists() else 0
    if round_ == 2 and done < {most}:
        times.write_text(str(done + 1))
        raise {error}
    return known(own, round_, *more)


GlobalAdapter.save = broken
"""


def with_broken_cloud(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: str, most: int
) -> Process:
    """A run whose cloud cannot write round 2's adapter, so many times."""
    hook = BROKEN.format(times=str(folder / "times"), error=error, most=most)
    (folder / "hook.py").write_text(hook)
    monkeypatch.setenv(HOOK, str(folder / "hook.py"))
    values = lasting(folder, 1, run={"rounds": 2}, launch={"restarts": 2})
    for node in (values["edge"], *values["devices"]):
        node["cache_dir"] = str(folder / "cache")
    return launched(folder, values)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("ZeroDivisionError('weights')", "ZeroDivisionError: weights (a bug; the log has more)"),
        ("MemoryError()", "out of memory"),
    ],
)
def test_a_cloud_that_meets_a_bug_or_has_no_memory_left_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str, said: str
) -> None:
    process = with_broken_cloud(tmp_path, monkeypatch, error, most=2)
    output, errors = process.communicate(timeout=2 * PATIENCE)
    outcome = Outcome(process.returncode, output + errors, tmp_path / "runs" / "t")
    finished(outcome)
    for number, wait in ((1, 1), (2, 2)):
        assert f"restart {number} of 2 in {wait} s\n" in output
    assert f"cloud: round 2 could not be averaged: {said}" in output
    assert outcome.summary["failure"] is None and outcome.summary["faults"] == []
    assert_same_bits(adapter(outcome), undisturbed(1, 2))
    assert "the cloud failed, and may be back" in (outcome.folder / "logs" / "edge.log").read_text()


def test_a_cloud_that_fails_once_too_often_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = with_broken_cloud(tmp_path, monkeypatch, "ZeroDivisionError('weights')", most=9)
    output, errors = process.communicate(timeout=2 * PATIENCE)
    assert process.returncode == 1, output + errors
    assert "restart 2 of 2 in 2 s\n" in output and (tmp_path / "times").read_text() == "3"
    assert "round 2 could not be averaged: ZeroDivisionError: weights (a bug" in errors
    assert f"to go on: sfl run --resume {tmp_path / 'runs' / 't'}" in output
    assert not left_running(tmp_path)
