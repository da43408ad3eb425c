"""Peak memory of an edge for 1 to 32 devices: ours, one model per device (SplitFed), sequential SL.

    python benchmarks/edge_memory.py                     # 20 minutes on 2 cores, 14 GB
    python benchmarks/edge_memory.py --batch 4 --devices 1 6 --modes ours splitfed sl

The paper's case (2503.13819): devices hold 1, 1, 2, 2, 3, 3 blocks in turn, LoRA r = 16, batches of
16 x 128 (`--batch`), in the shape of GPT-2 124M, or of BERT base with `--shape bert`. Every figure
is the peak resident size of a process of its own, which does what an edge does in two steps of
every device:

    ours       one base; each device's LoRA and optimizer; jobs one after another; at most
               `--in-flight` activations held; loss in pieces (computation = lean)
               (`ours, recompute`: blocks keep their input and run again for their backward)
    shared     the same, with the loss over all logits at once (computation = reference)
    splitfed   a model for each device, all of their graphs alive before the first backward
    sl         sequential split learning: one model and one device at a time

SplitFed is run up to the number of devices that memory allows, and continued by its slope (marked
with ~). All use glibc's default malloc, except `ours, heap kept`, which is how an edge runs.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sfl.adapters.initial import initial_adapter
from sfl.adapters.lora import LoraBank, build_manifest, given_values
from sfl.adapters.names import belongs_to
from sfl.config import RunSettings
from sfl.metrics.memory import memory_use
from sfl.metrics.stats import NodeStats
from sfl.models.folder import open_model
from sfl.models.span import SpanModel, build_span
from sfl.plan import Span, SplitPlan
from sfl.stage.messages import Key, Kind, Purpose, RoundStart, TensorMessage
from sfl.stage.session import VanillaSession

ROOT = Path(__file__).resolve().parents[1]
T = TypeVar("T")

CUTS = (1, 1, 2, 2, 3, 3)
RANK, LENGTH, STEPS = 16, 128, 2
MODES = ("ours", "ours, recompute", "ours, heap kept", "shared", "splitfed", "sl")
MB = 1e6


def make_model(folder: Path, shape: str) -> None:
    """Random weights in the shape of GPT-2 124M or BERT base."""
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        GPT2Config,
        GPT2LMHeadModel,
    )

    torch.manual_seed(0)
    if shape == "gpt2":
        config = GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        GPT2LMHeadModel(config).save_pretrained(folder)
    else:
        settings = BertConfig(
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=6
        )
        BertForSequenceClassification(settings).save_pretrained(folder)


class Edge:
    """What an edge holds and does, without its sockets."""

    def __init__(self, model: Path, shape: str, mode: str, devices: int, batch: int) -> None:
        causal = shape == "gpt2"
        names = [f"device-{n}" for n in range(devices)]
        self.settings = RunSettings.model_validate(
            {
                "model": {
                    "path": str(model),
                    "task": "causal_lm" if causal else "sequence_classification",
                    "labels": [] if causal else [str(n) for n in range(6)],
                },
                "lora": {"rank": RANK},
                "training": {"computation": "lean" if mode.startswith("ours") else "reference"},
                "devices": [
                    {"name": name, "cut_layer": CUTS[n % len(CUTS)]} for n, name in enumerate(names)
                ],
            }
        )
        self.names = names
        self.batch = batch
        self.recompute = mode == "ours, recompute"
        self.folder = open_model(model)
        self.task, self.labels = self.settings.model.task, len(self.settings.model.labels)
        manifest = build_manifest(self.folder, self.task, self.labels, self.settings.lora)
        self.values = initial_adapter(manifest, 0, given_values(self.folder, manifest))
        self.stats = NodeStats("edge", "edge")

    def base(self, first: int) -> tuple[SpanModel, LoraBank]:
        """The frozen blocks from `first` on, and the head."""
        model = build_span(
            self.folder,
            Span(first, self.folder.num_layers, embedding=False, head=True),
            task=self.task,
            num_labels=self.labels,
            dtype=torch.float32,
            packed=self.settings.computation == "lean",
        )
        model.recompute = self.recompute
        return model, LoraBank(model, self.settings.lora)

    def cut(self, name: str) -> int:
        """Blocks of a device."""
        return self.settings.device(name).cut_layer

    def session(self, name: str, model: SpanModel, bank: LoraBank) -> VanillaSession:
        """A device's session in an open round."""
        plan = SplitPlan(self.folder.num_layers, self.cut(name), 0, "vanilla")
        session = VanillaSession(name, plan, model, bank, self.settings, self.stats)
        mine = {n: v for n, v in self.values.items() if belongs_to(n, plan.middle)}
        session.begin_round(RoundStart(1, False, STEPS, 0, STEPS), mine)
        return session

    def arrival(self, step: int) -> TensorMessage:
        """A decoded activation with its labels."""
        rows = torch.randn(self.batch * LENGTH, self.folder.hidden_size)
        causal = self.task == "causal_lm"
        count = self.batch * LENGTH if causal else self.batch
        classes = self.folder.vocab_size if causal else self.labels
        marks = np.random.default_rng(step).integers(0, classes, count).astype(np.int32)
        key = Key(Purpose.TRAINING, 1, step, 0)
        return TensorMessage(Kind.ACTIVATION, key, 1, (LENGTH,) * self.batch, rows, marks)


