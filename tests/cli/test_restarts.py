"""Which nodes `sfl run` starts again, when, how often, and what it says."""

from __future__ import annotations

import io
import signal
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.console import Console

from sfl.cli.launch import run as launch_run
from sfl.cli.launch.node import Node
from sfl.errors import ConfigError, OutOfMemory, RunFailed
from sfl.node.restarts import Restarts, may_help
from sfl.report.live import LiveView


@dataclass
class Fake:
    """A node that ends when it is told to."""

    title: str = "device d0"
    returns: bool = True
    code: int | None = None
    lines: list[str] = field(default_factory=list)

    def exit_code(self) -> int | None:
        return self.code

    def failure(self) -> str:
        return "killed by SIGKILL" if self.code == -9 else f"exit code {self.code}"

    def start_again(self, line: str) -> None:
        self.lines.append(line)
        self.code = None


def starts(restarts: Restarts, node: Fake, seconds: range, code: int = -9) -> list[int]:
    """When a node that ends at once, every time, is started again."""
    node.code = code
    found = []
    for now in seconds:
        before = len(node.lines)
        restarts.look([node], float(now))
        if len(node.lines) > before:
            found.append(now)
            node.code = code
    return found


def test_waits_double_up_to_half_a_minute() -> None:
    said: list[str] = []
    found = starts(Restarts(8, said.append), Fake(), range(1000))
    gaps = [later - earlier for earlier, later in zip([0, *found], found, strict=False)]
    # One look passes between a death and its wait.
    assert gaps == [1, 3, 5, 9, 17, 31, 31, 31]
    assert said[0] == "device d0: killed by SIGKILL; restart 1 of 8 in 1 s"
    assert said[-1] == "device d0: killed by SIGKILL; restart 8 of 8 in 30 s"
    assert len(said) == 8


def test_the_limit_is_each_node_s_own_and_of_the_whole_run() -> None:
    restarts = Restarts(2, lambda line: None)
    one, other = Fake(), Fake("device d1")
    assert len(starts(restarts, one, range(100))) == 2
    assert not restarts.will_return(one)
    assert restarts.look([one], 1000.0) is None and one.code == -9
    assert len(starts(restarts, other, range(100))) == 2


@pytest.mark.parametrize("lasted", [29.0, 30.0])
def test_a_node_s_wait_is_forgotten_after_it_has_run_for_half_a_minute(lasted: float) -> None:
    said: list[str] = []
    restarts, node = Restarts(9, said.append), Fake(code=-9)
    for now in (0.0, 1.0):
        restarts.look([node], now)
    node.code = -9
    restarts.look([node], 1.0 + lasted)
    assert said[-1].endswith("in 1 s" if lasted == 30.0 else "in 2 s")


@pytest.mark.parametrize(
    ("code", "helps"),
    [
        *((None, False), (0, False), (1, False), (RunFailed.exit_code, False), (130, False)),
        *((ConfigError.exit_code, False), (75, True), (143, False)),
        *((-signal.SIGTERM, False), (-signal.SIGINT, False), (-signal.SIGHUP, False)),
        *((-signal.SIGKILL, True), (-signal.SIGSEGV, True), (-signal.SIGABRT, True)),
        *((-signal.SIGBUS, True), (70, True), (OutOfMemory.exit_code, True)),
    ],
)
def test_only_what_may_go_better_the_next_time_is_tried_again(
    code: int | None, helps: bool
) -> None:
    assert may_help(code) is helps
    node = Fake(code=code)
    restarts = Restarts(1, lambda line: None)
    assert restarts.will_return(node) is helps
    for now in (0.0, 1.0):
        restarts.look([node], now)
    assert bool(node.lines) is helps


def test_with_no_restarts_and_of_a_node_that_cannot_return_nothing_is_said() -> None:
    said: list[str] = []
    for limit, node in ((0, Fake(code=-9)), (3, Fake(code=-9, returns=False))):
        restarts = Restarts(limit, said.append)
        restarts.look([node], 0.0)
        assert not restarts.will_return(node)
    assert not said


def node_of(folder: Path, kind: str = "edge") -> Node:
    (folder / f"{kind}.log").write_text("one line\n")
    paths = (folder / f"{kind}.{end}" for end in ("toml", "log", "error", "address"))
    return Node(kind, kind, *paths)


def test_a_node_starts_again_where_it_was_and_its_log_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = node_of(tmp_path)
    node.error_file.write_text("RuntimeError: no (a bug)")
    node.address_file.write_text("127.0.0.1:7001")
    node.stay_at("127.0.0.1:7001")
    monkeypatch.setattr(Node, "start", lambda self: None)
    node.start_again("edge edge: killed by SIGKILL; restart 1 of 3")
    assert node.options == ("--set", "edge.listen='127.0.0.1:7001'")
    assert not node.error_file.exists() and not node.address_file.exists()
    assert node.log.read_text().splitlines() == [
        "one line",
        "--- edge edge: killed by SIGKILL; restart 1 of 3",
    ]


def test_where_no_process_can_be_started_the_run_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def died(self: Node) -> None:
        raise EOFError("unexpected EOF")

    monkeypatch.setattr(Node, "start", died)
    with pytest.raises(RunFailed, match="edge edge cannot be started again: unexpected EOF"):
        node_of(tmp_path).start_again("x")


def test_who_is_started_again_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    class Config:
        min_devices = 2

    class Dead(Fake):
        name, kind = "x", "edge"

    restarts = Restarts(1, lambda line: None)
    edge, devices = Dead("edge edge", code=-9), [Dead(f"device d{n}", code=-9) for n in range(2)]

    def lost() -> str | None:
        return launch_run._lost(Config(), [edge], devices, restarts)  # type: ignore[arg-type]

    assert lost() is None
    for now in (0.0, 1.0):
        restarts.look([edge, *devices], now)
    devices[0].code = -9
    said = "1 of at least 2 devices are left; device x: killed by SIGKILL"
    assert lost() == said
    edge.code = -9
    assert lost() == "edge x: killed by SIGKILL"


def test_a_restart_is_a_line_of_the_view() -> None:
    output = io.StringIO()
    with LiveView(Console(file=output, width=60)) as view:
        view.note("device d0: killed by SIGKILL; restart 1 of 3 in 1 s")
    assert output.getvalue() == "device d0: killed by SIGKILL; restart 1 of 3 in 1 s\n"
