"""Precision and quantised bases beside float32: memory, tokens a second, loss; in one run.

    python benchmarks/precision.py                     # minutes; many where bfloat16 is emulated
    python benchmarks/precision.py --steps 1 --batch 1 --rounds 1 --local-steps 5

First a whole random model of ~100 million parameters, trained for a few steps in a fresh process
each: bytes that the frozen base holds, the process's peak resident memory, tokens a second after a
warm-up step, and the loss over the same texts before and after. Then stories260k on E2E as real
runs, the edge in each form beside a device in float32 (needs `../shared`). The first line of each
table is float32 unquantised; float32 comes once more at the end, so that a drift shows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.runs import ROOT, SHARED, run
from benchmarks.throughput import make_model, make_texts

if TYPE_CHECKING:
    import torch

    from sfl.models.span import SpanModel

MODEL = SHARED / "models" / "stories260k"
TEXT = SHARED / "data" / "e2e" / "valid.txt"
FORMS = {
    "float32": ("float32", "none"),
    "bfloat16": ("bfloat16", "none"),
    "autocast": ("autocast", "none"),
    "nf4": ("float32", "nf4"),
    "int8": ("float32", "int8"),
}
ORDER = (*FORMS, "float32")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kind", choices=("llama", "gpt2"), default="llama")
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of the random model")
    parser.add_argument("--batch", type=int, default=2, help="sequences a step, 32 tokens each")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of each run on stories260k")
    parser.add_argument("--local-steps", type=int, default=30, help="steps of such a round")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--alone", nargs=3, metavar=("FORM", "MODEL", "TEXTS"), help="internal")
    options = parser.parse_args()
    if options.alone:
        form, model, texts = options.alone
        from sfl.errors import SflError

        try:
            print(json.dumps(train_alone(form, Path(model), Path(texts), options)))
        except SflError as error:
            sys.exit(str(error))
        return
    with tempfile.TemporaryDirectory() as temporary:
        missing = _random_model(Path(temporary), options)
        _stories(Path(temporary), options, missing)


def train_alone(form: str, model: Path, texts: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The whole model in this process: what it holds, how fast it is, and what it learns."""
    import torch

    from sfl.adapters.initial import initial_adapter
    from sfl.adapters.lora import LoraBank, build_manifest
    from sfl.config import LoraSettings
    from sfl.config.node import Dtype, Quantised
    from sfl.data import load_tokenizer
    from sfl.metrics.memory import memory_use
    from sfl.models.folder import open_model
    from sfl.models.quantised import check_quantised
    from sfl.models.span import build_span
    from sfl.node.process import keep_heap
    from sfl.plan import Span
    from sfl.stage.base import BaseForm

    keep_heap()
    torch.set_num_threads(options.threads)
    dtype, quantised = FORMS[form]
    assert dtype in get_args(Dtype) and quantised in get_args(Quantised)
    base = BaseForm(dtype, quantised)  # type: ignore[arg-type]
    check_quantised("quantised", base.quantised, base.weights)
    folder = open_model(model)
    lora = LoraSettings(rank=8, alpha=16.0)
    manifest = build_manifest(folder, "causal_lm", 0, lora)  # imports what does not count
    before = memory_use().resident
    whole = Span(0, folder.num_layers, embedding=True, head=True)
    span = build_span(
        folder,
        whole,
        task="causal_lm",
        num_labels=0,
        dtype=base.weights,
        autocast=base.autocast,
        quantised=base.quantised,
    ).train()
    loaded = memory_use()
    tensors = [*span.parameters(), *span.buffers()]
    held = sum({t.data_ptr(): t.nbytes for t in tensors}.values())
    bank = LoraBank(span, lora)
    adapter = bank.add("alone", whole)
    adapter.load(initial_adapter(manifest, 0, {}))
    bank.activate(adapter)
    optimizer = torch.optim.AdamW(adapter.trained.values(), lr=3e-3)
    rows = [json.loads(line)["text"] for line in texts.read_text().splitlines()]
    encoded = load_tokenizer(model).encode(rows[: options.batch])
    ids = torch.tensor([line[:32] for line in encoded])
    first, last, seconds = _train(span, optimizer, ids, options.steps)
    return {
        "form": form,
        "parameters": sum(entry.nbytes for entry in folder.tensors.values()) // 4,
        "held": held,
        "grown": loaded.resident - before,
        "loading_peak": loaded.peak_resident - before,
        "peak": memory_use().peak_resident,
        "rate": options.steps * ids.numel() / seconds,
        "first": first,
        "last": last,
    }


def _train(
    span: SpanModel, optimizer: torch.optim.Optimizer, ids: torch.Tensor, steps: int
) -> tuple[float, float, float]:
    """(loss before, loss after, seconds of all steps but the first); `ids` are [B, T]."""
    import torch

    from sfl.stage.loss import training_loss

    lengths = torch.full((len(ids),), ids.shape[1])

    def loss_now() -> torch.Tensor:
        logits = span.head(span.blocks(span.embed(ids, lengths), lengths), lengths)
        return training_loss(logits, ids, "causal_lm", span.vocab_size, None)

    first, began = float(loss_now().detach()), 0.0
    for step in range(1 + steps):
        if step == 1:
            began = time.perf_counter()
        loss_now().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.perf_counter() - began
    with torch.no_grad():
        return first, float(loss_now()), seconds


