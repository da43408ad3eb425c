"""Where a model is cut: spans in the model's order, each with its holder."""

from __future__ import annotations

import pytest

from sfl.config import RunSettings
from sfl.config.codec import CODED_BY, RoleCodecs
from sfl.errors import ConfigError
from sfl.plan import Held, Hop, Plan, Span, Topology, Toward


@pytest.mark.parametrize(
    ("cut", "tail", "topology", "device", "edge"),
    [
        (0, 0, "vanilla", [(0, 0)], [(0, 6)]),
        (2, 0, "vanilla", [(0, 2)], [(2, 6)]),
        (2, 0, "u_shaped", [(0, 2), (6, 6)], [(2, 6)]),
        (1, 3, "u_shaped", [(0, 1), (3, 6)], [(1, 3)]),
    ],
)
def test_every_block_has_one_holder(
    cut: int,
    tail: int,
    topology: Topology,
    device: list[tuple[int, int]],
    edge: list[tuple[int, int]],
) -> None:
    plan = Plan.split(6, cut, tail, topology)
    assert [(span.first, span.last) for span in plan.of("device")] == device
    assert [(span.first, span.last) for span in plan.of("edge")] == edge
    assert plan.holders == ("device", "edge")
    blocks = [block for held in plan.spans for block in range(held.span.first, held.span.last)]
    assert blocks == list(range(6))
    assert [held.span.embedding for held in plan.spans].count(True) == 1
    assert [held.span.head for held in plan.spans].count(True) == 1
    assert plan.num_layers == 6 and plan.cut_layer == cut
    assert plan.at(cut) == plan


def test_another_cut_keeps_the_tail() -> None:
    plan = Plan.split(6, 2, 1, "u_shaped").at(3)
    assert plan == Plan.split(6, 3, 1, "u_shaped")
    with pytest.raises(ConfigError, match="none is left for the edge"):
        plan.at(5)


def test_spans_with_a_gap_are_no_plan() -> None:
    front = Held(Span(0, 1, embedding=True, head=False), "device")
    back = Held(Span(2, 4, embedding=False, head=True), "edge")
    with pytest.raises(AssertionError):
        Plan((front, back))


def test_settings_build_plans_and_name_the_device_whose_cut_the_model_lacks() -> None:
    settings = RunSettings.model_validate(
        {"model": {"path": "m"}, "devices": [{"name": "attic", "cut_layer": 4}]}
    )
    assert settings.plan("attic", 6) == Plan.split(6, 4, 0, "vanilla")
    assert settings.plan("attic", 6, cut_layer=1).cut_layer == 1
    with pytest.raises(ConfigError, match=r"devices\.attic\.cut_layer = 4"):
        settings.plan("attic", 4)


@pytest.mark.parametrize("topology", ["vanilla", "u_shaped"])
def test_every_hop_has_a_codec_either_way(topology: Topology) -> None:
    plan = Plan.split(6, 2, 0, topology)
    assert len(plan.hops) == len(plan.spans) - 1
    settings = [CODED_BY[hop, toward] for hop in plan.hops for toward in Toward]
    assert len(set(settings)) == len(settings)
    assert set(settings) <= set(RoleCodecs.model_fields)


@pytest.mark.parametrize("toward", list(Toward))
def test_sender_and_direction_tell_the_hop(toward: Toward) -> None:
    for hop in Plan.split(6, 2, 0, "u_shaped").hops:
        ends = (hop.before, hop.after) if toward is Toward.LOSS else (hop.after, hop.before)
        assert Hop.crossed(*ends, toward) == hop
