"""Steps through stages behind an edge: part by part, against two tiers, and where they queue."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfl.cost.closed_loop import Turns, round_ends
from sfl.cost.flow import EDGE, flow_ends
from sfl.cost.predict import Placed, Prediction, predict, turns_of
from sfl.cost.step import StepCost, exchange_seconds, flow_of, step_cost
from sfl.cost.tiers import DOWN, SERVED, UP, Behind, among, at_edge, num_stations, station
from sfl.cost.values import (
    DeviceCost,
    EdgeCost,
    LineCost,
    LinkCost,
    NodeCost,
    PassCost,
    StageCost,
    ValueBits,
    Workload,
)

CODED = LineCost(1e-3, 1e-6)
NODE = NodeCost(
    PassCost(1e-4, 2e-4), PassCost(1e-5), PassCost(1e-4, 1e-4), overhead=PassCost(1e-3, 1e-3),
    encode=CODED, decode=LineCost(2e-3, 1e-6), step=LineCost(2e-3, 1e-3),
)  # fmt: skip
DEVICE = DeviceCost(NODE, LinkCost(1e6, 5e5, 0.01), ValueBits((8.0,), (4.0,)), lora_bytes=1e4)
EDGE_COST = EdgeCost(NODE)
HOP = LinkCost(2e5, 1e5)
DEEP = NodeCost(PassCost(1e-5, 3e-5), head=PassCost(2e-5, 3e-5), step=LineCost(1e-3, 5e-4))
AT_ONCE = NodeCost(PassCost())
NO_LIMIT = LinkCost(1e30, 1e30)
LAYERS, CUT, STAGE_CUT = 6, 2, 4
WORK = Workload(LAYERS, 64, 512, steps=4)
U_SHAPED = replace(WORK, u_shaped=True)


def behind(*stages: StageCost, cuts: tuple[int, ...] = (STAGE_CUT,)) -> Behind:
    return Behind(stages, cuts)


def step(work: Workload = WORK, hop: LinkCost = HOP, tail: int = 0) -> StepCost:
    return step_cost(work, DEVICE, EDGE_COST, CUT, tail, behind(StageCost(DEEP, hop)))


def test_a_step_part_by_part() -> None:
    """The sums that rounds over slow links were measured against (benchmarks/tiers)."""
    own, tokens = step(), WORK.tokens
    middle = STAGE_CUT - CUT
    (leg,) = own.legs
    up, down = tokens * 64 * 8 / 8, tokens * 64 * 4 / 8
    forward, backward = NODE.forward(tokens, middle), NODE.backward(tokens, middle)
    encode, decode = NODE.encode.seconds(tokens), NODE.decode.seconds(tokens)
    rest = LAYERS - STAGE_CUT
    deep = DEEP.forward(tokens, rest) + DEEP.backward(tokens, rest) + tokens * DEEP.head.both
    visits = (
        (leg.head, forward),
        (encode, up / HOP.up),
        (0.0, deep + DEEP.step.seconds(rest)),
        (0.0, down / HOP.down),
        (decode, backward + NODE.step.seconds(middle)),
    )
    turns = turns_of(own)
    assert turns.stations == (EDGE, 1, 5, 2, EDGE)  # edges, their hops each way, the stage
    assert [x for v in turns.visits for x in v] == pytest.approx([x for v in visits for x in v])
    assert turns.end == pytest.approx(leg.down + own.backward)
    assert own.edge == pytest.approx(forward + visits[-1][1])
    assert own.stage == pytest.approx(visits[2][1])
    assert own.hop_up == pytest.approx(encode + up / HOP.up)
    assert own.hop_down == pytest.approx(decode + down / HOP.down)
    parts = own.device + own.up + own.edge + own.hop_up + own.stage + own.hop_down + own.down
    assert own.seconds == pytest.approx(parts)


def test_a_u_shaped_step_goes_there_and_back_twice() -> None:
    own, tokens = step(U_SHAPED, tail=1), WORK.tokens
    assert len(own.legs) == 2
    middle, rest = STAGE_CUT - CUT, LAYERS - 1 - STAGE_CUT
    passes = NODE.forward(tokens, middle) + NODE.backward(tokens, middle)
    assert own.edge == pytest.approx(passes + NODE.step.seconds(middle))
    deep = DEEP.forward(tokens, rest) + DEEP.backward(tokens, rest) + DEEP.step.seconds(rest)
    assert own.stage == pytest.approx(deep)  # the head is the device's
    assert own.busy(station(0, UP)) == pytest.approx(tokens * 64 * (8 + 32) / 8 / HOP.up)
    assert own.busy(station(0, DOWN)) == pytest.approx(tokens * 64 * (32 + 4) / 8 / HOP.down)


@pytest.mark.parametrize(("pieces", "u_shaped"), [(1, False), (1, True), (4, True)])
def test_behind_a_hop_without_a_limit_a_stage_that_takes_no_time_is_as_if_not_there(
    pieces: int, u_shaped: bool
) -> None:
    """Two tiers whose last blocks and head weigh nothing. With the loss at the stage an edge may
    begin with the next micro-batch before a gradient is back, which two tiers cannot."""
    node = replace(NODE, overhead=PassCost(), encode=LineCost(), decode=LineCost(), head=PassCost())
    weights = (1.0, 1.0, 1.0, 1.0, 0.0, 0.0)
    node = replace(node, step=LineCost(2e-3))
    work = Workload(LAYERS, 64, 512, 4, u_shaped, weights, pieces, pieces)
    device = replace(DEVICE, node=replace(DEVICE.node, head=PassCost()))
    two = step_cost(work, device, EdgeCost(node), CUT)
    deep = behind(StageCost(AT_ONCE, NO_LIMIT))
    three = step_cost(work, device, EdgeCost(node), CUT, behind=deep)
    assert three.seconds == pytest.approx(two.seconds, rel=1e-9)
    assert three.edge == pytest.approx(two.edge)
    own = predict(work, [Placed("d", device, "e", CUT)], {"e": EdgeCost(node)})
    deeper = predict(
        work, [Placed("d", device, "e", CUT, stage_cuts=(STAGE_CUT,))], {"e": EdgeCost(node)},
        deep.stages,
    )  # fmt: skip
    assert deeper.seconds == pytest.approx(own.seconds, rel=1e-9)
    parts = deeper.devices["d"].alone
    assert parts["hop up"] + parts["stage"] + parts["hop down"] == pytest.approx(0.0, abs=1e-12)


@given(
    st.floats(1e3, 1e7), st.floats(1.0, 100.0), st.booleans(), st.sampled_from([1, 3]),
    st.integers(1, 3),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_no_faster_hop_makes_a_round_longer(
    rate: float, factor: float, u_shaped: bool, pieces: int, count: int
) -> None:
    """One device alone: where several queue, first come, first served is not monotone."""
    work = replace(WORK, u_shaped=u_shaped, micro_batches=pieces, window=pieces)
    slow, fast = (foretold(work, 1, LinkCost(own, own)).seconds for own in (rate, factor * rate))
    assert fast <= slow * (1 + 1e-12)
    alike = [foretold(work, count, LinkCost(own, own)).bound for own in (rate, factor * rate)]
    assert alike[1] <= alike[0] * (1 + 1e-12)


def foretold(
    work: Workload, count: int, hop: LinkCost, edges: int = 1, deep: NodeCost = DEEP
) -> Prediction:
    devices = [
        Placed(f"d{n}", DEVICE, f"e{n % edges}", CUT, stage_cuts=(STAGE_CUT,)) for n in range(count)
    ]
    costs = {f"e{n}": EDGE_COST for n in range(edges)}
    return predict(work, devices, costs, [StageCost(deep, hop)])


def test_a_slow_stage_is_what_the_devices_of_all_edges_wait_for() -> None:
    slow = replace(DEEP, block=PassCost(1e-3, 2e-3))
    free = LinkCost(1e9, 1e9)
    one, several = (foretold(WORK, count, free, count, slow) for count in (1, 4))
    (stage,) = several.stages
    assert stage.load == pytest.approx(4 * one.stages[0].load)
    assert several.bound == pytest.approx(stage.load)
    assert several.seconds >= stage.load
    # Once the first job is there the stage is never idle.
    assert several.seconds < stage.load + one.seconds / WORK.steps
    assert several.devices["d0"].alone == one.devices["d0"].alone


def test_devices_of_one_edge_share_its_hop_and_those_of_two_do_not() -> None:
    slow = LinkCost(2e4, 2e4)
    shared, apart = foretold(WORK, 2, slow), foretold(WORK, 2, slow, edges=2)
    assert shared.stages[0].hop == pytest.approx(2 * apart.stages[0].hop)
    assert shared.seconds > 1.2 * apart.seconds
    exchange = 2 * 1e4 * (1 / 2e4 + 1 / 2e4)
    assert apart.devices["d0"].alone["exchange"] == pytest.approx(
        exchange_seconds(DEVICE, CUT) + exchange
    )


def test_an_edge_takes_the_next_job_while_the_stage_computes() -> None:
    """Two devices overlap: less than twice one of them, by all that is not the edge's."""
    one, two = foretold(WORK, 1, LinkCost(1e7, 1e7)), foretold(WORK, 2, LinkCost(1e7, 1e7))
    assert two.seconds < one.seconds + two.edges["e0"].load / 2 + 1e-9


