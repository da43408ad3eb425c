"""The case of 2503.13819: memory and time to an accuracy; ours, SplitFed, sequential SL.

    python benchmarks/paper_case.py                                           # 50 minutes, 2 cores
    python benchmarks/paper_case.py --rounds 2 --local-steps 3 --targets 0.3 --memory minilm
    python benchmarks/paper_case.py --keep curves.json    # train once, time again and again

Six devices, Jetson Nano to M3, cuts 1, 1, 2, 2, 3, 3, 100 Mbit/s each, LoRA r = 16, batches of 16,
at most 128 tokens, CARER in Dirichlet(0.5) shares (`--alpha`); all-MiniLM-L6-v2, as BERT base's
weights are not at hand. The paper has 79% less memory and 6% less time than SplitFed, 40% less time
than SL for 10% more memory, at an accuracy of 0.89. Schemes:

    ours       one base at the edge, jobs one after another in `longest_tail` order, devices run
               freely through a round
    SplitFed   a model for each device, every step all forwards before the first backward
    SL         one device after another with one adapter, whose moments go along

What is measured and what is composed. Accuracy by round is trained for real, in this process,
through sfl's sessions, trainers and frames; ours and SplitFed differ in no arithmetic, so they have
one curve. Memory is measured, a process each (`benchmarks/edge_memory.py`); for BERT base with
random weights, which need only its shape. Time is composed by `benchmarks/schedule.py`, since two
cores have no room for six devices: the edge's part is measured here in a bare loop, a device is
slower by the paper's TFLOPS, the link is bytes over rate; averaging, evaluation and handing over
adapters are free for all. A round of ours is then played at a real edge with devices that sleep,
to check the composition. At last the paper's own machines: FLOPs of BERT base over peak TFLOPS at
100% and at 10%. Needs `../shared/data/emotion` and `pip install sfl[minilm]`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import psutil
import torch

from benchmarks import edge_memory
from benchmarks.emotion import DATA, minilm
from benchmarks.job_order import DEVICES, measure, settings
from benchmarks.light import Served, Shape, bare
from benchmarks.runs import needed
from benchmarks.schedule import Job, at_speed, ends_of, sequential, splitfed
from benchmarks.simulation import linked, uncoded
from sfl.adapters.initial import initial_adapter
from sfl.adapters.lora import LoraBank, build_manifest, given_values
from sfl.config import Extent, RunConfig
from sfl.data import load_tokenizer, prepare
from sfl.metrics.stats import NodeStats
from sfl.models.folder import open_model
from sfl.models.span import build_span
from sfl.node.process import quiet_environment
from sfl.plan import Plan, Span
from sfl.rounds.assignment import assign
from sfl.rounds.values import NO_SCORE, EdgeBase, Steps
from sfl.stage.device import DeviceStage
from sfl.stage.messages import RoundOutcome
from sfl.stage.optimizer import Optimizer
from sfl.stage.trainer import Trainer
from sfl.stage.training import VanillaSession
from sfl.transport.device.inproc import InProcessTraining

Values = Mapping[str, np.ndarray]

EDGE_TFLOPS, MBIT = 52.2, 100.0
RANK, BATCH, LENGTH = 16, 16, 128
LABELS = ["sadness", "joy", "love", "anger", "fear", "surprise"]
BERT = {"hidden": 768, "layers": 12}
NEEDED_FOR_BERT = 14e9
"""Bytes that SplitFed's six models and graphs take, about."""
MB = 1e6


# -- training, for real ----------------------------------------------------------------------------


@dataclass(slots=True)
class Party:
    """A device, its session at the edge, and the link between them."""

    session: VanillaSession
    stage: DeviceStage
    trainer: Trainer
    link: InProcessTraining
    num_examples: int

    def optimizers(self) -> list[Optimizer]:
        """Of both halves of the adapter."""
        return [self.session.optimizer, self.trainer.optimizer]


