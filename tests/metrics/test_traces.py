"""Steps as OpenTelemetry traces: made from timelines, and received from a real run."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from sfl.errors import ConfigError
from sfl.metrics.timeline import Interval
from sfl.node.extras import require_opentelemetry
from sfl.report.step import StepTimeline
from tests.house.files import write_jsonl
from tests.house.paths import QUICKSTART, ROOT
from tests.house.twin import played

pytest.importorskip("opentelemetry.sdk", reason="the extra otel is not installed")
pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
)
from opentelemetry.sdk.trace.export.in_memory_span_exporter import (
    InMemorySpanExporter,
)

from sfl.report.traces import StepTraces, trace_id


def test_a_step_is_one_trace_of_all_three_nodes() -> None:
    exporter = InMemorySpanExporter()
    traces = StepTraces("r", "edge", exporter)
    own = (
        Interval("forward", "MainThread", 0, 100.0, 100.5),
        Interval("wait", "MainThread", 0, 100.5, 102),
    )
    edge = (Interval("forward", "compute", 0, 100.75, 101.5),)
    steps = [StepTimeline("a", 2, own, edge, 5), StepTimeline("b", 2, own, edge, 5)]
    traces.add([*steps, StepTimeline("silent", 2, (), (), 5)], began=103.0)
    traces.close()
    spans = exporter.get_finished_spans()
    assert {span.context.trace_id for span in spans} == {
        trace_id("r", 2, 5, "a"),
        trace_id("r", 2, 5, "b"),
    }
    mine = [span for span in spans if span.context.trace_id == trace_id("r", 2, 5, "a")]
    assert len({span.context.span_id for span in spans}) == len(spans)
    (root,) = (span for span in mine if span.parent is None)
    assert (root.name, root.start_time, root.end_time) == ("step", 100 * 10**9, 102 * 10**9)
    assert all(span.parent.span_id == root.context.span_id for span in mine if span is not root)
    assert sorted((span.resource.attributes["service.name"], span.name) for span in mine) == [
        ("sfl-cloud", "aggregate"),
        ("sfl-device", "forward"),
        ("sfl-device", "step"),
        ("sfl-device", "wait"),
        ("sfl-edge", "forward"),
    ]
    assert {span.attributes["sfl.step"] for span in mine} == {5}


def test_ids_follow_from_what_a_span_is_of() -> None:
    here = ("r", 2, 5, "a")
    others = {here, ("r", 2, 6, "a"), ("r", 3, 5, "a"), ("r", 2, 5, "b"), ("s", 2, 5, "a")}
    assert trace_id(*here) == trace_id(*here)
    assert len({trace_id(*other) for other in others}) == len(others)
    assert all(0 < trace_id(*other) < 2**128 for other in others)


def test_without_the_extra_the_setting_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    require_opentelemetry("cloud.tracing.endpoint", "http://x")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"cloud.tracing.endpoint.*sfl\[otel\]"):
        require_opentelemetry("cloud.tracing.endpoint", "http://x")


class Collector(ThreadingHTTPServer):
    """A receiver of OTLP over HTTP."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receive)
        self.requests: list[ExportTraceServiceRequest] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1/traces"


class Receive(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        request = ExportTraceServiceRequest.FromString(body)
        self.server.requests.append(request)  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *values: object) -> None:
        """Not into the tests' output."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def settings(folder: Path, endpoint: str) -> dict[str, Any]:
    lines = (QUICKSTART / "data" / "loft" / "train.jsonl").read_text().splitlines()[:8]
    train = write_jsonl(folder / "train.jsonl", [json.loads(line) for line in lines])
    return {
        "run": {"rounds": 2},
        "model": {"path": str(QUICKSTART / "model"), "max_length": 96},
        "training": {"batch_size": 2, "local_steps": 3},
        "edge": {"threads": 1},
        "cloud": {"tracing": {"endpoint": endpoint}},
        "devices": [
            {"name": name, "cut_layer": 1, "threads": 1, "train": str(train)} for name in "ab"
        ],
    }


@pytest.mark.process
def test_a_run_sends_a_trace_for_each_device_and_round(
    tmp_path: Path, collector: Collector
) -> None:
    outcome = played(tmp_path, settings(tmp_path, collector.endpoint))
    assert outcome.code == 0, outcome.output + outcome.logs()
    nodes: dict[bytes, set[tuple[str, str]]] = {}
    for request in collector.requests:
        for part in request.resource_spans:
            about = {a.key: a.value.string_value for a in part.resource.attributes}
            for scope in part.scope_spans:
                for span in scope.spans:
                    here = (about["service.name"], about["service.instance.id"])
                    nodes.setdefault(span.trace_id, set()).add(here)
    expected = {
        trace_id("t", round_, 1, device).to_bytes(16, "big"): {
            ("sfl-device", device),
            ("sfl-edge", "edge"),
            ("sfl-cloud", "cloud"),
        }
        for round_ in (1, 2)
        for device in "ab"
    }
    assert nodes == expected


@pytest.mark.process
def test_a_collector_that_is_not_there_does_not_stop_a_run(tmp_path: Path) -> None:
    outcome = played(tmp_path, settings(tmp_path, "http://127.0.0.1:9/v1/traces"))
    assert outcome.code == 0, outcome.output + outcome.logs()


@pytest.mark.process
def test_nothing_is_imported_where_it_is_not_asked_for() -> None:
    code = "import sys, cloud_aggregator.aggregator; print('opentelemetry' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "False"
