"""Peak memory of an edge for 1 to 32 devices: ours, one model per device (SplitFed), sequential SL.

    python benchmarks/edge_memory.py                     # an hour on 2 cores, 14 GB
    python benchmarks/edge_memory.py --batch 4 --devices 1 6 --modes ours splitfed sl
    python benchmarks/edge_memory.py --keep cells.json --plot docs/images/edge_memory.svg

`--keep` holds what was measured, so that a run can be taken up again and cells be added to it.

The paper's case (2503.13819): devices hold 1, 1, 2, 2, 3, 3 blocks in turn, LoRA r = 16, batches of
16 x 128 (`--batch`), in the shape of GPT-2 124M, or of BERT base with `--shape bert`. Every figure
is the peak resident size of a process of its own, which does what an edge does in two steps of
every device, the first of a single sequence (it makes gradients and moments; it saves half of the
time), the second of the whole batch:

    ours       one base; each device's LoRA and optimizer; jobs one after another; at most
               `--in-flight` activations held; loss in pieces (computation = lean)
               (`ours, recompute`: blocks keep their input and run again for their backward)
    shared     the same, with the loss over all logits at once (computation = reference)
    splitfed   a model for each device, all of their graphs alive before the first backward
    sl         sequential split learning: one model and one device at a time

SplitFed is run up to the number of devices that memory allows, and continued by its slope: such a
figure is marked with ~ and was not run. All use glibc's default malloc, except `ours, heap kept`,
which is how an edge runs.
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
from typing import Any, TypeVar

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
from sfl.node.machine import memory
from sfl.plan import Span
from sfl.rounds.assignment import assign
from sfl.rounds.values import EdgeBase, Steps
from sfl.stage.messages import Key, Kind, Purpose, TensorMessage
from sfl.stage.training import VanillaSession

ROOT = Path(__file__).resolve().parents[1]
T = TypeVar("T")

CUTS = (1, 1, 2, 2, 3, 3)
RANK, LENGTH, STEPS = 16, 128, 2
MODES = ("ours", "ours, recompute", "ours, heap kept", "shared", "splitfed", "sl")
MB = 1e6
Cell = dict[str, float]
Table = dict[str, dict[int, Cell]]
COLOURS = {"ours": "#0f766e", "ours, recompute": "#5eead4", "splitfed": "#9a3412", "sl": "#64748b"}
TITLES = {"ours": "sfl", "ours, recompute": "sfl, recompute", "sl": "sequential split learning"}
TITLES |= {"splitfed": "one model per device (SplitFed)"}


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
        return model, LoraBank(model, self.settings.lora)

    def cut(self, name: str) -> int:
        """Blocks of a device."""
        return self.settings.device(name).cut_layer

    def session(self, name: str, model: SpanModel, bank: LoraBank) -> VanillaSession:
        """A device's session in an open round."""
        base = EdgeBase(self.folder.num_layers)
        own = assign(self.settings, base, name, 1, steps=Steps(STEPS, 0, STEPS))
        session = VanillaSession(
            name, own, model, bank, self.settings, self.stats, recompute=self.recompute
        )
        mine = {n: v for n, v in self.values.items() if belongs_to(n, own.plan.middle)}
        session.begin_round(own, mine)
        return session

    def arrival(self, step: int) -> TensorMessage:
        """A decoded activation with its labels; of a single sequence in the first step."""
        batch = self.batch if step else 1
        rows = torch.randn(batch * LENGTH, self.folder.hidden_size)
        causal = self.task == "causal_lm"
        count = batch * LENGTH if causal else batch
        classes = self.folder.vocab_size if causal else self.labels
        marks = np.random.default_rng(step).integers(0, classes, count).astype(np.int32)
        key = Key(Purpose.TRAINING, 1, step, 0)
        return TensorMessage(Kind.ACTIVATION, key, 1, (LENGTH,) * batch, rows, marks)