def sequential(edge: Edge) -> VanillaSession:
    """One model and one device at a time."""
    for name in edge.names:
        session = edge.session(name, *edge.base(edge.cut(name)))
        for step in range(STEPS):
            session.handle(edge.arrival(step))
        session.end_round()
        if name != edge.names[-1]:
            del session
            gc.collect()
    return session


def splitfed(edge: Edge) -> VanillaSession:
    """A model for each device, all forwards before the first backward."""
    sessions = [edge.session(name, *edge.base(edge.cut(name))) for name in edge.names]
    for step in range(STEPS):
        graphs = []
        for session in sessions:
            message = edge.arrival(step)
            boundary, output = session._forward(message)
            assert message.labels is not None
            loss = session.computation.loss(
                session.model,
                output,
                message.lengths,
                message.labels,
                None,
                session.forward_key(message.key),
            )
            graphs.append((message, boundary, loss))
        for session, (message, boundary, loss) in zip(sessions, graphs, strict=True):
            loss.backward()  # type: ignore[no-untyped-call]
            assert boundary.grad is not None
            session._after_backward(message)
        del graphs, message, boundary, output, loss
    return sessions[0]


def one_base(edge: Edge, in_flight: int) -> VanillaSession:
    """One base, jobs one after another, a bounded number of activations."""
    shared = edge.base(min(edge.cut(name) for name in edge.names))
    sessions = [edge.session(name, *shared) for name in edge.names]
    for step in range(STEPS):
        for few in _runs(sessions, in_flight):
            waiting = [(session, edge.arrival(step)) for session in few]
            while waiting:
                session, message = waiting.pop(0)
                session.handle(message)
    return sessions[0]


