"""Figures of planners: panels of lines with one legend, as SVG. One plan looks the same in all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OURS = "#1f6f8b"
STYLES: dict[str, dict[str, Any]] = {
    "device-most": {"color": "#8c564b", "linestyle": "--", "marker": "s"},
    "server-most, fastest clock": {"color": "#c0562b", "linestyle": "--", "marker": "^"},
    "server-most, slowest clock": {"color": "#c0562b", "linestyle": ":", "marker": "v"},
    "best uniform cut": {"color": "#6b8e23", "linestyle": "-.", "marker": "D"},
    "best static cuts": {"color": "#2a9d5c", "linestyle": "--", "marker": "P"},
    "each alone": {"color": "#7b5ea7", "linestyle": "-.", "marker": "x"},
    "random": {"color": "#8a8a8a", "linestyle": ":", "marker": "."},
}
"""Of the simple plans; ours are thick, and what belongs to one paper has the colours below."""
OTHERS = ("#b8860b", "#444444", "#d36ba6", "#5b8def", "#00a0a0")


@dataclass(frozen=True, slots=True)
class Line:
    """One plan, with what it reaches at each place."""

    title: str
    xs: Sequence[float]
    ys: Sequence[float]
    ours: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """Lines over one pair of axes; `logs` says which are logarithmic ("x", "y", "xy")."""

    title: str
    across: str
    upward: str
    lines: Sequence[Line]
    logs: str = ""


def draw(path: Path, title: str, panels: Sequence[Panel]) -> None:
    """Beside each other; the file is the same for the same lines."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "sfl"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(4.3 * len(panels), 4.6), squeeze=False)
    looks = _looks(panels)
    shown: dict[str, Any] = {}
    for axis, panel in zip(axes[0], panels, strict=True):
        for line in panel.lines:
            handle = axis.plot(line.xs, line.ys, **_look(looks[line.title], panel))
            shown.setdefault(line.title, handle[0])
        _frame(axis, panel)
    figure.suptitle(title, fontsize=11)
    rows = -(-len(shown) // 4)
    figure.legend(
        shown.values(), shown.keys(), loc="lower center", ncols=4, fontsize=8, frameon=False
    )
    figure.tight_layout(rect=(0, 0.02 + 0.045 * rows, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    print(f"plot: {path}")


def _looks(panels: Sequence[Panel]) -> dict[str, dict[str, Any]]:
    """One look for each title."""
    found: dict[str, dict[str, Any]] = {}
    colours, ours = iter(OTHERS), iter(("-", "--"))
    for line in (line for panel in panels for line in panel.lines):
        if line.title in found:
            continue
        if line.ours:
            look = {"color": OURS, "linestyle": next(ours), "marker": "o", "linewidth": 2.4}
            found[line.title] = look | {"zorder": 5}
        else:
            look = STYLES.get(line.title) or {
                "color": next(colours, "#999999"),
                "linestyle": "--",
                "marker": "*",
            }
            found[line.title] = look | {"linewidth": 1.4, "zorder": 3}
    return found


def _look(look: dict[str, Any], panel: Panel) -> dict[str, Any]:
    """With marks where lines have few places."""
    few = all(len(line.xs) <= 16 for line in panel.lines)
    return look | ({"markersize": 4} if few else {"marker": ""})


def _frame(axis: Any, panel: Panel) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    for letter, one in (("x", axis.xaxis), ("y", axis.yaxis)):
        if letter in panel.logs:
            getattr(axis, f"set_{letter}scale")("log")
            one.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            one.set_minor_formatter(FuncFormatter(_minor))
    if "x" in panel.logs:  # its places are few
        places = panel.lines[0].xs
        axis.set_xticks(places, [f"{place:g}" for place in places])
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_title(panel.title, fontsize=10)
    axis.set_xlabel(panel.across, fontsize=9)
    axis.set_ylabel(panel.upward, fontsize=9)
    axis.tick_params(labelsize=8, which="both")
    axis.grid(alpha=0.25)


def _minor(value: float, _: object) -> str:
    """2 and 5 of each decade."""
    return f"{value:g}" if f"{value:e}"[0] in "25" else ""
