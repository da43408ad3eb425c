"""One band that devices share, and sparse codecs, after the two timescales of 2501.09237."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from math import log
from statistics import fmean

from benchmarks.planning.drawing import Line, Panel
from benchmarks.planning.rows import Choices, flops, saved, table
from sfl.cost.values import DeviceCost, EdgeCost, LinkCost, NodeCost, PassCost, ValueBits, Workload
from sfl.planners import PLANNERS, Aims, Cut, DeviceState, EdgeState, State
from sfl.planners.two_timescale import longest

KEEP = -log((0.91 - 0.905) / 0.12) / 14
"""The least share of values at which the scene's accuracy is within 0.005 of 0.91."""
CODED = Aims(hysteresis=0.0, keep=KEEP, keep_bits=8)


def vision(seed: int, server: float, bits: float, aims: Aims, band: float = 100e6) -> State:
    """ViT base, batches of 32, five devices on one band in Hz, with six blocks at most."""
    draw = random.Random(seed)
    tokens = 32 * 197
    work = flops(768, 197, 32) / tokens
    devices = []
    for number in range(5):
        speed, up, down = draw.uniform(0.3e12, 3e12), draw.uniform(2, 6), draw.uniform(3, 7)
        cost = DeviceCost(
            NodeCost(PassCost(work / speed, work / speed)),
            LinkCost(up * band / 8, down * band / 8),
            ValueBits((bits,), (bits,)),
        )
        cuts = tuple(Cut(cut) for cut in range(1, draw.randint(2, 6) + 1))
        devices.append(DeviceState(f"d{number}", "edge", cost, cuts))
    edge = EdgeState("edge", EdgeCost(NodeCost(PassCost(work / server, work / server))))
    return State(1, Workload(12, 768, tokens), tuple(devices), (edge,), aims)


def planned(state: State) -> Choices:
    """Ours, with cuts chosen anew."""
    return PLANNERS["two_timescale"].propose(state).devices


def at(state: State, cuts: int | Mapping[str, int]) -> State:
    """With one cut for each device."""

    def only(device: DeviceState) -> DeviceState:
        wanted = cuts if isinstance(cuts, int) else cuts[device.name]
        return replace(device, cuts=tuple(c for c in device.cuts if c.cut_layer == wanted))

    return replace(state, devices=tuple(only(device) for device in state.devices))


def sft_table() -> None:
    """What compression saves, and what control adds to it."""
    print("### Two timescales: means of 20 scenes, fixed split 2 and equal parts of the band\n")
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
            for number, value in enumerate(_sft_steps(seed, server)):
                sums[number] += value
        plain, coded, shared, cuts, uncoded, best = sums
        shares = [saved(one, plain) for one in (coded, shared, cuts)]
        control = saved(cuts, coded), saved(uncoded, plain), saved(cuts, best)
        row(f"{server / 1e12:g} TFLOPS", *shares, *control)
    print()


def _sft_steps(seed: int, server: float) -> list[float]:
    """Seconds: plain, coded, with spectrum, with cuts, all but coded, best uniform cut."""
    state = vision(seed, server, 32.0, CODED)
    plain = vision(seed, server, 32.0, Aims(keep=1.0))
    whole = planned(state)
    spectrum = planned(at(state, 2))
    equal = {name: replace(one, share=0.2) for name, one in spectrum.items()}
    bare = {
        name: replace(one, activation_bits=None, gradient_bits=None) for name, one in equal.items()
    }
    uncoded = planned(replace(plain, aims=replace(CODED, keep_bits=99)))
    uniforms = [longest(state, planned(at(state, cut))) for cut in (1, 2)]
    return [
        longest(state, bare),
        longest(state, equal),
        longest(state, spectrum),
        longest(state, whole),
        longest(state, uncoded),
        min(uniforms),
    ]


BANDS = (20.0, 50.0, 100.0, 200.0, 400.0)
"""MHz."""
SCENES = 10


def sft_panels() -> list[Panel]:
    """Delay against the band, with a fast and a slow server."""
    return [
        Panel(f"server of {speed:g} TFLOPS", "band, MHz", "seconds of a step", _lines(speed), "xy")
        for speed in (40.0, 5.0)
    ]


def _lines(speed: float) -> list[Line]:
    found: dict[str, list[float]] = {}
    for band in BANDS:
        every = [_plans(seed, speed * 1e12, band * 1e6) for seed in range(SCENES)]
        for title in every[0]:
            found.setdefault(title, []).append(fmean(one[title] for one in every))
    return [Line(title, BANDS, ys, ours=title == "two_timescale") for title, ys in found.items()]


def _plans(seed: int, server: float, band: float) -> dict[str, float]:
    """Seconds of each plan; all but the first one with the sparse codec."""
    state = vision(seed, server, 32.0, CODED, band)
    usual, draw = vision(seed, server, 32.0, CODED), random.Random(seed)
    alone = PLANNERS["scan"].propose(state).devices

    def equal(cuts: int | Mapping[str, int], clock: float = 1.0) -> Choices:
        chosen = planned(at(state, cuts))
        return {n: replace(one, share=0.2, edge_clock=clock) for n, one in chosen.items()}

    bare = {n: replace(c, activation_bits=None, gradient_bits=None) for n, c in equal(2).items()}
    drawn = [{d.name: draw.choice(d.cuts).cut_layer for d in state.devices} for _ in range(10)]
    static = {name: one.cut_layer for name, one in planned(usual).items()}
    return {
        "two_timescale": longest(state, planned(state)),
        "split 2, no compression": longest(state, bare),
        "split 2": longest(state, equal(2)),
        "device-most": longest(state, equal({d.name: len(d.cuts) for d in state.devices})),
        "server-most, fastest clock": longest(state, equal(1)),
        "server-most, slowest clock": longest(state, equal(1, 0.32)),
        "best uniform cut": min(longest(state, planned(at(state, cut))) for cut in (1, 2)),
        "best static cuts": longest(state, equal(static)),
        "each alone": longest(state, equal({n: one.cut_layer for n, one in alone.items()})),
        "random": fmean(longest(state, equal(cuts)) for cuts in drawn),
    }