class Federation:
    """All devices and their edge in one process, without sockets."""

    def __init__(self, config: RunConfig) -> None:
        self.settings = config.settings
        folder, task = open_model(config.model.path), config.model.task
        plans = {
            entry.name: Plan.split(folder.num_layers, entry.cut_layer, 0, "vanilla")
            for entry in config.devices
        }
        first = min(plan.middle.first for plan in plans.values())
        model = build_span(
            folder,
            Span(first, folder.num_layers, embedding=False, head=True),
            task=task,
            num_labels=len(LABELS),
            dtype=torch.float32,
            packed=True,
        )
        bank = LoraBank(model, config.lora, config.lora.target_modules)
        manifest = build_manifest(folder, task, len(LABELS), config.lora)
        seed = config.run.seed
        self.adapter: Values = initial_adapter(manifest, seed, given_values(folder, manifest))
        tokenizer = load_tokenizer(folder.path)
        self.parties: dict[str, Party] = {}
        for entry in config.devices:
            name = entry.name
            stats = NodeStats("edge", "edge")
            own_part = assign(self.settings, EdgeBase(folder.num_layers), name)
            session = VanillaSession(name, own_part, model, bank, self.settings, stats)
            data = prepare(entry, name, self.settings, tokenizer)
            stage = DeviceStage(name, own_part, folder, self.settings)
            link = linked(session, stage)
            own = NodeStats(name, "device")
            trainer = Trainer(name, stage, data, tokenizer.pad_id, self.settings, link, own)
            self.parties[name] = Party(session, stage, trainer, link, len(data.train))
        self._moments: dict[str, torch.Tensor] = {}
        self.tokens = self.steps = 0

    def together(self, number: int, steps: int) -> None:
        """Every device from the same adapter; then the mean, weighted by examples (FedAvg)."""
        total = sum(party.num_examples for party in self.parties.values())
        mean = {name: np.zeros(value.shape) for name, value in self.adapter.items()}
        for party in self.parties.values():
            for name, value in self._train(party, number, steps).items():
                mean[name] += value * (party.num_examples / total)
        self.adapter = {name: value.astype(np.float32) for name, value in mean.items()}

    def in_turn(self, number: int, steps: int) -> None:
        """Every device from where the one before it ended, moments included."""
        for party in self.parties.values():
            self.adapter = self._train(party, number, steps)
            for optimizer in party.optimizers():
                self._moments |= optimizer.moments()

    def _train(self, party: Party, number: int, steps: int) -> Values:
        outcome = self._round(party, number, steps)
        self.tokens += outcome.num_tokens
        self.steps += steps
        return {**party.session.end_round(), **outcome.values}

    def evaluate(self, number: int) -> float:
        """Accuracy of the adapter over all devices' held-out examples."""
        score = NO_SCORE
        for party in self.parties.values():
            score += self._round(party, number, 0).evaluation
        return score.num_correct / score.num_examples

    def _round(self, party: Party, number: int, steps: int) -> RoundOutcome:
        first = (number - 1) * steps
        codecs = uncoded(self.settings.codecs(party.session.device, number))
        extent: Extent = "none" if steps else "all"
        start = replace(
            party.session.assignment,
            round=number,
            evaluate=extent,
            steps=Steps(steps, first, first + steps),
            codecs=codecs,
            after=party.link.at,
        )
        order = party.link.begin_round(start, self.adapter)
        party.session.optimizer.adopt(self._moments)
        outcome = party.trainer.run_round(replace(order, moments=self._moments))
        if steps:
            party.link.reached(outcome)
        return outcome


def config_of(given: argparse.Namespace) -> RunConfig:
    """The paper's case."""
    return RunConfig.model_validate(
        {
            "model": {
                "path": str(minilm()),
                "task": "sequence_classification",
                "labels": LABELS,
                "max_length": LENGTH,
            },
            "lora": {"rank": RANK, "alpha": 2 * RANK},
            "training": {
                "batch_size": BATCH,
                "computation": "lean",
                "learning_rate": given.learning_rate,
                "schedule": "constant",
            },
            "codec": {"activation": "none", "gradient": "none"},
            "evaluation": {"max_examples": given.eval_examples, "full": False},
            "data": {
                "train": str(DATA / "train.txt"),
                "eval": str(DATA / "test.txt"),
                "format": "csv",
                "delimiter": ";",
                "label_field": "label_name",
                "partition": "dirichlet",
                "dirichlet_alpha": given.alpha,
            },
            "devices": [{"name": name, "cut_layer": cut} for name, (cut, _) in DEVICES.items()],
        }
    )


@dataclass(frozen=True, slots=True)
class Curve:
    """Accuracy after each round, from 0 on, and the mean tokens of a batch."""

    accuracy: Sequence[float]
    tokens: float

    def rounds_to(self, target: float) -> float | None:
        """Rounds until the target, between two by a straight line."""
        for number, (low, high) in enumerate(pairwise(self.accuracy)):
            if high >= target:
                return number + max(0.0, (target - low) / (high - low)) if high > low else number
        return None


def train(way: str, given: argparse.Namespace) -> Curve:
    """Until the highest target is reached, or for all rounds."""
    federation = Federation(config_of(given))
    take = federation.together if way == "together" else federation.in_turn
    accuracy = [federation.evaluate(1)]
    for number in range(1, given.rounds + 1):
        take(number, given.local_steps)
        accuracy.append(federation.evaluate(number + 1))
        if accuracy[-1] >= max(given.targets):
            break
    return Curve(accuracy, federation.tokens / federation.steps)


