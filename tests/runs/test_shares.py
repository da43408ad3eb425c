"""What a planner gives out beside cuts: shares of one band, codecs, and the order of service."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from pathlib import Path

import pytest

from edge_server.floor import Floor
from sfl.report.journal import JournalReader
from sfl.rounds import Planned
from sfl.transport.shaper import Shaper
from tests.house.federation import finished
from tests.house.fleets import fleet
from tests.house.twin import Twin

MEGABITS = {"d0": (400.0, 300.0), "d1": (401.0, 301.0), "d2": (402.0, 302.0)}
"""Of each link, up and down: so different that a shaper is known by them."""


def test_a_link_takes_the_share_of_its_round_both_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[float, set[float]] = defaultdict(set)
    ranks: list[tuple[str, ...]] = []
    admit, rank = Shaper.admit, Floor.rank

    def watched(own: Shaper, now: float, num_bytes: int) -> tuple[float, float]:
        seen[own.megabits].add(own.share)
        return admit(own, now, num_bytes)

    def told(own: Floor[object], devices: tuple[str, ...]) -> None:  # type: ignore[type-var]
        ranks.append(tuple(devices))
        rank(own, devices)

    monkeypatch.setattr(Shaper, "admit", watched)
    monkeypatch.setattr(Floor, "rank", told)
    values = fleet(
        tmp_path,
        run={"rounds": 3, "min_devices": 2},
        training={"local_steps": 2},
        planner={"policy": "two_timescale", "slow_rounds": 1},
    )
    for device in values["devices"]:
        up, down = MEGABITS[device["name"]]
        device |= {"cut_range": [1, 1], "link": {"up_mbit": up, "down_mbit": down}}
    outcome = finished(Twin(tmp_path, values).run())
    with contextlib.closing(JournalReader(outcome.folder)) as journal:
        events = [entry.event for entry in journal.entries()]
    plans = [event for event in events if isinstance(event, Planned)]
    assert len(plans) == 3
    for name, ways in MEGABITS.items():
        shares = {plan.choices[name].share for plan in plans}
        assert any(share < 1.0 for share in shares)
        for megabits in ways:
            assert shares <= seen[megabits] <= shares | {1.0}  # 1 before the first round
    orders = [plan.order for plan in plans]
    assert all(order in ranks for order in orders) and all(set(o) == set(MEGABITS) for o in orders)
