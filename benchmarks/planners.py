"""Planners against every baseline on both measures, and the papers' headlines beside them.

    python -m benchmarks.planners            # all tables, about a minute on one core
    python -m benchmarks.planners --only fleet

Nothing here is measured on a network: scenes are stated, costs follow from them, and rounds are
simulated as events (`sfl/cost/closed_loop.py`). Each scene is one of a paper, or as near as its
text allows. A negative share is a saving.
"""

from __future__ import annotations

import argparse

from benchmarks.planning.cycles import pairing_table
from benchmarks.planning.fading import open_table
from benchmarks.planning.jetsons import alone_table, card_table
from benchmarks.planning.seconds import time_table
from benchmarks.planning.selection import selection_table
from benchmarks.planning.shared_edge import fleet_tables
from benchmarks.planning.vision import sft_table

TABLES = {
    "fleet": fleet_tables,
    "mincut": alone_table,
    "card": card_table,
    "open": open_table,
    "two_timescale": sft_table,
    "selection": selection_table,
    "pairing": pairing_table,
    "time": time_table,
}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=sorted(TABLES))
    only = parser.parse_args().only
    for name, show in TABLES.items():
        if only in (None, name):
            show()


if __name__ == "__main__":
    main()
