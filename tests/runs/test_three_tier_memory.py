"""What `benchmarks/three_tier.py` measures are rounds of real edges and a stage, to their end."""

from __future__ import annotations

import pytest

from benchmarks.tiers.memory import STAGE_CUT, WAYS, measure
from tests.house.fleets import tiny

pytestmark = pytest.mark.process


@pytest.mark.parametrize("way", ["turns", "shared", "two"])
def test_each_way_ends_with_the_peak_of_each_process(way: str) -> None:
    model = tiny("gpt2", f'{{"num_hidden_layers": {STAGE_CUT + 1}, "n_positions": 128}}')
    edges = 2 if WAYS[way].three else 1
    found = measure(model, WAYS[way], 4, edges, 2)
    assert len(found["edges"]) == edges and min(found["edges"]) > 1e8
    assert (found["stage"] > 1e8) == WAYS[way].three and found["cloud"] > 1e7
