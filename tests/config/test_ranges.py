"""Which cuts a device may have, and what it holds for them."""

from __future__ import annotations

from typing import Any

import pytest

from sfl.config.ranges import check_ranges, cuts_of, plans_of, ways_of, widest
from sfl.errors import ConfigError
from sfl.plan import Span
from tests.house.lost import settings


def device(**own: Any) -> list[dict[str, Any]]:
    return [{"name": "d0", **own}]


def test_without_a_planner_there_is_one_cut() -> None:
    config = settings(devices=device(cut_layer=2, cut_range=[1, 3]))
    assert cuts_of(config, "d0", 5) == ((2, 0),)
    assert ways_of(config, "d0", 5) == ((1, 0), (2, 0), (3, 0))


def test_by_default_a_planner_may_choose_all_cuts_but_the_one_that_sends_ids() -> None:
    config = settings(planner={"policy": "fleet"}, devices=device())
    assert cuts_of(config, "d0", 4) == ((1, 0), (2, 0), (3, 0))
    asked = settings(planner={"policy": "fleet"}, devices=device(cut_layer=0))
    assert cuts_of(asked, "d0", 4) == ((0, 0), (1, 0), (2, 0), (3, 0))


def test_a_tail_moves_where_it_has_a_range_and_a_block_stays_at_the_edge() -> None:
    run = {"rounds": 3, "min_devices": 1, "topology": "u_shaped"}
    own = device(cut_range=[1, 9], tail_range=[0, 2])
    config = settings(planner={"policy": "fleet"}, run=run, devices=own)
    ways = cuts_of(config, "d0", 4)
    assert ways == ((1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (3, 0))
    front, tail = widest(plans_of(config, "d0", 4))
    assert front == Span(0, 3, embedding=True, head=False)
    assert tail == Span(2, 4, embedding=False, head=True)


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"cut_range": [1, 4]}, r"devices\.d0\.cut_range = \[1, 4\].*4 blocks.*Use \[1, 3\]"),
        ({"tail_range": [0, 3]}, r"devices\.d0\.tail_range = \[0, 3\].*Use \[0, 2\]"),
        (
            {"cut_range": [1, 3], "tail_range": [1, 1], "tail_layers": 1},
            r"devices\.d0\.cut_range = \[1, 3\].*Use \[1, 2\]",
        ),
    ],
)
def test_a_range_beyond_the_model_is_named_with_what_it_may_be(
    own: dict[str, Any], words: str
) -> None:
    run = {"rounds": 3, "min_devices": 1, "topology": "u_shaped"}
    config = settings(planner={"policy": "fleet"}, run=run, devices=device(**own))
    with pytest.raises(ConfigError, match=words):
        check_ranges(config, 4)
    check_ranges(config, 6)
