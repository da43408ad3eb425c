"""The service by itself, its clouds stood in for: what it does when things go wrong."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from sfl.config import load_run
from sfl.config.node import TracingSettings
from sfl.config.service import ServiceSettings, load_service
from sfl.errors import ConfigError, DiskError
from sfl.jobs.values import Job
from sfl.metrics.prometheus import serve
from sfl.metrics.service import ServiceCollector
from sfl.report.status import RunStatus
from sfl.service import run as run_module
from sfl.service import server as server_module
from sfl.service.child import Files
from sfl.service.server import Service
from sfl.transport.frames.wire import WIRE_VERSION
from sfl.transport.jobs.agents import Attachment
from sfl.transport.jobs.mail import Mail
from sfl.v1 import jobs_pb2


class FakeChild:
    """A cloud that is what a test makes of it."""

    all: list[FakeChild] = []  # noqa: RUF012

    def __init__(self, module: str, arguments: Sequence[str], files: Files) -> None:
        self.arguments = [*arguments]
        self.code: int | None = None
        self.said = ""
        self.pid = 1
        FakeChild.all.append(self)

    def exit_code(self) -> int | None:
        return self.code

    def address(self) -> str:
        return "127.0.0.1:5"

    def failure(self) -> str:
        return self.said

    def terminate(self) -> None:
        self.code = 130

    def kill(self) -> None:
        self.code = -9


class Scene:
    """A service with one edge and one device, looked at by hand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = 0.0
        self.new_service()

    def new_service(self) -> None:
        self.service = Service(ServiceSettings(max_runs=1, restarts=1), self.folder, False, None)
        self.mail: dict[str, Mail[Any]] = {"edge": Mail(), "a": Mail()}
        for role, name in (("edge", "edge"), ("device", "a")):
            hello = jobs_pb2.AgentHello(
                role=role, name=name, wire_version=WIRE_VERSION, max_runs=1, held=[]
            )
            self.service.nodes.attached(Attachment(hello, self.mail[name]))

    def submit(self, run: str) -> None:
        values = {"run": {"id": run}, "model": {"path": "m"}, "devices": [{"name": "a"}]}
        self.service.operators.submit(tomli_w.dumps(values), run, "")

    def look(self) -> None:
        self.service._look()

    def job(self, run: str) -> Job:
        job = self.service.queue.get(run)
        assert job is not None
        return job

    def heard(self, name: str) -> list[str]:
        found = []
        while not self.mail[name]._waiting.empty():
            found.append(self.mail[name]._waiting.get_nowait().WhichOneof("body"))
        return found

    def close(self) -> None:
        self.service._lock.release()


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    FakeChild.all = []
    monkeypatch.setattr(run_module, "Child", FakeChild)
    scene = Scene(tmp_path)
    yield scene
    scene.close()


def test_a_run_begins_ends_and_lets_its_agents_go(scene: Scene) -> None:
    for name in ("one", "two"):
        scene.submit(name)
    scene.look()
    scene.look()
    assert (scene.job("one").state, scene.job("two").state) == ("running", "queued")
    assert scene.job("two").waits.startswith("a place at edge edge, which has one")
    assert scene.job("one").address == "127.0.0.1:5"
    assert scene.heard("edge") == ["start"]
    status = RunStatus("one", "finished", 4, 4, message="every round closed")
    status.write(scene.folder / "one" / "status.json")
    FakeChild.all[0].code = 0
    scene.look()
    assert (scene.job("one").state, scene.job("one").reason) == ("finished", "every round closed")
    assert scene.heard("edge") == ["stop"]
    scene.look()
    assert scene.job("two").state == "queued"  # the edge has yet to leave the first
    edge = scene.service.roster.at(("edge", "edge"))
    assert edge is not None
    scene.service.nodes.ended(edge, "one", 0, "")
    scene.look()
    assert scene.job("two").state == "running"


