"""Time to a fixed loss over slow links: uncompressed and compressed, blocking and pipelined.

    python benchmarks/slow_link.py                  # 18 minutes on 2 cores
    python benchmarks/slow_link.py --mbit 10 --delay 5

One device at cut 1 and its edge, stories260K on E2E, 6 rounds of 10 steps of 16 sequences; the link
is slowed down by sfl's own shaper, the same both ways. Blocking means one micro-batch at a time and
nothing else in flight; pipelined runs take the number of micro-batches that `auto` finds, and the
last of them the codec, too. The loss
to reach is that of uncompressed training after 50 steps. Idle is what is left of the rounds' time
when a side neither computes nor codes. Needs `../shared/models/stories260k` and `../shared/data`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import tomli_w

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.runs import SHARED, effective, needed, run
from examples.e2e.prepare import main as prepare

MODEL = SHARED / "models" / "stories260k"
TEXT = SHARED / "data" / "e2e" / "valid.txt"
ROUNDS, STEPS = 6, 10
BUSY = ("forward", "backward", "step", "encode", "decode")

VARIANTS: dict[str, tuple[str, bool]] = {
    "uncompressed, blocking": ("none", False),
    "uncompressed, pipelined": ("none", True),
    "sft, pipelined": ("sft", True),
    "compact, blocking": ("compact", False),
    "compact, pipelined": ("compact", True),
    "auto, pipelined": ("auto", True),
}
"""Name -> (codec, whether micro-batches overlap)."""


@dataclass(frozen=True, slots=True)
class Result:
    """A run: (seconds of training, held-out loss) after each round, and where time went."""

    curve: list[tuple[float, float]]
    micro_batches: int
    codec: str
    device_idle: float
    edge_idle: float
    megabytes: float

    def time_to(self, loss: float) -> float | None:
        """Seconds of training until the loss is reached, between rounds by a straight line."""
        for (t0, l0), (t1, l1) in pairwise(self.curve):
            if l1 <= loss:
                return t1 if l0 <= l1 else t0 + (t1 - t0) * (l0 - loss) / (l0 - l1)
        return None


def train(folder: Path, name: str, variant: str, mbit: float, delay: float) -> Result:
    """One run of `sfl run`."""
    codec, pipelined = VARIANTS[variant]
    config: dict[str, Any] = {
        "run": {"rounds": ROUNDS},
        "model": {"path": str(MODEL), "max_length": 128},
        "training": {
            "batch_size": 16,
            "local_steps": STEPS,
            "learning_rate": 3e-3,
            "micro_batches": "auto" if pipelined else 1,
            "computation": "lean",  # for all: with codec none it would be the reference
        },
        "codec": {"activation": codec, "gradient": codec},
        "network": {"credits": 4 if pipelined else 1},
        "data": {
            "train": str(folder / "train.jsonl"),
            "eval": str(folder / "eval.jsonl"),
        },
        "evaluation": {"every": 1, "max_examples": 48, "full": False},
        "devices": [
            {"name": "phone", "link": {"up_mbit": mbit, "down_mbit": mbit, "delay_ms": delay}}
        ],
    }
    path = folder / f"{name}.toml"
    path.write_text(tomli_w.dumps(config))
    summary = run(path, folder, name, [])
    megabytes = summary["training_bytes"] / 1e6
    lines = [json.loads(x) for x in (folder / name / "metrics.jsonl").read_text().splitlines()]
    seconds, curve = 0.0, []
    for line in sorted((x for x in lines if x["kind"] == "device"), key=lambda x: int(x["round"])):
        seconds += line["seconds"]
        curve.append((seconds, line["eval_loss"]))
    idle = [idle_share(lines, kind) for kind in ("device", "edge")]
    chosen = effective(folder, name)
    count = chosen.training.micro_batches
    assert count != "auto"
    return Result(curve, count, chosen.codec.activation, idle[0], idle[1], megabytes)


def idle_share(lines: list[dict[str, Any]], kind: str) -> float:
    """Of the time after round 1, before which the rehearsal counts, too.

    A device's state after a round is in the record of the round before, an edge's in its own.
    """
    own = sorted((x for x in lines if x["kind"] == kind), key=lambda x: int(x["round"]))[:ROUNDS]
    first, last = (
        sum(seconds for phase, (_, seconds, _) in x["snapshot"]["phases"].items() if phase in BUSY)
        for x in (own[0], own[-1])
    )
    whole = sum(x["seconds"] for x in lines if x["kind"] == "cloud" and x["round"] > 1)
    return float(1.0 - (last - first) / whole)


def main() -> None:
    """Every link, every variant; the ratio to uncompressed and blocking."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--mbit", nargs="+", type=float, default=[10, 100, 1000])
    parser.add_argument("--delay", nargs="+", type=float, default=[5, 50])
    given = parser.parse_args()
    needed(MODEL, TEXT)
    target: float | None = None
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(TEXT, folder)
        for mbit in given.mbit:
            for delay in given.delay:
                print(f"\n{mbit:g} Mbit/s, {delay:g} ms each way", flush=True)
                reference: float | None = None
                for number, variant in enumerate(VARIANTS):
                    name = f"{mbit:g}-{delay:g}-{number}"
                    result = train(folder, name, variant, mbit, delay)
                    target = target or result.curve[ROUNDS - 1][1]
                    took = result.time_to(target)
                    reference = reference or took
                    show(variant, result, took, reference)
        print(f"\nloss to reach: {target:.3f}")


def show(variant: str, result: Result, took: float | None, reference: float | None) -> None:
    """One line."""
    step = result.curve[-1][0] / (ROUNDS * STEPS)
    reached = f"not within {ROUNDS * STEPS} steps"
    if took is not None and reference is not None:
        reached = f"{took:6.1f} s  {100 * (took / reference - 1):+5.0f}%"
    print(
        f"  {variant:24} {reached:22} {1e3 * step:6.0f} ms a step, {result.micro_batches} "
        f"micro-batches, {result.codec}, idle: device {result.device_idle:4.0%}, "
        f"edge {result.edge_idle:4.0%}, {result.megabytes:6.2f} MB",
        flush=True,
    )


if __name__ == "__main__":
    main()
