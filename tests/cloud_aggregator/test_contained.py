"""A fault of the cloud's own ends its run with a reason; an edge's fault ends that edge's part."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import json
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, MagicMock, patch

import grpc.aio
import pytest
from safetensors import SafetensorError

from cloud_aggregator.aggregator import CloudAggregator
from edge_server.host import JOINING, JoinPace
from sfl.config import RunSettings, load_run
from sfl.config.node import MetricsSettings
from sfl.errors import (
    DiskError,
    Goodbye,
    LinkLost,
    NameInUse,
    OutOfMemory,
    ProtocolError,
    RunFailed,
)
from sfl.metrics.prometheus import NodeCollector, serve_as_set
from sfl.metrics.stats import NodeStats
from sfl.node.causes import cause_of, foreseen
from sfl.node.certificates.authority import Authority
from sfl.report.projection import MOST_FAULTS, Faults
from sfl.report.standing import shown_phase, waits_of
from sfl.report.status import RunStatus
from sfl.rounds import (
    Aggregate,
    EdgeLost,
    Fault,
    FinishRun,
    OpenRound,
    Phase,
    Progress,
    Steps,
    Tick,
)
from sfl.rounds.ordered import Ordered
from sfl.rounds.values import Challenge
from sfl.stage.engine import Engine
from sfl.transport.bulk.fetch import fetch_model
from sfl.transport.cloud.link import CloudStream
from sfl.transport.cloud.reporting import Reporting
from sfl.transport.device.service import EdgeService
from sfl.transport.group import GONE, run_together
from sfl.v1 import cloud_pb2, edge_pb2, tensor_pb2
from tests.house.cloud import SpokenEdge, cloud_alone
from tests.house.federation import Outcome, sfl, write_config
from tests.house.fleets import fleet
from tests.house.hostile import base_of
from tests.house.nodes import left_running
from tests.house.rebuilt import fill_up
from tests.house.tls import give
from tests.house.waiting import at_hand, until

# -- what an exception comes to --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/a/b"),
            DiskError,
            "/a: its disk is full",
        ),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), DiskError, "quota"),
        (
            OSError(errno.EROFS, "Read-only file system", "/a/b"),
            DiskError,
            "/a: its disk is read-only",
        ),
        (
            FileNotFoundError(errno.ENOENT, "No such file", "/a/b"),
            DiskError,
            "/a: it has disappeared",
        ),
        (OSError(errno.ENAMETOOLONG, "File name too long", "/a/b"), DiskError, "/a: a name in it"),
        (OSError(errno.EMFILE, "Too many open files"), DiskError, "ulimit -n"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), OutOfMemory, "out of memory"),
        (MemoryError(), OutOfMemory, "out of memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes"),
            OutOfMemory,
            "memory",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate"), OutOfMemory, "CUDA"),
        (RuntimeError("std::bad_alloc"), OutOfMemory, "bad_alloc"),
        (RuntimeError("can't start new thread"), OutOfMemory, "thread"),
        (SafetensorError("No space left on device (os error 28)"), DiskError, "its disk is full"),
        (SafetensorError("Cannot allocate memory (os error 12)"), OutOfMemory, "out of memory"),
    ],
)
def test_disk_and_memory_are_named(error: Exception, kind: type[Exception], words: str) -> None:
    known = foreseen(error)
    assert type(known) is kind and words in str(known), known
    assert "bug" not in str(known)


@pytest.mark.parametrize(
    "error", [KeyError("x"), ConnectionResetError(errno.ECONNRESET, "reset"), RuntimeError("no")]
)
def test_anything_else_is_a_bug(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    assert foreseen(error) is None
    assert "a bug" in str(cause_of(error))
    assert caplog.records[0].exc_info is not None


# -- enumerations that must agree ------------------------------------------------------------------


@pytest.mark.parametrize("phase", list(Phase))
def test_every_phase_can_be_shown(phase: Phase) -> None:
    assert shown_phase(phase)


def bodies(message: Any) -> set[str]:
    return {field.name for field in message.DESCRIPTOR.oneofs_by_name["body"].fields}


@pytest.mark.parametrize("body", sorted(bodies(cloud_pb2.EdgeReportMessage) - {"hello"}))
def test_the_cloud_takes_every_message_that_the_wire_knows(body: str) -> None:
    message = cloud_pb2.EdgeReportMessage()
    if body in ("failure", "goodbye"):
        setattr(message, body, "x")
    else:
        getattr(message, body).SetInParent()
    try:
        Reporting("e", MagicMock(heartbeat_interval=1.0))._take(message)
    except Goodbye as error:
        assert body == "goodbye" and error.returns
    except ProtocolError as error:
        assert "was not expected" not in str(error), error


@pytest.mark.parametrize("body", sorted(bodies(cloud_pb2.CloudMessage)))
def test_an_edge_takes_every_message_that_the_wire_knows(body: str) -> None:
    async def taken() -> None:
        channel = grpc.aio.insecure_channel("127.0.0.1:1")
        link = CloudStream(channel, "cloud", NodeStats("e", "edge"), 0)
        message = cloud_pb2.CloudMessage()
        getattr(message, body).SetInParent()
        try:
            link.word(message)
        except ProtocolError as error:
            assert "was not expected" not in str(error), error
        finally:
            link.hang_up()
            await channel.close()

    asyncio.run(taken())


def test_a_device_that_joins_without_end_waits() -> None:
    def times(pace: JoinPace, *names: str) -> int:
        """How often these may join, in turns, all at one time."""
        for count, name in enumerate(names * 1000):
            try:
                pace.take(name, 7.0)
            except NameInUse as error:
                assert "joins a second; try again in a moment" in str(error)
                return count
        raise AssertionError("without end")

    devices = [{"name": "d0"}, {"name": "d1"}]
    pace = JoinPace(RunSettings.model_validate({"model": {"path": "m"}, "devices": devices}))
    strangers = times(pace, *(f"x{number}" for number in range(1000)))
    assert len(pace._paces) == 1
    most = JOINING[1]
    assert (times(pace, "d0"), times(pace, "d1"), strangers) == (most, most, most)


# -- the cloud, with edges that a test speaks for --------------------------------------------------


def written(folder: Path) -> tuple[dict[str, Any], RunStatus]:
    """The summary and the last status; the report is there too."""
    assert "failed" in (folder / "runs" / "t" / "report.html").read_text()
    status = RunStatus.read(folder / "runs" / "t" / "status.json")
    assert status is not None and status.phase == "failed"
    return json.loads((folder / "runs" / "t" / "summary.json").read_text()), status


def in_round(cloud: CloudAggregator, **progress: Progress) -> None:
    """Have these devices be in the open round, so far."""
    opened = OpenRound(Ordered.of(progress.items()))
    cloud.coordinator.state = replace(cloud.coordinator.state, open=opened)


def averaged(cloud: CloudAggregator) -> None:
    """Have the cloud average a round that one device was in."""
    in_round(cloud, d0=Progress(Steps(3, 0, 3), 4, round=1))
    cloud.driver.do(Aggregate(1, {"d0": 4}))


def test_a_clock_that_breaks_ends_the_run_with_a_reason(tmp_path: Path) -> None:
    async def story(cloud: CloudAggregator, address: str) -> None:
        def broken(*_: object) -> None:
            raise KeyError("a phase nobody knows")

        cloud.records.show = broken  # type: ignore[method-assign]

    reason, _ = cloud_alone(tmp_path, story)
    assert "a phase nobody knows" in reason and "a bug" in reason
    summary, status = written(tmp_path)
    assert summary["failure"] == status.message == reason
    assert {device.state for device in status.devices} == {"never joined"}


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "its disk is full"),
        (MemoryError(), "out of memory"),
        (ZeroDivisionError("weights"), "ZeroDivisionError: weights (a bug"),
    ],
)
def test_averaging_that_breaks_ends_the_run_with_a_reason(
    tmp_path: Path, error: Exception, words: str
) -> None:
    async def story(cloud: CloudAggregator, address: str) -> None:
        cloud.averaging.examine = MagicMock(side_effect=error)  # type: ignore[method-assign]
        averaged(cloud)

    reason, _ = cloud_alone(tmp_path, story)
    assert reason.startswith("round 1 could not be averaged: ") and words in reason
    summary, _ = written(tmp_path)
    assert summary["failure"] == reason


def test_a_journal_that_cannot_be_written_ends_the_run_with_a_reason(tmp_path: Path) -> None:
    async def story(cloud: CloudAggregator, address: str) -> None:
        fill_up(cloud.journal)
        for number in range(1000):
            cloud.driver.happened(EdgeLost(f"edge{number}", "cut" * 100))

    reason, cloud = cloud_alone(tmp_path, story)
    assert reason.startswith(str(cloud.folder)) and "its disk is full" in reason
    summary, _ = written(tmp_path)
    assert summary["failure"] == reason


def test_what_the_coordinator_wants_and_nobody_can_do_ends_the_run(tmp_path: Path) -> None:
    async def story(cloud: CloudAggregator, address: str) -> None:
        cloud.coordinator.handle = lambda event, now: [object()]  # type: ignore[method-assign]
        cloud.driver.happened(Tick())

    reason, _ = cloud_alone(tmp_path, story)
    assert "TypeError" in reason
    written(tmp_path)


def test_who_offends_while_a_round_is_averaged_is_no_bug(tmp_path: Path) -> None:
    async def story(cloud: CloudAggregator, address: str) -> None:
        averaged(cloud)
        in_round(cloud)  # as an offence does, before the averaging begins

    reason, _ = cloud_alone(tmp_path, story)
    assert "KeyError" not in reason and "d0.device.safetensors" in reason


def test_averaging_that_never_ends_does_not_keep_the_process(tmp_path: Path) -> None:
    done = threading.Event()

    async def story(cloud: CloudAggregator, address: str) -> None:
        cloud.averaging.examine = lambda command, steps: done.wait()  # type: ignore
        averaged(cloud)
        await asyncio.sleep(0)
        cloud.driver.do(FinishRun(False, "not averaged in time"))

    try:
        reason, _ = cloud_alone(tmp_path, story)  # whose loop waits for its pool's threads
    finally:
        done.set()
    assert reason == "not averaged in time"


def test_an_edge_that_fails_ends_its_own_part_alone(tmp_path: Path) -> None:
    async def story(cloud: CloudAggregator, address: str) -> None:
        one, other = SpokenEdge(address, "one"), SpokenEdge(address, "other")
        await one.join()
        await other.join()
        assert cloud.stats.snapshot().connected == 2
        await one.say(failure="no CUDA device")
        assert (await one.hears("finish")).finish.reason == "no CUDA device"
        await one.say(join=cloud_pb2.DeviceJoin(device="d0"))  # which nobody heeds any more
        await one.close()
        await other.hears("heartbeat")
        assert not cloud.driver.over.done() and not cloud.coordinator.devices
        await other.say(failure="no memory")
        assert "no memory" in (await other.hears("finish")).finish.reason
        await other.close()

    both, network = {"edges": ["one", "other"]}, {"rejoin_timeout": 0}
    reason, cloud = cloud_alone(tmp_path, story, run=both, edge={"name": "one"}, network=network)
    assert reason == "no edge is left; edge one: no CUDA device; edge other: no memory"
    summary, _ = written(tmp_path)
    assert [fault["problem"] for fault in summary["faults"]] == [
        "edge one: no CUDA device",
        "edge other: no memory",
    ]
    assert cloud.stats.snapshot().connected == 0


def test_the_only_edge_that_fails_may_be_started_again(tmp_path: Path) -> None:
    async def story(cloud: CloudAggregator, address: str) -> None:
        for _ in range(2):
            edge = SpokenEdge(address, "edge")
            await edge.join()
            await edge.say(failure="model.path: no config.json in /model")
            assert (await edge.hears("finish")).finish.goes_on  # so its devices dial again
            await edge.close()
            while cloud.service.streams:
                await asyncio.sleep(0.01)
        assert not cloud.driver.over.done()
        wait, *_ = waits_of(cloud.coordinator.state, cloud.config.current.settings)
        assert (wait.whom, wait.kind) == ("edge edge", "join")
        assert wait.what == "to be started again (model.path: no config.json in /model)"

    reason, _ = cloud_alone(tmp_path, story, network={"join_timeout": 3.0})
    assert reason == (
        "0 of at least 1 devices were ready after 3 s; missing: d0, d1; "
        "edge edge: model.path: no config.json in /model"
    )


@pytest.mark.process
@pytest.mark.parametrize("first", ["liar", "honest"])
@pytest.mark.parametrize("known", [True, False], ids=["model-at-cloud", "no-model-at-cloud"])
def test_an_edge_with_another_model_ends_its_own_part_alone(
    tmp_path: Path, first: str, known: bool
) -> None:
    """Whoever comes first: the cloud's own model decides, else what most edges say."""
    heard: list[str] = []

    async def story(cloud: CloudAggregator, address: str) -> None:
        names = ("liar", "one", "two") if first == "liar" else ("one", "liar", "two")
        edges = {name: SpokenEdge(address, name) for name in names}
        honest = base_of(load_run(tmp_path / "run.toml", []).settings)
        for name, edge in edges.items():
            await edge.join()
            said = json.loads(honest.manifest)
            if name == "liar":
                said["num_layers"] = 5
            ready = cloud_pb2.EdgeReady(manifest=json.dumps(said), given=honest.given)
            await edge.say(ready=ready)
            await edge.hears("heartbeat") if (name, known) != ("liar", True) else None
        if known:
            code = await asyncio.wait_for(edges["liar"].call.code(), 60)
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            heard.append(await edges["liar"].call.details())
        else:
            heard.append((await edges["liar"].hears("finish")).finish.reason)
        await edges["one"].hears("heartbeat")
        assert not cloud.driver.over.done() and cloud.coordinator.num_layers == 3
        assert cloud.adapter.manifest is not None and cloud.adapter.values
        cloud.driver.do(FinishRun(False, "enough"))
        for edge in edges.values():
            await edge.close()

    sections: dict[str, Any] = {"run": {"edges": ["liar", "one", "two"]}, "edge": {"name": "one"}}
    if not known:
        aside = patch("cloud_aggregator.models_said.local_folder", return_value=None)
    else:
        aside = nullcontext()
    with aside:
        reason, _ = cloud_alone(tmp_path, story, **sections)
    assert reason == "enough"
    assert ("num_layers = 5 of its model" if known else "another model than most") in heard[0]


