"""Micro-batches that overlap: known schedules, and the sum of parts where there is one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfl.cost.closed_loop import round_ends
from sfl.cost.flow import Flow, Lap, flow_ends
from sfl.cost.predict import Placed, predict, turns_of
from sfl.cost.step import step_cost
from sfl.cost.values import DeviceCost, EdgeCost, LineCost, LinkCost, NodeCost, PassCost, Workload

LAP = Lap(work=3.0, up=2.0, up_lag=0.5, serve=4.0, down=1.0, down_lag=0.5)


def test_one_micro_batch_is_the_sum_of_its_parts():
    flow = Flow((LAP,), backward=5.0, end=1.0)
    assert flow.alone == flow.in_turn == 17.0
    assert flow_ends([flow], 3) == pytest.approx([51.0])


def test_the_edge_is_busy_once_the_first_is_there():
    """Forward 3, up 2.5, then three jobs of 4 at the edge without a gap, down 1.5, backward 2."""
    flow = Flow((LAP,), backward=2.0, count=3, window=3)
    assert flow.alone == pytest.approx(3 + 2.5 + 3 * 4 + 1.5 + 2)


def test_a_slow_backward_is_what_the_last_answers_wait_for():
    flow = Flow((LAP,), backward=5.0, count=3, window=3)
    assert flow.alone == pytest.approx(3 + 2.5 + 4 + 1.5 + 3 * 5)


def test_a_window_of_one_is_one_after_the_other():
    flow = Flow((LAP,), backward=5.0, count=3, window=1)
    assert flow.alone == pytest.approx(flow.in_turn)


def test_a_slow_link_is_what_is_waited_for():
    slow = replace(LAP, up=50.0)
    flow = Flow((slow,), backward=5.0, count=3, window=3)
    assert flow.alone == pytest.approx(3 + 3 * 50 + 0.5 + 4 + 1.5 + 5)


def test_two_devices_take_turns_at_one_edge():
    flow = Flow((LAP,), backward=5.0)
    assert flow_ends([flow, flow], 1) == pytest.approx([16.0, 20.0])
    assert flow_ends([flow, replace(flow, edge=1)], 1) == pytest.approx([16.0, 16.0])


part = st.floats(0.01, 5.0)


@given(st.lists(st.tuples(*[part] * 7), min_size=1, max_size=4), st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_one_micro_batch_goes_as_the_closed_loop(times: list[tuple[float, ...]], steps: int):
    flows = [Flow((Lap(*parts[:6]),), parts[6]) for parts in times]
    turns = []
    for work, up, up_lag, serve, down, down_lag, backward in times:
        visit = ((work + up + up_lag, serve),)
        turns.append(type(turns_of(STEP))(visit, down + down_lag + backward))
    assert flow_ends(flows, steps) == pytest.approx(round_ends(turns, steps))


NODE = NodeCost(
    PassCost(1e-4, 2e-4), PassCost(1e-5), PassCost(1e-4, 1e-4), overhead=PassCost(1e-3, 1e-3),
    encode=LineCost(1e-3, 1e-6), decode=LineCost(1e-3, 1e-6), step=LineCost(2e-3, 1e-3),
)  # fmt: skip
DEVICE = DeviceCost(NODE, LinkCost(1e6, 5e5, 0.01))
EDGE = EdgeCost(NODE)
STEP = step_cost(Workload(6, 64, 512), DEVICE, EDGE, 2)


@pytest.mark.parametrize("u_shaped", [False, True])
def test_overlap_makes_a_step_shorter_and_every_part_stays(u_shaped: bool):
    whole = Workload(6, 64, 512, steps=4, u_shaped=u_shaped)
    four = replace(whole, micro_batches=4, window=4)
    tail = int(u_shaped)
    one, several = (step_cost(each, DEVICE, EDGE, 2, tail) for each in (whole, four))
    assert several.overlap > 0.0 and several.seconds < one.seconds
    assert several.bytes_up == pytest.approx(one.bytes_up)
    assert several.edge > one.edge  # each micro-batch has its own overhead
    blocking = step_cost(replace(four, window=1), DEVICE, EDGE, 2, tail)
    assert blocking.overlap == pytest.approx(0.0, abs=1e-9)
    alone = predict(four, [Placed("d", DEVICE, "e", 2, tail)], {"e": EDGE}).devices["d"]
    exchange = alone.alone["exchange"]
    assert alone.alone_seconds == pytest.approx(4 * several.seconds + exchange)
    assert alone.seconds == pytest.approx(alone.alone_seconds)
    pace = several.pace
    turns = turns_of(several)
    assert 0.0 < pace < 1.0
    assert sum(sum(v) for v in turns.visits) + turns.end == pytest.approx(several.seconds)
