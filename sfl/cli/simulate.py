"""`sfl simulate`: a run of a stated fleet, on a clock of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from sfl.config import RunConfig, dump_toml
from sfl.config.load import load_simulated
from sfl.config.ranges import check_ranges
from sfl.cost.work import ModelShape
from sfl.errors import ConfigError
from sfl.models.folder import open_model
from sfl.models.memory.device_budget import device_load
from sfl.models.memory.footprint import device_footprint
from sfl.models.shape import model_shape
from sfl.node.files import on_disk, writable_folder, write_atomic
from sfl.plan import Plan, without_stages
from sfl.report import text
from sfl.report.fitting import as_table, fitted_from
from sfl.report.plans import PlanFile, plans_of, recorded_plans
from sfl.report.projection import RunProjection
from sfl.report.records import Record, RecordFile
from sfl.report.runs import find_run
from sfl.report.simulated import Teller
from sfl.report.simulation import FIGURES, NOT_SIMULATED, as_dict, write_simulation
from sfl.report.summary import RunSummary
from sfl.rounds import RunEnded
from sfl.rounds.journal import Entry
from sfl.simulate.costs import Legal, stated_memory, stated_shape
from sfl.simulate.fitted import NOTHING_FITTED, Fitted
from sfl.simulate.fleet import Fleet, fleet_of, with_classes
from sfl.simulate.ledger import Outcome
from sfl.simulate.simulation import Simulation, Sofar

MOST_REPORTS = 20_000
"""Rounds of devices that `metrics.jsonl` tells of. Of more it has the cloud's lines alone."""
PROCESS = 250_000_000
"""Bytes of a device's process without a model, as `sfl doctor` measures on most machines."""
HEADER = """\
# The settings of a simulated run, every default filled in.
# `sfl simulate` on this file gives the same numbers again.
"""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a user asks for; 0: as the file says."""

    path: Path
    overrides: tuple[str, ...] = ()
    devices: int = 0
    rounds: int = 0
    as_json: bool = False
    like: str | None = None

    def fitted(self) -> Fitted:
        """What the run has shown that the fleet is to be like. Raises ConfigError, DiskError."""
        if self.like is None:
            return NOTHING_FITTED
        return fitted_from(find_run(self.like, option="--from"))

    def load(self, fitted: Fitted = NOTHING_FITTED) -> RunConfig:
        """The settings, with all devices. Raises ConfigError."""
        overrides = [*self.overrides]
        if self.rounds:
            overrides.append(f"run.rounds={self.rounds}")
        if self.devices:
            overrides.append(f"simulate.devices={self.devices}")
        shown = None if fitted is NOTHING_FITTED else as_table(fitted)
        return load_simulated(self.path, overrides, shown)


def simulate_and_show(asked: Asked) -> int:
    """Simulate a file's run, write its report, and show what came of it; the exit code."""
    console = Console(stderr=asked.as_json)
    fitted = asked.fitted()
    config = with_classes(asked.load(fitted))
    fleet = fleet_of(config, *model_of(config), fitted)
    check_ranges(config, fleet.shape.num_layers)
    folder = simulated_folder(config, asked.path)
    outcome, summary = simulated(config, fleet, folder, console)
    if asked.as_json:
        typer.echo(json.dumps(as_dict(outcome, folder.name)))
    else:
        show(outcome, summary, folder, console)
    return 0 if outcome.ok else 1


def simulated(
    config: RunConfig, fleet: Fleet, folder: Path, console: Console
) -> tuple[Outcome, RunSummary]:
    """Run it, with all files that it leaves. Raises SflError."""
    stated = HEADER + dump_toml(as_stated(config))
    write_atomic(folder / "config.toml", stated)
    few = len(fleet.devices) * config.run.rounds <= MOST_REPORTS
    tokens = fleet.batch.tokens
    teller = Teller(tokens, tokens * fleet.shape.hidden_size, each=few)
    told, written = RunProjection(), list[Record]()
    recorded = recorded_plans(config.planner.policy, config.planner.plans)
    plans = PlanFile(folder)
    with RecordFile(folder / "metrics.jsonl") as file, progress(config, console) as tell:

        def hear(entry: Entry) -> None:
            for record in told.take(entry):
                file.append(record)
                written.append(record)
            told.records.clear()
            while told.plans:
                plans.append(told.plans.pop(0))

        simulation = Simulation(config, fleet, hear, teller, recorded=recorded)
        outcome = simulation.run(tell)
        words = teller.last_words(simulation.workers.values(), outcome)
        simulation.tell(*words, RunEnded(outcome.ok, outcome.reason))
    plans.close()
    summary = told.summary(folder.name, config.settings, None, written, plans_of(folder))
    write_simulation(folder, summary, outcome, stated)
    return outcome, summary