def test_a_device_whose_rows_are_laid_out_otherwise_is_turned_away_and_may_come_with_others(
    tmp_path: Path,
) -> None:
    async def story(cloud: CloudAggregator, address: str) -> None:
        edge = SpokenEdge(address, "edge")
        await edge.join()
        await edge.say(ready=base_of(load_run(tmp_path / "run.toml", []).settings))
        for name, layout in (("d0", "completion"), ("d1", "messages"), ("d1", "completion")):
            await edge.say(join=cloud_pb2.DeviceJoin(device=name))
            assert (await edge.hears("admission")).admission.refusal == ""
            snapshot = NodeStats(name, "device").snapshot().to_json()
            said = edge_pb2.DeviceReady(num_examples=8, snapshot=snapshot, layout=layout)
            await edge.say(device_ready=cloud_pb2.DeviceIsReady(device=name, ready=said))
            if layout == "messages":
                evict = (await edge.hears("evict")).evict
                assert evict.device == "d1" and evict.final
                assert "its rows are laid out as 'messages', the run's as 'comp" in evict.reason
        start = (await edge.hears("start")).start
        assert {entry.device for entry in start.devices} == {"d0", "d1"}
        cloud.driver.do(FinishRun(False, "enough"))
        await edge.close()

    reason, _ = cloud_alone(tmp_path, story)
    assert reason == "enough"


