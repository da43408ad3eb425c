"""A cost model fitted on two rounds foretells plans that were never run: seconds a step, and order.

    python -m benchmarks.cost_model                   # 13 runs of three processes
    python -m benchmarks.cost_model --plans 4         # a short form
    python -m benchmarks.cost_model --model DIR       # another model than one made here

One device and its edge, one thread each, real processes. Costs are fitted on two rounds at one cut,
link and batch. Then each plan is run: other cuts, rates, delays, batch sizes and micro-batches. The
mean seconds of a step of its second round are compared with what was foretold, and the order of the
plans by Kendall's tau. A second error is with what passes took in that very run: what remains is
the model's own, without what else the machine did meanwhile. The model is a random Llama of 8
blocks, made here, or a folder of yours.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

import tomli_w

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.runs import effective, needed, run
from sfl.cost.energy import Energy
from sfl.cost.step import StepCost, step_cost
from sfl.cost.values import DeviceCost, EdgeCost, LinkCost, Workload
from sfl.metrics.snapshot import NodeSnapshot
from sfl.planners.observed import DeviceReport, EdgeReport, Observations
from sfl.report.journal import read_journal
from sfl.report.observing import device_report
from sfl.rounds import AdapterReady, Event, Fact, ReportReceived
from sfl.rounds.values import RoundReport

LAYERS, HIDDEN, WORDS, EXAMPLES = 8, 192, 400, 256
ROUNDS = 2
CREDITS = 4


@dataclass(frozen=True, slots=True)
class Plan:
    """How the device trains: its cut, its link (Mbit/s up and down, ms each way) and its batch."""

    cut: int
    up: float
    down: float
    delay: float
    batch: int
    micro_batches: int = 1

    def __str__(self) -> str:
        pieces = f" in {self.micro_batches}" if self.micro_batches > 1 else ""
        link = f"{self.up:g}/{self.down:g} Mbit/s {self.delay:g} ms"
        return f"cut {self.cut}, {link}, batch {self.batch}{pieces}"


FITTED = Plan(3, 20, 20, 10, 8)
"""What costs are fitted on."""
PLANS = (
    Plan(1, 20, 20, 10, 8),
    Plan(7, 20, 20, 10, 8),
    Plan(5, 100, 100, 2, 8),
    Plan(3, 4, 4, 10, 8),
    Plan(3, 20, 2, 10, 8),
    Plan(3, 20, 20, 150, 8),
    Plan(3, 20, 20, 10, 2),
    Plan(3, 20, 20, 10, 16),
    Plan(1, 4, 20, 40, 16),
    Plan(6, 8, 8, 10, 4),
    Plan(3, 8, 8, 20, 16, 4),
    Plan(5, 20, 20, 40, 16, 2),
)


@dataclass(frozen=True, slots=True)
class Measured:
    """A run: its reports and edges' words, real tokens of a step, and seconds of one."""

    events: tuple[Event | Fact, ...]
    tokens: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Foretold:
    """A plan, and the seconds of a step as they were and as they were foretold, with its parts."""

    plan: Plan
    measured: float
    foretold: float
    own: float
    parts: tuple[float, float, float, float]

    @property
    def error(self) -> float:
        """Foretold over measured, less 1."""
        return self.foretold / self.measured - 1.0

    @property
    def own_error(self) -> float:
        """The same with what passes took in this very run: what the model leaves out."""
        return self.own / self.measured - 1.0


