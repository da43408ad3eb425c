"""What evaluating through a codec costs: the same adapter, scored through each, beside `none`.

    python benchmarks/evaluation_codec.py

The quickstart's first device (200 steps) and E2E on stories260K at cut 1 (400 steps) are trained
with `compact`; then the held-out examples are scored through every candidate. Prints the loss
beside that through `none`, how many examples turned right or wrong, and bits a value with headers.
E2E needs `../shared` and is left out without it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.runs import ROOT, SHARED
from benchmarks.simulation import Simulation, Traffic, alone
from sfl.rounds.values import Score

STORIES = SHARED / "models" / "stories260k"
TEXT = SHARED / "data" / "e2e" / "valid.txt"
CANDIDATES = (
    "none",
    "fp16",
    "bf16",
    "bf16 | zstd",
    "int8 | rans",
    "int(8) | rans",
    "int(6) | rans",
    "int(5) | rans",
    "uniform(0.03) | rans",
    "fine",
    "uniform(0.125) | rans",
    "uniform(0.25) | rans",
    "uniform(0.25, dither) | rans",
    "uniform(0.5, dither) | rans",
)


def quickstart(options: list[str]) -> tuple[Simulation, int]:
    """The first home alone, and its steps."""
    compact = ["codec.activation='compact'", "codec.gradient='compact'"]
    config = ROOT / "examples" / "quickstart" / "homes.toml"
    return Simulation(alone(config, [*compact, *options])), 200


def stories(folder: Path, options: list[str]) -> tuple[Simulation, int]:
    """E2E with slot records held out, and its steps."""
    from examples.e2e.prepare import main as prepare

    prepare(TEXT, folder)
    paths = [
        f"model.path={str(STORIES)!r}",
        f"data.train={str(folder / 'strict-train.jsonl')!r}",
        f"data.eval={str(folder / 'strict-eval.jsonl')!r}",
    ]
    config = ROOT / "examples" / "e2e" / "stories.toml"
    return Simulation(alone(config, [*paths, *options])), 400


def table(name: str, simulation: Simulation, steps: int, candidates: tuple[str, ...]) -> None:
    """Train, then one line a candidate."""
    simulation.learn(steps)
    exact, _ = simulation.evaluate("none")
    print(f"\n{name}: {exact.num_examples} examples, {exact.num_targets:,} scored tokens")
    print(f"  {'codec':30} {'loss':>9} {'against none':>13} {'right':>6} {'bits a value':>13}")
    for codec in candidates:
        print(_line(codec, exact, *simulation.evaluate(codec)), flush=True)


def _line(codec: str, exact: Score, score: Score, traffic: Traffic) -> str:
    loss, own = (one.loss_sum / one.num_targets for one in (exact, score))
    return (
        f"  {codec:30} {own:9.5f} {100.0 * (own / loss - 1.0):+12.3f}% "
        f"{score.num_correct - exact.num_correct:+6d} {32.0 * traffic.wire / traffic.raw:13.2f}"
    )


def main() -> None:
    """Print a table a task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--codecs", nargs="+", default=CANDIDATES)
    parser.add_argument("--set", dest="options", action="append", default=[])
    given = parser.parse_args()
    torch.set_num_threads(1)
    candidates = tuple(given.codecs)
    table("quickstart, harbour", *quickstart(given.options), candidates)
    if not STORIES.exists() or not TEXT.exists():
        print(f"skipped: E2E needs {STORIES} and {TEXT}")
        return
    with tempfile.TemporaryDirectory() as temporary:
        table("E2E, stories260k", *stories(Path(temporary), given.options), candidates)


if __name__ == "__main__":
    main()
