"""What each aggregation strategy comes to on skewed data: emotion, four devices, one table.

    python benchmarks/strategies.py                                # hours on 2 cores
    python benchmarks/strategies.py --rounds 2 --local-steps 2 --eval-examples 40 --only fedavg

all-MiniLM-L6-v2 on CARER in Dirichlet(0.5) shares. Strategies that average unequal ranks have
devices of rank 2, 4, 8 and 16 under a global rank of 16, also with `rank_partitioned`; all, and
these once more, run with rank 8 throughout. Accuracy is that of the final global adapter over all
held-out examples, in one process; what devices report beside it is that of their own truncations.
Bytes are the adapters' between devices and edge. Krum runs with no arbitrary device, since against
one it needs five. Needs `../shared/data/emotion` and `pip install sfl[minilm]`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tomli_w

from benchmarks.emotion import DATA, minilm
from benchmarks.reference import pooled
from benchmarks.runs import ROOT, effective, needed, run
from sfl.cli.model import evaluate_model, load_model
from sfl.config import AggregationSettings
from sfl.data import load_tokenizer

DEVICES = (("phone", 1), ("board", 1), ("tablet", 2), ("laptop", 3))
"""Name and cut."""
EQUAL, MIXED = (8, 8, 8, 8), (2, 4, 8, 16)
OPTIONS: dict[str, dict[str, Any]] = {"krum": {"byzantine": 0}, "multi_krum": {"byzantine": 0}}
"""Settings other than the defaults."""


@dataclass(frozen=True, slots=True)
class Case:
    """A strategy and the ranks of its devices."""

    strategy: str
    ranks: Sequence[int]
    rank_partitioned: bool = False

    @property
    def title(self) -> str:
        """How the table calls it."""
        ranks = sorted(set(self.ranks))
        partitioned = ", partitioned" if self.rank_partitioned else ""
        return f"{self.strategy}, rank {'/'.join(map(str, ranks))}{partitioned}"

    @property
    def options(self) -> dict[str, Any]:
        """The run's `[aggregation]`."""
        options = {"strategy": self.strategy, **OPTIONS.get(self.strategy, {})}
        return options | ({"rank_partitioned": True} if self.rank_partitioned else {})


@dataclass(frozen=True, slots=True)
class Result:
    """What one run came to; accuracies in percent, bytes of all devices."""

    accuracy: float
    loss: float
    reported: float
    up: int
    down: int
    seconds: float


def cases(only: Iterable[str]) -> list[Case]:
    """All runs of a seed; those that average unequal ranks come twice."""
    known = get_args(AggregationSettings.model_fields["strategy"].annotation)
    found = []
    for name in only or known:
        found.append(Case(name, EQUAL))
        if AggregationSettings.model_validate({"strategy": name}).traits.mixes_ranks:
            found.append(Case(name, MIXED))
        if name == "flexlora":
            found.append(Case(name, MIXED, rank_partitioned=True))
    return found


def write_config(path: Path, case: Case, given: argparse.Namespace) -> None:
    """The shipped example with four devices and the case's strategy."""
    example = ROOT / "examples" / "emotion" / "minilm.toml"
    values = tomllib.loads(example.read_text(encoding="utf-8"))
    values["run"]["rounds"] = given.rounds
    values["model"]["path"] = str(minilm())
    values["lora"] = {"rank": max(case.ranks), "alpha": 16}
    values["training"] |= {"local_steps": given.local_steps, "batch_size": given.batch_size}
    values["aggregation"] = case.options
    values["data"] |= {
        "train": str(DATA / "train.txt"),
        "eval": str(DATA / "test.txt"),
    }
    values["evaluation"] = {"every": 1, "max_examples": given.eval_examples, "full": False}
    values["devices"] = [
        {"name": name, "cut_layer": cut, "rank": rank}
        for (name, cut), rank in zip(DEVICES, case.ranks, strict=True)
    ]
    path.write_text(tomli_w.dumps(values), encoding="utf-8")


def measure(case: Case, seed: int, folder: Path, given: argparse.Namespace) -> Result:
    """One run, and its adapter scored in this process."""
    name = f"{case.strategy}-{max(case.ranks)}-{int(case.rank_partitioned)}-{seed}"
    config = folder / f"{name}.toml"
    write_config(config, case, given)
    began = time.perf_counter()
    summary = run(config, folder, name, [f"run.seed={seed}"])
    seconds = time.perf_counter() - began
    settings = effective(folder, name)
    model = load_model(settings, folder / name / "adapter")
    tokenizer = load_tokenizer(Path(settings.model.path))
    score = evaluate_model(model, pooled(settings), tokenizer, settings)
    up, down = (
        sum(device[f"bytes_{way}_by_role"]["adapter"] for device in summary["devices"])
        for way in ("up", "down")
    )
    return Result(
        accuracy=100.0 * score.num_correct / score.num_examples,
        loss=score.loss_sum / score.num_targets,
        reported=100.0 * summary["eval_accuracy_after"],
        up=up,
        down=down,
        seconds=seconds,
    )


def row(title: str, results: Sequence[Result]) -> str:
    """Means over seeds, with the range of the accuracy."""
    accuracies = [one.accuracy for one in results]
    spread = f"({min(accuracies):.1f} .. {max(accuracies):.1f})"
    return (
        f"  {title:38} {mean(accuracies):5.1f} {spread:16} {mean(r.loss for r in results):6.3f} "
        f"{mean(r.reported for r in results):9.1f} {mean(r.up for r in results) / 1e6:8.2f} "
        f"{mean(r.down for r in results) / 1e6:8.2f} {mean(r.seconds for r in results):6.0f}"
    )


def main() -> None:
    """Run what is asked for, and print a row a strategy as it comes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--local-steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--eval-examples", type=int, default=0, help="of each device; 0: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--only", nargs="+", default=[], help="strategies; default: all")
    given = parser.parse_args()
    needed(DATA)
    print(
        f"emotion, Dirichlet(0.5), {len(DEVICES)} devices, {given.rounds} rounds of "
        f"{given.local_steps} steps of {given.batch_size}, {len(given.seeds)} seeds"
    )
    print(
        f"  {'strategy':38} {'accuracy (%)':22} {'loss':>6} {'reported':>9} {'MB up':>8} "
        f"{'MB down':>8} {'s':>6}"
    )
    with tempfile.TemporaryDirectory() as temporary:
        for case in cases(given.only):
            results = [measure(case, seed, Path(temporary), given) for seed in given.seeds]
            print(row(case.title, results), flush=True)


if __name__ == "__main__":
    main()