def curve(way: str, given: argparse.Namespace) -> Curve:
    """What was trained before with these settings, if it is kept; else trained, and kept."""
    settings = [way, given.alpha, given.rounds, given.local_steps, given.learning_rate]
    name = json.dumps([*settings, given.eval_examples, max(given.targets)])
    path: Path | None = given.keep
    kept = json.loads(path.read_text()) if path is not None and path.exists() else {}
    if name not in kept:
        # A fresh interpreter, in which torch is loaded with its waiting threads asleep.
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            own = pool.submit(train, way, given).result()
        kept[name] = {"accuracy": own.accuracy, "tokens": own.tokens}
        if path is not None:
            path.write_text(json.dumps(kept))
    own = Curve(**kept[name])
    print(f"  {way:9} " + " ".join(f"{100 * value:.1f}" for value in own.accuracy), flush=True)
    return own


# -- memory ----------------------------------------------------------------------------------------


def compare_memory(shapes: Sequence[str], folder: Path) -> None:
    """Peak of the edge for the six devices, by scheme."""
    print("\nedge memory, six devices, peak above imports, batches of 16 x 128 (measured)")
    for shape in shapes:
        model = minilm()
        if shape == "bert":
            free = psutil.virtual_memory().available
            if free < NEEDED_FOR_BERT:
                print(
                    f"  bert: skipped, {free / 1e9:.1f} GB are free and SplitFed needs "
                    f"{NEEDED_FOR_BERT / 1e9:.0f}"
                )
                continue
            model = folder / "bert"
            edge_memory.make_model(model, "bert")
        peaks = {
            mode: edge_memory.run(model, "bert", mode, len(DEVICES), len(DEVICES))["peak"]
            for mode in ("ours", "splitfed", "sl")
        }
        ours = peaks["ours"]
        print(
            f"  {shape:7} ours {ours / MB:,.0f} MB, SplitFed {peaks['splitfed'] / MB:,.0f} MB, SL "
            f"{peaks['sl'] / MB:,.0f} MB: {ours / peaks['splitfed'] - 1:+.0%} of SplitFed (paper "
            f"-79%), {ours / peaks['sl'] - 1:+.0%} of SL (paper +10%)",
            flush=True,
        )


# -- time ------------------------------------------------------------------------------------------


def measured_jobs(shape: Shape, served: Mapping[str, Served], layers: int) -> list[Job]:
    """The edge as measured here; devices as much slower as the paper's are than its server."""
    jobs = []
    link = shape.wire_bytes * 8e-6 / MBIT
    blocks = {name: layers - cut for name, (cut, _) in DEVICES.items()}
    block = sum(own.seconds for own in served.values()) / sum(blocks.values())
    for name, (cut, tflops) in DEVICES.items():
        own, seconds = served[name], cut * block * EDGE_TFLOPS / tflops
        share = own.forward / own.seconds
        jobs.append(
            Job(
                name,
                forward=share * seconds,
                up=link,
                serve=own.seconds,
                down=link,
                backward=(1.0 - share) * seconds,
                serve_forward=own.forward,
            )
        )
    return jobs


def paper_jobs(utilisation: float) -> list[Job]:
    """FLOPs of BERT base over the printed TFLOPS, backward as long as forward (frozen weights)."""
    hidden, layers = BERT["hidden"], BERT["layers"]
    shape = Shape(BATCH, LENGTH, hidden, len(LABELS), per_token=False)
    flops = 2 * 12 * hidden**2 * shape.tokens + 4 * BATCH * LENGTH**2 * hidden
    link = shape.wire_bytes * 8e-6 / MBIT
    jobs = []
    for name, (cut, tflops) in DEVICES.items():
        device = cut * flops / (utilisation * tflops * 1e12)
        edge = (layers - cut) * flops / (utilisation * EDGE_TFLOPS * 1e12)
        jobs.append(Job(name, device, link, 2 * edge, link, device, edge))
    return jobs


def round_times(jobs: Sequence[Job], steps: int) -> dict[str, float]:
    """Seconds of a round, by scheme."""
    return {
        "ours": max(ends_of(jobs, "longest_tail", steps).values()),
        "ours, first come": max(ends_of(jobs, "first_come", steps).values()),
        "SplitFed": steps * splitfed(jobs),
        "SL": steps * sequential(jobs),
    }