def test_a_cloud_that_is_killed_is_resumed_where_it_was_and_a_mistake_ends_its_run(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(server_module.time, "monotonic", lambda: clock[0])
    scene.submit("r")
    scene.look()
    scene.look()
    assert "--resume" not in FakeChild.all[0].arguments
    FakeChild.all[0].code, FakeChild.all[0].said = -9, "killed by SIGKILL"
    for seconds in (0.0, 2.0, 0.0, 0.0):
        clock[0] += seconds
        scene.look()
    again = FakeChild.all[1].arguments
    assert again[:2] == ["--resume", str(scene.folder / "r")]
    assert "cloud.listen='127.0.0.1:5'" in again
    FakeChild.all[1].code, FakeChild.all[1].said = 1, "round 1 closed with 0 of 1 devices"
    scene.look()
    job = scene.job("r")
    assert (job.state, job.reason) == ("failed", "round 1 closed with 0 of 1 devices")


def concluded(folder: Path) -> None:
    """What the cloud of a run leaves that has finished."""
    status = RunStatus(folder.name, "finished", 4, 4, message="every round closed")
    status.write(folder / "status.json")
    (folder / "summary.json").write_text("{}")


def test_a_cloud_that_is_killed_after_the_end_of_its_run_ends_nothing(scene: Scene) -> None:
    scene.submit("r")
    scene.look()
    scene.look()
    concluded(scene.folder / "r")
    FakeChild.all[0].code, FakeChild.all[0].said = -9, "killed by SIGKILL"
    scene.look()
    assert (scene.job("r").state, scene.job("r").reason) == ("finished", "every round closed")


@pytest.mark.parametrize("stopped", [False, True])
def test_a_run_that_has_finished_without_its_service_is_noted_by_the_next(
    scene: Scene, stopped: bool
) -> None:
    scene.submit("r")
    scene.look()
    scene.look()
    concluded(scene.folder / "r")
    if stopped:
        scene.service.operators.stop("r", "enough", "")
    scene.close()
    scene.new_service()
    scene.service._resume()
    scene.look()
    assert (scene.job("r").state, scene.job("r").reason) == ("finished", "every round closed")
    assert len(FakeChild.all) == 1


@pytest.mark.parametrize(("stopped", "why"), [(False, "too few devices"), (True, "enough")])
def test_a_run_that_has_failed_without_its_service_keeps_its_reason(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, stopped: bool, why: str
) -> None:
    scene.submit("r")
    scene.look()
    scene.look()
    folder = scene.folder / "r"
    RunStatus("r", "failed", 1, 4, message="too few devices").write(folder / "status.json")
    (folder / "summary.json").write_text("{}")
    monkeypatch.setattr(run_module, "how_ended", lambda folder, config: "too few devices")
    if stopped:
        scene.service.operators.stop("r", "enough", "")
    scene.close()
    scene.new_service()
    scene.service._resume()
    scene.look()
    state = "stopped" if stopped else "failed"
    assert (scene.job("r").state, scene.job("r").reason) == (state, why)
    assert len(FakeChild.all) == 1


def test_a_taken_port_is_given_up(scene: Scene) -> None:
    scene.submit("r")
    scene.look()
    scene.look()
    scene.close()
    scene.new_service()  # the next one goes on with it
    scene.service._resume()
    scene.look()
    assert "cloud.listen='127.0.0.1:5'" in FakeChild.all[-1].arguments
    for again in ("127.0.0.1:5", "127.0.0.1:0"):  # who held it may have left meanwhile
        FakeChild.all[-1].code = 2
        FakeChild.all[
            -1
        ].said = "cloud.listen = '127.0.0.1:5': the port is in use or can't be bound"
        scene.look()
        scene.look()
        assert f"cloud.listen={again!r}" in FakeChild.all[-1].arguments
    assert "cloud.listen='127.0.0.1:0'" in FakeChild.all[-1].arguments
    assert scene.job("r").state == "running"


def test_the_service_says_where_traces_of_its_runs_go(scene: Scene) -> None:
    tracing = TracingSettings(endpoint="http://collector:4318")
    scene.service.settings = scene.service.settings.model_copy(update={"tracing": tracing})
    scene.submit("r")
    scene.look()
    assert load_run(scene.folder / "r" / "config.toml").cloud.tracing == tracing


def test_a_run_that_is_stopped_ends_with_its_reason_also_by_the_next_service(scene: Scene) -> None:
    scene.submit("r")
    scene.look()
    scene.service.operators.stop("r", "enough", "operator 'anna'")
    assert scene.job("r").state == "stopping"
    scene.close()
    scene.new_service()
    scene.service._resume()
    scene.look()
    assert (scene.job("r").state, scene.job("r").reason) == ("stopped", "enough")


def full(*_: object, **__: object) -> None:
    raise DiskError("/runs: no space left on device")


@pytest.mark.parametrize("where", ["open_run_folder", "FolderLock"])
def test_a_full_disk_makes_runs_wait_and_ends_nothing(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    scene.submit("r")
    module = server_module if where == "open_run_folder" else run_module
    with monkeypatch.context() as patched:
        patched.setattr(module, where, full)
        for _ in range(3):
            scene.look()
        assert scene.job("r").waits == "its folder: /runs: no space left on device"
        assert FakeChild.all == []
    scene.look()
    scene.look()
    assert scene.job("r").state == "running" and len(FakeChild.all) == 1
    scene.look()
    assert scene.job("r").waits == ""


def test_a_queue_that_cannot_be_written_is_tried_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.submit("r")
    with monkeypatch.context() as patched:
        patched.setattr(scene.service.queue, "change", full)
        scene.look()
        with pytest.raises(DiskError):
            scene.service.operators.stop("r", "", "")
    scene.look()
    assert scene.job("r").state == "running"


def test_settings_that_this_sfl_does_not_take_end_their_run_alone(scene: Scene) -> None:
    for name in ("old", "new"):
        scene.submit(name)
    scene.service.queue.change("old", settings="model = 3")
    scene.look()
    assert scene.job("old").state == "failed" and "model = 3" in scene.job("old").reason
    assert scene.job("new").state == "running"


def test_an_agent_that_has_a_run_of_nobody_leaves_it(scene: Scene) -> None:
    mail: Mail[Any] = Mail()
    held = [jobs_pb2.HeldRun(run="other", address="h:1")]
    hello = jobs_pb2.AgentHello(
        role="device", name="b", wire_version=WIRE_VERSION, max_runs=1, held=held
    )
    agent = Attachment(hello, mail)
    scene.service.nodes.attached(agent)
    assert mail._waiting.get_nowait().stop.run == "other"
    scene.service.nodes.logged(agent, "other", 0, b"x\n")
    assert not (scene.folder / "other").exists()
    scene.submit("r")
    scene.look()
    scene.service.nodes.started(agent, "r", "h:9")  # it is not in that run
    scene.service.nodes.logged(agent, "r", 0, b"x\n")
    assert not (scene.folder / "r" / "logs" / "b.log").exists()


def test_one_service_at_a_time(scene: Scene) -> None:
    with pytest.raises(ConfigError, match="has a service"):
        Service(ServiceSettings(), scene.folder, False, None)


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["service.max_run=3"], "Did you mean 'max_runs'"),
        (["service.max_runs=0"], r"service\.max_runs = 0"),
        (["run.rounds=3"], "run"),
    ],
)
def test_a_service_s_settings_are_looked_at(overrides: list[str], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        load_service(overrides)
    assert load_service(["service.max_runs=3"]).max_runs == 3


def test_a_scrape_shows_what_waits_and_who_is_attached(scene: Scene) -> None:
    for name in ("one", "two"):
        scene.submit(name)
    scene.look()
    scene.look()
    with serve("127.0.0.1", 0, ServiceCollector(lambda: scene.service.figures)) as server:
        text = urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics").read().decode()
    assert 'sfl_service_runs{state="queued"} 1.0' in text
    assert 'sfl_service_runs{state="running"} 1.0' in text
    assert 'sfl_service_agents{role="edge"} 1.0' in text
    assert 'sfl_service_runs_ended_total{state="failed"} 0.0' in text
    assert 'sfl_service_waiting_since_timestamp_seconds{run="two"} 1' in text
