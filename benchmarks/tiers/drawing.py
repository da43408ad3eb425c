"""Users against memory, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.edge_memory import LENGTH
from benchmarks.tiers.memory import Cells

SFL, OURS, TWO = "#9a3412", "#0f766e", "#64748b"


def draw(path: Path, cells: Cells, sizes: Sequence[tuple[int, int]], batch: int) -> None:
    """The largest server and all servers together; dotted where SFL was not run."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "sfl"
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6.4, 4.0))
    users = [one for one, _ in sizes]
    sfl = [cells.sfl(one) for one in users]
    style: dict[str, Any] = {"marker": "o", "markersize": 4, "linewidth": 1.6}
    axis.plot(
        users,
        [size / 1e9 for size, _ in sfl],
        color=SFL,
        linestyle="-" if all(run for _, run in sfl) else ":",
        label="SFL, one server with a model per device",
        **style,
    )
    for key, colour, name in (("turns", OURS, "three tiers"), ("two", TWO, "two tiers")):
        found = [(n, peaks) for n, edges in sizes if (peaks := cells.peaks(key, n, edges))]
        counts = [n for n, _ in found]
        total = [peaks.total / 1e9 for _, peaks in found]
        axis.plot(counts, total, color=colour, label=f"{name}, all servers and the cloud", **style)
        if key == "turns":
            largest = [peaks.largest / 1e9 for _, peaks in found]
            axis.plot(
                counts,
                largest,
                color=colour,
                linestyle="--",
                label=f"{name}, the largest server",
                **style,
            )
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    axis.set_xticks(users, [f"{n}\n{edges} edges" for n, edges in sizes])
    marks = [0.5, 1, 2, 4, 8, 16, 32, 64, 128]
    low, high = axis.get_ylim()
    shown = [mark for mark in marks if low <= mark <= high]
    axis.set_yticks(shown, [f"{mark:g} GB" for mark in shown])
    axis.minorticks_off()
    axis.set_xlabel("users")
    axis.set_ylabel("peak resident memory")
    axis.set_title(f"GPT-2 124M's shape, r = 16, batches of {batch} x {LENGTH}, fp32", fontsize=10)
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    print(f"\nplot: {path}")
