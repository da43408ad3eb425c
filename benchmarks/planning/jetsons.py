"""Devices that have a server each, after CARD (2412.00090): delay and the server's energy."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

from benchmarks.planning.drawing import Line, Panel
from benchmarks.planning.rows import Choices, against, saved, table, uniform
from sfl.cost.energy import ClockRange
from sfl.cost.values import DeviceCost, EdgeCost, LinkCost, NodeCost, PassCost, ValueBits, Workload
from sfl.planners import PLANNERS, Aims, Choice, Cut, DeviceState, EdgeState, State
from sfl.planners.card import delay_and_energy, utility

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
            ours = mean_of(state, dict(PLANNERS["card"].decide(state).devices))
            cells: list[str] = []
            for cut, clock in ((15, 1.0), (1, 1.0), (1, 0.32)):
                cells += against(ours, mean_of(state, uniform(state, cut, clock)))
            row(channel, weight, f"{ours[0]:.1f}", f"{ours[1]:.0f}", *cells)
    print()


def alone_table() -> None:
    """`mincut` where each device has the server for itself."""
    print("### Min-cut: mean delay of five Jetsons, each trained alone\n")
    others = ("device-most", "server-most", "middle cut", "best uniform cut", "random")
    row = table("channel", "delay, s", *others)
    for channel in CHANNELS:
        state = jetsons(channel, 1.0)
        every = [mean_of(state, uniform(state, cut))[0] for cut in range(1, 16)]
        drawn_ = [
            mean_of(state, PLANNERS["random"].propose(replace(state, round=n)).devices)[0]
            for n in range(40)
        ]
        ours = mean_of(state, PLANNERS["mincut"].decide(state).devices)[0]
        rest = (every[14], every[0], every[7], min(every), fmean(drawn_))
        row(channel, f"{ours:.1f}", *(saved(ours, one) for one in rest))
    print()


def mean_of(state: State, choices: Choices) -> tuple[float, float]:
    """Delay and the server's energy of a device."""
    each = [delay_and_energy(state, device, choices[device.name]) for device in state.devices]
    return fmean(one[0] for one in each), fmean(one[1] for one in each)


WEIGHTS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)


def simple_plans(state: State) -> dict[str, list[Choices]]:
    """Plans that anybody would try; "best" is by the same utility, at the fastest clock."""
    every = [uniform(state, cut) for cut in range(1, 16)]
    random_ = PLANNERS["random"]
    return {
        "device-most": [every[-1]],
        "server-most, fastest clock": [every[0]],
        "server-most, slowest clock": [uniform(state, 1, 0.32)],
        "best uniform cut": [min(every, key=lambda plan: _utility(state, plan))],
        "best static cuts": [{d.name: _best(state, d) for d in state.devices}],
        "each alone": [PLANNERS["scan"].propose(state).devices],
        "random": [random_.propose(replace(state, round=n)).devices for n in range(40)],
    }


def _utility(state: State, plan: Choices) -> float:
    return sum(utility(state, device, plan[device.name]) for device in state.devices)


def _best(state: State, device: DeviceState) -> Choice:
    choices = [device.choice(cut) for cut in device.legal]
    return min(choices, key=lambda choice: utility(state, device, choice))


def card_panels() -> list[Panel]:
    """Delay and energy against the weight of delay, and against each other."""
    found: dict[str, list[tuple[float, float]]] = {}
    for weight in WEIGHTS:
        state = jetsons("normal", weight)
        plans = {"card": [PLANNERS["card"].propose(state).devices], **simple_plans(state)}
        for title, each in plans.items():
            values = [mean_of(state, plan) for plan in each]
            mean = fmean(one[0] for one in values), fmean(one[1] for one in values)
            found.setdefault(title, []).append(mean)
    delay, energy = (
        [
            Line(title, WEIGHTS, [one[number] for one in each], ours=title == "card")
            for title, each in found.items()
        ]
        for number in (0, 1)
    )
    together = [Line(d.title, d.ys, e.ys, ours=d.ours) for d, e in zip(delay, energy, strict=True)]
    weight_, seconds, joules = "weight of delay", "seconds of a round", "joules of the server"
    return [
        Panel("delay", weight_, seconds, delay, "y"),
        Panel("energy", weight_, joules, energy, "y"),
        Panel("both", seconds, joules, together, "y"),
    ]
