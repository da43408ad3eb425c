"""Fading links and a budget of energy in the long run, after OPEN (2403.05158)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from math import log2
from statistics import fmean

from benchmarks.planning.drawing import Line, Panel
from benchmarks.planning.rows import Choices, against, table, uniform
from sfl.cost.energy import ClockRange, PowerModel
from sfl.cost.values import DeviceCost, EdgeCost, LinkCost, NodeCost, PassCost, ValueBits, Workload
from sfl.planners import PLANNERS, Aims, Choice, Cut, DeviceState, EdgeState, State
from sfl.planners.open import added, queue, round_energy
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


Policy = Callable[[State], tuple[Choices, State]]


@dataclass(frozen=True, slots=True)
class LongRun:
    """Of each slot: the devices' seconds, joules of all and overdrawn so far, a joule's price."""

    seconds: list[list[float]]
    joules: list[float]
    queues: list[float]
    prices: list[float]

    @property
    def delay(self) -> float:
        """The mean over slots and devices."""
        return fmean(fmean(each) for each in self.seconds)


def long_run(policy: Policy, aims: Aims, count: int = SLOTS) -> LongRun:
    """Slots over fading links."""
    draw, found = random.Random(9), LongRun([], [], [], [])
    fast = [draw.uniform(0.1e9, 0.6e9) for _ in range(4)]
    far = [draw.uniform(20, 200) for _ in range(4)]
    state = lenet(fast, [(1e6, 1e6)] * 4, aims)
    for _ in range(count):
        gains = [draw.expovariate(1) * (one / 50.0) ** -3 for one in far]
        rates = [
            (20e6 * log2(1 + 200 * g) / 8 + 2e4, 20e6 * log2(1 + 800 * g) / 8 + 2e4) for g in gains
        ]
        state = replace(lenet(fast, rates, aims), memory=state.memory)
        choices, state = policy(state)
        found.seconds.append([alone_seconds(state, d, choices[d.name]) for d in state.devices])
        found.joules.append(round_energy(state, choices))
        found.queues.append(queue(state))
        found.prices.append(queue(state) + added(state))
    return found


def slots(policy: Policy, aims: Aims) -> tuple[float, float]:
    """Mean delay and energy of a slot."""
    found = long_run(policy, aims)
    return found.delay, fmean(found.joules)


def opened(state: State) -> tuple[Choices, State]:
    """The planner, with its queue."""
    proposal = PLANNERS["open"].propose(state)
    return proposal.devices, replace(state, memory=proposal.memory)


def split_at(cut: int, clock: float = 1.0) -> Policy:
    """A fixed split, with equal parts of the server."""
    return lambda state: (uniform(state, cut, clock / 4), state)


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


VALUES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
BUDGET, LONG = 0.12, 300


def alone(state: State) -> tuple[Choices, State]:
    """Each device's quickest split in each slot, with equal parts of the server."""
    chosen = {}
    for device in state.able:
        each = [replace(device.choice(cut), edge_clock=0.25) for cut in device.legal]
        chosen[device.name] = min(each, key=lambda one: alone_seconds(state, device, one))
    return chosen, state


def static(splits: Mapping[str, int]) -> Policy:
    """A fixed split of each device's own."""
    chosen = {name: Choice(cut, edge_clock=0.25) for name, cut in splits.items()}
    return lambda state: (chosen, state)


def simple_runs() -> dict[str, LongRun]:
    """Plans that anybody would try; "best" is by delay, with all slots known."""
    free = Aims(hysteresis=0.0)
    fixed = {cut: long_run(split_at(cut), free, LONG) for cut in range(1, 13)}
    own = {
        f"d{number}": min(fixed, key=lambda cut: sum(one[number] for one in fixed[cut].seconds))
        for number in range(4)
    }
    return {
        "device-most": fixed[12],
        "server-most, fastest clock": fixed[1],
        "server-most, slowest clock": long_run(split_at(1, 0.32), free, LONG),
        "best uniform cut": min(fixed.values(), key=lambda one: one.delay),
        "best static cuts": long_run(static(own), free, LONG),
        "each alone": long_run(alone, free, LONG),
        "random": long_run(drawn, free, LONG),
    }


def open_panels() -> list[Panel]:
    """Delay, energy and queue against the value of delay."""
    ours = [
        long_run(opened, Aims(hysteresis=0.0, energy=BUDGET, delay_value=value), LONG)
        for value in VALUES
    ]
    plans = {"open": ours, **{name: [one] * len(VALUES) for name, one in simple_runs().items()}}

    def lines(of: Callable[[LongRun], float], titles: Iterable[str]) -> list[Line]:
        return [
            Line(title, VALUES, [of(one) for one in plans[title]], ours=title == "open")
            for title in titles
        ]

    across, seconds = "value of delay (V)", "mean seconds of a slot"
    return [
        Panel("delay", across, seconds, lines(lambda one: one.delay, plans), "xy"),
        Panel(
            f"energy over {LONG} slots",
            across,
            "joules of a slot / budget",
            lines(lambda one: fmean(one.joules) / BUDGET, plans),
            "xy",
        ),
        Panel(
            "queue at the end",
            across,
            "price of a joule",
            lines(lambda one: one.prices[-1], ["open"]),
            "xy",
        ),
    ]