def sequential(edge: Edge) -> list[VanillaSession]:
    """One model and one device at a time."""
    for name in edge.names:
        session = edge.session(name, *edge.base(edge.cut(name)))
        for step in range(STEPS):
            session.handle(edge.arrival(step))
        session.end_round()
        if name != edge.names[-1]:
            del session
            gc.collect()
    return [session]


def splitfed(edge: Edge) -> list[VanillaSession]:
    """A model for each device, all forwards before the first backward."""
    sessions = [edge.session(name, *edge.base(edge.cut(name))) for name in edge.names]
    for step in range(STEPS):
        graphs = []
        for session in sessions:
            message = edge.arrival(step)
            boundary, output = session.blocks.forward(message)
            assert message.labels is not None
            loss = session.blocks.computation.loss(
                session.model,
                output,
                message.lengths,
                message.labels,
                None,
                session.blocks.forward_key(message.key),
            )
            graphs.append((message, boundary, loss))
        for session, (message, boundary, loss) in zip(sessions, graphs, strict=True):
            loss.backward()  # type: ignore[no-untyped-call]
            assert boundary.grad is not None
            session.returned(session.blocks.cut_gradient(message, boundary))
        del graphs, message, boundary, output, loss
    return sessions


def one_base(edge: Edge, in_flight: int) -> list[VanillaSession]:
    """One base, jobs one after another, a bounded number of activations."""
    shared = edge.base(min(edge.cut(name) for name in edge.names))
    sessions = [edge.session(name, *shared) for name in edge.names]
    for step in range(STEPS):
        for few in _runs(sessions, in_flight):
            waiting = [(session, edge.arrival(step)) for session in few]
            while waiting:
                session, message = waiting.pop(0)
                session.handle(message)
    return sessions


