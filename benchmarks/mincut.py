"""The best cut of model graphs: against enumeration and a linear program, and its time.

    python -m benchmarks.mincut             # a minute on an idle core
    python -m benchmarks.mincut --models ResNet-18 GPT-2

A solver that is not here is left out. ortools asks for an older protobuf than sfl's, so that the
others go into a folder of their own:

    pip install --target DIR --no-deps scipy igraph texttable ortools absl-py immutabledict
    PYTHONPATH=DIR python -m benchmarks.mincut

Times are medians, in CPU milliseconds. Other libraries build their graph within them, since
capacities are part of it.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from math import inf
from pathlib import Path
from statistics import fmean, median

from benchmarks.graphs.exported import MODELS, Exported, model_graph
from benchmarks.graphs.made import (
    Case,
    block_wise,
    enumerated,
    even_costs,
    falling,
    random_costs,
    random_graph,
    seconds_of,
    transformer,
)
from benchmarks.graphs.networks import arcs_of, linear_program, solvers
from benchmarks.planning.rows import table
from sfl.planners.graph import Costs, Graph, best_cut

SIZES = (12, 32, 100)
RATES = (10.0, 30.0, 100.0, 1000.0)
"""Mbit/s, both ways."""
FASTER = (1.0, 2.0, 10.0, 40.0)
"""The server's FLOP/s over the device's 50 GFLOP/s."""
DEVICE = 5e10


def milliseconds(work: Callable[[], object], budget: float = 0.3) -> float:
    """The median of several, in CPU time."""
    taken: list[float] = []
    while len(taken) < 3 or (sum(taken) < budget and len(taken) < 200):
        begin = time.process_time()
        work()
        taken.append(time.process_time() - begin)
    return 1e3 * median(taken)


def machine() -> str:
    """The processor, as Linux calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown"
    return next((one.split(":")[1].strip() for one in lines if "model name" in one), "unknown")


# -- exactness -------------------------------------------------------------------------------------


def exactness(count: int) -> None:
    """How many optima enumeration finds that ours misses."""
    print("### Graphs of chance, against enumeration\n")
    draw = random.Random(7)
    wrong, worst, largest = 0, 0.0, 0
    for _ in range(count):
        graph = random_graph(draw)
        costs = random_costs(draw, len(graph))
        excess = _excess((graph, costs), enumerated(graph, costs))
        wrong += excess > 1e-9
        worst, largest = max(worst, excess), max(largest, len(graph))
    row = table("graphs", "vertices, at most", "wrong", "largest relative difference")
    row(count, largest, wrong, f"{worst:.0e}")
    print()


def _excess(case: Case, best: float) -> float:
    """How far the value that is found, and the set that is found, are from the optimum."""
    found, mine = best_cut(*case)
    return max(abs(found / best - 1.0), abs(seconds_of(*case, mine) / best - 1.0))


def cases(model: Exported, draws: int) -> Iterator[Case]:
    """Every rate and speed, for inputs or also a first part that the device has to hold; chance."""
    graph = model.graph
    starts = (0, graph.articulations[min(4, len(graph.articulations) - 1)])
    for rate, faster, start in product(RATES, FASTER, starts):
        costs = model.costs(DEVICE, faster * DEVICE, rate * 1e6 / 8)
        kept = max(start + 1, model.held)
        yield graph, Costs(costs.device, [inf] * kept + [*costs.server[kept:]], costs.cross)
    draw = random.Random(5)
    for _ in range(draws):
        costs = even_costs(draw, len(graph))
        kept = model.held
        yield graph, Costs(costs.device, [inf] * kept + [*costs.server[kept:]], costs.cross)


def against_program(models: dict[str, Exported], draws: int) -> None:
    """Graphs of real models, where enumeration is impossible: against a linear program."""
    print("### Exported models, against a linear program and block by block\n")
    try:
        solve = linear_program()
    except ImportError:
        print("scipy is not here: no linear program\n")
        return
    row = table(
        "model",
        "vertices",
        "sections",
        "largest section",
        "cuts",
        "within the model",
        "wrong",
        "largest relative difference",
        "block-wise is as good",
        "block-wise over full: mean",
        "most",
    )
    for name, model in models.items():
        graph, inside, excess, blocks = model.graph, 0, list[float](), list[float]()
        for case in cases(model, draws):
            excess.append(_excess(case, solve(*arcs_of(*case))))
            best, mine = best_cut(*case)
            inside += 1 + max(model.held, 1) < len(mine) < len(graph)
            blocks.append(best_cut(*block_wise(*case))[0] / best - 1.0)
        wrong = sum(one > 1e-6 for one in excess)
        largest = max(each.last - each.first - 1 for each in graph.sections)
        as_good = sum(one < 1e-9 for one in blocks)
        shape = len(graph), len(graph.sections), largest, len(excess), inside
        row(name, *shape, wrong, f"{max(excess):.0e}", as_good, *_shares(blocks))
    print()


def _shares(excess: Sequence[float]) -> tuple[str, str]:
    if max(excess) == inf:
        return "no cut in some", "-"
    return f"{fmean(excess):+.1%}", f"{max(excess):+.0%}"


# -- time ------------------------------------------------------------------------------------------


def block_times() -> None:
    """Milliseconds by number of blocks."""
    titles = [*(f"{size} blocks" for size in SIZES), "100 unlike", "100, each cut better"]
    made = [transformer(size, None) for size in SIZES]
    made += [transformer(SIZES[-1], random.Random(3)), falling(SIZES[-1])]
    print("### Blocks of four vertices\n")
    _times(titles, made)


def model_times(models: dict[str, Exported]) -> None:
    """Milliseconds on exported graphs, at 30 Mbit/s with a server ten times as fast."""
    print("### Exported models\n")
    _times(
        list(models),
        [(one.graph, one.costs(DEVICE, 10 * DEVICE, 30e6 / 8)) for one in models.values()],
    )


def _times(titles: Sequence[str], made: Sequence[Case]) -> None:
    row = table("solver, milliseconds", *titles, "relative difference")
    ours = [best_cut(*case)[0] for case in made]
    row("**ours, between articulations**", *_cells(partial(best_cut, *case) for case in made), "")
    chains = [block_wise(*case) for case in made]
    row("ours, block-wise (a chain)", *_cells(partial(best_cut, *case) for case in chains), "")
    built = _cells(partial(Graph, graph.parents) for graph, _ in made)
    row("(building our graph, once a model)", *built, "")
    for name, solve in solvers():
        if solve is None:
            row(name, *("not here" for _ in made), "")
            continue
        networks = [arcs_of(*case) for case in made]
        apart = max(abs(solve(*n) / own - 1.0) for n, own in zip(networks, ours, strict=True))
        row(name, *_cells(partial(solve, *network) for network in networks), f"{apart:.0e}")
    print()


def _cells(every: Iterator[Callable[[], object]] | Sequence[Callable[[], object]]) -> list[str]:
    return [f"{milliseconds(work):.2f}" for work in every]


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graphs", type=int, default=1000, help="graphs of chance")
    parser.add_argument("--draws", type=int, default=20, help="costs of chance for each model")
    parser.add_argument("--models", nargs="*", choices=list(MODELS), default=list(MODELS))
    chosen = parser.parse_args()
    print(f"processor: {machine()}\n")
    exactness(chosen.graphs)
    models = {name: model_graph(name) for name in chosen.models}
    against_program(models, chosen.draws)
    block_times()
    model_times(models)


if __name__ == "__main__":
    main()
