"""Planners against every baseline on both measures, and the papers' headlines beside them.

    python -m benchmarks.planners            # all tables, about a minute on one core
    python -m benchmarks.planners --only fleet

Nothing here is measured on a network: scenes are stated, costs follow from them, and rounds are
simulated as events (`sfl/cost/closed_loop.py`). Each scene is one of a paper, or as near as its
text allows. A negative share is a saving.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import exp, log, log2, sqrt
from statistics import fmean

from sfl.cost.energy import ClockRange, PowerModel
from sfl.cost.predict import predict
from sfl.cost.values import DeviceCost, EdgeCost, LinkCost, NodeCost, PassCost, ValueBits, Workload
from sfl.planners import PLANNERS, Aims, Choice, Cut, DeviceState, EdgeState, State
from sfl.planners.card import delay_and_energy
from sfl.planners.open import round_energy
from sfl.planners.seconds import alone_seconds
from sfl.planners.state import Outcome, placed
from sfl.planners.two_timescale import longest

Choices = Mapping[str, Choice]


def flops(hidden: int, length: int, sequences: int) -> float:
    """Of a forward through one block with an MLP four times as wide."""
    tokens = sequences * length
    return 24.0 * hidden * hidden * tokens + 4.0 * sequences * length * length * hidden


def table(*titles: str) -> Callable[..., None]:
    """Print the head; returns what prints a row."""
    print("| " + " | ".join(titles) + " |\n|" + "---|" * len(titles), flush=True)
    return lambda *cells: print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def saved(ours: float, other: float) -> str:
    """By how much ours is above or below."""
    return f"{ours / other - 1.0:+.0%}" if other > 0.0 else "-"


# -- one shared edge -------------------------------------------------------------------------------

BOARDS = {
    "Jetson Nano": (0.472e12, 10.0),
    "Jetson TX2": (1.33e12, 15.0),
    "Snapdragon 8s Gen 3": (1.689e12, 6.0),
    "Snapdragon 8 Gen 3": (2.774e12, 7.0),
    "A17 Pro": (2.147e12, 6.0),
    "M3": (3.533e12, 15.0),
}
"""Peak FLOP/s of the six devices of 2503.13819, and watts that are assumed here."""
PAPERS_CUTS = (1, 1, 2, 2, 3, 3)
LAYERS, HIDDEN, LENGTH, SEQUENCES, UTILISATION = 12, 768, 128, 16, 0.1


def shared_edge(edge_flops: float, mbit: float, bits: float) -> State:
    """BERT base, 16 x 128 tokens, six devices; a tenth of each peak is reached."""
    tokens = SEQUENCES * LENGTH
    work = flops(HIDDEN, LENGTH, SEQUENCES) / tokens / UTILISATION
    rate = mbit * 1e6 / 8
    cuts = tuple(Cut(number) for number in range(1, LAYERS))
    devices = tuple(
        DeviceState(
            name,
            "edge",
            DeviceCost(
                NodeCost(PassCost(work / speed, work / speed)),
                LinkCost(rate, rate),
                ValueBits((bits,), (bits,)),
                power=PowerModel(watts, 2.0, 1.5, 1.0),
            ),
            cuts,
        )
        for name, (speed, watts) in BOARDS.items()
    )
    block = PassCost(work / edge_flops, work / edge_flops)
    head = PassCost(0.24 * work / edge_flops, 0.24 * work / edge_flops)
    edge = EdgeState("edge", EdgeCost(NodeCost(block, head=head), ClockRange(0.32, 165.0)))
    return State(1, Workload(LAYERS, HIDDEN, tokens, 10), devices, (edge,), Aims(hysteresis=0.0))


def measured(state: State, choices: Choices) -> tuple[float, float]:
    """Seconds and joules of a step, from the events of a round."""
    edges = {edge.name: edge.cost for edge in state.edges}
    found = predict(state.workload, placed(state, choices), edges)
    return found.seconds / state.workload.steps, found.energy.joules / state.workload.steps


def uniform(state: State, cut: int, clock: float = 1.0) -> dict[str, Choice]:
    """The same for everybody."""
    return {device.name: Choice(cut, edge_clock=clock) for device in state.devices}


def best_static(state: State) -> dict[str, Choice]:
    """Cuts of each device, changed one by one as long as the simulated step gets shorter."""
    starts = [uniform(state, cut) for cut in range(1, LAYERS)]
    chosen = min(starts, key=lambda one: measured(state, one)[0])
    best, moved = measured(state, chosen)[0], True
    while moved:
        moved = False
        for device in state.devices:
            for cut in device.legal:
                tried = {**chosen, device.name: device.choice(cut)}
                if (value := measured(state, tried)[0]) < best * (1 - 1e-9):
                    best, chosen, moved = value, tried, True
    return chosen


def baselines(state: State) -> Iterator[tuple[str, list[dict[str, Choice]]]]:
    """Plans that anybody would try; several are a mean."""
    most = LAYERS - 1
    yield "device-most", [uniform(state, most)]
    yield "server-most, fastest clock", [uniform(state, 1)]
    yield "server-most, slowest clock", [uniform(state, 1, 0.32)]
    every = [uniform(state, cut) for cut in range(1, LAYERS)]
    yield "best uniform cut", [min(every, key=lambda one: measured(state, one)[0])]
    yield "best static cuts (descent)", [best_static(state)]
    yield (
        "cuts of 2503.13819",
        [{d.name: Choice(cut) for d, cut in zip(state.devices, PAPERS_CUTS, strict=True)}],
    )
    random_ = PLANNERS["random"]
    yield (
        "random (mean of 40)",
        [dict(random_.decide(replace(state, round=number)).devices) for number in range(40)],
    )


def fleet_tables() -> None:
    """Seconds and joules a step, planner by planner; then `fleet` over all edges and links."""
    state = shared_edge(5e12, 100.0, 2.1)
    print("### One edge of 5 TFLOPS, links of 100 Mbit/s, 2.1 bits a value\n")
    row = table("plan", "cuts", "seconds a step", "joules a step", "`fleet` over it: s", "J")
    ours = measured(state, PLANNERS["fleet"].decide(state).devices)
    for name in ("fleet", "scan", "mincut", "card", "two_timescale"):
        choices = PLANNERS[name].decide(state).devices
        used = {
            key: replace(one, share=1.0, activation_bits=None, gradient_bits=None, edge_share=None)
            for key, one in choices.items()
        }
        found = measured(state, used if name == "two_timescale" else choices)
        row(f"`{name}`", _cuts(choices), *_both(found), *_against(ours, found))
    for title, plans in baselines(state):
        each = [measured(state, plan) for plan in plans]
        found = fmean(one[0] for one in each), fmean(one[1] for one in each)
        cuts = _cuts(plans[0]) if len(plans) == 1 else ""
        row(title, cuts, *_both(found), *_against(ours, found))
    print("\n### Over edges and links\n")
    titles = [title for title, _ in baselines(state)]
    row = table("edge", "link", "bits", "`fleet`, s", "each alone (`scan`)", *titles)
    for bits in (32.0, 2.1):
        for edge in (2e12, 5e12, 15e12, 52.2e12):
            for mbit in (100.0, 1000.0):
                _one_edge(row, edge, mbit, bits)
    print()


def _one_edge(row: Callable[..., None], edge: float, mbit: float, bits: float) -> None:
    state = shared_edge(edge, mbit, bits)
    ours = measured(state, PLANNERS["fleet"].decide(state).devices)[0]
    alone = measured(state, PLANNERS["scan"].decide(state).devices)[0]
    others = [
        saved(ours, fmean(measured(state, plan)[0] for plan in plans))
        for _, plans in baselines(state)
    ]
    row(f"{edge / 1e12:g} TF", f"{mbit:g} Mbit/s", bits, f"{ours:.3f}", saved(ours, alone), *others)


def _cuts(choices: Choices) -> str:
    return "-".join(str(one.cut_layer) for one in choices.values())


def _both(found: tuple[float, float]) -> tuple[str, str]:
    return f"{found[0]:.3f}", f"{found[1]:.0f}"


def _against(ours: tuple[float, float], found: tuple[float, float]) -> tuple[str, str]:
    return saved(ours[0], found[0]), saved(ours[1], found[1])


# -- CARD ------------------------------------------------------------------------------------------

JETSONS = {
    "AGX Orin": 5.3e12,
    "Orin NX": 1.9e12,
    "AGX Xavier": 1.4e12,
    "Orin Nano": 1.28e12,
    "TX2": 0.665e12,
}
CHANNELS = {"good": (80e6, 120e6), "normal": (40e6, 60e6), "poor": (12e6, 20e6)}
"""Bits a second, up and down."""


def jetsons(channel: str, weight: float) -> State:
    """LLaMA-3.2-1B, 4 x 512 tokens, bfloat16 at the cut, LoRA of rank 16; a 4060 Ti as server."""
    hidden, wide, vocab, length, sequences, layers = 2048, 8192, 128256, 512, 4, 16
    tokens = length * sequences
    values = 2 * hidden * hidden + 2 * hidden * 512 + 3 * hidden * wide
    forward = 2.0 * values + 4.0 * length * hidden
    server = 2.5e9 * 2 * 4352 * 0.4
    lora = 4.0 * 16 * (2 * hidden + 2 * (hidden + 512) + 2 * hidden)
    up, down = (rate / 8 for rate in CHANNELS[channel])
    cuts = tuple(Cut(number) for number in range(1, layers))
    devices = tuple(
        DeviceState(
            name,
            "server",
            DeviceCost(
                NodeCost(PassCost(forward / speed / 0.4, forward / speed / 0.4)),
                LinkCost(up, down),
                ValueBits((16.0,), (16.0,)),
                lora,
            ),
            cuts,
        )
        for name, speed in JETSONS.items()
    )
    head = 2.0 * hidden * vocab / server
    cost = NodeCost(PassCost(forward / server, forward / server), head=PassCost(head, head))
    edge = EdgeState("server", EdgeCost(cost, ClockRange(0.32, 165.0)))
    workload = Workload(layers, hidden, tokens, 10)
    return State(1, workload, devices, (edge,), Aims(hysteresis=0.0, weight=weight))


def card_table() -> None:
    """Delay and the server's energy, each against all ends."""
    print("### CARD: mean of five Jetsons, each trained alone\n")
    row = table(
        "channel",
        "weight",
        "delay, s",
        "energy, J",
        "device-most: delay",
        "energy",
        "server-most, fastest: delay",
        "energy",
        "server-most, slowest: delay",
        "energy",
    )
    for channel in CHANNELS:
        for weight in (0.1, 0.5, 0.85):
            state = jetsons(channel, weight)
            ours = _mean(state, dict(PLANNERS["card"].decide(state).devices))
            cells: list[str] = []
            for cut, clock in ((15, 1.0), (1, 1.0), (1, 0.32)):
                cells += _against(ours, _mean(state, uniform(state, cut, clock)))
            row(channel, weight, f"{ours[0]:.1f}", f"{ours[1]:.0f}", *cells)
    print()


