"""Statistics, their way over the wire, and what Prometheus reads."""

from __future__ import annotations

import dataclasses
import json
import math
import socket
import subprocess
import sys
import threading
import time
import types
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from prometheus_client import parser
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics import parser as openmetrics

import sfl
from sfl.errors import ConfigError, ProtocolError
from sfl.metrics import NodeSnapshot, NodeStats, combine, memory_use
from sfl.metrics.clients import MOST, Clients
from sfl.metrics.histogram import BUCKETS
from sfl.metrics.memory import accelerator_bytes
from sfl.metrics.prometheus import NodeCollector, serve
from sfl.metrics.serving import Held, ServingCount
from sfl.metrics.snapshot import PHASES, ROLES, PhaseTotals
from sfl.metrics.stats import ByteCount, PhaseTimes
from sfl.metrics.table import METRICS
from sfl.node import machine
from sfl.node.board import Board
from tests.house.clock import Clock
from tests.house.paths import ROOT
from tests.house.report_sample import sample_snapshot
from tools.metrics_page import markdown


def test_bytes_are_counted_by_direction_and_role_from_many_threads() -> None:
    count = ByteCount()

    def send() -> None:
        for _ in range(2000):
            count.add("up", "activation", 3, 12)
            count.add("down", "gradient", 5)

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    totals = count.snapshot()
    assert totals.up["activation"] == totals.total_up == 4 * 2000 * 3
    assert totals.up_raw["activation"] == 4 * 2000 * 12
    assert totals.down["gradient"] == totals.total_down == 4 * 2000 * 5
    assert totals.down_raw["gradient"] == 0
    assert set(totals.up) == set(ROLES)


def test_a_phase_is_measured_even_when_its_body_raises() -> None:
    clock = Clock()
    times = PhaseTimes(clock)
    with pytest.raises(ValueError), times.measure("forward"):
        clock.now = 0.03
        raise ValueError
    times.observe("forward", 0.05)  # a bound belongs to its bucket, as Prometheus has it
    times.observe("forward", 1000.0)
    totals = times.snapshot()["forward"]
    assert totals.count == 3
    assert totals.seconds == pytest.approx(1000.08)
    assert totals.buckets[BUCKETS.index(0.05)] == 2
    assert totals.buckets[-1] == 1
    assert "backward" not in times.snapshot()


def test_tokens_a_second_leaves_out_the_wait_before_a_round() -> None:
    clock = Clock()
    stats = NodeStats("d", "device", clock)
    assert stats.tokens_per_second == 0
    stats.start_round(1, steps=40)
    clock.now += 77  # evaluation comes first
    for _ in range(40):
        clock.now += 0.5
        stats.finish_step(1.25, tokens=100)
    assert stats.tokens_per_second == pytest.approx(200)
    clock.now += 1000
    assert stats.tokens_per_second == pytest.approx(200)  # while it evaluates or waits
    stats.start_round(2, steps=40)
    assert stats.tokens_per_second == 0
    assert (stats.round, stats.step, stats.steps) == (2, 0, 40)
    assert (stats.steps_total, stats.tokens, stats.loss) == (40, 4000, 1.25)


def test_losses_that_are_not_finite_are_counted_and_survive_the_wire() -> None:
    stats = NodeStats("d", "device")
    for loss in (1.0, math.nan, None, math.inf):
        stats.finish_step(loss, tokens=1)
    snapshot = NodeSnapshot.from_json(stats.snapshot().to_json())
    assert (snapshot.loss, snapshot.nonfinite_losses) == (None, 2)
    assert combine([snapshot, dataclasses.replace(snapshot, started_at=1.0)]).nonfinite_losses == 4


@pytest.mark.parametrize(("limit", "expected"), [(None, (100, 30)), (60, (60, 20))])
def test_the_memory_limit_is_the_cgroups_or_the_machines(
    monkeypatch: pytest.MonkeyPatch, limit: int | None, expected: tuple[int, int]
) -> None:
    lent = machine.Memory(total=100, available=70, limit=limit, limit_used=20 if limit else 0)
    monkeypatch.setattr("sfl.node.machine.memory", lambda: lent)
    use = memory_use()
    assert (use.limit, use.limit_used) == expected


def test_a_snapshot_survives_the_wire() -> None:
    snapshot = dataclasses.replace(sample_snapshot("home", "device"), loss=0.5, seen_at=7.0)
    assert NodeSnapshot.from_json(snapshot.to_json()) == snapshot
    diverged = dataclasses.replace(snapshot, loss=math.nan)
    assert NodeSnapshot.from_json(diverged.to_json()).loss is None
    newer = snapshot.to_dict() | {"unknown": 1}
    assert NodeSnapshot.from_dict(newer) == snapshot
    assert NodeSnapshot.from_dict({"name": "a", "kind": "edge"}) == NodeSnapshot("a", "edge")


