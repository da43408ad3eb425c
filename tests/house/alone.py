"""One device and its edge in this process, in three ways: over ends, over gRPC, and not split."""

from __future__ import annotations

import asyncio
import json
import queue
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from peft.utils import get_peft_model_state_dict
from transformers.optimization import get_scheduler

from sfl.adapters.lora import LoraBank
from sfl.adapters.names import belongs_to
from sfl.config import RunSettings
from sfl.data.batches import Batch, Sampler, collate
from sfl.data.example import DataNotes, Dataset, Example
from sfl.metrics.stats import NodeStats
from sfl.models.span import SpanModel, build_span
from sfl.models.teacher import teacher_span
from sfl.plan import Span
from sfl.rounds.assignment import assign
from sfl.rounds.values import (
    BEGINNING,
    NO_STEPS,
    Assignment,
    DeviceFacts,
    DeviceWelcome,
    EdgeBase,
    Point,
    Proof,
    RoundReport,
    Steps,
    UpdateHeader,
)
from sfl.stage.computation import COMPUTATIONS
from sfl.stage.device import DeviceStage
from sfl.stage.distil.cache import RowCache
from sfl.stage.distil.kept_rows import Keeping
from sfl.stage.distil.lesson import Weights
from sfl.stage.distil.lessons import School
from sfl.stage.distil.taught import UNTAUGHT, ByTeacher, Taught
from sfl.stage.distil.teacher import Teacher
from sfl.stage.engine import Engine
from sfl.stage.layout import real_tokens
from sfl.stage.link import Link
from sfl.stage.orders import ORDERS
from sfl.stage.remembered import Within, nobody
from sfl.stage.snapshots import Snapshots
from sfl.stage.trainer import Trainer
from sfl.stage.training import TrainingSession, session_of
from sfl.transport.device.decode_slots import DecodeSlots
from sfl.transport.device.end import DeviceEnd, EdgeEnd
from sfl.transport.device.inproc import InProcessTraining
from sfl.transport.device.lanes import Declared
from sfl.transport.device.served import Admitted
from sfl.transport.device.service import EdgeService
from sfl.transport.device.teaching import teaching_tensors
from sfl.transport.device.training import Training
from sfl.transport.frames.chunks import decode_adapter
from sfl.transport.frames.contract import adapter_limit
from sfl.transport.security.credentials import new_server
from tests.house.links import joined
from tests.house.splits import LORA
from tests.house.tiny_models import PAD, VOCAB, busy_values, manifest_of, opened, peft_model

NAME, STEPS, ROUNDS = "kitchen", 3, 3
PATIENCE = 60.0

TEACHER = json.dumps({"hidden_size": 48, "num_hidden_layers": 5, "intermediate_size": 80})
Values = Mapping[str, np.ndarray]
NONE_KEPT: Mapping[str, Snapshots] = MappingProxyType({})


