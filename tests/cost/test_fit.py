"""Costs that made the measurements come out of them again; what they do not tell stays."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings

from sfl.cost.fit import Phase, fit_link, fit_node, foretold, least_squares
from sfl.cost.queueing import Transfer
from sfl.cost.values import LinkCost, NodeCost, PassCost
from tests.house.planning import seeds

TRUE = NodeCost(
    PassCost(3e-5, 5e-5), PassCost(2e-6, 1e-6), PassCost(9e-5, 1.2e-4), fixed=4e-3, threads=2
)
BEFORE = NodeCost(PassCost(1e-5, 1e-5), PassCost(1e-6, 1e-6), PassCost(1e-5, 1e-5))


def phases(noise: float = 0.0, cuts: tuple[int, ...] = (1, 2, 4)) -> list[Phase]:
    """Fronts, middles and ends of several cuts and batches."""
    draw = random.Random(0)
    found = []
    for cut in cuts:
        for tokens in (64, 200, 512):
            for backward in (False, True):
                for embedding, head in ((True, False), (False, False), (False, True)):
                    shape = Phase(0.0, tokens, cut, backward, embedding, head)
                    seconds = foretold(TRUE, shape) * draw.lognormvariate(0, noise)
                    found.append(Phase(seconds, tokens, cut, backward, embedding, head))
    return found


def test_a_nodes_costs_come_out_again():
    found = fit_node(phases(), BEFORE, threads=2)
    for mine, wanted in (
        (found.block, TRUE.block),
        (found.embedding, TRUE.embedding),
        (found.head, TRUE.head),
    ):
        assert (mine.forward, mine.backward) == pytest.approx((wanted.forward, wanted.backward))
    assert found.fixed == pytest.approx(TRUE.fixed)
    assert found.spread < 1e-9 and found.threads == 2


def test_noise_is_the_spread_and_held_out_cuts_are_foretold():
    found = fit_node(phases(0.03), BEFORE)
    assert found.spread == pytest.approx(0.03, rel=0.35)
    for blocks in (3, 8):
        unseen = Phase(0.0, 300, blocks, head=True)
        assert foretold(found, unseen) == pytest.approx(foretold(TRUE, unseen), rel=0.05)


def test_what_is_not_told_stays():
    """A device that always has the same cut does not tell its embedding from its blocks."""
    front = [Phase(0.010, 100, 2, False, True)] * 3
    found = fit_node(front, BEFORE)
    assert found.embedding == BEFORE.embedding and found.head == BEFORE.head
    assert found.block.backward == BEFORE.block.backward
    assert foretold(found, front[0]) == pytest.approx(0.010)
    assert fit_node([], TRUE) == TRUE


@given(seed=seeds)
@settings(max_examples=60, deadline=None)
def test_least_squares_are_numpys_where_nothing_is_negative(seed: int):
    draw = np.random.default_rng(seed)
    rows = draw.uniform(0.1, 2.0, (9, 3))
    values = rows @ draw.uniform(0.5, 2.0, 3) * draw.uniform(0.97, 1.03, 9)
    wanted, *_ = np.linalg.lstsq(rows / values[:, None], np.ones(9), rcond=None)
    found = least_squares(
        [(tuple(r), float(v)) for r, v in zip(rows, values, strict=True)], (0,) * 3
    )
    if (wanted >= 0).all():
        assert found == pytest.approx(tuple(wanted), rel=1e-6)
    assert min(found) >= 0.0


def test_no_cost_is_negative():
    rows = [((1.0, 1.0), 1.0), ((2.0, 1.0), 3.0), ((3.0, 1.0), 5.0)]
    slope, fixed = least_squares(rows, (0.0, 0.0))
    assert fixed == 0.0 and slope > 0.0


def test_a_link_comes_out_again_and_is_followed():
    """At once with a share of 1; in a few rounds with less."""
    true, before = LinkCost(2e6, 5e6, 0.01), LinkCost(1e6, 1e6, 0.0)
    seen = [
        Transfer((true.up_seconds if up else true.down_seconds)(size), size, up)
        for up in (True, False)
        for size in (1000, 50_000, 400_000)
    ]
    found = fit_link(seen, before, share=1.0)
    assert (found.up, found.down, found.latency) == pytest.approx((2e6, 5e6, 0.01))
    assert found.spread < 1e-9
    link = before
    for _ in range(20):
        link = fit_link(seen, link)
    assert (link.up, link.down, link.latency) == pytest.approx((2e6, 5e6, 0.01), rel=0.02)
    assert fit_link([], before) == before


def test_messages_of_one_size_leave_the_latency():
    before = LinkCost(1e6, 1e6, 0.02)
    found = fit_link([Transfer(0.12, 50_000, True)] * 4, before, share=1.0)
    assert found.latency == pytest.approx(0.02) and found.up == pytest.approx(5e5)
    assert found.down == pytest.approx(1e6)