@pytest.mark.parametrize(
    "change",
    [
        {"name": 3},
        {"name": ""},
        {"name": "x" * 1000},
        {"kind": "king"},
        {"round": -1},
        {"tokens": True},
        {"steps": 2.0},
        {"resident_bytes": 10**30},
        {"loss": "low"},
        {"tokens_per_second": math.inf},
        {"bytes": []},
        {"bytes": {"up": {"activation": "1"}}},
        {"phases": {"forward": [1, 2.0, [0]]}},
        {"phases": {"forward": 4}},
    ],
)
def test_malformed_statistics_are_a_protocol_error(change: dict[str, object]) -> None:
    values = sample_snapshot("home", "device").to_dict() | change
    with pytest.raises(ProtocolError, match="statistics"):
        NodeSnapshot.from_dict(values)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "null", "[" * 100_000])
def test_what_is_no_snapshot_is_a_protocol_error(text: str) -> None:
    with pytest.raises(ProtocolError, match="statistics"):
        NodeSnapshot.from_json(text)


def test_a_restarted_node_counts_all_of_its_lives() -> None:
    first = [sample_snapshot("d", "device", share, started_at=10.0) for share in (0.2, 0.5)]
    second = sample_snapshot("d", "device", 0.3, started_at=20.0)
    total = combine([second, first[1], first[0]])  # in whatever order they came
    assert total.tokens == first[1].tokens + second.tokens
    assert total.bytes == first[1].bytes + second.bytes
    assert total.phases["wait"] == first[1].phases["wait"] + second.phases["wait"]
    assert total.peak_resident_bytes == first[0].peak_resident_bytes
    assert combine([first[0]]).bytes == first[0].bytes
    with pytest.raises(ValueError, match="no snapshot"):
        combine([])


@pytest.mark.process
def test_the_memory_of_this_process_and_its_peak() -> None:
    code = """
import sys
from sfl.metrics import memory_use
block = bytearray(b"x") * 80_000_000
del block
use = memory_use()
assert "torch" not in sys.modules and "prometheus_client" not in sys.modules
assert "numpy" not in sys.modules
sys.stdout.write(f"{use.resident} {use.peak_resident} {use.accelerator}")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    resident, peak, accelerator = map(int, done.stdout.split())
    # The peak is the child's own, whatever this process, which started it, once held.
    assert 2_000_000 < resident < 60_000_000 < peak < 160_000_000
    assert accelerator == 0
    assert memory_use().resident <= memory_use().peak_resident


@pytest.mark.process
def test_a_snapshot_needs_no_file() -> None:
    """A node that has run out of file descriptors goes on, and its heartbeats with it."""
    code = """
import contextlib, os, resource, sys
from pathlib import Path
from sfl.metrics.stats import NodeStats
stats = NodeStats("n", "edge")
known = stats.snapshot().resident_bytes
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
with contextlib.suppress(OSError):
    while True:
        os.open("/dev/null", os.O_RDONLY)
snapshot = stats.snapshot()
stats.snapshot().to_json()
NodeStats("new", "cloud").snapshot().to_json()
sys.stdout.write(f"{known} {snapshot.resident_bytes}")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    known, shown = map(int, done.stdout.split())
    assert shown == known > 0


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), RuntimeError("CUDA error")])
def test_a_snapshot_survives_what_cannot_be_measured(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    stats = NodeStats("n", "device")
    known = stats.snapshot()

    def broken() -> None:
        raise error

    monkeypatch.setattr("sfl.metrics.stats.memory_use", broken)
    assert stats.snapshot().resident_bytes == known.resident_bytes


def test_memory_is_known_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = memory_use()
    monkeypatch.setattr("sfl.metrics.memory._STATUS", Path("/nowhere/status"))
    portable = memory_use()
    assert portable.resident == pytest.approx(expected.resident, rel=0.1)
    assert portable.peak_resident >= portable.resident


def test_accelerator_memory_is_what_torch_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = types.SimpleNamespace(
        is_initialized=lambda: True,
        device_count=lambda: 2,
        memory_reserved=lambda index: 1000 * (index + 1),
    )
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    assert accelerator_bytes() == 3000
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace())  # half imported
    assert accelerator_bytes() == 0