def measure(model: Path, shape: str, mode: str, devices: int, in_flight: int, batch: int) -> Cell:
    """In this process: peak resident bytes above what was held before the model was loaded."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    edge = Edge(model, shape, mode, devices, batch)
    start = memory_use().resident
    if mode == "sl":
        sessions = sequential(edge)
    elif mode == "splitfed":
        sessions = splitfed(edge)
    else:
        sessions = one_base(edge, in_flight)
    adapters = [session.adapter.parameters.values() for session in sessions]
    adapter = sum(4 * p.numel() for own in adapters for p in own)
    return {
        "peak": memory_use().peak_resident - start,
        "adapters_and_optimizers": 3 * adapter,  # two moments; a gradient goes with its step
        "start": start,
    }


def _runs(items: list[T], size: int) -> Iterator[list[T]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]


def run(model: Path, shape: str, mode: str, devices: int, in_flight: int, batch: int = 16) -> Cell:
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
    result: Cell = json.loads(output.splitlines()[-1])
    return result


def fits(mode: str, devices: int, seen: dict[int, Cell]) -> bool:
    """Whether a run of so many devices stays within what memory is free."""
    if mode != "splitfed" or len(seen) < 2:
        return True
    return _continued(seen, devices) < 0.8 * memory().usable


def _continued(seen: dict[int, Cell], devices: int) -> float:
    """What so many devices would take, by the slope."""
    last = max(seen)
    return seen[last]["peak"] + (devices - last) * _slope(seen)


def _slope(seen: dict[int, Cell]) -> float:
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
    parser.add_argument("--keep", type=Path, help="file of cells; those in it are not run again")
    parser.add_argument("--kept-only", action="store_true", help="measure nothing more")
    parser.add_argument("--plot", type=Path, help="draw devices against memory into this SVG")
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
    with tempfile.TemporaryDirectory() as temporary:
        table = fill(given, Path(temporary))
    conclude(table)
    if given.plot:
        plot(given.plot, table, f"{given.shape}, batch {given.batch} x {LENGTH}, r = {RANK}, fp32")


def fill(given: argparse.Namespace, model: Path) -> Table:
    """Measure every cell that is not kept, and print the table as it grows."""
    title = (
        f"{given.shape}, r = {RANK}, batch {given.batch} x {LENGTH}, {given.in_flight} in flight"
    )
    kept: dict[str, dict[str, dict[str, Cell]]] = {}
    if given.keep and given.keep.exists():
        kept = json.loads(given.keep.read_text())
    own = kept.setdefault(title, {})
    print(f"{title}, fp32; peak MB above imports\n")
    print(f"{'devices':18}" + "".join(f"{n:>9}" for n in given.devices), flush=True)
    table: Table = {mode: {} for mode in given.modes}
    for mode, seen in table.items():
        cells = own.setdefault(mode, {})
        print(f"{mode:18}", end="", flush=True)
        for devices in given.devices:
            wanted = str(devices) not in cells and not given.kept_only
            if wanted and fits(mode, devices, seen):
                if not any(model.iterdir()):
                    make_model(model, given.shape)
                cells[str(devices)] = run(
                    model, given.shape, mode, devices, given.in_flight, given.batch
                )
                if given.keep:
                    given.keep.write_text(json.dumps(kept, indent=1) + "\n")
            if str(devices) in cells:
                seen[devices] = cells[str(devices)]
                text = f"{seen[devices]['peak'] / MB:,.0f}"
            elif mode == "splitfed" and len(seen) > 1 and devices > max(seen):
                text = f"~{_continued(seen, devices) / MB:,.0f}"
            else:
                text = "-"
            print(f"{text:>9}", end="", flush=True)
        print(flush=True)
    return table


def conclude(table: Table) -> None:
    """Ratios to the references, and what a device adds."""
    ours = table.get("ours", {})
    print()
    for reference in ("splitfed", "sl", "shared"):
        for devices, own in table.get(reference, {}).items():
            if devices in ours:
                ratio = ours[devices]["peak"] / own["peak"]
                print(f"ours / {reference}, {devices} devices: {ratio:.3f}  ({ratio - 1:+.1%})")
    for mode, mine in table.items():
        many = sorted(n for n in mine if n >= 8)
        if mode.startswith("ours") and len(many) > 1:
            few, most = mine[many[0]], mine[many[-1]]
            count = many[-1] - many[0]
            slope, theory = (
                (most[name] - few[name]) / count for name in ("peak", "adapters_and_optimizers")
            )
            print(
                f"{mode}: {slope / MB:.1f} MB a device from {many[0]} to {many[-1]}; LoRA and "
                f"its two moments are {theory / MB:.1f} MB ({slope / theory:.2f})"
            )


def plot(path: Path, table: Table, title: str) -> None:
    """Devices against memory; dashed where SplitFed was not run."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "sfl"
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6.4, 4.0))
    last = max(devices for own in table.values() for devices in own)
    for mode, own in table.items():
        if mode not in COLOURS or not own:
            continue
        style: dict[str, Any] = {"color": COLOURS[mode], "linewidth": 1.6}
        numbers = sorted(own)
        values = [own[n]["peak"] / 1e9 for n in numbers]
        axis.plot(numbers, values, marker="o", markersize=4, label=TITLES[mode], **style)
        if mode == "splitfed" and numbers[-1] < last:
            ends = [own[numbers[-1]]["peak"] / 1e9, _continued(own, last) / 1e9]
            axis.plot([numbers[-1], last], ends, linestyle=":", label="its slope, not run", **style)
    ticks = [n for n in (1, 2, 4, 8, 16, 32) if n <= last]
    axis.set_xscale("log", base=2)
    axis.set_yscale("log", base=2)
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    low, high = axis.get_ylim()
    marks = [mark for mark in (0.25, 0.5, 1, 2, 4, 8, 16, 32, 64) if low <= mark <= high]
    axis.set_yticks(marks, [f"{mark:g} GB" for mark in marks])
    axis.minorticks_off()
    axis.set_xlabel("devices")
    axis.set_ylabel("peak memory of the edge, above imports")
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    print(f"\nplot: {path}")


if __name__ == "__main__":
    main()