def alone_table() -> None:
    """`mincut` where each device has the server for itself."""
    print("### Min-cut: mean delay of five Jetsons, each trained alone\n")
    others = ("device-most", "server-most", "middle cut", "best uniform cut", "random")
    row = table("channel", "delay, s", *others)
    for channel in CHANNELS:
        state = jetsons(channel, 1.0)
        every = [_mean(state, uniform(state, cut))[0] for cut in range(1, 16)]
        drawn_ = [
            _mean(state, PLANNERS["random"].propose(replace(state, round=n)).devices)[0]
            for n in range(40)
        ]
        ours = _mean(state, PLANNERS["mincut"].decide(state).devices)[0]
        rest = (every[14], every[0], every[7], min(every), fmean(drawn_))
        row(channel, f"{ours:.1f}", *(saved(ours, one) for one in rest))
    print()


def _mean(state: State, choices: Choices) -> tuple[float, float]:
    each = [delay_and_energy(state, device, choices[device.name]) for device in state.devices]
    return fmean(one[0] for one in each), fmean(one[1] for one in each)


# -- OPEN ------------------------------------------------------------------------------------------

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
            cells = [", ".join(_against(ours, one)) for one in others.values()]
            row(budget, value, f"{ours[0]:.3f}", f"{ours[1] / budget:.2f}", *cells)
    print()