def test_a_bug_over_one_devices_words_costs_that_device_and_not_its_edge() -> None:
    host = MagicMock(heartbeat_interval=1.0)
    stream = Reporting("e", host)
    stream.devices = {"d0": MagicMock(), "d1": MagicMock()}
    stream.devices["d0"].report.side_effect = IndexError("a length nobody foresaw")
    for device in ("d0", "d1"):
        said = tensor_pb2.RoundReport(device=device)
        stream._take(cloud_pb2.EdgeReportMessage(report=said))
    (broken,) = host.device_broke.call_args_list
    assert broken.args[0] == "d0" and "a length nobody foresaw" in broken.args[1]
    assert host.reported.call_args.args[0].device == "d1"
    stream.devices["d1"].report.side_effect = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError):  # the cloud's own
        stream._take(cloud_pb2.EdgeReportMessage(report=tensor_pb2.RoundReport(device="d1")))


# -- the disk --------------------------------------------------------------------------------------


@contextmanager
def small_disk(where: Path, options: str) -> Iterator[None]:
    """A file system of its own over a folder."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(where)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


def fill(folder: Path) -> None:
    """Leave no byte on a disk."""
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC


class Disturbed:
    """`sfl run`, while a test does something to its folder."""

    def __init__(self, folder: Path, values: dict[str, Any]) -> None:
        self.folder = Path(values["run"]["output_dir"]) / "t"
        self._done: list[subprocess.CompletedProcess[str]] = []
        config = write_config(folder, values)
        self._thread = threading.Thread(target=lambda: self._done.append(sfl("run", config)))
        self._thread.start()

    def trains(self) -> bool:
        status = RunStatus.read(self.folder / "status.json")
        return status is not None and any(device.step > 1 for device in status.devices)

    def outcome(self) -> Outcome:
        self._thread.join()
        done = self._done[0]
        return Outcome(done.returncode, done.stdout + done.stderr, self.folder)


def disturbed(folder: Path, runs: Path, strike: Callable[[Path], Any]) -> Outcome:
    values = fleet(folder, 2, run={"output_dir": str(runs)}, training={"local_steps": 150})
    run = Disturbed(folder, values)
    try:
        until(run.trains, "a step of round 1")
        strike(run.folder)
    finally:
        outcome = run.outcome()
    logs = "".join(log.read_text() for log in (runs / "t" / "logs").glob("*.log"))
    assert "Traceback" not in outcome.output + logs and "a bug" not in outcome.output + logs
    assert not left_running(folder)
    return outcome


def assert_told(outcome: Outcome, *words: str) -> None:
    """One line, exit 1, and a summary, a status and a report that say the same."""
    assert outcome.code == 1, outcome.output
    (line,) = [line for line in outcome.output.splitlines() if line.startswith("error: ")]
    status = RunStatus.read(outcome.folder / "status.json")
    assert status is not None and status.phase == "failed"
    assert {device.state for device in status.devices} <= {"stopped", "lost"}
    for said in (line, outcome.summary["failure"], status.message):
        for word in words:
            assert word in said, said
    assert (outcome.folder / "report.html").exists()


@pytest.mark.process
def test_a_disk_that_is_full_when_a_round_is_averaged_ends_the_run(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with contextlib.ExitStack() as disks:

        def strike(folder: Path) -> None:
            disks.enter_context(small_disk(folder / "adapters", "size=4k"))

        outcome = disturbed(tmp_path, runs, strike)
    place = str(runs / "t" / "adapters" / "round-000")
    assert_told(outcome, "could not be averaged", place, "its disk is full")


@pytest.mark.process
def test_a_disk_that_fills_up_while_a_run_trains_ends_it(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    with small_disk(runs, "size=8m"):
        outcome = disturbed(tmp_path, runs, lambda folder: fill(runs))
        assert_told(outcome, str(runs / "t"), "its disk is full", "Make room there")


@pytest.mark.process
def test_a_disk_that_turns_read_only_ends_the_run(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with contextlib.ExitStack() as disks:

        def strike(folder: Path) -> None:
            (folder / "spool").mkdir(exist_ok=True)
            disks.enter_context(small_disk(folder / "spool", "ro"))

        outcome = disturbed(tmp_path, runs, strike)
    assert_told(outcome, str(runs / "t" / "spool"), "its disk is read-only")


# -- a run whose steps are timed first -------------------------------------------------------------


@pytest.mark.process
def test_the_cloud_goes_on_while_steps_are_timed(tmp_path: Path) -> None:
    values = fleet(tmp_path, 2, training={"micro_batches": "auto", "local_steps": 1})
    for entry in values["devices"]:
        entry["link"] = {"delay_ms": 100.0}  # so that it takes longer than a look at the clock
    done = sfl("run", write_config(tmp_path, values))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "round 0/3  timing steps" in done.stdout
    status = RunStatus.read(tmp_path / "runs" / "t" / "status.json")
    assert status is not None and (status.phase, status.round) == ("finished", 3)
    assert [device.state for device in status.devices] == ["done", "done"]


# -- what nodes keep on their own disks ------------------------------------------------------------


@pytest.mark.process
def test_a_table_on_a_full_disk_is_an_error_and_no_signal(tmp_path: Path) -> None:
    """Its pages are touched only where the disk has room for them."""
    code = """
