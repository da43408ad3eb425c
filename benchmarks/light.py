"""Devices without a model at a real edge, and the same edge without devices: what benchmarks share.

A light device is sfl's own end of a stream with nothing behind it: it sends one ready-made
activation again and again, through the real codec, frames and shaper, and waits for gradients. What
its blocks would take, it sleeps. All light devices are threads of one process, each with a
connection of its own; the cloud and the edge are processes as always.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Self

import numpy as np
import tomli_w
import torch

from benchmarks.runs import ROOT
from sfl.adapters.initial import initial_adapter
from sfl.adapters.lora import LoraBank, build_manifest, given_values
from sfl.adapters.names import belongs_to
from sfl.config import EdgeConfig, RunSettings
from sfl.data.example import DataNotes, Dataset, Example
from sfl.metrics.stats import NodeStats
from sfl.models.folder import open_model
from sfl.models.span import build_span
from sfl.node.process import keep_heap, quiet_environment
from sfl.plan import Span
from sfl.report.summary import RunSummary
from sfl.rounds.assignment import assign
from sfl.rounds.values import Assignment, EdgeBase, Score, Steps
from sfl.stage.base import lay_over_devices, settle
from sfl.stage.computation import COMPUTATIONS
from sfl.stage.messages import Key, Kind, Purpose, RoundOrder, RoundOutcome, TensorMessage
from sfl.stage.training import VanillaSession
from sfl.stage.training.vanilla import VanillaGroup
from sfl.transport.device.line import dial
from sfl.transport.device.link import DeviceLink
from sfl.transport.security.signed import DeviceSignatures

PATIENCE = 180.0
EXAMPLE = Example((1, 2), (-100, 2))
SAMPLE_EVERY = 3.0  # seconds between two looks at the queue: 64 devices make a long page


@dataclass(frozen=True, slots=True)
class Shape:
    """A batch at the cut: sequences of equal length, and what their labels are of."""

    batch: int
    length: int
    hidden: int
    classes: int
    per_token: bool

    @property
    def tokens(self) -> int:
        """Tokens of one batch."""
        return self.batch * self.length

    @property
    def wire_bytes(self) -> int:
        """Bytes of an activation in fp32, without its headers."""
        return 4 * self.tokens * self.hidden

    def message(self, key: Key) -> TensorMessage:
        """An activation with its labels; the same values each time."""
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(self.tokens, self.hidden, generator=generator)
        count = self.tokens if self.per_token else self.batch
        labels = np.random.default_rng(0).integers(0, self.classes, count).astype(np.int32)
        return TensorMessage(Kind.ACTIVATION, key, 1, (self.length,) * self.batch, rows, labels)


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds that a device's own blocks take in a step."""

    forward: float = 0.0
    backward: float = 0.0


@dataclass(slots=True)
class LightRound:
    """When a device's round began and ended, and (sent, answered) of each of its steps."""

    began: float
    ended: float = 0.0
    turns: list[tuple[float, float]] = field(default_factory=list)


def device_shapes(settings: RunSettings, name: str) -> list[tuple[int, ...]]:
    """Shapes of the adapter's parameters that a device trains."""
    folder, task = open_model(settings.model.path), settings.model.task
    manifest = build_manifest(folder, task, len(settings.model.labels), settings.lora)
    plan = settings.plan(name, folder.num_layers)
    return [p.shape for p in manifest.parameters if belongs_to(p.name, plan.front)]