# -- SFT -------------------------------------------------------------------------------------------


def vision(seed: int, server: float, bits: float, aims: Aims) -> State:
    """ViT base, batches of 32, five devices on one band of 100 MHz, with six blocks at most."""
    draw = random.Random(seed)
    tokens = 32 * 197
    work = flops(768, 197, 32) / tokens
    devices = []
    for number in range(5):
        speed, up, down = draw.uniform(0.3e12, 3e12), draw.uniform(2, 6), draw.uniform(3, 7)
        cost = DeviceCost(
            NodeCost(PassCost(work / speed, work / speed)),
            LinkCost(up * 100e6 / 8, down * 100e6 / 8),
            ValueBits((bits,), (bits,)),
        )
        cuts = tuple(Cut(cut) for cut in range(1, draw.randint(2, 6) + 1))
        devices.append(DeviceState(f"d{number}", "edge", cost, cuts))
    edge = EdgeState("edge", EdgeCost(NodeCost(PassCost(work / server, work / server))))
    return State(1, Workload(12, 768, tokens), tuple(devices), (edge,), aims)


def sft_table() -> None:
    """What compression saves, and what control adds to it."""
    print("### Two timescales: means of 20 scenes, fixed split 2 and equal parts of the band\n")
    keep = -log((0.91 - 0.905) / 0.12) / 14
    row = table(
        "server",
        "+ compression",
        "+ spectrum",
        "+ cuts: all",
        "control over compression",
        "control without compression",
        "all, over the best uniform cut",
    )
    for server in (40e12, 5e12):
        sums = [0.0] * 6
        for seed in range(20):
            for number, value in enumerate(_sft_steps(seed, server, keep)):
                sums[number] += value
        plain, coded, shared, cuts, uncoded, best = sums
        shares = [saved(one, plain) for one in (coded, shared, cuts)]
        control = saved(cuts, coded), saved(uncoded, plain), saved(cuts, best)
        row(f"{server / 1e12:g} TFLOPS", *shares, *control)
    print()


