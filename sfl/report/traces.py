"""Steps as OpenTelemetry traces: what the device, its edge and the cloud did, in one trace each.

The cloud sends them all: the spans come to it with a round's report, and a device behind a router
need not reach a collector. Ids follow from what a span is of, so that what anybody else sends of
the same step joins the same trace. Imported only where `cloud.tracing.endpoint` is set.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import SpanContext, TraceFlags

import sfl
from sfl.metrics.snapshot import NodeKind
from sfl.metrics.timeline import Interval
from sfl.report.step import StepTimeline

PATIENCE = 3.0
"""Seconds a collector may take for a batch, tries anew included."""


def trace_id(run: str, round_: int, step: int, device: str) -> int:
    """The trace of one step of one device, whoever asks."""
    return _hashed(16, run, round_, step, device)


class StepTraces:
    """Sends a round's watched steps to a collector, on a thread of the SDK's own."""

    def __init__(self, run_id: str, edge: str, exporter: SpanExporter) -> None:
        self._run = run_id
        self._edge = edge
        self._out = BatchSpanProcessor(exporter)

    @classmethod
    def to(cls, endpoint: str, run_id: str, edge: str) -> StepTraces:
        """Over OTLP/HTTP."""
        return cls(run_id, edge, OTLPSpanExporter(endpoint=endpoint, timeout=PATIENCE))

    def add(self, timelines: Iterable[StepTimeline], began: float) -> None:
        """Send the steps of a round that was averaged from `began`, Unix seconds, until now."""
        ended = time.time()
        for timeline in timelines:
            if timeline.own:
                for span in self._spans(timeline, began, ended):
                    self._out.on_end(span)

    def close(self) -> None:
        """Send what is left; a collector that does not answer costs seconds, not the run."""
        self._out.shutdown()  # type: ignore[no-untyped-call]

    def _spans(self, step: StepTimeline, began: float, ended: float) -> Iterable[ReadableSpan]:
        first = min(span.begin for span in (*step.own, *step.edge))
        last = max(span.end for span in (*step.own, *step.edge))
        root = self._context(step, "step")
        yield self._span("step", root, None, step, ("device", step.device), first, last)
        for kind, name, spans in (
            ("device", step.device, step.own),
            ("edge", self._edge, step.edge),
        ):
            for number, span in enumerate(spans):
                yield self._phase(step, root, (kind, name), number, span)  # type: ignore[arg-type]
        context = self._context(step, "aggregate")
        yield self._span("aggregate", context, root, step, ("cloud", "cloud"), began, ended)

    def _phase(
        self,
        step: StepTimeline,
        parent: SpanContext,
        node: tuple[NodeKind, str],
        number: int,
        span: Interval,
    ) -> ReadableSpan:
        context = self._context(step, node[0], number)
        more: dict[str, str | int] = {"sfl.micro_batch": span.micro_batch, "thread.name": span.lane}
        return self._span(span.phase, context, parent, step, node, span.begin, span.end, **more)

    def _span(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        step: StepTimeline,
        node: tuple[NodeKind, str],
        begin: float,
        end: float,
        **more: str | int,
    ) -> ReadableSpan:
        return ReadableSpan(
            name,
            context,
            parent,
            _resource(*node),
            {
                "sfl.run": self._run,
                "sfl.round": step.round,
                "sfl.step": step.step,
                "sfl.device": step.device,
                **more,
            },
            start_time=round(begin * 1e9),
            end_time=round(end * 1e9),
        )

    def _context(self, step: StepTimeline, *what: object) -> SpanContext:
        place = (self._run, step.round, step.step, step.device)
        return SpanContext(
            trace_id(*place),
            _hashed(8, *place, *what),
            is_remote=False,
            trace_flags=TraceFlags(TraceFlags.SAMPLED),
        )


def _resource(kind: NodeKind, name: str) -> Resource:
    # Not Resource.create: that would look for more on this machine, which need not be the node's.
    return Resource(
        {
            "service.name": f"sfl-{kind}",
            "service.instance.id": name,
            "service.version": sfl.__version__,
        }
    )


def _hashed(num_bytes: int, *what: object) -> int:
    text = "\0".join(map(str, what))
    digest = hashlib.sha256(text.encode()).digest()[:num_bytes]
    return int.from_bytes(digest, "big") or 1  # 0 is no id
