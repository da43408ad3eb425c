"""Fading links and a budget of energy in the long run, after OPEN (2403.05158)."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from math import log2
from statistics import fmean

from benchmarks.planning.rows import Choices, against, table, uniform
from sfl.cost.energy import ClockRange, PowerModel
from sfl.cost.values import DeviceCost, EdgeCost, LinkCost, NodeCost, PassCost, ValueBits, Workload
from sfl.planners import PLANNERS, Aims, Cut, DeviceState, EdgeState, State
from sfl.planners.open import round_energy
from sfl.planners.seconds import alone_seconds

SHAPES = (4704, 4704, 1176, 1600, 1600, 400, 400, 120, 120, 84, 84, 10)
MACS = (6 * 784 * 25, 0, 0, 1600 * 150, 0, 0, 0, 400 * 120, 0, 120 * 84, 0, 840)
BATCH, CAPACITY, SLOTS = 64, 10e9, 100


def lenet(fast: list[float], rates: list[tuple[float, float]], aims: Aims) -> State:
    """LeNet of 12 layers on MNIST, batches of 64; cycles of each layer as its weight."""
    cycles = [
        (6 * mac * BATCH + 2 * shape * BATCH) / 2 for mac, shape in zip(MACS, SHAPES, strict=True)
    ]
    bits = tuple(32.0 * shape for shape in (SHAPES[0], *SHAPES[:-1], 0))
    cuts = tuple(Cut(number) for number in range(1, 13))
    devices = tuple(
        DeviceState(
            f"d{number}",
            "edge",
            DeviceCost(
                NodeCost(PassCost(1.0 / BATCH / speed)),
                LinkCost(up, down),
                ValueBits(bits, bits),
                power=PowerModel(1e-27 * speed**3, 0.2, 1.0),
            ),
            cuts,
        )
        for number, (speed, (up, down)) in enumerate(zip(fast, rates, strict=True))
    )
    clock = ClockRange(0.001, 2e-28 * CAPACITY**3)
    edge = EdgeState("edge", EdgeCost(NodeCost(PassCost(1.0 / BATCH / CAPACITY)), clock))
    return State(1, Workload(12, 1, BATCH, 1, weights=tuple(cycles)), devices, (edge,), aims)


def slots(policy: Callable[[State], tuple[Choices, State]], aims: Aims) -> tuple[float, float]:
    """Mean delay and energy of a slot, over fading links."""
    draw = random.Random(9)
    fast = [draw.uniform(0.1e9, 0.6e9) for _ in range(4)]
    far = [draw.uniform(20, 200) for _ in range(4)]
    delays, joules = [], []
    state = lenet(fast, [(1e6, 1e6)] * 4, aims)
    for _ in range(SLOTS):
        gains = [draw.expovariate(1) * (one / 50.0) ** -3 for one in far]
        rates = [
            (20e6 * log2(1 + 200 * g) / 8 + 2e4, 20e6 * log2(1 + 800 * g) / 8 + 2e4) for g in gains
        ]
        state = replace(lenet(fast, rates, aims), memory=state.memory)
        choices, state = policy(state)
        delays.append(fmean(alone_seconds(state, d, choices[d.name]) for d in state.devices))
        joules.append(round_energy(state, choices))
    return fmean(delays), fmean(joules)


def opened(state: State) -> tuple[Choices, State]:
    """The planner, with its queue."""
    proposal = PLANNERS["open"].propose(state)
    return proposal.devices, replace(state, memory=proposal.memory)


def split_at(cut: int) -> Callable[[State], tuple[Choices, State]]:
    """A fixed split, with equal parts of the server."""
    return lambda state: (uniform(state, cut, 0.25), state)


def drawn(state: State) -> tuple[Choices, State]:
    """Any split, with equal parts of the server."""
    number = int(state.memory.get("slot", {}).get("n", 0.0))
    picked = PLANNERS["random"].propose(replace(state, round=number)).devices
    chosen = {name: replace(one, edge_clock=0.25) for name, one in picked.items()}
    return chosen, replace(state, memory={"slot": {"n": number + 1.0}})


def open_table() -> None:
    """Delay and energy in the long run against every fixed split."""
    print("### OPEN: LeNet on four devices with fading links\n")
    free = Aims(hysteresis=0.0)
    fixed = {cut: slots(split_at(cut), free) for cut in range(1, 13)}
    quickest = min(fixed, key=lambda cut: fixed[cut][0])
    leanest = min(fixed, key=lambda cut: fixed[cut][1])
    others = {
        "split 1": fixed[1],
        "split 6": fixed[6],
        f"quickest split ({quickest})": fixed[quickest],
        f"leanest split ({leanest})": fixed[leanest],
        "random": slots(drawn, free),
        "`open` without budget": slots(opened, free),
    }
    titles = [f"{name}: delay, energy" for name in others]
    row = table("budget, J", "value of delay", "delay, s", "energy / budget", *titles)
    for budget in (0.08, 0.12, 0.2):
        for value in (0.1, 1.0):
            aims = Aims(hysteresis=0.0, energy=budget, delay_value=value)
            ours = slots(opened, aims)
            cells = [", ".join(against(ours, one)) for one in others.values()]
            row(budget, value, f"{ours[0]:.3f}", f"{ours[1] / budget:.2f}", *cells)
    print()
