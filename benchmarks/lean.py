"""Tokens per second on prompts and completions: a plain PEFT loop beside sfl's two computations.

    python benchmarks/lean.py                  # 6 minutes on 2 cores
    python benchmarks/lean.py --hidden 384 --layers 12

E2E on stories260K, or on a random Llama of another size (`--hidden`): batches of 16 with padding,
the loss on completions only. PEFT trains in one process on all cores, sfl with an edge and
`--devices` devices at cut 1 over real sockets without compression, as `reference` and as `lean`.
All begin with the same adapter; with one device the batches are PEFT's too. The held-out loss of
each is printed beside its speed, which counts real tokens. PEFT is timed before and after, for the
machine's drift, with glibc's default malloc, and once with the heap kept, as an edge keeps its own
(devices return theirs).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tomli_w

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.runs import ROOT, SHARED, needed, run
from benchmarks.throughput import make_model
from examples.e2e.prepare import main as prepare
from sfl.node.process import keep_heap

STORIES = SHARED / "models" / "stories260k"
TEXT = SHARED / "data" / "e2e" / "valid.txt"


def settings(folder: Path, model: Path, devices: int, steps: int) -> dict[str, Any]:
    """A run's file, but for its computation."""
    return {
        "run": {"rounds": 2, "seed": 1},
        "model": {"path": str(model), "max_length": 256},
        "lora": {"rank": 8, "alpha": 16.0},
        "training": {"batch_size": 16, "local_steps": steps // 2, "learning_rate": 3e-3},
        "codec": {"activation": "none", "gradient": "none"},
        "data": {
            "train": str(folder / "train.jsonl"),
            "eval": str(folder / "eval.jsonl"),
        },
        "evaluation": {"every": 1, "max_examples": 96, "full": False},
        "devices": [{"name": f"device-{n}", "cut_layer": 1} for n in range(devices)],
    }


def peft(path: Path, steps: int, threads: int, heap: bool) -> dict[str, float]:
    """In this process: tokens/s and held-out loss of a plain loop over the same batches."""
    if heap:
        keep_heap()
    import torch
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    from sfl.adapters.initial import initial_adapter
    from sfl.adapters.lora import build_manifest
    from sfl.cli.model import evaluate_model, load_model
    from sfl.config import load_run
    from sfl.data import load_tokenizer, prepare
    from sfl.data.batches import Sampler, collate
    from sfl.models.folder import open_model
    from sfl.stage.layout import real_tokens
    from sfl.stage.optimizer import learning_rate_factor

    torch.set_num_threads(threads)
    config = load_run(path)
    tokenizer = load_tokenizer(Path(config.model.path))
    data = prepare(config.devices[0], config.devices[0].name, config, tokenizer)
    folder = open_model(config.model.path)
    torch.manual_seed(0)
    lora = LoraConfig(
        r=config.lora.rank,
        lora_alpha=int(config.lora.alpha),
        target_modules=list(folder.family.targets(folder.model_type)),
        task_type="CAUSAL_LM",
    )
    model: Any = get_peft_model(load_model(config, None), lora)
    manifest = build_manifest(folder, "causal_lm", 0, config.lora)
    first = initial_adapter(manifest, config.run.seed)
    set_peft_model_state_dict(model, {n: torch.from_numpy(v) for n, v in first.items()})
    model.train()
    chosen = config.training
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad],
        lr=chosen.learning_rate,
        weight_decay=chosen.weight_decay,
    )
    sampler = Sampler(len(data.train), chosen.batch_size, config.run.seed, config.devices[0].name)
    warmup, tokens, began = 3, 0, 0.0
    for step in range(-warmup, steps):
        if step == 0:
            began = time.perf_counter()
        batch = collate([data.train[i] for i in sampler.indices(max(0, step))], tokenizer.pad_id)
        mask = real_tokens(batch.lengths, batch.input_ids.shape[1]).long()
        loss = model(input_ids=batch.input_ids, attention_mask=mask, labels=batch.labels).loss
        loss.backward()
        if step >= 0:
            tokens += batch.num_tokens
            for group in optimizer.param_groups:
                group["lr"] = chosen.learning_rate * learning_rate_factor(chosen, step, steps)
            optimizer.step()
        optimizer.zero_grad()
    rate = tokens / (time.perf_counter() - began)
    model.eval()
    score = evaluate_model(model, data, tokenizer, config)
    return {"rate": rate, "loss": score.loss_sum / score.num_targets}


def reference(path: Path, steps: int, threads: int, heap: bool = False) -> dict[str, float]:
    """The same in a fresh process."""
    command = [sys.executable, __file__, "--reference", str(path)]
    command += ["--steps", str(steps), "--threads", str(threads), *["--heap"] * heap]
    output = subprocess.check_output(command, text=True, cwd=ROOT)
    result: dict[str, float] = json.loads(output.splitlines()[-1])
    return result


def show(name: str, rate: float, loss: float, base: dict[str, float]) -> None:
    """One line."""
    print(
        f"  {name:32} {rate:8,.0f} tokens/s  {rate / base['rate']:5.2f} of PEFT   held-out loss "
        f"{loss:.4f} ({100 * (loss / base['loss'] - 1):+.2f} %), perplexity {math.exp(loss):.3f}",
        flush=True,
    )


def main() -> None:
    """PEFT, sfl twice, PEFT."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--devices", nargs="+", type=int, default=[1])
    parser.add_argument("--hidden", type=int, default=0, help="a random model; 0: stories260K")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--reference", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--heap", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.reference:
        print(json.dumps(peft(given.reference, given.steps, given.threads, given.heap)))
        return
    needed(STORIES, TEXT)
    with tempfile.TemporaryDirectory() as temporary:
        folder, model = Path(temporary), STORIES
        prepare(TEXT, folder)
        if given.hidden:
            model = folder / "model"
            make_model(model, given.hidden, given.layers, given.vocabulary)
        plain = folder / "plain.toml"
        plain.write_text(tomli_w.dumps(settings(folder, model, 1, given.steps)))
        before = reference(plain, given.steps, given.threads)
        print(f"\n{model.name}, batches of 16, {given.steps} steps, {given.threads} threads")
        show("PEFT, one process", before["rate"], before["loss"], before)
        kept = reference(plain, given.steps, given.threads, heap=True)
        show("PEFT, heap kept", kept["rate"], kept["loss"], before)
        for devices in given.devices:
            for computation in ("reference", "lean"):
                name = f"{devices}-{computation}"
                path = folder / f"{name}.toml"
                config = settings(folder, model, devices, given.steps)
                config["training"]["computation"] = computation
                path.write_text(tomli_w.dumps(config))
                summary = run(path, folder, name, [])
                rate = summary["tokens_trained"] / max(
                    device["train_seconds"] for device in summary["devices"]
                )
                show(
                    f"sfl, {devices} devices, {computation}",
                    rate,
                    summary["eval_loss_after"],
                    before,
                )
        after = reference(plain, given.steps, given.threads)
        show("PEFT again", after["rate"], after["loss"], before)


if __name__ == "__main__":
    main()
