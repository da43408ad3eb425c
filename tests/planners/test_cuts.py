"""Cuts with their memory, from a model's headers."""

from __future__ import annotations

from sfl.models.memory.cuts import legal_cuts
from sfl.models.memory.footprint import Load, device_footprint
from sfl.plan import Plan
from tests.house.tiny_models import opened

LOAD = Load(batch_size=2, length=16, rank=4)


def test_each_cut_has_its_forecast():
    """More blocks take more; at least one is left to the edge."""
    folder = opened("gpt2")
    cuts = legal_cuts(folder, "vanilla", LOAD, 1000, cut_layers=range(1, 9))
    assert [cut.at for cut in cuts] == [(1, 0), (2, 0)]
    assert cuts[0].memory < cuts[1].memory
    plan = Plan.split(3, 2, 0, "vanilla")
    assert cuts[1].memory == device_footprint(folder, plan.device_spans, LOAD, 1000).total


def test_the_u_shape_has_a_tail_too():
    folder = opened("llama")
    cuts = legal_cuts(folder, "u_shaped", LOAD, 1000, cut_layers=range(3), tail_layers=range(3))
    assert [cut.at for cut in cuts] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 0)]