def _sft_steps(seed: int, server: float, keep: float) -> list[float]:
    """Seconds: plain, coded, with spectrum, with cuts, all but coded, best uniform cut."""
    aims = Aims(hysteresis=0.0, keep=keep, keep_bits=8)
    state, plain = vision(seed, server, 32.0, aims), vision(seed, server, 32.0, Aims(keep=1.0))
    plan = PLANNERS["two_timescale"]

    def at(state: State, cut: int) -> State:
        only = [replace(d, cuts=tuple(c for c in d.cuts if c.cut_layer == cut)) for d in state.able]
        return replace(state, devices=tuple(only))

    whole = plan.propose(state).devices
    spectrum = plan.propose(at(state, 2)).devices
    equal = {name: replace(one, share=0.2) for name, one in spectrum.items()}
    bare = {
        name: replace(one, activation_bits=None, gradient_bits=None) for name, one in equal.items()
    }
    uncoded = PLANNERS["two_timescale"].propose(replace(plain, aims=replace(aims, keep_bits=99)))
    uniforms = [longest(at(state, cut), plan.propose(at(state, cut)).devices) for cut in (1, 2)]
    return [
        longest(state, bare),
        longest(state, equal),
        longest(state, spectrum),
        longest(state, whole),
        longest(state, uncoded.devices),
        min(uniforms),
    ]


# -- selection -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Crowd:
    """Forty devices: how likely each is to finish, and how long it takes."""

    chances: tuple[float, ...]
    seconds: tuple[float, ...]


def crowd(draw: random.Random, steady: bool) -> Crowd:
    """Devices that fail, or a fleet in which nobody does."""
    chances = [1.0 if steady else draw.betavariate(2, 1.2) for _ in range(40)]
    width = 0.05 if steady else 0.6
    return Crowd(tuple(chances), tuple(exp(draw.gauss(2.5, width)) for _ in range(40)))


def successes(policy: str, seed: int, steady: bool, rounds: int = 300) -> float:
    """A second, with eight devices in each round; a quarter changes after every 100 rounds."""
    draw = random.Random(seed)
    now = crowd(draw, steady)
    deadline = 1.3 * sorted(now.seconds)[-1]
    aims = Aims(hysteresis=0.0, select=8, deadline=deadline)
    state = replace(_arms(aims), seed=seed)
    papers = _PapersBandit(min(now.seconds), deadline)
    count, total = 0, 0.0
    for number in range(rounds):
        if number and number % 100 == 0 and not steady:
            now = _changed(draw, now)
        state = replace(state, round=number)
        selected = _selected(policy, state, now, papers, deadline)
        times = {one: now.seconds[one] * exp(draw.gauss(0, 0.15)) for one in selected}
        good = {one: draw.random() < now.chances[one] for one in selected}
        state = _told(state, policy, times, good)
        longest_ = min(max(times.values()), deadline)
        papers.learn(selected, sum(good.values()) / len(good), longest_)
        count, total = count + sum(good.values()), total + longest_
    return count / total


