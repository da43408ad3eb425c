"""One band that devices share, and sparse codecs, after the two timescales of 2501.09237."""

from __future__ import annotations

import random
from dataclasses import replace
from math import log

from benchmarks.planning.rows import flops, saved, table
from sfl.cost.values import DeviceCost, EdgeCost, LinkCost, NodeCost, PassCost, ValueBits, Workload
from sfl.planners import PLANNERS, Aims, Cut, DeviceState, EdgeState, State
from sfl.planners.two_timescale import longest


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
