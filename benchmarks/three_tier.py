"""Three tiers: peak memory of each beside SFL, SL and two tiers; rounds over slow links.

    python -m benchmarks.three_tier                        # two hours on 2 cores, 16 GB
    python -m benchmarks.three_tier --only time            # half an hour
    python -m benchmarks.three_tier --short                # ten minutes: one small cell of each
    python -m benchmarks.three_tier --only memory --plot docs/images/three_tiers.svg

**Memory**, after SplitLLM (2501.13318): users hold 1, 1, 2, 2, 3, 3 blocks of GPT-2 124M's shape in
turn, the edges those up to block 6, and one stage the rest, the head and the loss. LoRA r = 16,
fp32, batches of `--batch` x 128. Cloud, edges and stage are real processes, and users are light
devices (`benchmarks/light.py`). Figures are peak resident sizes of whole processes. Against: a
server with a model per device (SFL) and one with a device at a time (sequential SL), each a process
that does what such a server does (`benchmarks/edge_memory.py`), and two tiers. `~` marks what was
not run but continued by its slope. Both readings of the paper's figure are printed: the largest
server against the SFL server, and all servers together against it. `with users` adds a real
device's process for each user on both sides.

**Time**: two real devices, an edge and a stage, one thread each, on a small random Llama. Either
the hop between edge and stage has 1/20 of the rate of a device's link, or the reverse. Ways take
turns (A B A B). The cost model knows two tiers only: three are composed here of its pieces
(`benchmarks/tiers/pace.py`), with the hop as a queue each way that the edge's devices share. One
prediction is fitted on a run of two tiers; the other takes what passes took in the runs themselves,
so that what is left is the model's own error.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from benchmarks.edge_memory import LENGTH, RANK
from benchmarks.tiers import memory, pace
from benchmarks.tiers.drawing import draw
from sfl.node.process import quiet_environment

SIZES = ["8:2", "16:4", "32:4", "64:8"]


def main() -> None:
    """Memory, then time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--only", choices=("memory", "time"))
    parser.add_argument("--short", action="store_true", help="one small cell of each")
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="USERS:EDGES")
    parser.add_argument("--ways", nargs="+", choices=list(memory.WAYS), default=list(memory.WAYS))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--keep", type=Path, help="file of cells; those in it are not run again")
    parser.add_argument("--kept-only", action="store_true", help="measure no memory any more")
    parser.add_argument("--plot", type=Path, help="draw users against memory into this SVG")
    parser.add_argument("--codecs", nargs="+", default=list(pace.CODECS))
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4, help="of a round")
    given = parser.parse_args()
    if given.short:
        given.sizes, given.ways, given.batch = ["2:2"], ["turns"], 1
        given.codecs, given.turns = ["none"], 1
    quiet_environment()
    with tempfile.TemporaryDirectory() as temporary:
        if given.only != "time":
            show_memory(Path(temporary), given)
        if given.only != "memory":
            pace.show_all(Path(temporary), given.codecs, given.turns, given.steps)


def show_memory(scratch: Path, given: argparse.Namespace) -> None:
    """The tables, and the figure where one is asked for."""
    sizes = [(int(users), int(edges)) for users, edges in (x.split(":") for x in given.sizes)]
    cells = memory.Cells(scratch, given.batch, given.keep, not given.kept_only)
    print(f"GPT-2 124M's shape, r = {RANK}, batches of {given.batch} x {LENGTH}, MB")
    memory.show(cells, sizes, given.ways)
    if given.plot:
        draw(given.plot, cells, sizes, given.batch)


if __name__ == "__main__":
    main()