def _arms(aims: Aims) -> State:
    cost = DeviceCost(NodeCost(PassCost(1.0)), LinkCost(1.0, 1.0))
    devices = tuple(DeviceState(f"d{n}", "edge", cost, (Cut(1),)) for n in range(40))
    edge = EdgeState("edge", EdgeCost(NodeCost(PassCost(1.0))))
    return State(1, Workload(2, 1, 1), devices, (edge,), aims)


def _changed(draw: random.Random, now: Crowd) -> Crowd:
    new, moved = crowd(draw, False), set(draw.sample(range(40), 10))
    return Crowd(
        tuple(new.chances[n] if n in moved else now.chances[n] for n in range(40)),
        tuple(new.seconds[n] if n in moved else now.seconds[n] for n in range(40)),
    )


def _told(state: State, policy: str, times: Mapping[int, float], good: Mapping[int, bool]) -> State:
    """With the round's outcomes; who was not in it has none."""
    if policy != "ucb":
        return state
    memory = PLANNERS["ucb"].propose(state).memory
    devices = tuple(
        replace(d, outcome=Outcome(good[n], times[n]) if n in times else None)
        for n, d in enumerate(state.devices)
    )
    return replace(state, devices=devices, memory=memory)


def _selected(
    policy: str, state: State, now: Crowd, papers: _PapersBandit, deadline: float
) -> list[int]:
    if policy in ("ucb", "random"):
        chosen = PLANNERS[policy].propose(state).devices
        return [int(name[1:]) for name, one in chosen.items() if one.takes_part]
    if policy == "paper":
        return papers.select(state.round, state.seed)
    least = min(now.seconds)
    value = [
        0.6 * chance - 0.4 * min(1.0, (seconds - least) / (deadline - least))
        for chance, seconds in zip(now.chances, now.seconds, strict=True)
    ]
    return sorted(range(40), key=lambda one: -value[one])[:8]


class _PapersBandit:
    """MAVFL's: the round's utility for all who were in it, discount 0.9, everybody unseen first."""

    def __init__(self, least: float, most: float) -> None:
        self._least, self._most = least, most
        self._counts, self._sums = [0.0] * 40, [0.0] * 40

    def select(self, round_: int, seed: int) -> list[int]:
        """The eight highest bounds."""
        draw = random.Random(f"{seed} {round_}")
        n = max(1.0, sum(self._counts))
        bounds = [
            s / c + sqrt(2 * log(n) / c) if c > 1e-6 else 1e9
            for c, s in zip(self._counts, self._sums, strict=True)
        ]
        return sorted(range(40), key=lambda one: (-bounds[one], draw.random()))[:8]

    def learn(self, selected: list[int], ratio: float, seconds: float) -> None:
        """One utility for all."""
        late = min(1.0, max(0.0, (seconds - self._least) / (self._most - self._least)))
        utility = 0.6 * ratio - 0.4 * late
        self._counts = [0.9 * one for one in self._counts]
        self._sums = [0.9 * one for one in self._sums]
        for one in selected:
            self._counts[one] += 1.0
            self._sums[one] += utility


def selection_table() -> None:
    """Successes a second over those of random choice."""
    print("### Who takes part: 40 devices, 8 a round, 300 rounds, means of 8 seeds\n")
    row = table("fleet", "random", "the paper's bandit", "`ucb`", "who knows all")
    for title, steady in (("devices fail, a quarter changes", False), ("steady", True)):
        rates = {
            policy: fmean(successes(policy, seed, steady) for seed in range(8))
            for policy in ("random", "paper", "ucb", "oracle")
        }
        row(title, *(f"{rate / rates['random']:.2f}" for rate in rates.values()))
    print()


# -- pairing ---------------------------------------------------------------------------------------


