"""Parts of a service by themselves: nodes that end, logs, and what is bounded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sfl.config import EdgeConfig, MetricsSettings
from sfl.jobs.values import Needs
from sfl.node.restarts import Restarts
from sfl.service import logs
from sfl.service.command import AskedAgent, attaches_to
from sfl.service.logs import NodeLogs, Tails
from sfl.service.placements import Placements, may_be_asked_again
from sfl.service.roster import Roster
from sfl.transport.frames.wire import WIRE_VERSION
from sfl.transport.jobs.agents import Attachment
from sfl.transport.jobs.mail import Mail
from sfl.v1 import jobs_pb2

NEEDS = Needs(("e",), ("a", "b"), 1)


def agent(roster: Roster, role: str, name: str, most: int = 1, **held: str) -> Mail[Any]:
    """Enters the roster; what it is told."""
    mail: Mail[Any] = Mail()
    runs = [jobs_pb2.HeldRun(run=run, address=address) for run, address in held.items()]
    hello = jobs_pb2.AgentHello(
        role=role, name=name, wire_version=WIRE_VERSION, max_runs=most, held=runs
    )
    roster.enter(Attachment(hello, mail))
    return mail


def told(mail: Mail[Any]) -> list[tuple[str, str]]:
    """(run, address) of all that an agent is asked to start."""
    found = []
    while not mail._waiting.empty():
        message = mail._waiting.get_nowait()
        found.append((message.start.run, message.start.address))
    return found


def placements(roster: Roster, notes: list[str]) -> Placements:
    restarts = Restarts(1, notes.append, may_be_asked_again)
    return Placements("r", NEEDS, roster, restarts, lambda name: 0)


def test_edges_are_asked_first_and_devices_once_their_edge_is_up() -> None:
    roster = Roster()
    edge, device = agent(roster, "edge", "e"), agent(roster, "device", "a")
    run = placements(roster, [])
    run.look("", 0.0)
    assert told(edge) == []
    run.look("h:1", 0.0)
    run.look("h:1", 0.0)
    assert told(edge) == [("r", "h:1")] and told(device) == []
    at = roster.at(("edge", "e"))
    assert at is not None
    run.started(at, "h:2")
    run.look("h:1", 0.0)
    assert told(device) == [("r", "h:2")]
    late = agent(roster, "device", "b")
    run.look("h:1", 0.0)
    assert told(late) == [("r", "h:2")] and told(edge) == told(device) == []


def test_a_node_that_is_killed_is_asked_again_so_often_and_a_mistake_is_not() -> None:
    roster, notes = Roster(), []  # type: ignore[var-annotated]
    agent(roster, "edge", "e")
    mails = {name: agent(roster, "device", name) for name in ("a", "b")}
    run = placements(roster, notes)
    edge, a, b = (roster.at(p) for p in (("edge", "e"), ("device", "a"), ("device", "b")))  # type: ignore[arg-type]
    assert edge is not None and a is not None and b is not None
    run.started(edge, "h:2")
    run.look("h:1", 0.0)
    for one, code, why in ((a, -9, "killed by SIGKILL"), (b, 2, "data: wrong")):
        one.held.pop("r")
        run.ended(one, code, why)
    assert run.given_up == {("device", "b"): "data: wrong"}
    run.look("h:1", 0.0)
    assert notes == ["run r: device a: killed by SIGKILL; restart 1 of 1 in 1 s"]
    run.look("h:1", 1.0)
    assert told(mails["a"]) == [("r", "h:2")] * 2 and len(told(mails["b"])) == 1
    run.ended(a, -9, "killed by SIGKILL")
    run.look("h:1", 9.0)
    assert set(run.given_up) == {("device", "a"), ("device", "b")}
    run.ended(edge, 0, "")
    assert ("edge", "e") not in run.given_up


def test_an_agent_that_comes_back_is_asked_again_and_goes_on() -> None:
    roster = Roster()
    agent(roster, "edge", "e", r="h:2")
    run = placements(roster, [])
    for one in roster:
        run.attached(one)
    device = agent(roster, "device", "a")
    run.look("h:1", 0.0)
    assert told(device) == [("r", "h:2")]


def test_logs_come_once_and_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_run = NodeLogs.of(tmp_path)
    of_run.take("a", 0, b"one\ntw")
    of_run.take("a", 4, b"two\n")
    of_run.take("a", 0, b"one\n")
    assert (tmp_path / "logs" / "a.log").read_bytes() == b"one\ntwo\n"
    monkeypatch.setattr(logs, "MOST_BYTES", 10)
    of_run.take("a", 8, b"three\n")
    of_run.take("cloud", 0, b"not an agent's\n")
    assert of_run.size("a") == 8 and of_run.size("cloud") == 0
    with pytest.raises(ValueError, match="no name"):
        of_run.path("../a")


def test_tails_give_whole_lines(tmp_path: Path) -> None:
    for name, text in (("a", "one\ntw"), ("b", "x\n")):
        (tmp_path / f"{name}.log").write_text(text)
    tails = Tails(tmp_path)
    assert tails.next() == [("a", b"one\n"), ("b", b"x\n")]
    assert tails.next() == []
    with (tmp_path / "a.log").open("a") as file:
        file.write("o\nthree")
    assert tails.next() == [("a", b"two\n")]
    assert tails.next(last=True) == [("a", b"three")]
    assert Tails(tmp_path, "b").next() == [("b", b"x\n")]


def test_a_node_gets_this_machines_file_and_what_is_the_runs(tmp_path: Path) -> None:
    asked = AskedAgent(tmp_path / "e.toml", ("edge.threads=1",), True, tmp_path, None, None)
    fixed = EdgeConfig(metrics=MetricsSettings(port=9464))
    every = asked.arguments("edge", fixed, cloud="[::1]:7", listen="h:0")
    overrides = [word for word in every if "=" in word]
    assert overrides == [
        "edge.threads=1",
        'edge.service=""',
        'edge.cloud="[::1]:7"',
        'edge.listen="h:0"',
        "edge.metrics.port=0",  # two runs at once cannot share it
    ]
    assert every[0].endswith("e.toml") and every[-3:] == ["--insecure", "--certs", str(tmp_path)]
    one = replace(asked, max_runs=1).arguments("edge", fixed)
    assert "edge.metrics.port=0" not in one
    assert (attaches_to(None, "h:1"), attaches_to("", "h:1"), attaches_to("g:2", "h:1")) == (
        "h:1",
        "",
        "g:2",
    )