def test_a_second_stage_is_one_more_of_the_same() -> None:
    stages = StageCost(DEEP, HOP), StageCost(DEEP, HOP)
    deep = step_cost(WORK, DEVICE, EDGE_COST, CUT, 0, Behind(stages, (3, STAGE_CUT)))
    once = step()
    assert turns_of(deep).stations == (EDGE, 1, 5, 7, 8, 9, 5, 2, EDGE)
    assert deep.busy(station(1, UP)) == deep.busy(station(0, UP)) == once.busy(station(0, UP))
    assert deep.busy(station(1, SERVED)) == pytest.approx(once.busy(station(0, SERVED)))
    tokens = WORK.tokens
    passes = DEEP.forward(tokens, 1) + DEEP.backward(tokens, 1) + DEEP.step.seconds(1)
    assert deep.busy(station(0, SERVED)) == pytest.approx(passes)


def test_stations_of_several_edges() -> None:
    """Edges, then their hops, then what all of them share."""
    every = [among(own, edge, 3) for edge in range(3) for own in range(station(2, UP))]
    shared = {among(own, 0, 3) for own in (station(0, SERVED), *range(4, 7))}
    assert len(set(every)) == 3 * 3 + len(shared)
    assert max(every) < num_stations(3, 2)
    assert {among(EDGE, edge, 3) for edge in range(3)} == {0, 1, 2}
    assert all(among(own, 2, 3) in shared for own in (station(0, SERVED), 4, 5, 6))
    assert num_stations(3, 0) == 3


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.booleans())
@settings(max_examples=40, deadline=None)
def test_one_micro_batch_goes_as_the_closed_loop(seed: int, steps: int, u_shaped: bool) -> None:
    """Of several devices, over two edges and one stage. All of their times differ, so that no two
    jobs arrive at one moment: who is first then is anybody's."""
    draw = random.Random(seed)
    work, flows, turns = replace(WORK, u_shaped=u_shaped), [], []
    for number in range(draw.randint(1, 5)):
        own, far, last = (node.slower(draw.uniform(0.2, 3.0)) for node in (NODE, NODE, DEEP))
        device = replace(DEVICE, node=own, link=LinkCost(draw.uniform(1e5, 1e6), 4e5))
        hop = LinkCost(draw.uniform(1e5, 1e6), draw.uniform(1e5, 1e6), 0.001)
        parts = work, device, EdgeCost(far), CUT, 0, behind(StageCost(last, hop))
        flows.append(at_edge(flow_of(*parts), 1.0, number % 2, 2))
        turns.append(turns_of(step_cost(*parts), 1.0, number % 2, 2))
    assert flow_ends(flows, steps) == pytest.approx(round_ends(turns, steps, num_stations(2, 1)))


