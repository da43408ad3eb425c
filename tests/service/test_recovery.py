"""A service, an agent or a node that dies costs no run, and no bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.house.federation import finished
from tests.house.fleets import LASTING, SLOW
from tests.house.reference import adapter, assert_same_bits
from tests.house.service import GuardedService, Served, data_in, run_of, started
from tests.house.twin import played
from tests.house.waiting import PATIENCE, until

pytestmark = pytest.mark.process
LENGTH: dict[str, Any] = {"run": {"rounds": 3}, "training": LASTING}
SLOWLY = {**LENGTH, "link": SLOW}
"""The same, with rounds of seconds in which little is computed."""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    service = Served(tmp_path, max_runs=1)
    try:
        yield service
    finally:
        service.stop()


def amid(served: Served, run: str, round_: int = 2) -> bool:
    status = served.status(run)
    steps = [device["step"] for device in status.get("devices", [])]
    return status.get("round") == round_ and bool(steps) and min(steps) > 2


def node(served: Served, module: str) -> psutil.Process:
    """A node of a run."""
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(served.folder) in line and f"-m {module}" in line:
            return process
    raise AssertionError(f"no {module}")


def begun(served: Served, run: str) -> None:
    """Submit it, and be there in its first round: the command may end after that."""
    submitting = started(served, "submit", str(served.run_file(run, **SLOWLY)))
    until(lambda: amid(served, run, 1), "the middle of the first round")
    output, errors = submitting.communicate(timeout=PATIENCE)
    assert submitting.returncode == 0, output + errors


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The adapter of the same run by itself."""
    folder = tmp_path_factory.mktemp("alone")
    data = data_in(folder)
    return adapter(finished(played(folder, run_of(data, **LENGTH))))


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_service_that_is_gone_goes_on_with_its_queue(
    served: Served, undisturbed: dict[str, np.ndarray], how: str
) -> None:
    agents = {name: p.pid for name, p in served.processes.items() if name != "service"}
    for name in ("first", "second"):
        served.submit(name, **SLOWLY)
    until(lambda: amid(served, "first"), "the middle of the first run")
    watching = started(served, "watch", "first", "--timeout", "100")
    following = started(served, "logs", "first", "cloud", "-f", "--timeout", "100")
    if how == "killed":
        served.kill("service")
    else:
        served.processes["service"].terminate()
        assert served.processes["service"].wait(60) == 130
    served.start_service()
    for name in ("first", "second"):
        outcome = finished(served.ended(name))
        assert_same_bits(adapter(outcome), undisturbed)
        assert outcome.summary["faults"] == []
    output, errors = watching.communicate(timeout=60)
    assert watching.returncode == 0 and "first: finished: every round closed" in output, errors
    output, errors = following.communicate(timeout=60)
    assert output == (served.output_dir / "first" / "logs" / "cloud.log").read_text(), errors
    assert served.log("service").count("run first begins") == 1
    assert agents == {n: served.processes[n].pid for n in agents}
    assert all(served.processes[name].poll() is None for name in agents)


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[GuardedService]:
    service = GuardedService(tmp_path)
    try:
        yield service
    finally:
        service.stop()


def test_nodes_that_are_killed_are_started_again_with_their_certificates(
    guarded: GuardedService, undisturbed: dict[str, np.ndarray]
) -> None:
    served = guarded
    begun(served, run := "hit")
    node(served, "device_agent").kill()
    until(lambda: amid(served, run, 2), "the middle of the second round")
    node(served, "edge_server").kill()
    until(lambda: amid(served, run, 3), "the middle of the third round")
    node(served, "cloud_aggregator").kill()
    outcome = finished(served.ended(run))
    assert_same_bits(adapter(outcome), undisturbed)


def test_an_agent_that_is_killed_takes_its_node_along_and_comes_back(
    served: Served, undisturbed: dict[str, np.ndarray]
) -> None:
    begun(served, run := "hit")
    served.kill("edge")
    until(lambda: not any("edge_server" in line for line in served.nodes()), "no edge")
    served.start_edge()
    served.kill("d0")
    served.start_device("d0")
    until(lambda: amid(served, run, 2), "the middle of the second round")
    outcome = finished(served.ended(run))
    assert_same_bits(adapter(outcome), undisturbed)
