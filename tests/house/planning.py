"""Fleets for tests of planners: made of a seed, or of what hypothesis draws."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product

from hypothesis import strategies as st

from sfl.cost.energy import ClockRange, PowerModel
from sfl.cost.values import DeviceCost, EdgeCost, LinkCost, NodeCost, PassCost, ValueBits, Workload
from sfl.planners.decision import Choice
from sfl.planners.state import Aims, DeviceState, EdgeState, State
from sfl.planners.told import Cut


def device(
    draw: random.Random, number: int, layers: int, u_shaped: bool, num_edges: int = 1
) -> DeviceState:
    """One whose speed, link and bits are its own; some of its cuts may not fit its memory."""
    slow = 10 ** draw.uniform(-6, -3.5)
    node = NodeCost(
        PassCost(slow, 1.7 * slow), PassCost(slow / 9), PassCost(2 * slow, 3 * slow), fixed=1e-3
    )
    link = LinkCost(10 ** draw.uniform(5, 8), 10 ** draw.uniform(5, 8), draw.uniform(0, 0.01))
    bits = ValueBits(tuple(draw.uniform(2, 4) for _ in range(layers)), (0.6,))
    tails = range(layers // 2) if u_shaped else (0,)
    cuts = tuple(
        Cut(cut, tail, 100 * (cut + tail))
        for cut, tail in product(range(1, layers), tails)
        if cut + tail < layers
    )
    memory = draw.choice((None, 100 * draw.randint(1, layers)))
    legal = [cut for cut in cuts if memory is None or cut.memory <= memory]
    at = draw.choice((None, draw.choice(legal).at, draw.choice(cuts).at))
    power = PowerModel(draw.uniform(2, 12), 1.0, 0.8, 0.5)
    cost = DeviceCost(node, link, bits, 4e4, 8e4, draw.uniform(0, 0.1), power)
    return DeviceState(f"d{number}", f"e{number % num_edges}", cost, cuts, at, memory)


def fleet(
    seed: int,
    num_devices: int = 3,
    layers: int = 6,
    *,
    u_shaped: bool = False,
    num_edges: int = 1,
    aims: Aims | None = None,
) -> State:
    """Random devices at random edges."""
    draw = random.Random(seed)
    slow = 10 ** draw.uniform(-6.5, -4.5)
    node = NodeCost(PassCost(slow, 1.5 * slow), head=PassCost(slow, slow), fixed=1e-4)
    clock = ClockRange(draw.uniform(0.2, 0.9), draw.uniform(20, 200))
    edges = tuple(
        EdgeState(f"e{number}", EdgeCost(node, clock), draw.choice((0.0, draw.uniform(0, 1))))
        for number in range(num_edges)
    )
    weights = draw.choice(((), tuple(draw.uniform(0.5, 2) for _ in range(layers))))
    return State(
        1,
        Workload(layers, 64, 256, draw.choice((1, 5)), u_shaped, weights),
        tuple(device(draw, n, layers, u_shaped, num_edges) for n in range(num_devices)),
        edges,
        aims or Aims(hysteresis=0.0),
        seed,
    )


def fresh(state: State) -> State:
    """The same where nobody has a cut yet, so that no move has a price."""
    return replace(state, devices=tuple(replace(one, at=None) for one in state.devices))


def plans(state: State) -> list[dict[str, Choice]]:
    """Every combination of legal cuts."""
    names = [one.name for one in state.able]
    ways = product(*([one.choice(cut) for cut in one.legal] for one in state.able))
    return [dict(zip(names, way, strict=True)) for way in ways]


seeds = st.integers(0, 2**32 - 1)
