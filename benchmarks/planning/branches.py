"""Models whose graphs branch, over fading links, after the min-cut of 2507.01041.

Five devices train in turn. Rates fade from round to round. The device holds the images, the server
the last layer, as in sfl. A plan is decided for each round, or once for all of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import accumulate
from math import inf
from statistics import fmean

from benchmarks.graphs.exported import Exported, model_graph
from benchmarks.graphs.made import block_wise
from benchmarks.planning.drawing import Line, Panel
from benchmarks.planning.jetsons import JETSONS
from benchmarks.planning.rows import saved, table
from sfl.planners.graph import Costs, Graph, best_cut

REACHED, SERVER, SLOWEST = 0.02, 1e12, 0.32
"""Shares of the devices' peaks, the server's FLOP/s, its least clock."""
RATES = (5.0, 10.0, 20.0, 40.0, 80.0, 160.0)
"""Mbit/s in the mean, both ways."""
ROUNDS = 40
MODELS = ("ResNet-18", "GoogLeNet")
Seconds = Mapping[str, float]


def round_costs(model: Exported, device: float, rate: float) -> Costs:
    """Of one round; the last layer is the server's."""
    costs = model.costs(device, SERVER, max(rate, 0.01) * 1e6 / 8)
    return Costs([*costs.device[:-1], inf], costs.server, costs.cross)


def block_seconds(graph: Graph, costs: Costs, clock: float = 1.0) -> list[float]:
    """A round with each block as the device's last one, from the images on."""
    _, blocks = block_wise(graph, costs)
    mine = list(accumulate(blocks.device))
    theirs = [0.0, *accumulate(reversed(blocks.server[1:]))][::-1]
    every = zip(mine, theirs, blocks.cross, strict=True)
    return [own + far / clock + cross for own, far, cross in every][1:-1]


@cache
def delays(name: str, rate: float) -> Seconds:
    """Mean seconds of a round, by plan."""
    model, draw = model_graph(name), random.Random(rate)
    graph = model.graph
    fades = [[rate * draw.expovariate(1.0) for _ in range(ROUNDS)] for _ in JETSONS]
    ours, blocks, slow = list[float](), list[list[list[float]]](), list[float]()
    for speed, own in zip(JETSONS.values(), fades, strict=True):
        every = [round_costs(model, REACHED * speed, fade) for fade in own]
        ours += [best_cut(graph, costs)[0] for costs in every]
        blocks.append([block_seconds(graph, costs) for costs in every])
        slow += [block_seconds(graph, costs, SLOWEST)[0] for costs in every]
    return {"mincut": fmean(ours), **_simple(blocks), "server-most, slowest clock": fmean(slow)}


def _simple(blocks: Sequence[Sequence[Sequence[float]]]) -> Seconds:
    """Plans by block; `blocks` are seconds by device, round and last block."""
    numbers = range(len(blocks[0][0]))
    means = [[fmean(round_[last] for round_ in own) for last in numbers] for own in blocks]
    every = [fmean(own[last] for own in means) for last in numbers]
    return {
        "block-wise": fmean(min(round_) for own in blocks for round_ in own),
        "device-most": every[-1],
        "server-most, fastest clock": every[0],
        "middle cut": every[len(every) // 2],
        "best uniform cut": min(every),
        "best static cuts": fmean(min(own) for own in means),
        "random": fmean(every),
    }


def branches_table() -> None:
    """Ours over every plan, by model and rate."""
    print("### Min-cut: models that branch, mean of five devices over rounds of fading\n")
    others = list(delays(MODELS[0], RATES[0]))[1:]
    row = table("model", "Mbit/s", "delay, s", *others)
    for name in MODELS:
        for rate in RATES:
            found = delays(name, rate)
            cells = (saved(found["mincut"], found[other]) for other in others)
            row(name, f"{rate:g}", f"{found['mincut']:.1f}", *cells)
    print()


def branches_panels() -> list[Panel]:
    """Delay against rate."""

    def lines(name: str) -> list[Line]:
        titles = delays(name, RATES[0])
        return [_line(title, lambda rate: delays(name, rate)) for title in titles]

    return [
        Panel(name, "mean rate, Mbit/s", "seconds of a round", lines(name), "xy") for name in MODELS
    ]


def _line(title: str, at: Callable[[float], Seconds]) -> Line:
    return Line(title, RATES, [at(rate)[title] for rate in RATES], ours=title == "mincut")
