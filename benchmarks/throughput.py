"""Tokens per second: single-process PEFT beside sfl with one and with three devices, in one run.

    python benchmarks/throughput.py            # 2 minutes on 2 cores
    python benchmarks/throughput.py --steps 40 --hidden 768

The same random model, the same texts, the same cores, fp32 on CPU, no compression. Prints the
tokens/s of each, the ratio, the malloc setting of each, and where the time goes; then how long it
takes from launch to the first step, and what a round costs beyond its training.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import tomli_w

ROOT = Path(__file__).resolve().parents[1]
TOKENIZER = ROOT / "examples" / "quickstart" / "model"
LENGTH = 128
BATCH = 8


def make_model(folder: Path, hidden: int, layers: int, vocabulary: int) -> None:
    """A random Llama with the quickstart's tokenizer."""
    import shutil

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TOKENIZER / name, folder / name)


def make_texts(path: Path, count: int) -> None:
    """Texts of more than LENGTH tokens each, so that no batch has padding."""
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    lines = []
    for _ in range(count):
        words = ("".join(rng.choices(letters, k=rng.randint(2, 8))) for _ in range(2 * LENGTH))
        lines.append(json.dumps({"text": " ".join(words)}) + "\n")
    path.write_text("".join(lines))


def single_process(model: Path, texts: Path, steps: int, threads: int) -> None:
    """The reference, in a process of its own: a plain PEFT training loop; prints tokens/s."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads)
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = [json.loads(line)["text"] for line in texts.read_text().splitlines()]
    ids = [tokenizer(row, truncation=True, max_length=LENGTH)["input_ids"] for row in rows]
    base = AutoModelForCausalLM.from_pretrained(model)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    peft = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=targets))
    optimizer = torch.optim.AdamW([p for p in peft.parameters() if p.requires_grad], lr=1e-3)
    peft.train()
    warmup, began = 3, 0.0
    for step in range(warmup + steps):
        if step == warmup:
            began = time.perf_counter()
        start = step * BATCH % (len(ids) - BATCH)
        batch = torch.tensor(ids[start : start + BATCH])
        loss = peft(input_ids=batch, attention_mask=torch.ones_like(batch), labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(steps * BATCH * LENGTH / (time.perf_counter() - began))


def federated(
    folder: Path,
    model: Path,
    texts: Path,
    steps: int,
    devices: int,
    micro_batches: int,
    codec: str,
) -> dict[str, Any]:
    """One `sfl run`; its summary, with the seconds to the first step and a round's overhead."""
    name = f"sfl-{devices}"
    config = {
        "run": {"id": name, "rounds": 3, "output_dir": str(folder)},
        "model": {"path": str(model), "max_length": LENGTH},
        "training": {
            "batch_size": BATCH,
            "local_steps": steps,
            "micro_batches": micro_batches,
        },
        "codec": {"activation": codec, "gradient": codec},
        "data": {"train": str(texts), "eval_fraction": 0.05},
        "evaluation": {"max_examples": 1, "full": False},
        "devices": [{"name": f"device-{n}", "cut_layer": 1} for n in range(devices)],
    }
    path = folder / f"{name}.toml"
    path.write_text(tomli_w.dumps(config))
    launched = datetime.now()
    process = subprocess.run(
        [sys.executable, "-m", "sfl.cli", "run", str(path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    if process.returncode != 0:
        raise SystemExit(process.stderr)
    summary: dict[str, Any] = json.loads((folder / name / "summary.json").read_text())
    summary["first_step_seconds"] = _first_step(folder / name / "logs", launched)
    summary["round_overhead_seconds"] = _overhead(folder / name / "metrics.jsonl")
    seconds = max(device["train_seconds"] for device in summary["devices"])
    summary["rate"] = summary["tokens_trained"] / seconds
    return summary


def _first_step(logs: Path, launched: datetime) -> float:
    """Seconds from launch to the first step of any device, by the devices' logs."""
    lines = (line for log in logs.glob("device-*.log") for line in log.read_text().splitlines())
    stamps = [line[:23] for line in lines if line.endswith("first step taken")]
    first = min(datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f") for stamp in stamps)
    return (first - launched).total_seconds()


def _overhead(records: Path) -> float:
    """Median over rounds of a round's time less the slowest device's training in it."""
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    rounds = {line["round"]: line["seconds"] for line in lines if line["kind"] == "cloud"}
    training = {
        number: max(
            line["seconds"] for line in lines if (line["kind"], line["round"]) == ("device", number)
        )
        for number in rounds
    }
    costs = sorted(rounds[number] - training[number] for number in rounds)
    return float(costs[len(costs) // 2])


def show(name: str, rate: float, reference: float, malloc: str) -> None:
    """One line of the comparison."""
    print(f"{name:32} {rate:9,.0f} tokens/s   {rate / reference:5.2f} of PEFT   malloc: {malloc}")


def show_phases(summary: dict[str, Any]) -> None:
    """Where the time goes, as shares of a node's accounted time."""
    for node in (*summary["edges"], *summary["devices"]):
        total = sum(node["phases"].values()) or 1.0
        shares = ", ".join(
            f"{phase} {seconds / total:.0%}" for phase, seconds in node["phases"].items()
        )
        print(f"    {node['name']:12} {shares}")


def main() -> None:
    """Run all three, one after another, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--steps", type=int, default=8, help="steps a round, of three rounds")
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--micro-batches", type=int, default=1)
    parser.add_argument("--codec", default="none", help="of activations and gradients")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--reference", nargs=2, metavar=("MODEL", "TEXTS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.reference:
        model, texts = map(Path, options.reference)
        single_process(model, texts, options.steps, options.threads)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model, texts = folder / "model", folder / "texts.jsonl"
        make_model(model, options.hidden, options.layers, options.vocabulary)
        make_texts(texts, 512)
        print(
            f"hidden {options.hidden}, {options.layers} layers, vocabulary {options.vocabulary}, "
            f"batch {BATCH} x {LENGTH}, fp32, {options.threads} threads\n"
        )
        command = [
            sys.executable,
            __file__,
            "--reference",
            str(model),
            str(texts),
            "--steps",
            str(options.steps),
            "--threads",
            str(options.threads),
        ]
        # Before and after, so that a drift of the machine's speed shows.
        rates = [float(subprocess.check_output(command, text=True, cwd=ROOT))]
        runs = [
            federated(folder, model, texts, options.steps, n, options.micro_batches, options.codec)
            for n in (1, 3)
        ]
        rates.append(float(subprocess.check_output(command, text=True, cwd=ROOT)))
        reference = sum(rates) / 2
        show("single-process PEFT", reference, reference, "glibc default")
        print(f"    before {rates[0]:,.0f}, after {rates[1]:,.0f} tokens/s")
        for count, summary in zip((1, 3), runs, strict=True):
            devices = f"sfl, edge and {count} device{'s' if count > 1 else ''}"
            show(devices, summary["rate"], reference, "edge keeps its heap")
            show_phases(summary)
            print(
                f"    first step {summary['first_step_seconds']:.1f} s after launch; a round "
                f"costs {summary['round_overhead_seconds']:.2f} s beyond its training"
            )


if __name__ == "__main__":
    main()
