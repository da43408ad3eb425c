"""Real weights, real text: E2E on stories260K, sfl beside single-process PEFT, in one run.

    python benchmarks/e2e.py        # about 10 minutes on 2 cores

Three devices with cuts 1, 2, 3; 8 rounds x 50 steps of 16; uncompressed and `int8 | zstd`; on the
random split (shows optimisation) and with slot records held out (shows generalisation). Needs
`../shared/models/stories260k` and `../shared/data/e2e`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.reference import perplexity, train_alone
from benchmarks.runs import ROOT, SHARED, effective, needed, run
from examples.e2e.prepare import main as prepare

MODEL = SHARED / "models" / "stories260k"
TEXT = SHARED / "data" / "e2e" / "valid.txt"
STEPS = 400


def main() -> None:
    """Print perplexity before and after, bytes, and the ratio to one process."""
    needed(MODEL, TEXT)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(TEXT, folder / "data")
        for split in ("", "strict-"):
            print(f"\n{'slot records held out' if split else 'random split'}")
            data = [
                f"model.path={str(MODEL)!r}",
                f"data.train={str(folder / 'data' / f'{split}train.jsonl')!r}",
                f"data.eval={str(folder / 'data' / f'{split}eval.jsonl')!r}",
            ]
            _compare(folder, split, data)


def _compare(folder: Path, split: str, data: list[str]) -> None:
    config = ROOT / "examples" / "e2e" / "stories.toml"
    losses = {}
    for codec in ("none", "int8 | zstd"):
        name = f"{split}{codec.split()[0]}"
        options = [*data, f"codec.activation={codec!r}", f"codec.gradient={codec!r}"]
        summary = run(config, folder, name, options)
        losses[codec] = perplexity(summary["eval_loss_after"])
        print(
            f"  sfl, 3 devices, {codec:12} perplexity "
            f"{perplexity(summary['eval_loss_before']):6.2f} -> {losses[codec]:.3f}   "
            f"{summary['training_bytes'] / 1e6:6.1f} MB, "
            f"{summary['reduction_vs_fp32']:.2f} x less than fp32, "
            f"{summary['reduction_vs_fp16']:.2f} x less than fp16"
        )
    print(f"  int8 / none: {losses['int8 | zstd'] / losses['none']:.4f}")
    settings = effective(folder, f"{split}none")
    before, after = train_alone(settings, folder / f"{split}none" / "adapter", STEPS)
    alone = perplexity(after.loss_sum / after.num_targets)
    print(
        f"  PEFT, one process           perplexity "
        f"{perplexity(before.loss_sum / before.num_targets):6.2f} -> {alone:.3f}   "
        f"sfl / PEFT: {losses['none'] / alone:.4f}"
    )


if __name__ == "__main__":
    main()