class LightDevice:
    """Runs the rounds of one device; up to `in_flight` steps are sent before the first answer.

    A real device knows a step's activation only after the step before it, so more than one in
    flight stands for several micro-batches.
    """

    def __init__(self, name: str, shape: Shape, pace: Pace = Pace(), in_flight: int = 1) -> None:
        self.name = name
        self.rounds: list[LightRound] = []
        self.training = False
        self._shape = shape
        self._pace = pace
        self._in_flight = in_flight

    def run(self, address: str) -> None:
        """Take part to the end of the run. Raises SflError."""
        line = dial(address, NodeStats(self.name, "device"), PATIENCE, insecure=False)
        try:
            link = DeviceLink.join(line, DeviceSignatures(self.name), PATIENCE)
            settings = link.joined.settings
            shapes = device_shapes(settings, self.name)
            link.expect(lambda told: shapes, self._shape.hidden)
            link.ready(Dataset([EXAMPLE], [EXAMPLE], "text", DataNotes()))
            for order in link.orders():
                link.deliver(self._round(link, order))
        finally:
            line.close()

    def _round(self, link: DeviceLink, order: RoundOrder) -> RoundOutcome:
        start, own = order.assignment, LightRound(time.perf_counter())
        self.training = start.steps.count > 0
        self._steps(link, start, own)
        own.ended, self.training = time.perf_counter(), False
        if start.steps.count:
            self.rounds.append(own)
        return RoundOutcome(
            round=start.round,
            num_steps=start.steps.count,
            train_loss=0.0,
            num_tokens=start.steps.count * self._shape.tokens,
            train_seconds=own.ended - own.began,
            evaluation=Score(1.0, 1, 0, 1),
            evaluation_seconds=0.0,
            values=order.values,
        )

    def _steps(self, link: DeviceLink, start: Assignment, own: LightRound) -> None:
        template = self._shape.message(Key(Purpose.TRAINING, start.round, 0, 0))
        sent: deque[float] = deque()
        for step in range(start.steps.count):
            if len(sent) == self._in_flight:
                self._land(link, sent, own)
            time.sleep(self._pace.forward)
            sent.append(time.perf_counter())
            link.send(replace(template, key=Key(Purpose.TRAINING, start.round, step, 0)))
        while sent:
            self._land(link, sent, own)

    def _land(self, link: DeviceLink, sent: deque[float], own: LightRound) -> None:
        answer = link.receive()
        assert isinstance(answer, TensorMessage) and answer.kind is Kind.GRADIENT
        own.turns.append((sent.popleft(), time.perf_counter()))
        time.sleep(self._pace.backward)


