"""Tokens per second: single-process PEFT beside sfl with one and with three devices, in one run.

    python benchmarks/throughput.py                         # 3 minutes on 2 cores
    python benchmarks/throughput.py --devices 1 3 8 --turns 3
    python benchmarks/throughput.py --checkouts ../before . # two versions in turn: A B A B

The same random model, the same texts, the same cores, fp32 on CPU, no compression. PEFT and sfl
take turns, and each line has the median of its turns. Both are warm: PEFT's first round of steps
and sfl's first round are not counted; `cold` is the ratio with sfl's first round and without
PEFT's first three steps. Also printed: where the time goes, how often a node's threads slept to
wait in a step, the time from launch to the first step, what a round costs beyond its training, and
what its evaluation adds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import tomli_w

from sfl.cli.doctor.hardware import waiting

ROOT = Path(__file__).resolve().parents[1]
TOKENIZER = ROOT / "examples" / "quickstart" / "model"
LENGTH = 128
BATCH = 8
ROUNDS = 3


CODED = ("activation", "gradient")


@dataclass(frozen=True, slots=True)
class Case:
    """What is trained: a model's folder, a file of texts, steps of each round."""

    model: Path
    texts: Path
    steps: int
    micro_batches: int
    codec: str


@dataclass(frozen=True, slots=True)
class Run:
    """One run of sfl: tokens/s without and with its first round, seconds, sleeps a step by node.

    `overhead` is of the rounds that evaluate nothing, `evaluating` what evaluating adds to it.
    """

    warm: float
    cold: float
    first_step: float
    overhead: float
    evaluating: float
    slept: dict[str, float]
    summary: dict[str, Any]


def make_model(
    folder: Path, hidden: int, layers: int, vocabulary: int, device: str = "cpu"
) -> None:
    """A random Llama with the quickstart's tokenizer; its values are drawn on `device`."""
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
    with torch.device(device):
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
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


def full_length(checkout: Path = ROOT) -> dict[str, str]:
    """The `[data]` that takes LENGTH tokens of each text; versions before `blocks` did no other."""
    places = (checkout / "sfl" / "config" / name for name in ("data.py", "run.py"))
    knows = any("blocks:" in place.read_text() for place in places if place.exists())
    return {"blocks": "first"} if knows else {}


