"""How a run ended, and why, is told to everybody: to its folder, its nodes and its user."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import psutil
import pytest

from sfl.config import load_run
from sfl.errors import DiskError
from sfl.node.process import undisturbed
from sfl.node.restarts import Restarts
from sfl.report import runs
from sfl.report.conclusion import can_go_on, conclude
from sfl.report.journal import JournalReader
from sfl.report.runs import open_run_folder
from sfl.report.status import DeviceStatus, RunStatus
from sfl.report.summary import Fault, RunSummary
from sfl.rounds import RunEnded
from tests.house.federation import SFL, sfl, write_config
from tests.house.fleets import LOST_IS_LOST, fleet, lasting
from tests.house.nodes import ByHand, launched, left_running
from tests.house.nodes import node_process as node
from tests.house.paths import ROOT
from tests.house.retold import assert_retold
from tests.house.waiting import PATIENCE, until


def folder_of(folder: Path) -> Path:
    return folder / "runs" / "t"


def told(folder: Path) -> tuple[RunSummary, RunStatus]:
    status = RunStatus.read(folder_of(folder) / "status.json")
    assert status is not None
    assert (folder_of(folder) / "report.html").exists()
    return RunSummary.read(folder_of(folder) / "summary.json"), status


def closed(folder: Path, rounds: int = 1) -> Callable[[], bool]:
    def reached() -> bool:
        status = RunStatus.read(folder_of(folder) / "status.json")
        return status is not None and status.round > rounds

    return reached


@pytest.mark.process
def test_a_killed_cloud_leaves_a_summary_all_the_same(tmp_path: Path) -> None:
    process = launched(tmp_path, lasting(tmp_path, run={"rounds": 1000}, **LOST_IS_LOST))
    until(closed(tmp_path), "a round that closed")
    node(tmp_path, "cloud").kill()
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, errors
    assert "cloud: killed by SIGKILL" in errors
    summary, status = told(tmp_path)
    assert summary.failure is not None and "SIGKILL" in summary.failure
    assert summary.rounds >= 1 and summary.eval_loss_before is not None
    assert summary.adapter == str(folder_of(tmp_path) / "adapter")
    assert (status.phase, status.message) == ("failed", summary.failure)
    assert {device.state for device in status.devices} == {"stopped"}
    assert can_go_on(folder_of(tmp_path))  # and so has all that this takes
    assert not (folder_of(tmp_path) / ".reserve").exists()
    # All of it is what the journal tells, which has the end, too.
    assert_retold(folder_of(tmp_path), tmp_path / "retold")
    with contextlib.closing(JournalReader(folder_of(tmp_path))) as journal:
        assert [*journal.entries()][-1].event == RunEnded(False, summary.failure)
    # And the user is told where that is.
    assert f"{folder_of(tmp_path)}/adapter\n" in output and "report.html" in output
    assert not left_running(tmp_path)


@pytest.mark.process
def test_too_few_devices_are_the_reason_everywhere(tmp_path: Path) -> None:
    process = launched(tmp_path, lasting(tmp_path, training={"local_steps": 5000}, **LOST_IS_LOST))
    for name in ("d0", "d1"):
        node(tmp_path, name).kill()
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    summary, status = told(tmp_path)
    assert summary.failure == status.message != "interrupted"
    assert summary.failure is not None and "of at least 2 devices" in summary.failure
    assert "d0: " in summary.failure and "d1: " in summary.failure
    states = {device.name: device.state for device in status.devices}
    assert states == {"d0": "lost", "d1": "lost", "d2": "stopped"}
    # Those that could not say it themselves are named with what the launcher saw.
    assert "device d0: killed by SIGKILL" in errors
    assert "at least 2 devices" in errors
    assert not left_running(tmp_path)


@pytest.mark.process
def test_ctrl_c_says_where_the_adapter_is(tmp_path: Path) -> None:
    process = launched(tmp_path, lasting(tmp_path, run={"rounds": 1000}))
    until(closed(tmp_path), "a round that closed")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert f"{folder_of(tmp_path)}/adapter\n" in output, output
    summary, status = told(tmp_path)
    assert summary.failure == "interrupted" == status.message
    assert not summary.faults  # nobody was lost: everybody was told
    for log in (folder_of(tmp_path) / "logs").glob("d*.log"):
        assert "interrupted" in log.read_text()


@pytest.mark.process
@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("config.toml", signal.SIGINT),
        ("config.toml", signal.SIGTERM),
        ("nodes/cloud.address", signal.SIGINT),
        ("nodes/edge.address", signal.SIGTERM),
    ],
)
def test_a_run_stopped_during_its_start_leaves_a_summary_and_no_process(
    tmp_path: Path, moment: str, number: signal.Signals
) -> None:
    process = subprocess.Popen(
        [*SFL, "run", str(write_config(tmp_path, fleet(tmp_path, 2)))],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        start_new_session=True,
    )
    until((folder_of(tmp_path) / moment).exists, moment)
    started = psutil.Process(process.pid).children(recursive=True)
    nursery = [child for child in started if "forkserver" in " ".join(child.cmdline())]
    assert nursery
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does: to all that it started
    else:
        process.send_signal(number)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, output
    assert "Traceback" not in output and "interrupted: everything is stopped" in output
    assert not any(child.is_running() for child in nursery)  # also amid its imports
    assert not left_running(tmp_path)
    summary = RunSummary.read(folder_of(tmp_path) / "summary.json")
    assert summary.failure == "interrupted"
    assert (folder_of(tmp_path) / "report.html").exists()


@pytest.mark.process
def test_a_run_that_never_began_leaves_its_name_to_another(tmp_path: Path) -> None:
    config = load_run(write_config(tmp_path, fleet(tmp_path, 1)))
    folder = open_run_folder(config)
    (folder / "nodes").mkdir()
    (folder / "nodes" / "cloud.address").write_text("127.0.0.1:1")
    (folder / "mine.txt").write_text("not sfl's")
    conclude(folder, config, "cloud: exit code 3", 1.5)
    summary = RunSummary.read(folder / "summary.json")
    assert (summary.failure, summary.rounds, summary.wall_seconds) == ("cloud: exit code 3", 0, 1.5)
    assert "cloud: exit code 3" in (folder / "report.html").read_text()
    assert open_run_folder(config) == folder
    left = {path.name for path in folder.iterdir()}
    assert left == {"config.toml", "mine.txt"}  # no address that nobody listens on


@pytest.mark.process
def test_no_folder_is_left_where_nothing_can_be_written_into_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: str) -> None:
        path.parent.mkdir(parents=True)
        raise DiskError(f"{path.parent}: its disk is full")

    monkeypatch.setattr(runs, "write_atomic", full)
    config = load_run(write_config(tmp_path, fleet(tmp_path, 1)))
    with pytest.raises(DiskError):
        open_run_folder(config)
    assert not folder_of(tmp_path).exists()


@pytest.mark.process
def test_a_cloud_that_cannot_listen_leaves_a_summary(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        path = write_config(tmp_path, fleet(tmp_path, 1, cloud={"listen": listen}))
        done = sfl("cloud", path)
    assert done.returncode == 2, done.stderr
    summary = RunSummary.read(folder_of(tmp_path) / "summary.json")
    assert summary.failure is not None and "cloud.listen" in summary.failure


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["import", "command"])
def test_what_ends_a_command_early_is_one_line(number: signal.Signals, moment: str) -> None:
    """Before a command has said what a signal does: amid its imports, and amid its own."""
    struck = f"lambda *ignored: os.kill(os.getpid(), {int(number)})"
    where = {
        "import": f"sys.modules['sfl.cli.app'] = types.SimpleNamespace(main={struck})",
        "command": f"import sfl.cli.init; sfl.cli.init.show_config = {struck}",
    }
    code = f"import os, signal, sys, types; {where[moment]}; from sfl.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "config", "show", "x.toml"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=ROOT,
    )
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_what_must_be_done_is_done_whoever_interrupts() -> None:
    done = []
    # A shell's background job, as these tests may be, is born with Ctrl-C ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            with undisturbed(hear_later=True):
                signal.raise_signal(signal.SIGINT)
                done.append("opened")
            done.append("never")
        with undisturbed(hear_later=False):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            done.append("stopped")
    finally:
        signal.signal(signal.SIGINT, before)
    assert done == ["opened", "stopped"]


@pytest.mark.process
def test_who_waits_at_an_edge_that_is_stopped_learns_why(by_hand: Callable[..., ByHand]) -> None:
    sections = {"training": {"local_steps": 5000}, "network": {"rejoin_timeout": 0}}
    nodes = by_hand("d0", count=1, run={"min_devices": 1}, **sections)
    device = nodes.device(0)
    until(lambda: any(d["step"] for d in nodes.status().get("devices", [])), "a step")
    nodes.edge.terminate()
    assert nodes.edge.wait(PATIENCE) == 130
    assert device.wait(PATIENCE) == 1
    assert "edge edge was stopped" in nodes.log("d0")
    assert "joining again" not in nodes.log("d0")
    outcome = nodes.outcome()
    assert outcome.code == 1
    assert outcome.summary["failure"].endswith("devices; edge edge: it was stopped")
    assert "run t failed: round 1 closed" in outcome.output
    assert str(outcome.folder / "report.html") in outcome.output


@pytest.mark.process
def test_a_cloud_that_is_stopped_tells_everybody(by_hand: Callable[..., ByHand]) -> None:
    """Where nobody waits for it; where they do: test_stopped.py."""
    sections = {"training": {"local_steps": 5000}, "network": {"rejoin_timeout": 0}}
    nodes = by_hand("d0", count=1, run={"min_devices": 1}, **sections)
    device = nodes.device(0)
    until(lambda: any(d["step"] for d in nodes.status().get("devices", [])), "a step")
    nodes.cloud.terminate()
    assert nodes.cloud.wait(PATIENCE) == 130
    assert device.wait(PATIENCE) == 1 == nodes.edge.wait(PATIENCE)
    for name in ("d0", "edge"):
        assert "interrupted" in nodes.log(name) and "Traceback" not in nodes.log(name)
        assert "Cancelling all calls" not in nodes.log(name)
    assert nodes.outcome().summary["failure"] == "interrupted"


def status_of(**values: Any) -> RunStatus:
    return RunStatus("r", "training", 1, 3, **values)


def test_a_fault_is_read_back_from_its_line() -> None:
    fault = Fault(2, "harbour", "out of memory: 8 bytes; d1: no")
    assert Fault.parse(str(fault)) == fault
    assert Fault.parse("something else") == Fault(0, "", "something else")


def test_there_is_nothing_to_conclude_where_a_cloud_has_done_it(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("its own")
    (tmp_path / "metrics.jsonl").write_text("")
    conclude(tmp_path, None, "killed", 1.0)  # type: ignore[arg-type]
    assert (tmp_path / "summary.json").read_text() == "its own"


@pytest.mark.parametrize("ok", [True, False])
def test_no_device_trains_once_its_run_has_ended(ok: bool) -> None:
    states = ("training", "evaluating", "ready", "paused: hot", "lost", "not here yet")
    ended = [DeviceStatus("d", state).at_end(ok).state for state in states]
    still = "done" if ok else "stopped"
    assert ended == [still] * 4 + ["lost", "never joined"]


def test_a_clock_that_is_set_back_does_not_freeze_the_view(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sfl.cli.launch import run as launch_run

    shown: list[int] = []
    status = status_of(updated_at=1000.0, sequence=1)
    later = status_of(updated_at=10.0, sequence=2)  # an hour before, by its clock
    statuses = chain([status, status, later, later], repeat(later))

    class Gone:
        """A cloud that ends after a few looks."""

        looks, title, returns = 0, "cloud", False

        def __init__(self, kind: str) -> None:
            self.kind = kind

        def exit_code(self) -> int | None:
            self.looks += 1
            return None if self.looks < 5 else 0

    monkeypatch.setattr(launch_run.RunStatus, "read", lambda path: next(statuses))
    monkeypatch.setattr(launch_run, "POLL", 0.0)
    monkeypatch.setattr(launch_run, "_raise_mistakes", lambda nodes: None)
    monkeypatch.setattr(launch_run, "_lost", lambda *_: None)
    nodes: Any = [Gone("cloud"), Gone("edge")]
    launch_run._await_end(
        None,  # type: ignore[arg-type]
        tmp_path,
        nodes,
        lambda status: shown.append(status.sequence),
        Restarts(0, shown.append),  # type: ignore[arg-type]
    )
    assert shown == [1, 2, 2]