def in_its_own_process(command: list[str]) -> dict[str, Any] | str:
    """What a form's own process found; or why it cannot be had on this machine."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found
    said = done.stderr.strip().splitlines()
    return said[-1] if said else f"its process ended with {done.returncode}"


def _random_model(folder: Path, options: argparse.Namespace) -> dict[str, str]:
    """The first table; which forms this machine cannot have, and why."""
    model, texts = folder / "model", folder / "texts.jsonl"
    if options.kind == "llama":
        make_model(model, options.hidden, options.layers, options.vocabulary)
    else:
        _make_gpt2(model, options)
    make_texts(texts, options.batch)
    wanted = ("hidden", "layers", "vocabulary", "steps", "batch", "threads", "kind")
    values = [f"--{name}={getattr(options, name)}" for name in wanted]
    reference, missing = None, dict[str, str]()
    for form in ORDER:
        command = [sys.executable, __file__, *values, "--alone", form, str(model), str(texts)]
        found = in_its_own_process(command)
        if isinstance(found, str):
            missing[form] = found
            print(f"{form:10} left out: {found}", flush=True)
            continue
        if reference is None:
            reference = found
            print(
                f"random {options.kind}, {found['parameters'] / 1e6:.0f} M parameters, "
                f"{options.steps} steps of {options.batch} x 32 tokens, {options.threads} threads\n"
                f"{'':10}{'base MB':>10}{'grown MB':>10}{'while loading':>15}{'peak RSS MB':>13}"
                f"{'tokens/s':>11}{'of fp32':>9}{'loss before':>13}{'after':>8}"
            )
        sizes = [found[name] / 1e6 for name in ("held", "grown", "loading_peak", "peak")]
        print(
            f"{form:10}{sizes[0]:10.1f}{sizes[1]:10.1f}{sizes[2]:15.1f}{sizes[3]:13.1f}"
            f"{found['rate']:11.1f}{found['rate'] / reference['rate']:9.2f}"
            f"{found['first']:13.4f}{found['last']:8.4f}",
            flush=True,
        )
    return missing


def _make_gpt2(folder: Path, options: argparse.Namespace) -> None:
    """As `make_model`, shaped like GPT-2: its linear layers are stored transposed."""
    import shutil

    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from benchmarks.throughput import TOKENIZER

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=options.vocabulary,
        n_embd=options.hidden,
        n_layer=options.layers,
        n_head=options.hidden // 64,
        n_positions=512,
        bos_token_id=1,
        eos_token_id=1,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TOKENIZER / name, folder / name)


def _stories(folder: Path, options: argparse.Namespace, missing: Mapping[str, str]) -> None:
    """Real runs; only the edge differs, so that the device's float32 side is the same in all."""
    from examples.e2e.prepare import main as prepare

    if not (MODEL.exists() and TEXT.exists()):
        print(f"\nstories260k left out: it needs {MODEL} and {TEXT}")
        return
    prepare(TEXT, folder / "data")
    print(
        f"\nstories260k on E2E, one device with 1 block, {options.rounds} rounds of "
        f"{options.local_steps} steps, the edge as\n"
        f"{'':10}{'edge peak RSS MB':>18}{'tokens/s':>11}{'of fp32':>9}"
        f"{'held-out loss before':>22}{'after':>8}"
    )
    reference = 0.0
    for number, form in enumerate(ORDER):
        dtype, quantised = FORMS[form]
        if form in missing:
            print(f"{form:10} left out: {missing[form]}", flush=True)
            continue
        overrides = [
            f"model.path={str(MODEL)!r}",
            f"data.train={str(folder / 'data' / 'train.jsonl')!r}",
            f"data.eval={str(folder / 'data' / 'eval.jsonl')!r}",
            "evaluation.every=1",
            "evaluation.max_examples=100",
            "evaluation.full=false",
            f"run.rounds={options.rounds}",
            f"training.local_steps={options.local_steps}",
            f"edge.threads={options.threads}",
            f"edge.dtype={dtype!r}",
            f"edge.quantised={quantised!r}",
            'devices=[{name="home", cut_layer=1}]',
        ]
        config = ROOT / "examples" / "e2e" / "stories.toml"
        summary = run(config, folder, f"{form}-{number}", overrides)
        rate = summary["devices"][0]["tokens_per_second"]
        reference = reference or rate
        print(
            f"{form:10}{summary['edges'][0]['peak_rss_bytes'] / 1e6:18.1f}{rate:11.1f}"
            f"{rate / reference:9.2f}{summary['eval_loss_before']:22.4f}"
            f"{summary['eval_loss_after']:8.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