def scrape(port: int, accept: str = "") -> str:
    """The text of a real GET of /metrics."""
    address = f"http://127.0.0.1:{port}/metrics"
    request = urllib.request.Request(address, headers={"Accept": accept} if accept else {})
    with urllib.request.urlopen(request, timeout=10) as response:
        assert response.status == 200
        return str(response.read().decode())


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of an exposition, by name and labels."""
    families: list[Family] = list(parser.text_string_to_metric_families(text))
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(text: str, name: str, **labels: str) -> float:
    return samples(text)[name, frozenset(labels.items())]


def test_an_edge_exposes_itself_and_its_devices() -> None:
    edge = NodeStats("edge", "edge", started_at=100.0)
    edge.queue_depth, edge.connected, edge.round = 4, 2, 3
    edge.bytes.add("up", "adapter", 77)
    homes = [sample_snapshot(name, "device").seen(name, at=123.0) for name in ("a", "b")]
    with serve("127.0.0.1", 0, NodeCollector(edge, lambda: homes)) as server:
        text = scrape(server.port)
    assert value(text, "sfl_round", device="") == 3
    assert value(text, "sfl_queue_depth", device="") == 4
    assert value(text, "sfl_connected_nodes", device="") == 2
    assert value(text, "sfl_start_time_seconds", device="") == 100.0
    version = {"version": sfl.__version__, "kind": "edge"}
    assert value(text, "sfl_build_info", device="", **version) == 1
    assert value(text, "sfl_resident_memory_bytes", device="") > 1e6
    role = {"direction": "up", "role": "adapter"}
    assert value(text, "sfl_wire_bytes_total", device="", **role) == 77
    for home in homes:
        label = {"device": home.name}
        assert value(text, "sfl_last_heartbeat_timestamp_seconds", **label) == 123.0
        assert value(text, "sfl_tokens_total", **label) == home.tokens
        assert value(text, "sfl_peak_resident_memory_bytes", **label) == home.peak_resident_bytes
        up = {"direction": "up", "role": "activation"}
        wire, raw = home.bytes.up["activation"], home.bytes.up_raw["activation"]
        assert value(text, "sfl_wire_bytes_total", **label, **up) == wire
        assert value(text, "sfl_wire_raw_bytes_total", **label, **up) == raw
    # An edge counts no tokens of its own, so that the sum over all series is the run's.
    known = samples(text)
    tokens = sum(number for (name, _), number in known.items() if name == "sfl_tokens_total")
    assert tokens == sum(home.tokens for home in homes)


def test_phases_are_cumulative_histograms() -> None:
    stats = NodeStats("d", "device")
    for seconds in (0.0005, 0.02, 0.02, 99.0):
        stats.phases.observe("wait", seconds)
    with serve("127.0.0.1", 0, NodeCollector(stats)) as server:
        text = scrape(server.port)
    name, label = "sfl_step_phase_seconds", {"device": "d", "phase": "wait"}
    assert value(text, f"{name}_bucket", le="0.001", **label) == 1
    assert value(text, f"{name}_bucket", le="0.025", **label) == 3
    assert value(text, f"{name}_bucket", le="30.0", **label) == 3
    assert value(text, f"{name}_bucket", le="+Inf", **label) == 4
    assert value(text, f"{name}_count", **label) == 4
    assert value(text, f"{name}_sum", **label) == pytest.approx(99.0405)


def test_a_device_shows_the_same_series_as_its_edge_does_for_it() -> None:
    device = NodeStats("home", "device")
    device.finish_step(1.0, 10)
    device.phases.observe("forward", 0.1)
    with serve("127.0.0.1", 0, NodeCollector(device)) as server:
        own = set(samples(scrape(server.port)))
    edge = NodeCollector(NodeStats("edge", "edge"), lambda: [device.snapshot().seen("home", 1.0)])
    with serve("127.0.0.1", 0, edge) as server:
        shown = set(samples(scrape(server.port)))
    relayed = {key for key in shown if ("device", "home") in key[1]}
    assert {name for name, _ in own - relayed} == {"sfl_build_info"}
    assert {name for name, _ in relayed - own} == {"sfl_last_heartbeat_timestamp_seconds"}


@pytest.mark.parametrize("kind", ["device", "edge", "stage", "cloud"])
def test_every_exposed_family_is_in_the_table_and_in_openmetrics_too(kind: str) -> None:
    snapshot = sample_snapshot("node", "device")
    stats = NodeStats("node", kind)  # type: ignore[arg-type]
    stats.loss, stats.eval_loss, stats.eval_accuracy = 1.0, 1.0, 0.5
    stats.certificate_expiry = 2e9
    stats.buffered, stats.staleness = 1, 0.5
    stats.stage_bytes.add("up", "activation", 10)
    stats.board = Board(50.0, True, True, False, True, 0.5, True, 7.5)
    stats.phases.observe("step", 0.1)
    stats.waits.begin("somebody", "return", "killed", 60.0)
    if kind in ("device", "edge"):
        stats.serving = ServingCount(lambda: Held(connected=1.0))
    others = [snapshot.seen("other", 5.0)] if kind == "edge" else []
    with serve("127.0.0.1", 0, NodeCollector(stats, lambda: others)) as server:
        text = scrape(server.port)
        strict = scrape(server.port, "application/openmetrics-text; version=1.0.0")
    known = {metric.name.removesuffix("_total"): metric for metric in METRICS}
    families = list(parser.text_string_to_metric_families(text))
    for family in families:
        metric = known[family.name]
        assert family.documentation == metric.help
        assert family.type == ("gauge" if metric.type == "info" else metric.type)
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == {"device", *metric.labels}
    expected = {name for name, metric in known.items() if kind in metric.nodes}
    assert expected - {family.name for family in families} <= {
        "sfl_last_heartbeat_timestamp_seconds"
    }
    read: Callable[[str], Iterable[Family]] = openmetrics.text_string_to_metric_families
    assert {family.name for family in read(strict)} == {family.name for family in families}


def test_names_follow_prometheus_conventions() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert metric.name.startswith("sfl_")
        assert metric.name.endswith("_total") == (metric.type == "counter")
        assert metric.unit in ("", "bytes", "seconds", "ratio", "celsius", "watts")
        assert metric.unit in metric.name.removesuffix("_total").split("_") or not metric.unit
        assert metric.help.endswith(".")
        assert "device" not in metric.labels


def test_a_name_with_quotes_stays_one_label() -> None:
    odd = sample_snapshot('a"} 1\n', "device").seen('a"} 1\n', 1.0)
    with serve("127.0.0.1", 0, NodeCollector(NodeStats("e", "edge"), lambda: [odd])) as server:
        assert value(scrape(server.port), "sfl_tokens_total", device='a"} 1\n') == odd.tokens


def test_a_port_in_use_names_the_field_and_the_fix() -> None:
    collector = NodeCollector(NodeStats("e", "edge"))
    server = serve("127.0.0.1", 0, collector)
    with server, pytest.raises(ConfigError, match=rf"metrics.port = {server.port}: is in use"):
        serve("127.0.0.1", server.port, collector)
    with serve("127.0.0.1", server.port, collector) as again:  # closing freed it
        assert again.port == server.port
    with pytest.raises(ConfigError, match=r"metrics.host = '192.0.2.1'"):
        serve("192.0.2.1", 0, collector)
    with pytest.raises(ConfigError, match=r"metrics.port = 70000"):
        serve("127.0.0.1", 70000, collector)


def test_the_document_is_in_step_with_the_table() -> None:
    written = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert written == markdown(), "run: python -m tools.metrics_page > docs/metrics.md"
    for metric in METRICS:
        assert f"`{metric.name}`" in written


def test_a_snapshot_is_small_enough_for_a_heartbeat() -> None:
    snapshot = sample_snapshot("home", "device")
    full = dataclasses.replace(snapshot, phases={p: PhaseTotals(2**40, 1e9) for p in PHASES})
    assert len(full.to_json()) < 3000
    assert json.loads(full.to_json())["name"] == "home"


def test_slow_clients_take_a_bounded_number_of_threads_and_nobodys_scrape() -> None:
    stats = NodeStats("e", "edge")
    server = serve("127.0.0.1", 0, NodeCollector(stats))
    idle = []
    try:
        for _ in range(200):
            own = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            own.sendall(b"GET /me")
            idle.append(own)
        serving = [t for t in threading.enumerate() if "process_request_thread" in t.name]
        assert len(serving) <= 2 * MOST
        assert "sfl_resident_memory_bytes" in scrape(server.port)
        closed = [own for own in idle if _is_closed(own)]
        assert len(closed) >= len(idle) - 2 * MOST
    finally:
        for own in idle:
            own.close()
        server.close()


def _is_closed(own: socket.socket) -> bool:
    own.setblocking(False)
    try:
        return own.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def test_a_client_has_so_long_however_slowly_it_sends() -> None:
    clients = Clients(most=2, seconds=0.0)
    one, other = socket.socketpair()
    assert clients.enter(one)
    time.sleep(0.01)
    clients.end_late()
    assert other.recv(1) == b""
    assert clients.enter(other)
    clients.leave(one)
    clients.leave(other)
    one.close()
    other.close()
