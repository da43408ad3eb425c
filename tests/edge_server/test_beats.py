"""What an edge tells of its own costs with each heartbeat."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from edge_server.beats import Beats
from sfl.cost.energy import Energy
from sfl.cost.shown import PassKey, Shown, Sums
from sfl.metrics.snapshot import NodeSnapshot
from sfl.metrics.stats import NodeStats
from sfl.transport.cloud.words import Beat

PASSES = {PassKey("forward", blocks=3): Sums.of(100, 0.5)}


@pytest.mark.parametrize(
    ("energy", "told"),
    [
        (None, Shown(threads=2)),
        (Energy(7.5, "measured"), Shown(PASSES, energy=Energy(7.5, "measured"), threads=2)),
    ],
)
def test_passes_are_told_beside_joules_alone(
    monkeypatch: pytest.MonkeyPatch, energy: Energy | None, told: Shown
) -> None:
    """Else they would cross with every heartbeat, for nobody: each device's go with its report."""
    monkeypatch.setattr(NodeStats, "costs", lambda own: Shown(PASSES, energy=energy, threads=2))
    beats: list[Beat] = []
    cloud: Any = SimpleNamespace(post=beats.append)
    Beats(NodeStats("e", "edge"), cloud, SimpleNamespace()).send()  # type: ignore[arg-type]
    assert NodeSnapshot.from_json(beats[0].snapshot).costs == told
