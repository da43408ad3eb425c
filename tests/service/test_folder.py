"""The same commands over a folder of this machine, without a service."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from typer.testing import CliRunner

from sfl.cli.app import app
from sfl.errors import ConfigError
from sfl.report.status import RunStatus
from sfl.service.listing import rows_of
from sfl.service.queue import JobQueue
from tests.house.service import run_of

FINISHED = RunStatus("done", "finished", 2, 2, message="every round closed", updated_at=90.0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("SFL_SERVICE", raising=False)
    runs = tmp_path / "runs"
    for name, status in (
        ("done", FINISHED),
        ("gone", RunStatus("gone", "training", 1, 2, updated_at=80.0, pid=1 << 30, host=host())),
        ("there", RunStatus("there", "training", 1, 3, pid=os.getpid(), host=host())),
    ):
        (runs / name / "logs").mkdir(parents=True)
        (runs / name / "config.toml").write_text("")
        (runs / name / "logs" / "edge.log").write_text(f"{name} begins\n")
        status.write(runs / name / "status.json")
    return runs


def host() -> str:
    return os.uname().nodename


def call(*arguments: str | Path, code: int = 0) -> str:
    done = CliRunner().invoke(app, [str(word) for word in arguments])
    if isinstance(done.exception, ConfigError):
        assert code == 2, done.exception
        return str(done.exception)
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


def as_json(command: str, folder: Path, *arguments: str) -> Any:
    return json.loads(call(command, *arguments, "--output-dir", folder, "--format", "json"))


def test_runs_of_a_folder_are_listed_and_shown(folder: Path) -> None:
    rows = {row["run"]: row for row in as_json("list", folder)}
    assert {name: row["state"] for name, row in rows.items()} == {
        "there": "running",
        "done": "finished",
        "gone": "gone",
    }
    assert "sfl run --resume" in rows["gone"]["reason"]
    open_ones = as_json("status", folder)
    assert [row["run"] for row in open_ones["runs"]] == ["there"] and open_ones["max_runs"] == 0
    one = as_json("status", folder, "don")
    assert one["status"]["message"] == "every round closed"
    assert "every round closed" in call("list", "--output-dir", folder)
    assert "round 2 of 2" in call("status", "done", "--output-dir", folder)
    assert call("logs", "done", "--output-dir", folder) == "edge  done begins\n"
    assert call("logs", "done", "edge", "-f", "--output-dir", folder) == "done begins\n"
    assert "no such log. It has: edge." in call(
        "logs", "done", "d9", "--output-dir", folder, code=2
    )
    assert "done: finished" in call("watch", "done", "--output-dir", folder)
    call("watch", "gone", "--output-dir", folder, code=1)
    assert "no service runs it" in call("stop", "there", "--output-dir", folder, code=2)
    assert "no such run" in call("status", "nobody", "--output-dir", folder, code=2)


def test_a_run_submitted_to_a_folder_waits_for_its_service(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    values = run_of({name: tmp_path / name for name in ("d0", "d1")})
    file.write_text(tomli_w.dumps(values))
    run = as_json("submit", folder, str(file), "--set", "run.id='mine'")["run"]
    assert run == "mine"
    row = as_json("status", folder, run)["runs"][0]
    assert row["state"] == "queued" and row["submitted_at"] > 0
    taken = call("submit", file, "--set", "run.id='mine'", "--output-dir", folder, code=2)
    assert "a run of that name exists" in taken
    wrong = call("submit", file, "--set", "lora.rank=0", "--output-dir", folder, code=2)
    assert wrong.startswith("lora.rank = 0: must be")
    assert as_json("stop", folder, run, "--reason", "no")["runs"][0]["state"] == "stopped"
    assert next(row.run for row in rows_of(folder, JobQueue(folder))) == "there"
