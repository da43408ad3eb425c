"""Steps, plans and rounds foretold, against what they are made of and against other models."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.schedule import Job
from benchmarks.schedule import ends_of as simulated
from sfl.cost.closed_loop import Turns, round_ends
from sfl.cost.energy import ClockRange, Energy, PowerModel, mean_power
from sfl.cost.predict import Placed, predict
from sfl.cost.step import exchange_seconds, step_cost
from sfl.cost.values import DeviceCost, EdgeCost, LinkCost, NodeCost, PassCost, ValueBits, Workload
from tests.house.planning import fleet, plans, seeds

NODE = NodeCost(PassCost(1e-4, 2e-4), PassCost(1e-5, 0.0), PassCost(3e-4, 4e-4), fixed=0.01)
FAR = NodeCost(PassCost(1e-5, 2e-5), head=PassCost(3e-5, 4e-5), fixed=0.001)
DEVICE = DeviceCost(NODE, LinkCost(1e6, 2e6, 0.005), ValueBits((32.0, 8.0, 16.0), (4.0,)), 1e4, 2e4)


def test_a_vanilla_step_part_by_part():
    step = step_cost(Workload(6, 64, 100), DEVICE, EdgeCost(FAR), 2)
    assert step.device == pytest.approx(100 * (1e-5 + 2 * 3e-4) + 2 * 0.01)
    assert step.edge == pytest.approx(100 * (4 * 3e-5 + 7e-5) + 2 * 0.001)
    assert step.bytes_up == 100 * 64 * 16 / 8 and step.bytes_down == 100 * 64 * 4 / 8
    assert step.up == pytest.approx(0.005 + step.bytes_up / 1e6)
    assert step.down == pytest.approx(0.005 + step.bytes_down / 2e6)
    assert step.seconds == pytest.approx(step.device + step.up + step.edge + step.down)


def test_a_u_shaped_step_visits_the_edge_twice():
    work = Workload(6, 64, 100, u_shaped=True, weights=(1, 1, 2, 1, 1, 3))
    step = step_cost(work, DEVICE, EdgeCost(FAR), 2, 1)
    assert len(step.legs) == 2
    assert step.edge == pytest.approx(100 * 4 * 3e-5 + 2 * 0.001)
    assert step.device == pytest.approx(100 * (1e-5 + 5 * 3e-4 + 7e-4) + 4 * 0.01)
    assert step.bytes_up == 100 * 64 * (16 + 32) / 8
    assert step.bytes_down == 100 * 64 * (4 + 32) / 8


@given(seed=seeds, steps=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_a_round_is_that_of_the_schedule_model(seed: int, steps: int):
    draw = random.Random(seed)
    jobs = [
        Job(f"d{n}", *(draw.uniform(0.01, 1) for _ in range(5))) for n in range(draw.randint(1, 6))
    ]
    turns = [Turns(((job.head, job.serve),), job.tail) for job in jobs]
    wanted = simulated(jobs, "first_come", steps)
    assert round_ends(turns, steps) == pytest.approx([wanted[job.name] for job in jobs])


def test_two_visits_a_step_and_two_edges():
    both = [Turns(((1.0, 2.0), (3.0, 4.0)), 5.0), Turns(((1.0, 1.0),), 0.0, edge=1)]
    assert round_ends(both, 2, 2) == [30.0, 4.0]
    crowd = [Turns(((0.0, 2.0), (0.0, 1.0)), 0.0), Turns(((1.0, 2.0),), 0.0)]
    assert round_ends(crowd, 1) == [5.0, 4.0]


def test_visits_at_several_stations_overlap():
    """Two devices through edge, link and stage and back: the stage is busy without a pause."""
    visits = ((1.0, 1.0), (0.0, 2.0), (0.0, 4.0), (0.0, 2.0), (0.0, 1.0))
    one = Turns(visits, 1.0, stations=(0, 1, 2, 3, 0))
    assert round_ends([one], 2, 4) == [24.0]
    # Who comes second is at the stage 4 s after the first, in each step.
    assert round_ends([one, one], 1, 4) == [12.0, 16.0]


@given(seed=seeds, u_shaped=st.booleans(), num_edges=st.integers(1, 2))
@settings(max_examples=40, deadline=None)
def test_no_round_is_shorter_than_its_bound(seed: int, u_shaped: bool, num_edges: int):
    """And all that is alone at its edge takes what its parts add up to."""
    state = fleet(seed, layers=4, u_shaped=u_shaped, num_edges=num_edges)
    edges = {edge.name: edge.cost for edge in state.edges}
    plan = plans(state)[-1]
    devices = [Placed(d.name, d.cost, d.edge, *plan[d.name].at, memory=7) for d in state.able]
    found = predict(state.workload, devices, edges)
    assert found.seconds >= found.bound * (1 - 1e-9)
    for one in found.devices.values():
        assert one.seconds >= one.alone_seconds * (1 - 1e-9) and one.memory == 7
    alone = predict(state.workload, devices[:1], edges)
    (only,) = alone.devices.values()
    assert alone.seconds == pytest.approx(only.alone_seconds)
    assert alone.slowest == devices[0].name


def test_bytes_energy_and_spread_of_a_plan():
    power = PowerModel(compute=10.0, send=2.0, receive=1.0, idle=0.5, source="measured")
    cost = DeviceCost(NODE, LinkCost(1e6, 2e6, spread=0.1), ValueBits(), 1e4, power=power)
    edge = EdgeCost(FAR, ClockRange(0.5, watts=100.0))
    work = Workload(6, 64, 100, steps=3)
    one = Placed("d", cost, "e", 2, edge_clock=0.5)
    found = predict(work, [one], {"e": edge})
    step, device = step_cost(work, cost, edge, 2), found.devices["d"]
    assert device.bytes_up == 3 * step.bytes_up + 2e4 and device.bytes_down == device.bytes_up
    joules = 3 * (10 * step.device + 2 * step.up + step.down + 0.5 * step.edge)
    assert device.energy == Energy(pytest.approx(joules), "measured")
    assert found.edges["e"].load == pytest.approx(3 * step.edge / 0.5)
    assert found.edges["e"].energy.joules == pytest.approx(100 * 0.25 * 3 * step.edge)
    assert found.energy.source == "modelled"
    assert device.spread == pytest.approx(0.1 * 3 * (step.up + step.down))
    assert device.alone["exchange"] == pytest.approx(exchange_seconds(cost, 2))


def test_who_is_served_beside_others_waits_for_nobody():
    """Half of the edge each: as long as alone at half the speed, and the energy of the whole."""
    edge, work = EdgeCost(FAR, ClockRange(0.5, watts=100.0)), Workload(6, 64, 100, steps=3)
    both = [Placed(name, DEVICE, "e", 2, edge_share=0.5) for name in ("a", "b")]
    found = predict(work, both, {"e": edge})
    step = step_cost(work, DEVICE, edge, 2)
    wanted = 3 * (step.seconds + step.edge) + exchange_seconds(DEVICE, 2)
    assert found.seconds == found.bound == pytest.approx(wanted)
    assert found.edges["e"].load == pytest.approx(3 * step.edge / 0.5)
    assert found.edges["e"].energy.joules == pytest.approx(100 * 2 * 3 * step.edge)


def test_energy_is_measured_only_where_all_of_it_is():
    assert Energy(1.0, "measured") + Energy(2.0, "measured") == Energy(3.0, "measured")
    assert (Energy(1.0, "measured") + Energy(2.0)).source == "modelled"
    assert mean_power(Energy(10.0), Energy(40.0), 5.0) == 6.0
    nothing = predict(Workload(2, 4, 4), [], {})
    assert (nothing.seconds, nothing.bound, nothing.slowest) == (0.0, 0.0, "")
    assert nothing.energy == Energy(0.0)
