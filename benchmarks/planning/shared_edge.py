"""One edge that six devices share, after 2503.13819: every planner against every simple plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from benchmarks.planning.drawing import Line, Panel
from benchmarks.planning.rows import Choices, against, both, cuts_of, flops, saved, table, uniform
from sfl.cost.energy import ClockRange, PowerModel
from sfl.cost.predict import predict
from sfl.cost.values import DeviceCost, EdgeCost, LinkCost, NodeCost, PassCost, ValueBits, Workload
from sfl.planners import PLANNERS, Aims, Choice, Cut, DeviceState, EdgeState, State
from sfl.planners.state import placed

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
    yield "best static cuts", [best_static(state)]
    yield (
        "cuts of 2503.13819",
        [{d.name: Choice(cut) for d, cut in zip(state.devices, PAPERS_CUTS, strict=True)}],
    )
    random_ = PLANNERS["random"]
    yield (
        "random",
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
        row(f"`{name}`", cuts_of(choices), *both(found), *against(ours, found))
    for title, plans in baselines(state):
        each = [measured(state, plan) for plan in plans]
        found = fmean(one[0] for one in each), fmean(one[1] for one in each)
        cuts = cuts_of(plans[0]) if len(plans) == 1 else ""
        row(title, cuts, *both(found), *against(ours, found))
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


SPEEDS = (2.0, 5.0, 10.0, 20.0, 52.2)
"""TFLOPS of the edge; the last is the paper's."""


def fleet_panels() -> list[Panel]:
    """Seconds and joules of a step against the edge's speed."""
    found: dict[str, list[tuple[float, float]]] = {}
    for speed in SPEEDS:
        state = shared_edge(speed * 1e12, 100.0, 2.1)
        own = [(name, [dict(PLANNERS[name].decide(state).devices)]) for name in ("fleet", "scan")]
        for title, plans in (*own, *baselines(state)):
            each = [measured(state, plan) for plan in plans]
            mean = fmean(one[0] for one in each), fmean(one[1] for one in each)
            found.setdefault("each alone" if title == "scan" else title, []).append(mean)
    across = "peak of the edge, TFLOPS"
    return [
        Panel(title, across, f"{unit} a step", _lines(found, number), "xy")
        for number, (title, unit) in enumerate((("delay", "seconds"), ("energy", "joules")))
    ]


def _lines(found: Mapping[str, Sequence[tuple[float, float]]], number: int) -> list[Line]:
    return [
        Line(title, SPEEDS, [one[number] for one in each], ours=title == "fleet")
        for title, each in found.items()
    ]
