"""Lines over rounds from a run's records, and the loss curve as a picture of its own.

`python -m sfl.report.curve runs/ID > curve.svg` writes it for a run.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from sfl.report import text
from sfl.report.charts import HEIGHT, WIDTH, Line, line_chart, series_style
from sfl.report.markup import Markup, element
from sfl.report.records import Record, RoundRecord, read_records
from sfl.report.style import CHARTS, COLOURS
from sfl.report.summary import RunSummary

_TITLE = 24.0  # height of the title's line
_ROW = 18.0  # height of a row of the legend
_LETTER = 6.9  # width of a letter in the legend, more or less


def device_lines(
    summary: RunSummary,
    rounds: Sequence[RoundRecord],
    value: Callable[[RoundRecord], float | None],
) -> list[Line]:
    """A line a device that joined, over the rounds in which some device has a value; one that it
    lacks is a gap.
    """
    numbers = sorted({record.round for record in rounds if value(record) is not None})
    lines = []
    for index, device in enumerate(summary.devices):
        if not device.joined:
            continue
        known = {record.round: value(record) for record in rounds if record.device == device.name}
        points = [(number, _number(known.get(number))) for number in numbers]
        lines.append(Line(device.name, series_style(index), points))
    return lines


def loss_curve(summary: RunSummary, records: Sequence[Record]) -> str:
    """Held-out loss per round and device as an SVG file, such as a README shows."""
    rounds = [record for record in records if isinstance(record, RoundRecord)]
    lines = device_lines(summary, rounds, lambda record: record.on_sample.eval_loss)
    return line_picture("Held-out loss by round (nats a target)", lines, text.short)


def line_picture(title: str, lines: Sequence[Line], show: Callable[[float], str]) -> str:
    """Lines over rounds as an SVG file of its own, with title and legend."""
    names, legend_height = _legend(lines)
    top = _TITLE + legend_height + 6
    chart = line_chart(
        title, lines, show, class_="inner", y=f"{top:g}", width=f"{WIDTH:g}",
        height=f"{HEIGHT:g}",
    )  # fmt: skip
    height = top + HEIGHT + 8
    picture = element(
        "svg",
        element("style", Markup(COLOURS + CHARTS)),
        element("rect", width="100%", height="100%", rx=8, class_="paper"),
        element("text", title, x=14, y=22, class_="heading"),
        *names,
        chart,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH:g} {height:g}",
        width=f"{WIDTH * 1.6:g}",
        height=f"{height * 1.6:g}",
    )
    return picture + "\n"


def _legend(lines: Sequence[Line]) -> tuple[list[Markup], float]:
    """The names in rows under the title, and how high they are."""
    names, x, y = [], 14.0, _TITLE + 16
    for line in lines:
        width = 40 + _LETTER * len(line.name)
        if x > 14 and x + width > WIDTH:
            x, y = 14.0, y + _ROW
        key = element("line", x1=x, x2=x + 20, y1=y - 4, y2=y - 4, class_="line")
        name = element("text", line.name, x=x + 25, y=y, class_="axis")
        names.append(element("g", key, name, class_=line.style))
        x += width
    return names, y - _TITLE


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def main(folder: Path) -> None:
    """Print the curve of the run in `folder`."""
    summary = RunSummary.read(folder / "summary.json")
    sys.stdout.write(loss_curve(summary, read_records(folder / "metrics.jsonl")))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