def show_times(
    title: str, jobs: Sequence[Job], steps: int, curves: Mapping[str, Curve], targets: list[float]
) -> None:
    """A round of each scheme, and the time to each target."""
    times = round_times(jobs, steps)
    edge, slowest = sum(job.serve for job in jobs), max(job.own for job in jobs)
    print(
        f"\n{title}\n  a step: edge {1e3 * edge:,.0f} ms for all six, slowest device and link "
        f"{1e3 * slowest:,.0f} ms, a tensor's way {1e3 * jobs[0].up:,.0f} ms"
    )
    print("  a round: " + ", ".join(f"{name} {own:,.1f} s" for name, own in times.items()))
    for target in targets:
        rounds = {way: curve.rounds_to(target) for way, curve in curves.items()}
        whole: dict[str, float] = {}
        for name, own in times.items():
            needed_rounds = rounds["in turn" if name == "SL" else "together"]
            if needed_rounds is not None:
                whole[name] = needed_rounds * own
        text = ", ".join(f"{name} {own:,.0f} s" for name, own in whole.items())
        print(f"  to {100 * target:g}%: {text or 'not reached'}")
        if "ours" in whole:
            ratios = [
                f"{whole['ours'] / whole[name] - 1:+.1%} of {name} (paper {paper})"
                for name, paper in (("SplitFed", "-6%"), ("SL", "-40%"))
                if name in whole
            ]
            print(f"      ours: {', '.join(ratios)}")


def check(folder: Path, shape: Shape, jobs: Sequence[Job], steps: int, threads: int) -> None:
    """A round of ours at a real edge, devices asleep for what their blocks would take."""
    cuts = {name: cut for name, (cut, _) in DEVICES.items()}
    values = settings(minilm(), shape, steps, 2, MBIT, cuts)
    values["model"] |= {"task": "sequence_classification", "labels": LABELS}
    values["lora"] = {"rank": RANK, "alpha": 2 * RANK}
    edge = {"threads": threads, "order": "longest_tail"}
    own = measure(folder / "check", values, shape, jobs, edge)
    foretold = max(ends_of(at_speed(jobs, own.factor), "longest_tail", steps).values())
    took = max(own.ends.values())
    print(
        f"\nchecked: {steps} steps of ours at a real edge took {took:.2f} s, composed "
        f"{foretold:.2f} s ({took / foretold:.3f}); the edge computed {own.factor:.2f} times as "
        "long as in the bare loop"
    )


def main() -> None:
    """Train both ways, then memory, then times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=15, help="at most")
    parser.add_argument("--local-steps", type=int, default=40)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--alpha", type=float, default=0.5, help="of Dirichlet; 1000: equal shares")
    parser.add_argument("--targets", nargs="+", type=float, default=[0.8, 0.85, 0.89])
    parser.add_argument("--eval-examples", type=int, default=150, help="of each device")
    parser.add_argument(
        "--memory", nargs="*", choices=("minilm", "bert"), default=["minilm", "bert"]
    )
    parser.add_argument("--keep", type=Path, help="file of curves; those in it are not trained")
    parser.add_argument("--check-steps", type=int, default=4, help="0: no check")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=max(1, cores - 1), help="of the timed edge")
    given = parser.parse_args()
    needed(DATA)
    quiet_environment()
    config = config_of(given)
    print(
        f"accuracy after each round of {given.local_steps} steps a device (trained), in percent",
        flush=True,
    )
    curves = {way: curve(way, given) for way in ("together", "in turn")}
    folder_of_model = open_model(config.model.path)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        compare_memory(given.memory, folder)
        print("\nFrom here on time is composed: measured or counted computing, and a link model.")
        values = config.settings.model_dump(mode="json", exclude_none=True)
        lengths = {"real tokens": round(curves["together"].tokens / BATCH), "padded": LENGTH}
        for title, length in lengths.items():
            shape = Shape(BATCH, length, folder_of_model.hidden_size, len(LABELS), per_token=False)
            served = bare(values, shape, given.threads, 8)
            jobs = measured_jobs(shape, served, folder_of_model.num_layers)
            title = f"MiniLM, {title} ({BATCH} x {length}), this machine as the edge"
            show_times(title, jobs, given.local_steps, curves, given.targets)
            if given.check_steps and length != LENGTH:
                check(folder, shape, jobs, given.check_steps, given.threads)
        for utilisation in (1.0, 0.1):
            title = f"BERT base, 16 x 128, the paper's machines at {utilisation:.0%} of their peak"
            jobs = paper_jobs(utilisation)
            show_times(title, jobs, given.local_steps, curves, given.targets)


if __name__ == "__main__":
    main()
