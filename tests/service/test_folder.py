"""The same commands over a folder of this machine, without a service."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from rich.console import Console
from typer.testing import CliRunner

from sfl.cli.app import app
from sfl.cli.jobs.sources import Folder
from sfl.cli.jobs.watching import watch_live
from sfl.errors import ConfigError
from sfl.jobs.rows import RunRow, Standing
from sfl.node.lock import FolderLock
from sfl.report.status import RunStatus, Wait
from sfl.service.accept import accept
from sfl.service.listing import rows_of
from sfl.service.queue import LOCK, JobQueue
from sfl.transport.jobs.client import ServiceClient
from sfl.transport.jobs.words import from_run_row, to_run_row, to_standing
from sfl.v1 import jobs_pb2
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


def test_a_list_says_whom_a_run_waits_for_and_until_when(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    now = time.time()
    wait = Wait("cloud", "device d1", "to be back", seconds=12.0, seconds_left=48.0)
    waiting = RunStatus("there", "training", 1, 3, pid=os.getpid(), host=host(), waits=(wait,))
    replace(waiting, updated_at=now).write(folder / "there" / "status.json")
    (row,) = [row for row in as_json("list", folder) if row["run"] == "there"]
    assert row["waits"] == "device d1: to be back"
    assert row["waits_since"] == pytest.approx(now - 12.0)
    assert row["waits_until"] == pytest.approx(now + 48.0)
    for command in ("list", "status"):
        said = " ".join(call(command, "--output-dir", folder).split())
        assert re.search(
            r"waits for device d1: to be back, [\d.]+ s so far, [\d.]+ s left", said
        ), said
    assert from_run_row(to_run_row(RunRow(**row))) == RunRow(**row)


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


def test_a_run_whose_service_is_gone_waits_for_one(folder: Path) -> None:
    queue = JobQueue(folder)
    values = {"run": {"id": "mine"}, "model": {"path": "m"}, "devices": [{"name": "a"}]}
    accept(queue, folder, tomli_w.dumps(values), "k", "")
    assert queue.change("mine", state="running", started_at=70.0)
    (folder / "mine").mkdir()
    last = RunStatus("mine", "training", 1, 2, updated_at=80.0)
    last.write(folder / "mine" / "status.json")
    wait = f"its service; to start one: sfl cloud --output-dir {folder}"
    row = as_json("list", folder)[0]
    assert (row["run"], row["waits"], row["waits_since"]) == ("mine", wait, 80.0)
    said = io.StringIO()
    watch_live(Console(file=said, width=200), itertools.islice(Folder(folder).watch("mine"), 1))
    assert f"round 1/2  starting  |  running: waits for {wait}" in said.getvalue()
    at_work = FolderLock(queue.folder / LOCK)
    assert as_json("list", folder)[0]["waits"] == ""
    at_work.release()
    assert as_json("stop", folder, "mine")["runs"][0]["waits"] == wait


@pytest.mark.parametrize("run", ["", " "])
@pytest.mark.parametrize("command", ["status", "watch", "logs", "stop"])
def test_no_name_is_no_run(folder: Path, command: str, run: str) -> None:
    said = call(command, run, "--output-dir", folder, code=2)
    assert said == f"RUN = {run!r}: is empty. Name a run: sfl list."


@pytest.mark.parametrize("command", ["list", "status"])
def test_a_file_is_no_folder_with_runs(folder: Path, command: str) -> None:
    file = folder / "done" / "status.json"
    said = call(command, "--output-dir", file, code=2)
    assert said.startswith(f"--output-dir = '{file}': is a file, not a folder.")


@pytest.mark.parametrize("ahead", [-3600.0, 0.0, 3600.0])
def test_how_long_a_run_waits_goes_by_the_clock_of_its_service(
    ahead: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the operator's machine may be another one."""
    there = time.time() + ahead
    row = RunRow("mine", "queued", submitted_at=there, waits="device d1", waits_since=there - 30.5)
    client = ServiceClient("127.0.0.1:1", insecure=True, own=None, connect_timeout=1.0)
    answers = {
        "List": jobs_pb2.RunList(runs=[to_run_row(row)], now=there),
        "Status": jobs_pb2.Standing(runs=[to_run_row(row)], now=there),
    }
    monkeypatch.setattr(client, "_call", lambda method, request: answers[method.name])
    monkeypatch.setattr("sfl.cli.jobs.sources.open_source", lambda *given: client)
    for command in ("list", "status"):
        said = CliRunner().invoke(app, [command], env={"COLUMNS": "200"}).output
        assert re.search(r"waits for device d1, 3[01](\.\d)? s", said), said


def test_a_service_says_what_its_clock_shows() -> None:
    said = to_standing(Standing(()))
    assert abs(said.now - time.time()) < 10.0
