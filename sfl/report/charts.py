"""Charts as inline SVG: lines over rounds, and stacked bars; no library, no script.

Colours are CSS classes of sfl.report.style, so that one drawing serves light and dark pages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sfl.report.markup import Markup, element, join
from sfl.report.text import on_axis

NUM_COLOURS = 8

WIDTH, HEIGHT = 380.0, 232.0
"""The drawing's own units; one is about a pixel on the page."""

_NOTHING = 1e-300
"""What is no wider has no round numbers that a float could hold."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 12.0, 10.0, 40.0


@dataclass(frozen=True, slots=True)
class Line:
    """One series over rounds: `points` are (round, value), in order; NaN breaks the line."""

    name: str
    style: str
    points: Sequence[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a bar, coloured by the class `style`."""

    name: str
    style: str
    value: float


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar of one row: its parts from left to right, and what stands at its end."""

    label: str
    segments: Sequence[Segment]
    value: str


def series_style(index: int) -> str:
    """Classes of the series with this number: a colour, and a dash when the colours run out."""
    return f"c{index % NUM_COLOURS + 1} d{index // NUM_COLOURS % 4}"


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from `low`'s side to at least `high`, `most` intervals at the most."""
    if not high - low > _NOTHING:
        high = low + 1.0
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * number for number in range(first, last + 1)]


def line_chart(
    label: str,
    lines: Sequence[Line],
    show: Callable[[float], str],
    top: float | None = None,
    **attributes: str,
) -> Markup:
    """Lines over rounds, from 0 upwards, with a title on every point.

    `show` writes a value on the axis and in titles; `top` fixes the axis's end; `attributes` go
    to the svg element.
    """
    known = [(x, y) for line in lines for x, y in line.points if math.isfinite(y)]
    if not known:
        return element("p", "No values.", class_="none")
    rounds = _round_ticks(min(x for x, _ in known), max(x for x, _ in known))
    values = ticks(min(0.0, *(y for _, y in known)), top or max(y for _, y in known), 5)
    plot = _Plot(rounds[0], max(rounds[-1], rounds[0] + 1), values[0], values[-1])
    parts = [
        *(_value_line(plot, value, show) for value in values),
        *(_round_label(plot, number) for number in rounds),
        element("text", "round", x=plot.x_middle, y=HEIGHT - 4, class_="axis mid"),
        *(_series(plot, line, show) for line in lines),
    ]
    view = f"0 0 {WIDTH:g} {HEIGHT:g}"
    drawing = {"viewBox": view, "role": "img", "aria_label": label, "class_": "chart"}
    return element("svg", *parts, **(drawing | attributes))


@dataclass(frozen=True, slots=True)
class _Plot:
    """The drawing's coordinates of a round and a value."""

    first: float
    last: float
    low: float
    high: float

    def x(self, round_number: float) -> float:
        share = (round_number - self.first) / (self.last - self.first)
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)

    @property
    def x_middle(self) -> float:
        return (_LEFT + WIDTH - _RIGHT) / 2


def _round_ticks(first: int, last: int) -> list[int]:
    """At most nine whole rounds, the first and the last among them if they fall on a step."""
    step = next(
        step
        for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10**9)
        if last - first <= step * 8
    )
    numbers = list(range(first, last + 1, step))
    return numbers if numbers[-1] == last else [*numbers, last]


def _value_line(plot: _Plot, value: float, show: Callable[[float], str]) -> Markup:
    y = plot.y(value)
    line = element(
        "line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y, y2=y, class_="zero" if value == 0 else "grid"
    )
    return join((line, element("text", show(value), x=_LEFT - 7, y=y + 4, class_="axis end")))


def _round_label(plot: _Plot, number: int) -> Markup:
    x, y = plot.x(number), HEIGHT - _BOTTOM + 16
    return element("text", str(number), x=x, y=y, class_="axis mid")


def _series(plot: _Plot, line: Line, show: Callable[[float], str]) -> Markup:
    parts: list[Markup] = []
    path, pen = "", "M"
    for number, value in line.points:
        if not math.isfinite(value):
            pen = "M"
            continue
        path += f"{pen}{plot.x(number):.2f} {plot.y(value):.2f}"
        pen = "L"
        title = element("title", f"{line.name}, round {number}: {show(value)}")
        centre = {"cx": plot.x(number), "cy": plot.y(value)}
        parts.append(element("circle", r=3.0, class_="dot", **centre))
        parts.append(element("circle", title, r=10.0, class_="hit", **centre))
    drawn = element("path", d=path, class_="line")
    return element("g", drawn, *parts, class_=line.style)


def line_legend(entries: Sequence[tuple[str, str]]) -> Markup:
    """Names with the colour and dash of their lines; entries are (name, style)."""
    return _legend(entries, element("line", x1=0, x2=24, y1=6, y2=6, class_="line"), "key")


def bar_legend(entries: Sequence[tuple[str, str]]) -> Markup:
    """Names with the colour of their parts of a bar; entries are (name, style)."""
    return _legend(entries, element("rect", width="100%", height="100%", rx=3), "swatch")


def _legend(entries: Sequence[tuple[str, str]], mark: Markup, kind: str) -> Markup:
    shown = [
        element("li", element("svg", mark, class_=f"{kind} {style}", aria_hidden="true"), name)
        for name, style in entries
    ]
    return element("ul", *shown, class_="legend")


def bar_chart(
    label: str, bars: Sequence[Bar], show: Callable[[float], str], axis: bool = True
) -> Markup:
    """Stacked bars, one a row, on one scale from 0; parts have titles, rows their value."""
    longest = max((sum(part.value for part in bar.segments) for bar in bars), default=0.0)
    if longest <= 0:
        return element("p", "No values.", class_="none")
    scale = ticks(0.0, longest, 3) if axis else [0.0, longest]
    rows = [cell for bar in bars for cell in _bar_cells(bar, scale[-1], show)]
    if axis:
        rows += [element("span"), _scale(scale, on_axis(show)), element("span")]
    return element("div", *rows, class_="bars", role="group", aria_label=label)


def _bar_cells(bar: Bar, full: float, show: Callable[[float], str]) -> tuple[Markup, ...]:
    parts, left = [], 0.0
    for part in bar.segments:
        width = part.value / full * 100
        if width > 0:
            title = element("title", f"{bar.label}, {part.name}: {show(part.value)}")
            place = {"x": f"{left:.4f}%", "width": f"{width:.4f}%", "height": "100%"}
            parts.append(element("rect", title, class_=f"part {part.style}", **place))
        left += width
    return (
        element("span", bar.label, class_="label", title=bar.label),
        element("svg", *parts, class_="bar", role="img", aria_label=f"{bar.label}: {bar.value}"),
        element("span", bar.value, class_="value"),
    )


def _scale(values: Sequence[float], show: Callable[[float], str]) -> Markup:
    marks = [
        element("span", show(value), style=f"left:{value / values[-1] * 100:.3f}%")
        for value in values
    ]
    return element("div", *marks, class_="scale", aria_hidden="true")
