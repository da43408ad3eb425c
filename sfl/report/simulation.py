"""What a simulated run leaves: `report.html`, `simulation.json`, and its figures as SVG files."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sfl.node.files import on_disk, write_atomic
from sfl.report import text
from sfl.report.charts import Bar, Line, Segment, bar_chart, bar_legend, line_chart, line_legend
from sfl.report.curve import line_picture
from sfl.report.markup import Markup, element
from sfl.report.page import TOPOLOGY_NAMES, count, document, table, tile
from sfl.report.plan_section import plan_section
from sfl.report.summary import RunSummary
from sfl.simulate.ledger import ClassFigures, Outcome, RoundFigures

FIGURES = "simulation.json"
NOT_SIMULATED = (
    "Simulated: nothing was trained. Losses, scores, memory and the time of codecs are not "
    "simulated, and are left out."
)
PARTS = {
    "forward": "computes",
    "send": "sends",
    "receive": "receives",
    "wait": "waits",
}
"""What a device does, by the class that colours it."""
MOST_EDGES = 40
"""That the report shows, the busiest first."""
MOST_FAULTS = 200

Show = Callable[[float], str]


def figures(outcome: Outcome) -> list[tuple[str, str, list[Line], Show]]:
    """(file, title, lines, how a value is written) of each figure over rounds."""
    rounds = outcome.rounds

    def line(name: str, style: str, value: Callable[[RoundFigures], float]) -> Line:
        return Line(name, style, [(own.round, value(own)) for own in rounds])

    shown: list[tuple[str, str, list[Line], Show]] = [
        (
            "seconds",
            "Seconds of a round",
            [line("round", "c1 d0", lambda own: own.seconds)],
            text.short,
        ),
        (
            "devices",
            "Devices of a round",
            [
                line("began", "c1 d0", lambda own: own.devices),
                line("counted in its average", "c3 d1", lambda own: own.delivered),
            ],
            text.short,
        ),
        (
            "busiest",
            "Share of a round that the busiest edge computes",
            [line("busiest edge", "c2 d0", lambda own: own.busiest)],
            text.whole_percent,
        ),
        (
            "traffic",
            "Bytes over device links in a round",
            [
                line("to edges", "c1 d0", lambda own: own.bytes_up),
                line("to devices", "c2 d1", lambda own: own.bytes_down),
            ],
            text.size,
        ),
    ]
    if any(own.device_joules or own.edge_joules for own in rounds):
        lines = [
            line("devices", "c1 d0", lambda own: own.device_joules),
            line("edges", "c2 d1", lambda own: own.edge_joules),
        ]
        shown.append(("energy", "Joules of a round", lines, text.short))
    return shown


def as_dict(outcome: Outcome, run_id: str) -> dict[str, Any]:
    """Plain values, as `--json` prints them."""
    return {"run_id": run_id, "simulated": True, **asdict(outcome)}


def write_simulation(folder: Path, summary: RunSummary, outcome: Outcome, config: str) -> None:
    """All files but the records. Raises DiskError."""
    summary.write(folder / "summary.json")
    figures_ = json.dumps(as_dict(outcome, summary.run_id), indent=1)
    write_atomic(folder / FIGURES, figures_ + "\n")
    write_atomic(folder / "report.html", render(summary, outcome, config))
    with on_disk(folder):
        (folder / "figures").mkdir(exist_ok=True)
    if outcome.rounds:
        for name, title, lines, show in figures(outcome):
            write_atomic(folder / "figures" / f"{name}.svg", line_picture(title, lines, show))


def render(summary: RunSummary, outcome: Outcome, config: str) -> str:
    """The report as an HTML document."""
    return document(
        f"sfl simulate {summary.run_id}",
        _header(summary, outcome),
        _tiles(summary, outcome),
        _rounds(outcome),
        *plan_section(summary),
        _classes(outcome),
        _edges(outcome),
        *_stages(outcome),
        _faults(summary),
        _config(config),
        element("footer", f"Written by sfl {summary.sfl_version}; the same numbers are in "
                f"{FIGURES}, summary.json and metrics.jsonl."),
    )  # fmt: skip


def _header(summary: RunSummary, outcome: Outcome) -> Markup:
    said = ("simulated", "badge good") if outcome.ok else ("failed", "badge bad")
    facts = [
        "/".join(Path(summary.model).parts[-2:]),
        TOPOLOGY_NAMES.get(summary.topology, summary.topology),
        count(len(summary.devices), "device"),
        count(len(outcome.edges), "edge"),
        f"{len(outcome.rounds)} of {count(summary.rounds_planned, 'round')}",
        f"{text.duration(outcome.seconds)} of simulated time",
    ]
    parts = [
        element("h1", f"Run {summary.run_id}", element("span", said[0], class_=said[1])),
        element("p", " · ".join(facts), class_="facts"),
        element("p", NOT_SIMULATED, class_="lead"),
    ]
    if not outcome.ok:
        parts.append(element("ul", element("li", outcome.reason), class_="faults"))
    return element("header", *parts)


def _tiles(summary: RunSummary, outcome: Outcome) -> Markup:
    rounds, classes = outcome.rounds, outcome.classes
    mean = sum(own.seconds for own in rounds) / len(rounds) if rounds else 0.0
    traffic = sum(own.bytes_up + own.bytes_down for own in classes)
    begun, done = sum(own.devices for own in rounds), sum(own.delivered for own in rounds)
    joules = sum(own.joules for own in classes) + sum(own.joules for own in outcome.edges)
    busy = max((own.busy for own in outcome.edges), default=0.0)
    share = busy / outcome.seconds if outcome.seconds else 0.0
    tiles = [
        tile("A round takes", text.duration(mean), "in the mean"),
        tile("Time of the run", text.duration(outcome.seconds), f"{len(rounds)} rounds, all in"),
        tile("Updates that counted", f"{done:,}", f"of {begun:,} parts that were begun"),
        tile("Losses of devices", f"{sum(own.losses for own in classes):,}", "links and processes"),
        tile("Traffic in all", text.size(traffic), "over device links, both ways"),
        tile("Busiest edge", text.percent(share), "of the run's time"),
    ]
    if joules:
        tiles.append(tile("Energy", f"{joules / 3.6e6:.3g} kWh", "devices and edges, modelled"))
    return element("div", *tiles, class_="tiles")


def _rounds(outcome: Outcome) -> Markup:
    if not outcome.rounds:
        return element("section", element("h2", "Rounds"), element("p", "None.", class_="none"))
    cards = [
        element(
            "div",
            element("h3", title),
            line_legend([(line.name, line.style) for line in lines]),
            line_chart(title, lines, show),
            class_="card",
        )
        for _, title, lines, show in figures(outcome)
    ]
    charts = element("div", *cards, class_="charts")
    return element("section", element("h2", "Rounds"), charts, _round_table(outcome))


def _round_table(outcome: Outcome) -> Markup:
    headings = ["round", "began after", "seconds", "devices", "counted", "busiest edge", "traffic"]
    rows = [
        [
            str(own.round),
            text.duration(own.began),
            f"{own.seconds:.1f}",
            f"{own.devices:,}",
            f"{own.delivered:,}",
            text.percent(own.busiest),
            text.size(own.bytes_up + own.bytes_down),
        ]
        for own in outcome.rounds
    ]
    shown = element("div", table(headings, rows), class_="card scroll")
    return element("details", element("summary", "Every round"), shown)


def _classes(outcome: Outcome) -> Markup:
    headings = ["class", "devices", "rounds done", "losses", "sent", "received", "kJ"]
    rows = [
        [
            own.name,
            f"{own.devices:,}" + (f" ({own.never_joined} do not fit)" if own.never_joined else ""),
            f"{own.rounds:,}",
            f"{own.losses:,}",
            text.size(own.bytes_up),
            text.size(own.bytes_down),
            f"{own.joules / 1e3:,.1f}",
        ]
        for own in outcome.classes
    ]
    bars = [_bar(own) for own in outcome.classes]
    return element(
        "section",
        element("h2", "Devices by class"),
        element("div", table(headings, rows), class_="card scroll"),
        element(
            "div",
            element(
                "div",
                element("h3", "Where the time of a device's round goes (seconds, mean)"),
                bar_legend([(shown, style) for style, shown in PARTS.items()]),
                bar_chart("Seconds by class", bars, text.duration),
                class_="card",
            ),
            class_="charts wide",
        ),
    )


def _bar(own: ClassFigures) -> Bar:
    rounds = max(1, own.rounds)
    values = (own.computing, own.sending, own.receiving, own.waiting)
    segments = [
        Segment(shown, style, value / rounds)
        for (style, shown), value in zip(PARTS.items(), values, strict=True)
    ]
    return Bar(own.name, segments, text.duration(sum(values) / rounds))


def _edges(outcome: Outcome) -> Markup:
    busiest = sorted(outcome.edges, key=lambda own: (-own.busy, own.name))[:MOST_EDGES]
    bars = [
        Bar(
            f"{own.name} ({own.devices:,})",
            (Segment("computes", "backward", own.busy),),
            text.percent(own.busy / outcome.seconds if outcome.seconds else 0.0),
        )
        for own in busiest
    ]
    more = len(outcome.edges) - len(busiest)
    note = f"The {len(busiest)} busiest; {more} more are in {FIGURES}." if more else ""
    foot = [element("p", note, class_="foot")] if note else []
    heading = element("h3", "Seconds that an edge computes, with its devices")
    chart = bar_chart("Seconds by edge", bars, text.duration)
    card = element("div", heading, chart, *foot, class_="card")
    return element("section", element("h2", "Edges"), element("div", card, class_="charts wide"))


def _stages(outcome: Outcome) -> tuple[Markup, ...]:
    """Nothing in two tiers."""
    if not outcome.stages:
        return ()

    def share(name: str, busy: float, style: str) -> Bar:
        told = text.percent(busy / outcome.seconds if outcome.seconds else 0.0)
        return Bar(name, (Segment("is busy", style, busy),), told)

    bars = [
        bar
        for own in outcome.stages
        for bar in (
            share(own.name, own.busy, "backward"),
            share(f"hop to {own.name}", own.hop, "send"),
        )
    ]
    heading = element("h3", "Seconds that a stage computes, and that the busiest hop to it sends")
    card = element(
        "div", heading, bar_chart("Seconds by stage", bars, text.duration), class_="card"
    )
    body = element("div", card, class_="charts wide")
    return (element("section", element("h2", "Stages"), body),)


def _faults(summary: RunSummary) -> Markup:
    shown: Sequence[str] = [str(fault) for fault in summary.faults[:MOST_FAULTS]]
    more = len(summary.faults) - len(shown)
    items = [element("li", line) for line in shown]
    if more:
        items.append(element("li", f"and {more:,} more, in summary.json"))
    body = element("ul", *items, class_="faults") if items else element("p", "None.", class_="none")
    return element("section", element("h2", "Faults"), body)


def _config(config: str) -> Markup:
    return element(
        "section",
        element("h2", "Configuration"),
        element("p", "Simulating this file again gives the same numbers.", class_="lead"),
        element("details", element("summary", "Show"), element("pre", config)),
    )