def pairing_table() -> None:
    """A cycle in which each device trains once, as seconds over the baseline's."""
    print("### Pairing: N devices on M edges, seconds of a cycle, means of 20 scenes\n")
    row = table("N", "M", "rounds", "over pairs at random", "over groups at random, best pairs")
    for count, num_edges in ((8, 2), (12, 4), (14, 4), (30, 6)):
        sums = [0.0, 0.0, 0.0]
        for seed in range(20):
            for number, value in enumerate(_cycles(seed, count, num_edges)):
                sums[number] += value
        row(count, num_edges, -(-count // num_edges), *(saved(sums[0], x) for x in sums[1:]))
    print()


def _cycles(seed: int, count: int, num_edges: int) -> list[float]:
    from sfl.planners.pairing import pairs

    draw = random.Random(seed)
    base = shared_edge(5e12, 100.0, 2.1)
    devices = tuple(
        replace(
            base.devices[0],
            name=f"d{n}",
            edge="e0",
            at=(4, 0),
            cost=base.devices[draw.randrange(6)].cost,
        )
        for n in range(count)
    )
    edges = tuple(
        EdgeState(f"e{n}", EdgeCost(_times(base.edges[0].cost.node, 10 ** draw.uniform(-0.5, 0.5))))
        for n in range(num_edges)
    )
    state = replace(base, devices=devices, edges=edges)
    ours, now = 0.0, state
    for _ in range(-(-count // num_edges)):
        proposal = PLANNERS["pairing"].propose(now)
        ours += _slowest(state, {n: c for n, c in proposal.devices.items() if c.takes_part})
        now = replace(now, memory=proposal.memory)
    order = list(devices)
    draw.shuffle(order)
    groups = [order[at : at + num_edges] for at in range(0, count, num_edges)]
    names = [edge.name for edge in edges]
    at_random = sum(
        _slowest(state, {d.name: Choice(4, edge=e) for d, e in zip(group, names, strict=False)})
        for group in groups
    )
    paired = sum(
        _slowest(state, {n: Choice(4, edge=e) for n, e in pairs(state, group).items()})
        for group in groups
    )
    return [ours, at_random, paired]


def _times(node: NodeCost, factor: float) -> NodeCost:
    block = PassCost(node.block.forward * factor, node.block.backward * factor)
    return NodeCost(block, head=PassCost(node.head.forward * factor, node.head.backward * factor))


def _slowest(state: State, choices: Choices) -> float:
    by_name = {device.name: device for device in state.devices}
    return max(alone_seconds(state, by_name[name], one) for name, one in choices.items())


# -- time ------------------------------------------------------------------------------------------


def time_table() -> None:
    """CPU milliseconds of a proposal, and of a decision with its reasons."""
    print("### CPU milliseconds, proposal and decision, eleven legal cuts each\n")
    sizes = (6, 100, 1200)
    row = table("planner", *(f"{size} devices" for size in sizes))
    base = shared_edge(5e12, 100.0, 2.1)
    for name, planner in PLANNERS.items():
        cells = []
        for size in sizes:
            state = _many(base, size)
            cells.append(f"{_taken(planner.propose, state)}, {_taken(planner.decide, state)}")
        row(f"`{name}`", *cells)
    print()


def _many(base: State, size: int) -> State:
    devices = tuple(
        replace(base.devices[n % 6], name=f"d{n}", at=(1 + n % 11, 0)) for n in range(size)
    )
    return replace(base, devices=devices)


def _taken(work: Callable[[State], object], state: State) -> str:
    best = float("inf")
    for _ in range(2):
        fresh = replace(state, devices=tuple(replace(one) for one in state.devices))
        begin = time.process_time()
        work(fresh)
        best = min(best, 1e3 * (time.process_time() - begin))
    return f"{best:.1f}" if best < 10 else f"{best:.0f}"


TABLES = {
    "fleet": fleet_tables,
    "mincut": alone_table,
    "card": card_table,
    "open": open_table,
    "two_timescale": sft_table,
    "selection": selection_table,
    "pairing": pairing_table,
    "time": time_table,
}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=sorted(TABLES))
    only = parser.parse_args().only
    for name, show in TABLES.items():
        if only in (None, name):
            show()


if __name__ == "__main__":
    main()
