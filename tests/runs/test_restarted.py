"""A node of `sfl run` that is killed is started again, and the run ends as if nothing had been."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.house.federation import Outcome, finished
from tests.house.fleets import fleet
from tests.house.nodes import launched, left_running, node_process
from tests.house.reference import adapter, assert_same_bits
from tests.house.twin import played
from tests.house.waiting import PATIENCE, until

pytestmark = pytest.mark.process


@pytest.mark.parametrize(
    ("name", "options"), [("d1", ()), ("edge", ()), ("cloud", ()), ("cloud", ("--tls",))]
)
def test_a_killed_node_is_started_again_and_the_run_ends_well(
    tmp_path: Path, name: str, options: tuple[str, ...]
) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    undisturbed = finished(played(whole, fleet(whole)))
    values = fleet(tmp_path)
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
    assert_same_bits(adapter(outcome), adapter(undisturbed))
    if name != "edge":
        assert summary["faults"] == []
    assert not left_running(tmp_path)