@pytest.mark.parametrize("u_shaped", [False, True])
def test_micro_batches_overlap_behind_the_edge_too(u_shaped: bool) -> None:
    whole = replace(WORK, u_shaped=u_shaped)
    four = replace(whole, micro_batches=4, window=4)
    one, several = step(whole), step(four)
    assert several.seconds < one.seconds and several.overlap > 0.0
    turns = turns_of(several)
    assert sum(map(sum, turns.visits)) + turns.end == pytest.approx(several.seconds)
    assert isinstance(turns, Turns)
    blocking = step(replace(four, window=1))
    assert blocking.overlap == pytest.approx(0.0, abs=1e-9)
    # A slow hop is busy without a pause: all of its bytes, and what one takes beside it.
    slow = LinkCost(1e4, 1e9)
    busy = step(four, slow).busy(station(0, UP))
    assert busy < step(four, slow).seconds < busy + one.seconds


def test_an_edge_at_half_its_clock_takes_twice_as_long_and_a_stage_does_not() -> None:
    own = step()
    slow = turns_of(own, 0.5)
    for (_, served), (_, before), at in zip(
        slow.visits, turns_of(own).visits, slow.stations, strict=True
    ):
        assert served == pytest.approx(before * (2.0 if at == EDGE else 1.0))
