"""A node of `sfl run` that is killed is started again, and the run ends as if nothing had been."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.house.federation import finished, run
from tests.house.fleets import fleet
from tests.house.nodes import launched, left_running, node_process
from tests.house.waiting import PATIENCE, until

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The adapter of a run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    return adapter(finished(run(folder, fleet(folder))).folder)


def adapter(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["d1", "edge", "cloud"])
def test_a_killed_node_is_started_again_and_the_adapter_is_the_same(
    tmp_path: Path, undisturbed: bytes, name: str
) -> None:
    process = launched(tmp_path, fleet(tmp_path))
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
    faults = [fault["problem"] for fault in summary["faults"]]
    assert faults == (["edge edge: the stream broke"] if name == "edge" else []), logs
    assert (summary["failure"], summary["rounds"]) == (None, 3)
    assert adapter(folder) == undisturbed
    assert not left_running(tmp_path)