def make_model(folder: Path, hidden: int = HIDDEN) -> Path:
    """A random Llama with a tokenizer of words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2}
    vocabulary |= {word(number): 3 + number for number in range(WORDS)}
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=hidden, intermediate_size=3 * hidden,
        num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=4, pad_token_id=0,
        max_position_embeddings=256,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


def word(number: int) -> str:
    """Of the made-up language."""
    return f"w{number}"


def make_data(path: Path) -> Path:
    """Prompts and completions of 24 to 72 words in all."""
    draw = random.Random(0)

    def words() -> str:
        return " ".join(word(draw.randrange(WORDS)) for _ in range(draw.randint(12, 36)))

    rows = ({"prompt": words(), "completion": words()} for _ in range(EXAMPLES))
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def train(folder: Path, model: Path, data: Path, plan: Plan, name: str, steps: int) -> Measured:
    """One run of `sfl run`, and what its journal has."""
    config: dict[str, Any] = {
        "run": {"rounds": ROUNDS},
        "model": {"path": str(model), "max_length": 96},
        "training": {
            "batch_size": plan.batch,
            "local_steps": steps,
            "micro_batches": plan.micro_batches,
            "computation": "lean",
        },
        "codec": {"activation": "none", "gradient": "none"},
        "network": {"credits": CREDITS},
        "edge": {"threads": 1},
        "data": {"train": str(data), "eval_fraction": 0.1},
        "evaluation": {"every": 1, "max_examples": 16, "full": False},
        "devices": [
            {
                "name": "phone",
                "cut_layer": plan.cut,
                "threads": 1,
                "link": {"up_mbit": plan.up, "down_mbit": plan.down, "delay_ms": plan.delay},
            }
        ],
    }
    path = folder / f"{name}.toml"
    path.write_text(tomli_w.dumps(config))
    run(path, folder, name, [])
    journal = read_journal(effective(folder, name), folder / name)
    assert journal is not None
    try:
        events = tuple(entry.event for entry in journal.entries())
    finally:
        journal.close()
    last = reports(events)[-1]
    return Measured(events, last.num_tokens / last.num_steps, last.train_seconds / last.num_steps)


def reports(events: Sequence[Event | Fact]) -> list[RoundReport]:
    """Of rounds with steps."""
    said = [event.report for event in events if isinstance(event, ReportReceived)]
    return [report for report in said if report is not None and report.num_steps]


def observed(events: Sequence[Event | Fact]) -> Observations:
    """What a planner would know after these."""
    seen = Observations()
    for event in events:
        if isinstance(event, AdapterReady):
            for text in event.servers:
                node = NodeSnapshot.from_json(text)
                if node.kind == "edge":
                    word = EdgeReport("edge", node.costs, node.started_at, node.dtype)
                    seen = seen.with_edge(word)
    return seen.with_round(map(heard, reports(events)))


def heard(report: RoundReport) -> DeviceReport:
    """A report as the cost model takes it."""
    return device_report(report, "edge")


@dataclass(frozen=True, slots=True)
class Fit:
    """Costs of both nodes, and the model's shape."""

    device: DeviceCost
    edge: EdgeCost
    layers: int
    hidden: int


def fit(events: Sequence[Event | Fact], layers: int, hidden: int) -> Fit:
    """From what a run's nodes showed."""
    seen = observed(events)
    device, edge = seen.device_cost("phone"), seen.edge_cost("edge")
    assert device is not None and edge is not None, "a round tells both nodes' costs"
    return Fit(device, edge, layers, hidden)


def foretell(known: Fit, plan: Plan, run_: Measured) -> Foretold:
    """A plan's step, by the fitted costs and by those of its own run."""
    step = step_of(known, known.device.link.latency, plan, run_.tokens)
    here = fit(run_.events, known.layers, known.hidden)
    # What threads waited in that run is found by its own seconds of a step: that would be circular.
    device = replace(here.device, handover=known.device.handover)
    own = step_of(replace(here, device=device), known.device.link.latency, plan, run_.tokens)
    parts = (step.device, step.up, step.edge, step.down)
    return Foretold(plan, run_.seconds, step.seconds, own.seconds, parts)


def step_of(known: Fit, latency: float, plan: Plan, tokens: float) -> StepCost:
    """The link's latency beyond the shaper's is the one that was found."""
    beyond = max(0.0, latency - FITTED.delay / 1e3)
    link = LinkCost(plan.up * 1e6 / 8, plan.down * 1e6 / 8, plan.delay / 1e3 + beyond)
    workload = Workload(
        known.layers,
        known.hidden,
        round(tokens),
        micro_batches=plan.micro_batches,
        window=CREDITS,
    )
    return step_cost(workload, replace(known.device, link=link), known.edge, plan.cut)


