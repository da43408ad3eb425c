"""A node of `sfl run` that is killed is started again, and the run ends as if nothing had been."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.house.fleets import fleet
from tests.house.nodes import launched, left_running, node_process
from tests.house.waiting import PATIENCE, until

pytestmark = pytest.mark.process


@pytest.mark.parametrize("name", ["d1", "edge"])
def test_a_killed_node_is_started_again_and_the_run_ends_well(tmp_path: Path, name: str) -> None:
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
    assert (summary["failure"], summary["rounds"]) == (None, 3)
    if name != "edge":
        assert all("start afresh" in fault["problem"] for fault in summary["faults"])
    assert not left_running(tmp_path)
