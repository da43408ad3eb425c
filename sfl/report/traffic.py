"""Bytes over the links of devices: all of them, by what they were for and which way they went.

`python -m sfl.report.traffic runs/ID` prints them for a run. Counted are serialised messages, at
the device; what gRPC, TLS and TCP add is not (`benchmarks/bytes_in_all.py` counts that, too).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from sfl.metrics.snapshot import Role
from sfl.report import text
from sfl.report.summary import RunSummary

PURPOSES: Mapping[str, tuple[Role, ...]] = {
    "training": ("activation", "gradient"),
    "evaluation": ("evaluation",),
    "adapters": ("adapter",),
    "base weights fetched": ("weights",),
    "reports and heartbeats": ("control",),
}
"""What bytes are for, and the roles that are counted under it: each role once."""


def by_purpose(summary: RunSummary) -> dict[str, tuple[int, int]]:
    """(up, down) over the links of all devices, by purpose."""
    nodes = [device.traffic for device in summary.devices]
    return {
        purpose: (
            sum(node.bytes_up_by_role.get(role, 0) for node in nodes for role in roles),
            sum(node.bytes_down_by_role.get(role, 0) for node in nodes for role in roles),
        )
        for purpose, roles in PURPOSES.items()
    }


def traffic_table(summary: RunSummary) -> str:
    """A line a purpose, and their sum, as text."""
    rows = by_purpose(summary)
    rows["in all"] = (
        sum(up for up, _ in rows.values()),
        sum(down for _, down in rows.values()),
    )
    total = sum(rows["in all"]) or 1
    lines = [f"{'over device links':24} {'up':>9} {'down':>9} {'both':>9}"]
    for purpose, (up, down) in rows.items():
        sizes = " ".join(f"{text.size(value):>9}" for value in (up, down, up + down))
        lines.append(f"{purpose:24} {sizes} {100.0 * (up + down) / total:5.1f}%")
    return "\n".join(lines)


def main(folder: Path) -> None:
    """Print the table of the run in `folder`."""
    sys.stdout.write(f"{traffic_table(RunSummary.read(folder / 'summary.json'))}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
