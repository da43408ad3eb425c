"""A plan as a picture: what each device's round is made of, and how it compares."""

from __future__ import annotations

from collections.abc import Sequence

from sfl.planners.comparison import Comparison
from sfl.report import text
from sfl.report.charts import ticks
from sfl.report.markup import Markup, element
from sfl.report.style import CHARTS, COLOURS
from sfl.report.text import on_axis

WIDTH = 640.0
STYLES = {
    "device": "c1",
    "up": "c2",
    "edge": "c3",
    "hop up": "c6",
    "stage": "c7",
    "hop down": "encode",
    "down": "c4",
    "exchange": "c5",
    "waits": "c8",
}
"""Of the parts of a device's round, in their order; what it waits for others comes last."""
BEHIND = ("hop up", "stage", "hop down")
"""Those of runs with stages behind the edge."""
MOST = 60
"""Devices that have a row: the slowest."""
_LEFT, _RIGHT, _TOP, _ROW, _BAR = 150.0, 70.0, 62.0, 20.0, 12.0
_LETTER = 6.9


def parts_of_round(compared: Comparison) -> tuple[str, ...]:
    """Those that the run has."""
    deep = bool(compared.foretold.stages)
    return tuple(name for name in STYLES if deep or name not in BEHIND)


def plan_figure(compared: Comparison) -> str:
    """An SVG file."""
    rows = _rows(compared)
    longest = max([sum(parts.values()) for _, parts in rows] + [1e-9])
    scale = ticks(0.0, longest, 5)
    factor = (WIDTH - _LEFT - _RIGHT) / scale[-1]
    bottom = _TOP + _ROW * len(rows)
    show = on_axis(text.duration)
    height = bottom + 34
    picture = element(
        "svg",
        element("style", Markup(COLOURS + CHARTS + ".part{fill:var(--c)}")),
        element("rect", width="100%", height="100%", rx=8, class_="paper"),
        element("text", _title(compared), x=14, y=22, class_="heading"),
        *_legend(parts_of_round(compared)),
        *(_line(_LEFT + factor * value, bottom, show(value)) for value in scale),
        *(
            mark
            for number, (name, parts) in enumerate(rows)
            for mark in _bar(name, parts, _TOP + _ROW * number, factor)
        ),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH:g} {height:g}",
        width=f"{WIDTH * 1.4:g}",
        height=f"{height * 1.4:g}",
        class_="chart",
    )
    return picture + "\n"


def _title(compared: Comparison) -> str:
    policy, seconds = compared.decision.policy, text.duration(compared.foretold.seconds)
    return f"A round planned by {policy}: {seconds}"


def _rows(compared: Comparison) -> list[tuple[str, dict[str, float]]]:
    """The slowest devices, each with its parts."""
    devices = compared.foretold.devices
    names = sorted(devices, key=lambda name: (-devices[name].seconds, name))[:MOST]
    rows = []
    for name in names:
        own, choice = devices[name], compared.decision.devices[name]
        waits = max(0.0, own.seconds - own.alone_seconds)
        cut = f"{choice.cut_layer}+{choice.tail_layers}" if choice.tail_layers else choice.cut_layer
        rows.append((f"{name}, cut {cut}", {**own.alone, "waits": waits}))
    return rows


def _bar(label: str, parts: dict[str, float], y: float, factor: float) -> Sequence[Markup]:
    marks = [element("text", label, x=_LEFT - 8, y=y + 14, class_="axis end")]
    x = _LEFT
    for name in STYLES:
        width = factor * parts.get(name, 0.0)
        if width > 0.0:
            title = element("title", f"{label}, {name}: {text.duration(parts[name])}")
            place = {"x": x, "y": y + 4, "width": width, "height": _BAR}
            marks.append(element("rect", title, class_=f"part {STYLES[name]}", **place))
        x += width
    total = text.duration(sum(parts.values()))
    return [*marks, element("text", total, x=x + 6, y=y + 14, class_="axis")]


def _line(x: float, bottom: float, label: str) -> Markup:
    line = element("line", x1=x, x2=x, y1=_TOP, y2=bottom, class_="grid")
    return Markup(line + element("text", label, x=x, y=bottom + 16, class_="axis mid"))


def _legend(names: Sequence[str]) -> list[Markup]:
    marks, x = [], 14.0
    for name in names:
        place = {"x": x, "y": 36, "width": 12, "height": 12, "rx": 3}
        swatch = element("rect", class_=f"part {STYLES[name]}", **place)
        marks += [swatch, element("text", name, x=x + 17, y=46, class_="axis")]
        x += 30 + _LETTER * len(name)
    return marks