class Nodes:
    """A cloud and its edges, each a process, as on machines of their own."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], edge: Mapping[str, Any]) -> None:
        """Edges are those that `run.edges` names; else there is one."""
        self._folder = folder
        self._settings, self._edge = settings, edge
        self._processes: list[subprocess.Popen[bytes]] = []
        self.address = ""
        self.addresses: list[str] = []
        """Of all edges; `address` is the first one's."""

    def __enter__(self) -> Self:
        run = {**self._settings["run"], "id": "run", "output_dir": str(self._folder)}
        config = {**self._settings, "run": run}
        try:
            self._open(self._start("cloud", config))
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def _open(self, cloud: str) -> None:
        """Start what is beside the cloud."""
        for name in self._settings["run"].get("edges", ["edge"]):
            edge = {**self._edge, "cloud": cloud, "name": name}
            self.addresses.append(self._start("edge", {"edge": edge}, name))
        self.address = self.addresses[0]

    def _start(self, kind: str, values: Mapping[str, Any], name: str = "") -> str:
        """Start a process; its address, once it listens."""
        name = name or kind
        file, address = self._folder / f"{name}.toml", self._folder / f"{name}.address"
        file.write_text(tomli_w.dumps(values))
        command = [sys.executable, "-m", "sfl.cli", kind, str(file), "--address-file", str(address)]
        with (self._folder / f"{name}.log").open("wb") as log:
            self._processes.append(
                subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, start_new_session=True)
            )
        end = time.monotonic() + PATIENCE
        while not address.exists():
            if self._processes[-1].poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the {kind} did not start:\n{self.log(name)}")
            time.sleep(0.05)
        return address.read_text().strip()

    def log(self, name: str) -> str:
        """What a process has said."""
        return (self._folder / f"{name}.log").read_text()

    def queue_depth(self) -> float:
        """Jobs that wait for the edge's compute thread, or run on it, now."""
        url = re.search(r"metrics at (http://\S+)", self.log("edge"))
        assert url is not None
        with urllib.request.urlopen(url[1], timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        # Devices count no queue, so the largest is the edge's own.
        return max(float(x.rsplit(" ", 1)[1]) for x in lines if x.startswith("sfl_queue_depth{"))

    def summary(self) -> RunSummary:
        """What the run came to, once both processes have ended."""
        for process in self._processes:
            process.wait(PATIENCE)
        if any(process.returncode for process in self._processes):
            raise SystemExit("\n".join(log.read_text() for log in self._folder.glob("*.log")))
        return RunSummary.read(self._folder / "run" / "summary.json")

    def _stop(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()


@dataclass(frozen=True, slots=True)
class Played:
    """What a run of light devices came to; `queue` are looks at the edge's queue."""

    devices: tuple[LightDevice, ...]
    queue: tuple[float, ...]
    summary: RunSummary


def play(
    folder: Path,
    settings: Mapping[str, Any],
    edge: Mapping[str, Any],
    devices: Sequence[LightDevice],
) -> Played:
    """One run to its end, in `folder`, which must be empty."""
    folder.mkdir(parents=True, exist_ok=True)
    queue: list[float] = []
    over = threading.Event()
    with Nodes(folder, settings, edge) as nodes, ThreadPoolExecutor(len(devices)) as pool:

        def look() -> None:
            while not over.wait(SAMPLE_EVERY):
                if all(device.training for device in devices):
                    queue.append(nodes.queue_depth())

        futures = [pool.submit(device.run, nodes.address) for device in devices]
        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        try:
            for future in futures:
                future.result()
        finally:
            over.set()
            watcher.join()
        return Played(tuple(devices), tuple(queue), nodes.summary())


# -- the same edge without devices -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Served:
    """Seconds an edge computes for one activation of a device, and the forward's part of them."""

    seconds: float
    forward: float


class BareEdge:
    """What an edge computes on `device`, without its sockets, queues and threads."""

    def __init__(self, settings: RunSettings, steps: int, device: str = "cpu") -> None:
        self.settings = settings
        folder, task = open_model(settings.model.path), settings.model.task
        labels = len(settings.model.labels)
        plans = {
            entry.name: settings.plan(entry.name, folder.num_layers) for entry in settings.devices
        }
        first = min(plan.middle.first for plan in plans.values())
        own = EdgeConfig(device=device)
        form = settle(own, settings.model, torch.get_num_threads())
        model = build_span(
            folder,
            Span(first, folder.num_layers, embedding=False, head=True),
            task=task,
            num_labels=labels,
            dtype=form.weights,
            packed=COMPUTATIONS[settings.computation].packed,
            autocast=form.autocast,
        )
        lay_over_devices(model, own)
        bank = LoraBank(model, settings.lora, settings.lora.target_modules)
        manifest = build_manifest(folder, task, labels, settings.lora)
        values = initial_adapter(manifest, 0, given_values(folder, manifest))
        self.sessions = {}
        for name, plan in plans.items():
            stats = NodeStats("edge", "edge")  # one for each, so that phases are its own
            base, every = EdgeBase(folder.num_layers), Steps(steps, 0, steps)
            told = assign(settings, base, name, 1, steps=every)
            session = VanillaSession(name, told, model, bank, settings, stats)
            mine = {n: v for n, v in values.items() if belongs_to(n, plan.middle)}
            session.begin_round(told, mine)
            self.sessions[name] = session

    def step(self, names: Sequence[str], shape: Shape, step: int) -> float:
        """Seconds for one activation of each, as one batch where there are several."""
        key = Key(Purpose.TRAINING, 1, step, 0)
        tasks = [(self.sessions[name], shape.message(key)) for name in names]
        began = time.perf_counter()
        if len(tasks) == 1:
            tasks[0][0].handle(tasks[0][1])
        else:
            results = VanillaGroup(self.sessions[names[0]].plan.middle, 0).run(tasks)
            assert all(isinstance(result, list) for result in results)
        return time.perf_counter() - began


def bare(
    settings: Mapping[str, Any],
    shape: Shape,
    threads: int,
    steps: int,
    together: int = 1,
    device: str = "cpu",
) -> dict[str, Served]:
    """Medians over `steps` of every device, in a process of its own with an edge's heap."""
    quiet_environment()
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=keep_heap) as pool:
        return pool.submit(_bare, dict(settings), shape, threads, steps, together, device).result()


def _bare(
    values: dict[str, Any], shape: Shape, threads: int, steps: int, together: int, device: str
) -> dict[str, Served]:
    torch.set_num_threads(threads)
    settings = RunSettings.model_validate(values)
    edge = BareEdge(settings, steps + 1, device)
    names = list(edge.sessions)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for step in range(steps + 1):
        for first in range(0, len(names), together):
            few = names[first : first + together]
            took = edge.step(few, shape, step) / len(few)
            for name in few:
                seconds[name].append(took)
    # The first step makes the optimizers' moments.
    return {
        name: Served(median(own[1:]), median(own[1:]) * _forward_share(edge.sessions[name]))
        for name, own in seconds.items()
    }


def _forward_share(session: VanillaSession) -> float:
    phases = session.stats.phases.snapshot()
    parts = {name: phases[name].seconds for name in phases if name in ("forward", "backward")}
    return parts["forward"] / sum(parts.values()) if parts else 0.0


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the others lie."""
    return sorted(values)[int(share * (len(values) - 1))]


def each(names: Sequence[str], make: Callable[[str], Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The `[[devices]]` of a run."""
    return [{"name": name, **make(name)} for name in names]
