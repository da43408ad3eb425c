"""How long `sfl run` waits for its processes to start, what it says meanwhile, when it gives up."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from rich.console import Console

from sfl.cli.launch.node import Node
from sfl.cli.launch.patience import Patience, cpu_seconds
from sfl.cli.launch.run import _address_of, with_wait
from sfl.errors import RunFailed
from sfl.node.restarts import Restarts
from sfl.report.live import LiveView
from sfl.report.status import RunStatus


class Clock:
    """Seconds that pass only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += 1.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("sfl.cli.launch.node.time", clock)
    return clock


@pytest.fixture
def idle() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives and does nothing."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def edge_of(folder: Path, pid: int, exit_code: int | None = None) -> Node:
    config, log = folder / "edge.toml", folder / "edge.log"
    node = Node("edge", "edge", config, log, folder / "edge.error", folder / "edge.address")
    node.process = cast(BaseProcess, SimpleNamespace(pid=pid, exitcode=exit_code))
    return node


def test_a_process_at_work_is_waited_for_and_talked_about(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = edge_of(tmp_path, 1)

    def busy(processes: object) -> float:
        if clock.now >= 400.0:
            node.address_file.write_text("127.0.0.1:7001\n")
        return clock.now

    monkeypatch.setattr("sfl.cli.launch.node.cpu_seconds", busy)
    said: list[str] = []
    assert node.await_address(said.append, lambda: None) == "127.0.0.1:7001"
    assert said[:2] == ["edge edge starts, 5 s", "edge edge starts, 10 s"]
    assert len(said) == 60


@pytest.mark.process
def test_a_process_that_does_nothing_is_given_up_with_its_log(
    tmp_path: Path, clock: Clock, idle: subprocess.Popen[bytes]
) -> None:
    said: list[str] = []
    with pytest.raises(RunFailed, match=r"edge edge starts: did nothing for 60 s.*/edge\.log"):
        edge_of(tmp_path, idle.pid).await_address(said.append, lambda: None)
    assert clock.now < 200.0
    assert said


def test_a_process_that_dies_is_not_waited_for(tmp_path: Path, clock: Clock) -> None:
    with pytest.raises(RunFailed, match=r"edge edge: exit code 7; its log: .*/edge\.log"):
        edge_of(tmp_path, 1, exit_code=7).await_address(lambda line: None, lambda: None)
    assert clock.now == 100.0


@pytest.mark.parametrize("code", [-9, 2])
def test_a_process_that_is_killed_before_it_has_an_address_is_started_again(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    node = edge_of(tmp_path, 1, exit_code=code)
    node.returns = True

    def start(self: Node) -> None:
        self.process = cast(BaseProcess, SimpleNamespace(pid=1, exitcode=None))
        self.address_file.write_text("127.0.0.1:7001")

    monkeypatch.setattr(Node, "start", start)
    monkeypatch.setattr("sfl.cli.launch.run.time", clock)
    notes: list[str] = []
    restarts = Restarts(1, notes.append)
    if code > 0:
        with pytest.raises(RunFailed, match="exit code 2"):
            _address_of(node, [node], restarts, lambda line: None)
        return
    assert _address_of(node, [node], restarts, lambda line: None) == "127.0.0.1:7001"
    assert notes == ["edge edge: killed by SIGKILL; restart 1 of 1 in 1 s"]


def test_nothing_is_waited_for_for_ever() -> None:
    patience = Patience("edge starts", "its log: edge.log", lambda line: None, began=0.0)
    for now in range(1800):
        patience.look(work=float(now), now=float(now))
    with pytest.raises(RunFailed, match=r"not done after 1800 s; its log: edge\.log"):
        patience.look(work=1800.0, now=1800.0)


def test_where_nothing_can_be_forked_the_run_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def died(self: Node) -> None:
        raise EOFError("unexpected EOF")  # as multiprocessing has it

    monkeypatch.setattr(Node, "start", died)
    with pytest.raises(RunFailed, match=r"reading torch and transformers: .* died"):
        edge_of(tmp_path, 1).fork(lambda line: None)


@pytest.mark.process
def test_work_is_cpu_time(idle: subprocess.Popen[bytes]) -> None:
    busy = ["sh", "-c", "while :; do :; done"]
    with subprocess.Popen(busy) as process:
        while cpu_seconds([process.pid]) < 0.05:
            assert process.poll() is None
        process.kill()
    assert cpu_seconds([idle.pid]) < 0.05
    assert cpu_seconds([process.pid]) == 0.0  # it is gone


def test_a_long_wait_for_the_first_round_is_told_line_by_line() -> None:
    output = io.StringIO()
    waiting = RunStatus("r", "waiting for devices", 0, 3)
    with LiveView(Console(file=output, width=80)) as view:
        view.update(RunStatus("r", "starting", 0, 3, message="edge edge starts, 5 s"))
        for seconds in (0.5, 4.9, 5.1, 9.9, 10.0):
            view.update(with_wait(waiting, seconds))
        for status in (
            RunStatus("r", "waiting for devices", 0, 3, message="waiting for d1"),
            RunStatus("r", "training", 1, 3),
            RunStatus("r", "waiting for devices", 1, 3, message="waiting for d1"),
        ):
            view.update(with_wait(status, 17.0))
    everybody = "edge and devices read model and data"
    assert [line.split("  ", 1)[1] for line in output.getvalue().splitlines()] == [
        "starting  |  edge edge starts, 5 s",
        "waiting for devices",
        f"waiting for devices  |  {everybody}, 5 s",
        f"waiting for devices  |  {everybody}, 10 s",
        "waiting for devices  |  waiting for d1, 15 s",
        "training",
        "waiting for devices  |  waiting for d1",
    ]
