"""Planners against every baseline on both measures, and the papers' headlines beside them.

    python -m benchmarks.planners            # all tables, about a minute on one core
    python -m benchmarks.planners --only fleet
    python -m benchmarks.planners --plot docs/images/planning    # the papers' figures, no tables

Nothing here is measured on a network: scenes are stated, costs follow from them, and rounds are
simulated as events (`sfl/cost/closed_loop.py`). Each scene is one of a paper, or as near as its
text allows. A negative share is a saving.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.planning.branches import branches_panels, branches_table
from benchmarks.planning.cycles import pairing_panels, pairing_table
from benchmarks.planning.drawing import Panel, draw
from benchmarks.planning.fading import open_panels, open_table
from benchmarks.planning.jetsons import alone_table, card_panels, card_table
from benchmarks.planning.seconds import time_table
from benchmarks.planning.selection import selection_panels, selection_table
from benchmarks.planning.shared_edge import fleet_panels, fleet_tables
from benchmarks.planning.vision import sft_panels, sft_table

TABLES = {
    "fleet": fleet_tables,
    "mincut": alone_table,
    "branches": branches_table,
    "card": card_table,
    "open": open_table,
    "two_timescale": sft_table,
    "selection": selection_table,
    "pairing": pairing_table,
    "time": time_table,
}


FIGURES: Mapping[str, tuple[str, Callable[[], Sequence[Panel]]]] = {
    "fleet": ("One edge of six devices, 100 Mbit/s (after 2503.13819)", fleet_panels),
    "branches": (
        "Best cut of models that branch, fading links (after 2507.01041)",
        branches_panels,
    ),
    "card": ("Cut and clock of a server for one device (after CARD, 2412.00090)", card_panels),
    "open": ("Splits and shares within a budget of energy (after OPEN, 2403.05158)", open_panels),
    "two_timescale": ("Codecs, cuts and spectrum (after SFT, 2501.09237)", sft_panels),
    "selection": ("Who takes part (after MAVFL, 2410.10451)", selection_panels),
    "pairing": ("Devices and edges paired (after SplitLLM, 2501.13318)", pairing_panels),
}


def plot(folder: Path, only: str | None) -> None:
    """Each figure as SVG."""
    for name, (title, panels) in FIGURES.items():
        if only in (None, name):
            draw(folder / f"{name}.svg", title, panels())


def main() -> None:
    """Print the tables, or draw the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=sorted(TABLES))
    parser.add_argument("--plot", type=Path, metavar="DIR", help="draw the papers' figures there")
    chosen = parser.parse_args()
    only = chosen.only
    if chosen.plot is not None:
        plot(chosen.plot, only)
        return
    for name, show in TABLES.items():
        if only in (None, name):
            show()


if __name__ == "__main__":
    main()
