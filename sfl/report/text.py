"""Numbers as people read them; the same in the terminal and in the report."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

NEVER_JOINED = "never joined"
"""A device of the settings that the run never heard from."""
_UNITS = ("B", "kB", "MB", "GB", "TB")


def size(num_bytes: float) -> str:
    """Bytes in decimal units, three digits: 1234567 is "1.23 MB"."""
    value, unit = float(num_bytes), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.0f} B" if unit == 0 else f"{_three_digits(value)} {_UNITS[unit]}"


def duration(seconds: float) -> str:
    """Seconds as "8.4 s", "3 min 05 s" or "2 h 07 min"."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def loss(value: float | None) -> str:
    """A loss with three decimals, or a dash."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.3f}"


def percent(share: float | None) -> str:
    """A share of 1 as "81.3%", or a dash; 100% and 0% only where it is exactly that."""
    if share is None or not math.isfinite(share):
        return "–"
    shown = f"{share * 100:.1f}%"
    if shown == "100.0%":
        return "100%" if share == 1 else "99.9%"
    return "0%" if share == 0 else shown


def whole_percent(share: float) -> str:
    """A share of 1 on an axis or in a tooltip: "81%"."""
    return f"{share * 100:.3g}%"


def short(value: float) -> str:
    """A number in at most three digits."""
    return f"{value:.3g}"


def on_axis(show: Callable[[float], str]) -> Callable[[float], str]:
    """`show` for an axis: 0 without a unit, and no zeros behind the point."""

    def shown(value: float) -> str:
        return re.sub(r"(\.\d*?)0+(?= )", r"\1", show(value)).replace(". ", " ") if value else "0"

    return shown


def against(factor: float | None, name: str) -> str:
    """How a size compares with another that is `factor` times it: "2.7x less than fp32"."""
    if factor is None:
        return f"– against {name}"
    if 0.95 < factor < 1.05:
        return f"about as much as {name}"
    if factor > 1:
        return f"{times(factor)} less than {name}"
    return f"{times(1 / factor)} more than {name}"


def rate(tokens_per_second: float) -> str:
    """Tokens a second, with separators."""
    return f"{tokens_per_second:,.0f}"


def times(factor: float | None) -> str:
    """A factor as "3.9x", or a dash."""
    return "–" if factor is None else f"{factor:.{1 if factor < 99.95 else 0}f}x"


def score_name(task: str) -> str:
    """What accuracy means for a task."""
    return "accuracy" if task == "sequence_classification" else "exact match"


def printable(text: str) -> str:
    """Text from elsewhere without control characters, which could steer a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _three_digits(value: float) -> str:
    if value >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