import sys
import numpy as np, torch
from pathlib import Path
from sfl.codec.memory import make_delta
from sfl.codec.spec import Argument
from sfl.errors import DiskError
table = make_delta(("sample",)).table(512, Path(sys.argv[1]), "device.cache_dir")
fresh = np.zeros(0, np.int64)
try:
    for first in range(0, 1 << 17, 1024):
        slots = np.arange(first, first + 1024)
        table.predict(slots)
        table.write(slots, torch.ones(1024, 512), slots)
except DiskError as error:
    print(first, error)
    assert float(table.predict(np.arange(8)).sum()) == 8 * 512  # what it has stays whole
"""
    with small_disk(tmp_path, "size=16m"):
        command = [sys.executable, "-c", code, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr)
    assert f"{tmp_path} (device.cache_dir): its disk is full" in done.stdout
    assert int(done.stdout.split()[0]) > 4096


@pytest.mark.process
def test_a_cache_on_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytes(3_000_000)
    entry = edge_pb2.FileEntry(
        name="model.safetensors", sha256=hashlib.sha256(content).hexdigest(), num_bytes=len(content)
    )

    class Chunks(list[Any]):
        def cancel(self) -> None:
            """As a call has it."""

    def listing(channel: object) -> Any:
        return lambda request, timeout: edge_pb2.FileList(files=[entry])

    def chunks(channel: object) -> Any:
        fill(tmp_path)  # it had room enough when it was looked at
        return lambda request: Chunks([edge_pb2.FileChunk(data=content)])

    monkeypatch.setattr("sfl.transport.bulk.fetch.EDGE_LIST_FILES", SimpleNamespace(stub=listing))
    monkeypatch.setattr("sfl.transport.bulk.fetch.EDGE_FETCH_FILE", SimpleNamespace(stub=chunks))
    monkeypatch.setattr("sfl.transport.bulk.fetch.sound", lambda message, peer: message)
    with small_disk(tmp_path, "size=8m"), pytest.raises(DiskError) as raised:
        fetch_model(MagicMock(), "d0", tmp_path, NodeStats("d0", "device"))
    assert f"{tmp_path} (device.cache_dir): its disk is full" in str(raised.value)


def test_a_compute_thread_that_dies_leaves_nobody_waiting() -> None:
    async def story() -> None:
        engine = Engine(1)
        engine._choose = MagicMock(side_effect=KeyError("an order"))  # type: ignore[method-assign]
        with pytest.raises(RunFailed, match="an order"):
            await asyncio.wait_for(engine.run(int), 60)
        with pytest.raises(RunFailed, match="compute thread has ended"):
            await asyncio.wait_for(engine.run(int), 60)
        engine.close()

    asyncio.run(story())


def _answering() -> bool:
    return any("process_request_thread" in thread.name for thread in threading.enumerate())


def test_a_scraper_that_hangs_up_leaves_no_traceback(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked, gone, answered = threading.Event(), threading.Event(), threading.Event()

    class Slow(NodeCollector):
        def collect(self) -> Iterator[Any]:
            asked.set()
            gone.wait(60)
            yield from super().collect()
            answered.set()

    folder = give(Authority.create(), tmp_path / "e", "edge", "e", "127.0.0.1")
    values = MetricsSettings(cert=folder / "e.pem", key=folder / "e.key")
    trust = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    with serve_as_set(values, Slow(NodeStats("e", "edge"))) as node:
        # Reset, so that what is written to it fails; TLS words that in errors of its own.
        raw = socket.create_connection(("127.0.0.1", node.port))
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client = trust.wrap_socket(raw, server_hostname="127.0.0.1")
        client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert asked.wait(60)
        client.close()
        gone.set()
        assert answered.wait(60)
        until(lambda: not _answering(), "the end of the answer")
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("kind", GONE)
def test_a_write_to_a_peer_that_has_just_hung_up_is_a_lost_link(
    kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    async def write() -> None:
        raise kind("Failed 'execute_batch'")

    with pytest.raises(LinkLost, match="the stream broke"):
        asyncio.run(run_together(write()))
    assert not caplog.records


def test_a_node_that_comes_and_goes_all_day_does_not_fill_the_status() -> None:
    faults = Faults()
    for round_ in range(10_000):
        faults.add(Fault(round_, "d0", "the stream broke"))
    faults.add(Fault(10_000, "d1", "its own"))
    assert [fault.node for fault in faults.kept] == ["d0"] * (MOST_FAULTS + 1) + ["d1"]
    assert faults.kept[MOST_FAULTS].problem == "its further faults are in the log only"


def test_what_is_said_of_a_device_is_cut_and_few_lines_tell_of_strangers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A tensor's name may fill a message: repeated as it is, it ends the links of all edges."""

    async def story(cloud: CloudAggregator, address: str) -> None:
        roster = cloud.coordinator.state.roster
        for name in ("d0", "d1"):
            roster = roster.join(name, "edge").make_ready(name, 4)
        cloud.coordinator.state = replace(cloud.coordinator.state, roster=roster)
        cloud.host.device_broke("d0", "x" * 9_000_000)
        cloud.host.not_signed("edge", "d1", "y" * 9_000_000)
        for number in range(100):
            cloud.host.device_joined("edge", f"stranger{number}")
        cloud.driver.do(FinishRun(False, "enough"))

    _, cloud = cloud_alone(tmp_path, story)
    assert {fault.node for fault in cloud.records.told.faults.kept} >= {"d0", "d1"}
    assert max(len(fault.problem) for fault in cloud.records.told.faults.kept) < 1000
    assert sum("no device 'stranger" in record.getMessage() for record in caplog.records) == 5


def test_a_proof_is_no_larger_than_one() -> None:
    async def answers() -> AsyncIterator[edge_pb2.DeviceMessage]:
        yield edge_pb2.DeviceMessage(proof=edge_pb2.Proof(certificate=bytes(1 << 20)))

    async def asked() -> None:
        service = EdgeService(NodeStats("e", "edge"), at_hand(MagicMock()))
        service.entrance.challenge = Challenge("", "", b"")
        try:
            await service.entrance._proof(answers(), AsyncMock())
        finally:
            service.close()

    with pytest.raises(ProtocolError, match="a proof takes 10485"):
        asyncio.run(asked())