def as_stated(config: RunConfig) -> RunConfig:
    """With one device for a fleet that is made of one, and without the run's id."""
    made = config.simulate is not None and config.simulate.devices > 0
    devices = config.devices[:1] if made else config.devices
    run = config.run.model_copy(update={"id": ""})
    return config.model_copy(update={"devices": devices, "run": run})


def model_of(config: RunConfig) -> tuple[ModelShape, Legal]:
    """The model's shape, and the memory of a cut: as stated, or from the model's headers.

    Raises ConfigError, ModelError.
    """
    stated = config.simulate
    if stated is not None and stated.model is not None:
        return stated_shape(stated.model, config.lora), stated_memory(stated.model)
    folder = open_model(config.model.path)
    labels, targets = len(config.model.labels), config.lora.target_modules
    shape = model_shape(folder, config.model.task, num_labels=labels, target_modules=targets)
    entry = config.devices[0]
    dtype = entry.dtype or config.model.dtype
    quantised = "none" if entry.quantised == "auto" else entry.quantised
    load = device_load(folder, config.settings, config.lora.rank, dtype, quantised)

    topology = without_stages(config.run.topology)

    def needs(cut_layer: int, tail_layers: int) -> int:
        plan = Plan.split(folder.num_layers, cut_layer, tail_layers, topology)
        return device_footprint(folder, plan.device_spans, load, PROCESS).total

    return shape, needs


def simulated_folder(config: RunConfig, path: Path) -> Path:
    """The run's folder, empty: what was simulated before under that name is replaced.

    Raises ConfigError.
    """
    run_id = config.run.id or f"{path.stem}-simulated"
    folder = writable_folder(config.run.output_dir, "run.output_dir").resolve() / run_id
    if folder.exists() and any(folder.iterdir()) and not (folder / FIGURES).exists():
        problem = "a folder of that name exists, and has no simulated run"
        raise ConfigError("run.id", run_id, problem, "Choose another: --set run.id=NAME.")
    with on_disk(folder, "run.output_dir"):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    # So that a simulation that is interrupted does not stand in the way of the next.
    write_atomic(folder / FIGURES, "{}\n")
    return folder


@contextmanager
def progress(config: RunConfig, console: Console) -> Iterator[Show]:
    """A bar over rounds, while it runs."""
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("simulating", total=config.run.rounds)
        yield Show(bar, task, config.run.rounds)


@dataclass(frozen=True, slots=True)
class Show:
    """Moves the bar."""

    bar: Progress
    task: object
    rounds: int

    def __call__(self, so_far: Sofar) -> None:
        """How far the run is."""
        said = f"round {min(so_far.round, self.rounds)} of {self.rounds}"
        said += f", after {text.duration(so_far.seconds)}"
        done = max(0, so_far.round - 1)
        self.bar.update(self.task, description=said, completed=done)  # type: ignore[arg-type]


def show(outcome: Outcome, summary: RunSummary, folder: Path, console: Console) -> None:
    """What came of it, for people."""
    style = "bold green" if outcome.ok else "bold red"
    said = "simulated" if outcome.ok else f"failed: {text.printable(outcome.reason)}"
    console.print(Text(f"Run {summary.run_id} {said}", style=style))
    console.print(Text(NOT_SIMULATED, style="dim"))
    console.print(_table(outcome))
    rounds = outcome.rounds
    mean = sum(own.seconds for own in rounds) / len(rounds) if rounds else 0.0
    begun, done = sum(own.devices for own in rounds), sum(own.delivered for own in rounds)
    busy = max((own.busy for own in outcome.edges), default=0.0)
    share = busy / outcome.seconds if outcome.seconds else 0.0
    lines = (
        f"{len(rounds)} rounds of {text.duration(mean)} in the mean, "
        f"{text.duration(outcome.seconds)} in all",
        f"{done:,} updates counted, of {begun:,} that were begun; {len(summary.faults)} faults",
        f"busiest edge: {text.percent(share)} of the time",
        *(
            f"{own.name}: {text.percent(own.busy / outcome.seconds)} of the time; "
            f"busiest hop to it: {text.percent(own.hop / outcome.seconds)}"
            for own in outcome.stages
            if outcome.seconds
        ),
        f"report: {folder / 'report.html'}",
    )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _table(outcome: Outcome) -> Table:
    table = Table(box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    headings = ("class", "devices", "computes", "sends", "receives", "waits", "sent", "received")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "class" else "right")
    table.title, table.title_justify = "A device's round, in the mean", "left"
    for own in outcome.classes:
        rounds = max(1, own.rounds)
        seconds = (own.computing, own.sending, own.receiving, own.waiting)
        table.add_row(
            Text(own.name, style="bold"),
            f"{own.devices:,}",
            *(text.duration(each / rounds) for each in seconds),
            text.size(own.bytes_up / rounds),
            text.size(own.bytes_down / rounds),
        )
    return table