def kendall(pairs: Sequence[tuple[float, float]]) -> float:
    """Tau of two orders, without ties."""
    signs = [(a - c) * (b - d) for (a, b), (c, d) in combinations(pairs, 2)]
    return sum((sign > 0) - (sign < 0) for sign in signs) / len(signs)


def show_fit(device: DeviceCost, edge: EdgeCost) -> None:
    """The costs, in the units that people think in."""
    for name, node in (("device", device.node), ("edge", edge.node)):
        block, own = node.block, node.overhead
        print(
            f"  {name:6} a block: {1e6 * block.forward:.1f} + {1e6 * block.backward:.1f} us a token"
            f", {1e3 * own.forward:.2f} + {1e3 * own.backward:.2f} ms a pass;"
            f" spread {node.spread:.1%}"
        )
    link = device.link
    print(
        f"  link   {8e-6 * link.up:.2f} Mbit/s up, {8e-6 * link.down:.2f} down, "
        f"{1e3 * link.latency:.1f} ms; set were {FITTED.up:g}, {FITTED.down:g}, {FITTED.delay:g}"
    )
    print(f"  from thread to thread {1e3 * device.handover:.1f} ms of each round trip")
    print(f"  bits   {device.bits.activation[-1]:.2f} up, {device.bits.gradient[-1]:.2f} down")
    power: Energy = device.power.energy(1.0, 0.0, 0.0)
    print(f"  energy {power.source}")


def show(each: Foretold) -> None:
    """One line."""
    parts = " ".join(f"{1e3 * part:6.0f}" for part in each.parts)
    print(
        f"  {each.plan!s:52} {1e3 * each.measured:8.0f} ms {1e3 * each.foretold:8.0f} ms "
        f"{each.error:+7.1%} {each.own_error:+7.1%}   ({parts})",
        flush=True,
    )


def main() -> None:
    """Fit, then foretell and run each plan."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--plans", type=int, default=len(PLANS))
    parser.add_argument("--steps", type=int, default=12, help="of a round")
    parser.add_argument("--model", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if given.model is not None:
            needed(given.model)
        model = given.model or make_model(folder / "model")
        shape = json.loads((model / "config.json").read_text())
        layers, hidden = shape["num_hidden_layers"], shape["hidden_size"]
        data = make_data(folder / "data.jsonl")
        began = time.monotonic()
        fitted = train(folder, model, data, FITTED, "fitted", given.steps)
        known = fit(fitted.events, layers, hidden)
        print(f"fitted on two rounds: {FITTED}")
        show_fit(known.device, known.edge)
        print("a step: measured, foretold, error, error by its own run (device, up, edge, down)")
        show(foretell(known, FITTED, fitted))
        print("held out")
        found = []
        for number, plan in enumerate(PLANS[: given.plans]):
            run_ = train(folder, model, data, plan, f"plan{number}", given.steps)
            found.append(foretell(known, plan, run_))
            show(found[-1])
        for words, pairs in (
            ("foretold", [(each.measured, each.foretold) for each in found]),
            ("by the passes of each run", [(each.measured, each.own) for each in found]),
        ):
            summary(words, pairs)
        print(f"{time.monotonic() - began:.0f} s")


def summary(words: str, pairs: Sequence[tuple[float, float]]) -> None:
    """The errors and the order."""
    errors = sorted(abs(told / seen - 1.0) for seen, told in pairs)
    print(
        f"{words}: median error {median(errors):.1%} (aim 5%), worst {errors[-1]:.1%} (aim 15%), "
        f"Kendall's tau {kendall(pairs):.2f} (aim 0.8)"
    )


if __name__ == "__main__":
    main()