class Alone:
    """A run of one device with random examples; all that is drawn is drawn again each time."""

    def __init__(
        self,
        topology: str,
        codec: Mapping[str, str],
        strategy: str = "fedavg",
        snapshot_steps: int = 0,
        distil: Mapping[str, Any] = MappingProxyType({}),
        **training: Any,
    ) -> None:
        """With `distil` a larger model of the same kind teaches."""
        self.folder = opened("llama")
        self.teacher_folder = opened("llama", TEACHER)
        self.settings = RunSettings.model_validate(
            {
                "run": {"topology": topology},
                "model": {"path": "m", "max_length": 24},
                "lora": {"rank": LORA.rank, "alpha": LORA.alpha},
                "codec": codec,
                "aggregation": {"strategy": strategy},
                "recovery": {"snapshot_steps": snapshot_steps},
                "distil": {"teacher": "t", **distil} if distil else {},
                "training": {"batch_size": 4, "learning_rate": 1e-2, **training},
                "devices": [{"name": NAME, "cut_layer": 1, "tail_layers": topology != "vanilla"}],
            }
        )
        self.cache: Path | None = None
        """Where what the teacher has said is kept."""
        self.plan = self.settings.plan(NAME, self.folder.num_layers)
        self.manifest = manifest_of(self.folder, "causal_lm", LORA)
        self.first = busy_values(self.manifest)
        random = np.random.default_rng(5)
        lengths = random.integers(6, 20, 13)
        rows = [tuple(map(int, random.integers(3, 60, length))) for length in lengths]
        examples = [Example(ids, (-100, -100, *ids[2:])) for ids in rows]
        self.data = Dataset(examples, examples[:2], "completion", DataNotes())

    def start(self, round_: int) -> Assignment:
        steps = Steps(STEPS, (round_ - 1) * STEPS, ROUNDS * STEPS) if round_ else NO_STEPS
        after = Point(round_ - 1, STEPS) if round_ > 1 else BEGINNING
        base = EdgeBase(self.plan.num_layers)
        return assign(self.settings, base, NAME, round_, steps=steps, after=after)

    def session(self, within: int | None = None) -> TrainingSession:
        """The edge's, over its own blocks only, or all from block `within` on."""
        packed = self.settings.computation == "lean"
        middle, dtype = self.plan.middle, torch.float32
        if within is not None:
            middle = replace(middle, first=within)
        model = build_span(
            self.folder, middle, task="causal_lm", num_labels=2, dtype=dtype, packed=packed
        )
        bank = LoraBank(model, self.settings.lora, self.settings.lora.target_modules)
        kind, stats = session_of(self.plan.middle), NodeStats("edge", "edge")
        return kind(NAME, self.start(0), model, bank, self.settings, stats, school=self.school)

    def _teacher(self, span: Span) -> SpanModel:
        packed = self.settings.computation == "lean"
        return build_span(
            self.teacher_folder,
            span,
            task="causal_lm",
            num_labels=2,
            dtype=torch.float32,
            packed=packed,
        )

    @cached_property
    def school(self) -> School | None:
        """What teaches at the edge, if anything does."""
        own = self.settings.distil
        if not own.is_on:
            return None
        model = self._teacher(teacher_span(self.settings, self.teacher_folder))
        teacher = Teacher(model, COMPUTATIONS[self.settings.computation], VOCAB)
        keeping = Keeping(self.teacher_folder.hidden_size, exact=False)
        cache = None if self.cache is None else RowCache(self.cache, own.cache or 1 << 30)
        return School(teacher, Weights.of(own), keeping, own.likeliest, cache)

    @property
    def _taught(self) -> Taught:
        """The device's part of it."""
        own = self.settings.distil
        if not own.is_on:
            return UNTAUGHT
        front = None
        if own.blocks is not None:
            front = self._teacher(Span(0, own.blocks, embedding=True, head=False))
        computation = COMPUTATIONS[self.settings.computation]
        return ByTeacher(Weights.of(own), computation, VOCAB, front)

    @property
    def named(self) -> tuple[Declared, ...]:
        """What travels beside rows."""
        return teaching_tensors(self.settings, self.teacher_folder.hidden_size, VOCAB)

    def trainer(self, link: Link, stage: DeviceStage) -> Trainer:
        stats = NodeStats(NAME, "device")
        keep = partial(_keep, link.device) if isinstance(link, InProcessTraining) else nobody
        return Trainer(
            NAME, stage, self.data, PAD, self.settings, link, stats, keep=keep, taught=self._taught
        )

    def stage(self) -> DeviceStage:
        return DeviceStage(NAME, self.start(0), self.folder, self.settings)

    # -- three ways -------------------------------------------------------------------------------

    def ends(
        self,
        stage: DeviceStage,
        session: TrainingSession | None = None,
        snapshots: Mapping[str, Snapshots] = NONE_KEPT,
    ) -> InProcessTraining:
        """Both ends, and a session behind one of them; each side's `snapshots` by its name."""
        session = session or self.session()
        hidden = session.model.hidden_size
        phases, theirs = NodeStats(NAME, "device").phases, session.stats.phases
        own, ours = stage.assignment, snapshots.get("device")
        device = DeviceEnd(NAME, own, self.settings, phases, True, None, ours)
        device.expect(stage.shapes_of, hidden, self.named)
        ours = snapshots.get("edge")
        edge = EdgeEnd(NAME, own, self.settings, theirs, True, None, ours)
        edge.allow(hidden, 1 << 24, self.named)
        return InProcessTraining(device, edge, session)

    def over_ends(self) -> dict[str, np.ndarray]:
        """The adapter after all rounds, without a socket."""
        stage = self.stage()
        link = self.ends(stage)
        trainer = self.trainer(link, stage)
        values: dict[str, np.ndarray] = self.first
        for round_ in range(1, ROUNDS + 1):
            order = link.begin_round(self.start(round_), values)
            values = link.end_round(trainer.run_round(order))
        return values

    def over_grpc(self) -> dict[str, np.ndarray]:
        """The same over a stream to this machine."""
        edge = OneEdge(self)
        with edge.serving() as address:
            link = joined(address, NAME, PATIENCE)
            try:
                stage = self.stage()
                link.expect(stage.shapes_of, edge.session.model.hidden_size, self.named)
                trainer = self.trainer(link, stage)
                link.ready(self.data)
                edge.is_ready.wait(PATIENCE)
                orders, values = link.orders(), self.first
                for round_ in range(1, ROUNDS + 1):
                    edge.begin_round(self.start(round_), values)
                    link.deliver(trainer.run_round(next(orders)))
                    values = edge.end_round()
            finally:
                link.close()
        return values

    def unsplit(self) -> dict[str, np.ndarray]:
        """Plain PEFT training on the same batches."""
        options = self.settings.training
        model: Any = peft_model(self.folder, "causal_lm", self.manifest, self.first)
        sampler = Sampler(len(self.data.train), options.batch_size, self.settings.run.seed, NAME)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=options.learning_rate, weight_decay=0.0)
        schedule = get_scheduler(options.schedule, optimizer, 0, ROUNDS * STEPS)
        for step in range(ROUNDS * STEPS):
            batch = collate([self.data.train[i] for i in sampler.indices(step)], PAD)
            mask = real_tokens(batch.lengths, batch.input_ids.shape[1]).long()
            self.unsplit_loss(model, batch, mask).backward()
            if options.max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(trained, options.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        return {name: value.numpy() for name, value in get_peft_model_state_dict(model).items()}

    def unsplit_loss(self, model: Any, batch: Batch, mask: torch.Tensor) -> torch.Tensor:
        """As PEFT has it."""
        loss: torch.Tensor = model(
            input_ids=batch.input_ids, attention_mask=mask, labels=batch.labels
        ).loss
        return loss


class OneEdge:
    """An edge for one device, whose cloud is here: what `EdgeService` asks of a shell."""

    def __init__(self, run: Alone) -> None:
        self.run = run
        self.session = run.session()
        self.stats = self.session.stats
        self.engine = Engine(torch.get_num_threads())
        self.slots = DecodeSlots(2, ORDERS["first_come"])
        self.adapter_limit = adapter_limit(p.shape for p in run.manifest.parameters)
        self._loop = asyncio.new_event_loop()
        opened: asyncio.Future[Any] = self._loop.create_future()
        opened.set_result(self)
        self.service = EdgeService(self.stats, opened)
        self.is_ready = threading.Event()
        self.parts: queue.Queue[dict[str, np.ndarray]] = queue.Queue()
        self.reports: queue.Queue[RoundReport] = queue.Queue()

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Its address, while it is up."""
        thread = threading.Thread(target=self._loop.run_forever)
        thread.start()
        server: Any = self._do(self._started())
        try:
            yield self.address
        finally:
            self._do(self._stopped(server))
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()

    def begin_round(self, start: Assignment, values: Values) -> None:
        middle = self.run.plan.middle
        mine = {name: value for name, value in values.items() if belongs_to(name, middle)}
        theirs = {name: value for name, value in values.items() if name not in mine}
        stream = self.service.streams[NAME]
        self._loop.call_soon_threadsafe(stream.begin_round, start, mine, theirs)

    def end_round(self) -> dict[str, np.ndarray]:
        """Both parts of the adapter, once the round is over."""
        self.reports.get(timeout=PATIENCE)
        return self.parts.get(timeout=PATIENCE) | self.parts.get(timeout=PATIENCE)

    def _do(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(PATIENCE)

    async def _started(self) -> Any:
        server = new_server(None)
        server.add_generic_rpc_handlers((self.service.handler(),))
        self.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        return server

    async def _stopped(self, server: Any) -> None:
        await server.stop(0)
        await self.service.drain()
        self.service.close()
        self.engine.close()

    # -- what the service asks for ----------------------------------------------------------------

    async def admit(self, device: str, proof: Proof, *trips: object) -> Admitted[Training]:
        settings = self.run.settings
        welcome = DeviceWelcome(settings, "alone", self.run.start(0))
        serve = partial(Training, device, self.session, settings, self)
        return Admitted(welcome, self.session.model.hidden_size, serve, self.run.named)

    def ready(self, device: str, facts: DeviceFacts, points: tuple[Point, ...]) -> None:
        self.is_ready.set()

    async def left(self, device: str, reason: Exception) -> None:
        """Nothing is kept."""

    async def relay_adapter(self, header: UpdateHeader, payload: Any) -> None:
        self.parts.put(decode_adapter(payload))

    def relay_report(self, report: RoundReport) -> None:
        self.reports.put(report)

    def heard(self, device: str, snapshot: Any) -> None:
        """Nobody asks."""


def _keep(end: DeviceEnd, within: Within) -> None:
    """As a device does, and at once: whoever kills it next looks for what there is."""
    end.passed(within)
    end.remembered.written()
