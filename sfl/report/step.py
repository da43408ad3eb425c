"""A timeline of one step: who worked when, so that a user sees what overlaps and who waits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sfl.metrics.snapshot import PHASES
from sfl.metrics.timeline import Interval
from sfl.report import text
from sfl.report.charts import Bar, Segment, bar_chart, bar_legend
from sfl.report.markup import Markup, element, join

LANES = {
    "MainThread": "compute",
    "compute": "compute",
    "link-encoder": "encode",
    "link-reader": "decode",
    "link-writer": "send",
    "link-receiver": "receive",
    "codec-encoder": "encode",
    "codec-decoder": "decode",
}
"""What threads are called in the picture."""


@dataclass(frozen=True, slots=True)
class StepTimeline:
    """The spans of one device's step, its own and its edge's; `step` counts from 0."""

    device: str
    round: int
    own: tuple[Interval, ...]
    edge: tuple[Interval, ...]
    step: int = 0


def timelines_to_json(timelines: Sequence[StepTimeline]) -> str:
    """What `timeline.json` holds: seconds since each step began."""
    values = []
    for timeline in timelines:
        spans = [("device", span) for span in timeline.own]
        spans += [("edge", span) for span in timeline.edge]
        zero = min((span.begin for _, span in spans), default=0.0)
        values.append(
            {
                "device": timeline.device,
                "round": timeline.round,
                "spans": [
                    {
                        "node": node,
                        "lane": LANES.get(span.lane, "send"),
                        "phase": span.phase,
                        "micro_batch": span.micro_batch,
                        "begin": round(span.begin - zero, 6),
                        "end": round(span.end - zero, 6),
                    }
                    for node, span in spans
                ],
            }
        )
    return json.dumps(values, indent=1) + "\n"


def timeline_card(timelines: Sequence[StepTimeline]) -> Markup:
    """A card with the step of every device; empty without any."""
    shown = [timeline for timeline in timelines if timeline.own]
    if not shown:
        return Markup("")
    used = {span.phase for timeline in shown for span in (*timeline.own, *timeline.edge)}
    return element(
        "div",
        element("h3", "One step of each device, by thread (seconds)"),
        bar_legend([(phase, phase) for phase in PHASES if phase in used]),
        join(_picture(timeline) for timeline in shown),
        element("p", "The middle step of the last round. The edge's rows show what it did for this "
                "device; in the gaps it may have served another.", class_="foot"),
        class_="card",
    )  # fmt: skip


def _picture(timeline: StepTimeline) -> Markup:
    zero = min(span.begin for span in (*timeline.own, *timeline.edge))
    rows: dict[str, list[Interval]] = {}
    for node, spans in (("device", timeline.own), ("edge", timeline.edge)):
        for span in spans:
            rows.setdefault(f"{node}: {LANES.get(span.lane, 'send')}", []).append(span)
    bars = [Bar(name, _segments(spans, zero), _busy(spans)) for name, spans in rows.items()]
    label = f"{timeline.device}, round {timeline.round}"
    return join([element("h4", label), bar_chart(label, bars, text.duration)])


def _segments(spans: Sequence[Interval], zero: float) -> list[Segment]:
    """Work and the gaps between, from the step's beginning on."""
    segments, at = [], zero
    for span in sorted(spans, key=lambda span: span.begin):
        begin = max(at, span.begin)
        if span.end <= begin:
            continue
        segments.append(Segment("idle", "gap", begin - at))
        name = f"{span.phase} (micro-batch {span.micro_batch})"
        segments.append(Segment(name, span.phase, span.end - begin))
        at = span.end
    return segments


def _busy(spans: Sequence[Interval]) -> str:
    return text.duration(sum(span.end - span.begin for span in spans if span.phase != "wait"))


def since(edge: Sequence[Interval], own: Sequence[Interval]) -> tuple[Interval, ...]:
    """An edge's spans, their waits cut to what is within the device's own step.

    The compute thread may have been idle long before the step began.
    """
    first = min((span.begin for span in own), default=0.0)
    return tuple(
        replace(span, begin=max(first, span.begin)) if span.phase == "wait" else span
        for span in edge
        if span.phase != "wait" or span.end > first
    )


def ordered(timelines: Mapping[str, StepTimeline]) -> list[StepTimeline]:
    """By device."""
    return [timelines[name] for name in sorted(timelines)]