def single_process(model: Path, texts: Path, steps: int, threads: int) -> None:
    """The reference, in a process of its own: a plain PEFT training loop; prints tokens/s.

    Two numbers: after a round of `steps` steps, and after three.
    """
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
    moments = []
    for step in range(ROUNDS * steps):
        moments.append(time.perf_counter())
        start = step * BATCH % (len(ids) - BATCH)
        batch = torch.tensor(ids[start : start + BATCH])
        loss = peft(input_ids=batch, attention_mask=torch.ones_like(batch), labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    moments.append(time.perf_counter())
    for skipped in (steps, min(3, steps)):
        print((ROUNDS * steps - skipped) * BATCH * LENGTH / (moments[-1] - moments[skipped]))


def federated(folder: Path, case: Case, devices: int, checkout: Path) -> Run:
    """One `sfl run` of a checkout's code with its own environment."""
    name = f"sfl-{devices}-{len(list(folder.iterdir()))}"
    config = {
        "run": {"id": name, "rounds": ROUNDS, "output_dir": str(folder)},
        "model": {"path": str(case.model), "max_length": LENGTH},
        "training": {
            "batch_size": BATCH,
            "local_steps": case.steps,
            "micro_batches": case.micro_batches,
        },
        "codec": {} if case.codec == "default" else dict.fromkeys(CODED, case.codec),
        "data": {"train": str(case.texts), "eval_fraction": 0.01, **full_length(checkout)},
        "devices": [{"name": f"device-{n}", "cut_layer": 1} for n in range(devices)],
    }
    path = folder / f"{name}.toml"
    path.write_text(tomli_w.dumps(config))
    python = checkout / ".venv" / "bin" / "python"
    command = [str(python) if python.exists() else sys.executable, "-m", "sfl.cli", "run"]
    launched = datetime.now()
    process = subprocess.Popen(
        [*command, str(path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=checkout,
    )
    slept = sleeps(process)
    if process.returncode != 0:
        assert process.stderr is not None
        raise SystemExit(process.stderr.read())
    return read_run(folder / name, case, launched, slept)


def sleeps(launcher: subprocess.Popen[str]) -> dict[str, int]:
    """How often the threads of each node had gone to sleep to wait, when it was last seen."""
    seen: dict[str, int] = {}
    while launcher.poll() is None:
        for child in psutil.Process(launcher.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error, OSError):
                words = " ".join(child.cmdline()).split()
                if words[:1] == ["sfl"] and len(words) > 2:
                    seen[f"{words[1]} {words[2]}"] = _voluntary(child.pid)
        time.sleep(1)
    return seen


def _voluntary(pid: int) -> int:
    statuses = (task / "status" for task in Path(f"/proc/{pid}/task").iterdir())
    lines = (line for status in statuses for line in status.read_text().splitlines())
    return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt"))


def read_run(run: Path, case: Case, launched: datetime, slept: dict[str, int]) -> Run:
    """What a run left as numbers."""
    summary = json.loads((run / "summary.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if line["kind"] == "device" and line["steps"]]
    devices = len(summary["devices"])
    steps = {"edge": ROUNDS * case.steps * devices, "device": ROUNDS * case.steps}
    return Run(
        warm=_rate([line for line in trained if line["round"] > 1]),
        cold=_rate(trained),
        first_step=_first_step(run / "logs", launched),
        overhead=(overhead := _overhead(lines, evaluating=False)),
        evaluating=_overhead(lines, evaluating=True) - overhead,
        slept={
            node: n / steps[kind] for node, n in slept.items() if (kind := node.split()[0]) in steps
        },
        summary=summary,
    )


def _rate(trained: list[dict[str, Any]]) -> float:
    """Tokens a second over these rounds, in the time of the device that took the longest."""
    seconds: dict[str, float] = {}
    for line in trained:
        seconds[line["node"]] = seconds.get(line["node"], 0.0) + line["seconds"]
    return float(sum(line["tokens"] for line in trained) / max(seconds.values()))


def _first_step(logs: Path, launched: datetime) -> float:
    """Seconds from launch to the first step of any device, by the devices' logs."""
    lines = (line for log in logs.glob("device-*.log") for line in log.read_text().splitlines())
    stamps = [line[:23] for line in lines if line.endswith("first step taken")]
    first = min(datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f") for stamp in stamps)
    return (first - launched).total_seconds()


def _overhead(lines: list[dict[str, Any]], evaluating: bool) -> float:
    """Median over rounds of a round's time less the slowest device's training in it.

    Of the rounds that begin with an evaluation, or of the others; a version that evaluates in every
    round has none of those, and its figure is that of all.
    """
    # An adapter is evaluated at the beginning of the round after the one that made it.
    scored = {1 + line["round"] for line in lines if line.get("eval_examples")}
    rounds = {line["round"]: line["seconds"] for line in lines if line["kind"] == "cloud"}
    wanted = {number for number in rounds if (number in scored) is evaluating} or set(rounds)
    training = {
        number: max(
            line["seconds"] for line in lines if (line["kind"], line["round"]) == ("device", number)
        )
        for number in rounds
    }
    return float(median(rounds[number] - training[number] for number in wanted))


def show(runs: list[Run], reference: list[tuple[float, float]], name: str) -> None:
    """The lines of one way to train: medians over its turns."""
    warm, cold = (median(turn[kind] for turn in reference) for kind in (0, 1))
    rate, with_first = median(run.warm for run in runs), median(run.cold for run in runs)
    last = runs[-1]
    print(
        f"{name:44} {rate:7,.0f} tokens/s  {rate / warm:5.2f} of PEFT "
        f"(cold {with_first / cold:.2f})"
    )
    for node in (*last.summary["edges"], *last.summary["devices"][:1]):
        total = sum(node["phases"].values()) or 1.0
        shares = ", ".join(
            f"{phase} {seconds / total:.0%}"
            for phase, seconds in node["phases"].items()
            if seconds / total >= 0.005
        )
        print(f"    {node['name']:9} {shares}; {node['peak_rss_bytes'] / 1e6:,.0f} MB")
    switches = {
        kind: median(n for run in runs for node, n in run.slept.items() if node.startswith(kind))
        for kind in ("edge", "device")
    }
    print(
        f"    context switches a step: edge {switches['edge']:,.0f}, device "
        f"{switches['device']:,.0f}; first step {median(run.first_step for run in runs):.1f} s "
        f"after launch; a round costs {median(run.overhead for run in runs):.2f} s beyond its "
        f"training, and {median(run.evaluating for run in runs):.2f} s where it evaluates"
    )


def processor() -> str:
    """This machine's processor, and whether it has AVX-512."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if "model name" in line]
    return f"{names[0] if names else platform.processor()}, AVX-512: {'avx512f' in text}"


def arguments() -> argparse.Namespace:
    """What is compared."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--steps", type=int, default=8, help="steps a round, of three rounds")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--turns", type=int, default=1, help="how often everything is run")
    parser.add_argument("--checkouts", type=Path, nargs="+", default=[ROOT], help="versions of sfl")
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--micro-batches", type=int, default=1)
    parser.add_argument("--codec", default="none", help="of what crosses; or: default")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--reference", nargs=2, metavar=("MODEL", "TEXTS"), help=argparse.SUPPRESS)
    return parser.parse_args()


def reference_rates(case: Case, threads: int) -> tuple[float, float]:
    """PEFT's tokens/s, warm and cold, in a process of its own."""
    command = [sys.executable, __file__, "--reference", str(case.model), str(case.texts)]
    command += ["--steps", str(case.steps), "--threads", str(threads)]
    said = subprocess.check_output(command, text=True, cwd=ROOT, stderr=subprocess.DEVNULL)
    warm, cold = map(float, said.split()[-2:])
    return warm, cold


def main() -> None:
    """Run all in turns, and print the table."""
    options = arguments()
    if options.reference:
        model, texts = map(Path, options.reference)
        single_process(model, texts, options.steps, options.threads)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        case = Case(
            folder / "model",
            folder / "texts.jsonl",
            options.steps,
            options.micro_batches,
            options.codec,
        )
        make_model(case.model, options.hidden, options.layers, options.vocabulary)
        make_texts(case.texts, 512)
        print(
            f"{processor()}; hidden {options.hidden}, {options.layers} layers, vocabulary "
            f"{options.vocabulary}, batch {BATCH} x {LENGTH}, fp32, {options.threads} threads, "
            f"codec {options.codec}; sfl's {waiting()}, PEFT's as torch has them\n",
            flush=True,
        )
        reference = [reference_rates(case, options.threads)]
        runs: dict[tuple[int, Path], list[Run]] = {}
        for _ in range(options.turns):
            for devices in options.devices:
                for checkout in options.checkouts:
                    run = federated(folder, case, devices, checkout.resolve())
                    runs.setdefault((devices, checkout), []).append(run)
                reference.append(reference_rates(case, options.threads))
        print(f"{'single-process PEFT':44} {median(warm for warm, _ in reference):7,.0f} tokens/s")
        print("    its turns: " + ", ".join(f"{warm:,.0f}" for warm, _ in reference))
        for (devices, checkout), turns in runs.items():
            which = f" ({checkout})" if len(options.checkouts) > 1 else ""
            show(turns, reference, f"sfl, edge and {devices} device{'s'[: devices > 1]}{which}")


if __name__ == "__main__":
    main()