def measure(
    model: Path, shape: str, mode: str, devices: int, in_flight: int, batch: int
) -> dict[str, float]:
    """In this process: peak resident bytes above what was held before the model was loaded."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    edge = Edge(model, shape, mode, devices, batch)
    start = memory_use().resident
    if mode == "sl":
        session = sequential(edge)
    elif mode == "splitfed":
        session = splitfed(edge)
    else:
        session = one_base(edge, in_flight)
    adapter = sum(4 * p.numel() for p in session.adapter.parameters.values())
    return {
        "peak": memory_use().peak_resident - start,
        "adapter_and_optimizer": 4 * adapter,
        "start": start,
    }


def _runs(items: list[T], size: int) -> Iterator[list[T]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]


def run(
    model: Path, shape: str, mode: str, devices: int, in_flight: int, batch: int = 16
) -> dict[str, float]:
    """The same in a process of its own."""
    environment = dict(os.environ, MALLOC_ARENA_MAX="2")
    if mode == "ours, heap kept":
        environment |= {
            "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
            "MALLOC_TRIM_THRESHOLD_": str(1 << 62),
        }
    command = [sys.executable, __file__, "--measure", str(model), "--shape", shape]
    command += ["--modes", mode, "--devices", str(devices), "--in-flight", str(in_flight)]
    command += ["--batch", str(batch)]
    output = subprocess.check_output(command, text=True, env=environment, cwd=ROOT)
    result: dict[str, float] = json.loads(output.splitlines()[-1])
    return result


def fits(mode: str, devices: int, seen: dict[int, dict[str, float]]) -> bool:
    """Whether a run of so many devices stays within what memory is free."""
    if mode != "splitfed" or len(seen) < 2:
        return True
    per_device = _slope(seen)
    last = max(seen)
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return seen[last]["peak"] + (devices - last) * per_device < 0.8 * free


def _slope(seen: dict[int, dict[str, float]]) -> float:
    few, many = min(seen), max(seen)
    return (seen[many]["peak"] - seen[few]["peak"]) / (many - few)


def main() -> None:
    """Every mode, every number of devices; then the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--devices", nargs="+", type=int, default=[1, 2, 4, 6, 8, 16, 32])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--shape", choices=("gpt2", "bert"), default="gpt2")
    parser.add_argument("--in-flight", type=int, default=8)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        mode, devices = given.modes[0], given.devices[0]
        print(
            json.dumps(
                measure(given.measure, given.shape, mode, devices, given.in_flight, given.batch)
            )
        )
        return
    table: dict[str, dict[int, dict[str, float]]] = {mode: {} for mode in given.modes}
    with tempfile.TemporaryDirectory() as temporary:
        model = Path(temporary)
        make_model(model, given.shape)
        print(
            f"{given.shape}, r = {RANK}, batch {given.batch} x {LENGTH}, fp32; "
            "peak MB above imports\n"
        )
        print(f"{'devices':18}" + "".join(f"{n:>9}" for n in given.devices), flush=True)
        for mode in given.modes:
            cells, seen = [], table[mode]
            for devices in given.devices:
                if fits(mode, devices, seen):
                    seen[devices] = run(
                        model, given.shape, mode, devices, given.in_flight, given.batch
                    )
                    cells.append(f"{seen[devices]['peak'] / MB:9,.0f}")
                else:
                    last = max(seen)
                    guess = seen[last]["peak"] + (devices - last) * _slope(seen)
                    cells.append(f"{'~' + format(guess / MB, ',.0f'):>9}")
            print(f"{mode:18}" + "".join(cells), flush=True)
    conclude(table)


def conclude(table: dict[str, dict[int, dict[str, float]]]) -> None:
    """Ratios to the references, and what a device adds."""
    ours = table.get("ours", {})
    print()
    for reference in ("splitfed", "sl", "shared"):
        for devices, own in table.get(reference, {}).items():
            if devices in ours:
                ratio = ours[devices]["peak"] / own["peak"]
                print(f"ours / {reference}, {devices} devices: {ratio:.3f}  ({ratio - 1:+.0%})")
    for mode, mine in table.items():
        many = sorted(n for n in mine if n >= 8)
        if mode.startswith("ours") and len(many) > 1:
            slope = (mine[many[-1]]["peak"] - mine[many[0]]["peak"]) / (many[-1] - many[0])
            theory = mine[many[-1]]["adapter_and_optimizer"]
            print(
                f"{mode}: {slope / MB:.1f} MB a device from {many[0]} to {many[-1]}; LoRA, its "
                f"gradient and two moments are {theory / MB:.1f} MB ({slope / theory:.2f})"
            )


if __name__ == "__main__":
    main()
