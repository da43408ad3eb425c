"""`report.html`: one file that needs nothing else, no network and no script."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sfl.metrics.snapshot import PHASES, ROLES, Role
from sfl.node.files import write_atomic
from sfl.report import text
from sfl.report.charts import (
    Bar,
    Line,
    Segment,
    bar_chart,
    bar_legend,
    line_chart,
    line_legend,
    series_style,
)
from sfl.report.curve import device_lines
from sfl.report.final import data_sentence, total_sentence, wire_sentence
from sfl.report.markup import Markup, element, join
from sfl.report.page import TOPOLOGY_NAMES, count, document, table, tile
from sfl.report.plan_section import plan_section
from sfl.report.records import Record, RoundRecord
from sfl.report.step import StepTimeline, timeline_card
from sfl.report.summary import DeviceSummary, RunSummary, ServerSummary, evaluate

Node = DeviceSummary | ServerSummary


def write_report(
    path: Path,
    summary: RunSummary,
    records: Sequence[Record],
    config: str,
    timelines: Sequence[StepTimeline] = (),
) -> None:
    """Replace `path` by the report, whole."""
    write_atomic(path, render_report(summary, records, config, timelines))


def render_report(
    summary: RunSummary,
    records: Sequence[Record],
    config: str,
    timelines: Sequence[StepTimeline] = (),
) -> str:
    """The report as an HTML document; `config` is the effective configuration as TOML."""
    rounds = [record for record in records if isinstance(record, RoundRecord)]
    parts = (
        _header(summary),
        _tiles(summary),
        _learning(summary, rounds),
        _devices(summary),
        *plan_section(summary),
        _costs(summary),
        timeline_card(timelines),
        _faults(summary),
        _config(config),
        element("footer", f"Written by sfl {summary.sfl_version}; the same numbers are in "
                "summary.json and metrics.jsonl."),
    )  # fmt: skip
    return document(f"sfl run {summary.run_id}", *parts)


def _header(summary: RunSummary) -> Markup:
    failed = summary.failure is not None
    badge = element("span", "failed" if failed else "finished",
                    class_="badge bad" if failed else "badge good")  # fmt: skip
    absent = sum(not device.joined for device in summary.devices)
    facts = [
        "/".join(Path(summary.model).parts[-2:]),
        summary.task.replace("_", " "),
        TOPOLOGY_NAMES.get(summary.topology, summary.topology),
        *(["asynchronous"] if summary.mode == "asynchronous" else []),
        count(len(summary.devices), "device"),
        *([f"{absent} {text.NEVER_JOINED}"] if absent else []),
        f"{summary.rounds} of {count(summary.rounds_planned, 'round')}",
        f"{summary.tokens_trained:,} tokens",
        f"{text.duration(summary.wall_seconds)} in all",
    ]
    lines = [
        element("h1", f"Run {summary.run_id}", badge),
        element("p", " · ".join(facts), class_="facts"),
    ]
    if summary.failure is not None:
        why = element("ul", element("li", summary.failure), class_="faults")
        lines.append(why)
    return element("header", *lines)


def _tiles(summary: RunSummary) -> Markup:
    name = text.score_name(summary.task)
    whose = f"before → after, {count(len(summary.eval_devices), 'device')}"
    tiles = []
    if summary.eval_accuracy_after is not None:
        change = _change(summary.eval_accuracy_before, summary.eval_accuracy_after, text.percent)
        tiles.append(tile(f"{name}, held out".capitalize(), change, whose))
    change = _change(summary.eval_loss_before, summary.eval_loss_after, text.loss)
    tiles.append(tile("Loss, held out", change, whose))
    if summary.bytes_in_all:
        note = "over device links, both ways, whatever for"
        tiles.append(tile("Traffic in all", text.size(summary.bytes_in_all), note))
    if summary.training_bytes:
        fp32, fp16 = summary.reduction_vs_fp32, summary.reduction_vs_fp16
        note = f"{text.against(fp32, 'fp32')}, {text.against(fp16, 'fp16')}"
        tiles.append(tile("Of it in training", text.size(summary.training_bytes), note))
    if summary.train_seconds > 0:
        speed = text.rate(summary.tokens_trained / summary.train_seconds)
        note = f"tokens/s, {text.duration(summary.train_seconds)} of training"
        tiles.append(tile("Speed, all devices", speed, note))
    peak = max((device.peak_rss_bytes for device in summary.devices), default=0)
    peaks = [f"{server.name} {text.size(server.peak_rss_bytes)}" for server in summary.servers]
    note = ", ".join(peaks)
    if summary.bytes_between_servers:
        size = text.size(summary.bytes_between_servers)
        tiles.append(tile("Between servers", size, "from edges to stages and back"))
    tiles.append(tile("Peak memory of a device", text.size(peak), note))
    return element("div", *tiles, class_="tiles")


def _learning(summary: RunSummary, rounds: Sequence[RoundRecord]) -> Markup:
    per = "example" if summary.task == "sequence_classification" else "scored token"
    cards = [
        _chart_card(
            f"Training loss (nats a {per})",
            device_lines(summary, rounds, lambda record: record.train_loss),
        ),
        _chart_card(
            f"Held-out loss (nats a {per})",
            device_lines(summary, rounds, lambda record: record.on_sample.eval_loss),
        ),
    ]
    name = text.score_name(summary.task).capitalize()
    if any(record.eval_accuracy is not None for record in rounds):
        lines = device_lines(summary, rounds, lambda record: record.on_sample.eval_accuracy)
        chart = line_chart(f"{name} by round", lines, text.whole_percent, top=1.0)
        cards.append(element("div", element("h3", f"{name}, held out (%)"), chart, class_="card"))
    names = [(device.name, style) for style, device in _joined(summary)]
    return element(
        "section",
        element("h2", "Learning"),
        element("p", "Round 0 is before training. Each further round ends in one average of all "
                f"devices' adapters. {_evaluations(rounds)}", class_="lead"),
        line_legend(names),
        element("div", *cards, class_="charts"),
        _round_table(summary, rounds),
        class_="section",
    )  # fmt: skip


def _evaluations(rounds: Sequence[RoundRecord]) -> str:
    """Which adapters the devices tried on their held-out examples, and on how many."""
    tried = sorted({record.round for record in rounds if record.eval_targets})
    last = max((record.round for record in rounds), default=0)
    which = "each" if len(tried) == last + 1 else f"those of rounds {', '.join(map(str, tried))}"
    said = f"Devices tried {which} on held-out examples of their own."
    full = sum(r.eval_examples for r in rounds if r.round == 0)
    part = sum(r.on_sample.eval_examples for r in rounds if r.round == 0)
    if part == full:
        return said
    return (
        f"{said} Rounds are compared by the same {part:,} examples each time; the scores above are "
        f"over all {full:,}."
    )


def _chart_card(title: str, lines: Sequence[Line]) -> Markup:
    chart = line_chart(f"{title} by round", lines, text.short)
    return element("div", element("h3", title), chart, class_="card")


def _round_table(summary: RunSummary, rounds: Sequence[RoundRecord]) -> Markup:
    numbers = sorted({record.round for record in rounds})
    scored = summary.eval_accuracy_after is not None
    headings = ["round", "devices", "training loss, mean", "held-out loss"]
    rows = []
    for number in numbers:
        of_round = [record for record in rounds if record.round == number]
        quality = evaluate(record.on_sample for record in of_round)
        losses = [record.train_loss for record in of_round if record.train_loss is not None]
        mean = math.fsum(losses) / len(losses) if losses else None
        cells = [str(number), str(len(of_round)), text.loss(mean), text.loss(quality.loss)]
        rows.append([*cells, text.percent(quality.accuracy)] if scored else cells)
    if scored:
        headings.append(text.score_name(summary.task))
    shown = element("div", table(headings, rows), class_="card scroll")
    return element("details", element("summary", "Every round, all devices together"), shown)


def _devices(summary: RunSummary) -> Markup:
    scored = any(device.eval_accuracy is not None for device in summary.devices)
    headings = ["device", "blocks, front + tail", "rank", "examples", "training loss"]
    headings.append("held-out loss")
    if scored:
        headings.append(text.score_name(summary.task))
    headings += ["tokens/s", "sent", "received", "peak memory"]
    rows = [_device_row(device, scored) for device in summary.devices]
    if any(device.staleness is not None for device in summary.devices):
        headings.append("staleness, mean (most)")
        for row, device in zip(rows, summary.devices, strict=True):
            row.append("–" if device.staleness is None else str(device.staleness))
    return element(
        "section",
        element("h2", "Devices"),
        element("div", table(headings, rows), class_="card scroll"),
        element("p", f"Data: {data_sentence(summary)}.", class_="foot"),
    )


def _joined(summary: RunSummary) -> list[tuple[str, DeviceSummary]]:
    """The devices that took part at all, each with its style."""
    styled = ((series_style(index), device) for index, device in enumerate(summary.devices))
    return [(style, device) for style, device in styled if device.joined]


def _device_row(device: DeviceSummary, scored: bool) -> list[str]:
    row = [device.name, f"{device.cut_layer} + {device.tail_layers}", str(device.rank)]
    if not device.joined:
        return [*row, text.NEVER_JOINED, *["–"] * (7 if scored else 6)]
    row += [
        f"{device.num_examples:,}",
        text.loss(device.train_loss),
        _change(device.eval_loss_before, device.eval_loss, text.loss),
    ]
    if scored:
        row.append(_change(device.eval_accuracy_before, device.eval_accuracy, text.percent))
    return [
        *row,
        text.rate(device.tokens_per_second),
        text.size(device.traffic.bytes_up),
        text.size(device.traffic.bytes_down),
        text.size(device.peak_rss_bytes),
    ]


def _costs(summary: RunSummary) -> Markup:
    cards = (_reduction_card(summary), _memory_card(summary), _bytes_card(summary),
             _phases_card(summary))  # fmt: skip
    return element(
        "section",
        element("h2", "What it cost"),
        element("div", *cards, class_="charts wide"),
    )


def _reduction_card(summary: RunSummary) -> Markup:
    fp32 = float(summary.training_bytes_fp32)
    sizes = (("sent", summary.training_bytes), ("fp16", fp32 / 2), ("fp32", fp32))
    bars = [Bar(name, (Segment(name, name, value),), text.size(value)) for name, value in sizes]
    chart = bar_chart("Training traffic", bars, text.size, axis=False)
    codecs = f"{summary.codec_activation}, gradients: {summary.codec_gradient}"
    note = f"{wire_sentence(summary)}. Codec of activations: {codecs}."
    return element(
        "div",
        element("h3", "Training activations and gradients, both ways (bytes)"),
        chart,
        element("p", note, class_="foot"),
        class_="card",
    )


def _memory_card(summary: RunSummary) -> Markup:
    nodes: list[tuple[str, Node]] = [*_joined(summary)]
    nodes += [("fp16", server) for server in summary.servers]
    bars = [
        Bar(
            node.name,
            (Segment("peak resident memory", style, node.peak_rss_bytes),),
            text.size(node.peak_rss_bytes),
        )
        for style, node in nodes
    ]
    chart = bar_chart("Peak memory by process", bars, text.size)
    accelerators = [
        f"{node.name} {text.size(node.accelerator_bytes)}"
        for _, node in nodes
        if node.accelerator_bytes
    ]
    note = f"On accelerators: {', '.join(accelerators)}." if accelerators else ""
    foot = [element("p", note, class_="foot")] if note else []
    heading = element("h3", "Peak resident memory by process (bytes)")
    return element("div", heading, chart, *foot, class_="card")


def _bytes_card(summary: RunSummary) -> Markup:
    bars: list[Bar] = []
    nodes: list[Node] = [*(device for _, device in _joined(summary)), *summary.edges]
    for node in nodes:
        traffic = node.traffic
        bars.append(_bytes_bar(f"↑ {node.name}", traffic.bytes_up_by_role))
        bars.append(_bytes_bar(f"↓ {node.name}", traffic.bytes_down_by_role))
    used = {segment.name for bar in bars for segment in bar.segments if segment.value}
    return element(
        "div",
        element("h3", f"Bytes on the wire by role, {total_sentence(summary)}"),
        bar_legend([(role, role) for role in ROLES if role in used]),
        bar_chart("Bytes by role", bars, text.size),
        element("p", "Serialised messages. ↑ is towards the cloud, ↓ comes from it; each link is "
                "counted once, by the node that opens it.", class_="foot"),
        class_="card",
    )  # fmt: skip


def _bytes_bar(label: str, counts: Mapping[Role, int]) -> Bar:
    segments = [Segment(role, role, counts.get(role, 0)) for role in ROLES]
    return Bar(label, segments, text.size(sum(counts.values())))


def _phases_card(summary: RunSummary) -> Markup:
    everybody: list[Node] = [*summary.devices, *summary.edges, *summary.stages]
    nodes = [node for node in everybody if node.phases]
    bars = [
        Bar(
            node.name,
            [Segment(phase, phase, node.phases.get(phase, 0.0)) for phase in PHASES],
            text.duration(sum(node.phases.values())),
        )
        for node in nodes
    ]
    used = {phase for node in nodes for phase, seconds in node.phases.items() if seconds}
    return element(
        "div",
        element("h3", "Where the time of the steps went (seconds)"),
        bar_legend([(phase, phase) for phase in PHASES if phase in used]),
        bar_chart("Seconds by phase", bars, text.duration),
        element("p", "Summed over the run. Phases of different micro-batches overlap, so a sum "
                "may exceed the clock; an edge serves all of its devices.", class_="foot"),
        class_="card",
    )  # fmt: skip


def _faults(summary: RunSummary) -> Markup:
    if summary.faults:
        shown = element(
            "ul", *(element("li", str(fault)) for fault in summary.faults), class_="faults"
        )
    else:
        shown = element("p", "None.", class_="none")
    return element("section", element("h2", "Faults"), shown)


def _config(config: str) -> Markup:
    return element(
        "section",
        element("h2", "Effective configuration"),
        element("p", "Running this file again repeats the run.", class_="lead"),
        element("details", element("summary", "Show"), element("pre", config)),
    )


def _change(
    before: float | None, after: float | None, show: Callable[[float | None], str]
) -> Markup:
    return join((element("span", f"{show(before)} → ", class_="from"), show(after)))
