"""One device and its edge in one process, through the real codecs and frames: no sockets.

Tensors pass both ends of a stream (`sfl.transport.device.inproc`), so results and bytes are those
of a real run; only gRPC's own framing and time are missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sfl.adapters.initial import initial_adapter
from sfl.adapters.lora import LoraBank, build_manifest, given_values
from sfl.config import RunConfig, load_run
from sfl.config.codec import RoleCodecs
from sfl.data import load_tokenizer, prepare
from sfl.metrics.stats import NodeStats
from sfl.models.folder import open_model
from sfl.models.span import build_span
from sfl.rounds.assignment import assign
from sfl.rounds.values import EdgeBase, Score, Steps
from sfl.stage.base import settle
from sfl.stage.computation import COMPUTATIONS
from sfl.stage.device import DeviceStage
from sfl.stage.messages import Purpose, TensorMessage
from sfl.stage.trainer import Trainer
from sfl.stage.training import TrainingSession, session_of
from sfl.transport.device.end import DeviceEnd, EdgeEnd, End
from sfl.transport.device.inproc import InProcessTraining
from sfl.transport.frames.envelope import Frame

PEER_COMPILED = True  # both ends are this process


@dataclass(slots=True)
class Traffic:
    """Bytes of tensors in one direction, as frames, and at 4 bytes a value."""

    wire: int = 0
    raw: int = 0


class Watched:
    """What passes a link without sockets: bytes in both directions, and the tensors, if asked."""

    def __init__(self) -> None:
        self.up, self.down, self.evaluated = Traffic(), Traffic(), Traffic()
        self.seen: list[TensorMessage] | None = None
        """Where a list, it gets every training tensor before its coding."""

    def __call__(self, sender: End, message: TensorMessage, frames: Sequence[Frame]) -> None:
        if message.rows is None:
            return
        training = message.key.purpose is Purpose.TRAINING
        if training and self.seen is not None:
            self.seen.append(message)
        way = self.up if isinstance(sender, DeviceEnd) else self.down
        counted = way if training else self.evaluated
        counted.wire += sum(frame.wire_bytes for frame in frames)
        counted.raw += 4 * message.rows.numel()


def linked(
    session: TrainingSession, stage: DeviceStage, watch: Watched | None = None
) -> InProcessTraining:
    """A device's link to its session, through the codecs of both ends."""
    own = session.assignment
    device, hidden, phases = session.device, session.model.hidden_size, session.stats.phases
    ours = DeviceEnd(
        device, own, session.settings, NodeStats(device, "device").phases, PEER_COMPILED
    )
    ours.expect(stage.shapes_of, hidden)
    edge = EdgeEnd(device, own, session.settings, phases, PEER_COMPILED)
    edge.allow(hidden, 0)  # updates are taken from the stage itself
    return InProcessTraining(ours, edge, session, watch or Watched())


def uncoded(codecs: RoleCodecs) -> RoleCodecs:
    """The same, with adapters as they are: only tensors are measured here."""
    return codecs.model_copy(update={"adapter": "none"})


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a training came to: held-out scores, the last one over the codec, and bytes."""

    after: Score
    through_codec: Score
    up: Traffic
    down: Traffic


class Simulation:
    """The first device of a run's file, alone with its edge."""

    def __init__(self, config: RunConfig) -> None:
        self.settings = config.settings
        name = config.devices[0].name
        self.device = name
        folder = open_model(self.settings.model.path)
        own = assign(self.settings, EdgeBase(folder.num_layers), name)
        task, num_labels = self.settings.model.task, len(self.settings.model.labels)
        threads = torch.get_num_threads()
        edge = settle(config.edge, self.settings.model, threads)
        device = settle(config.devices[0], self.settings.model, threads)
        model = build_span(
            folder,
            own.plan.middle,
            task=task,
            num_labels=num_labels,
            dtype=edge.weights,
            packed=COMPUTATIONS[self.settings.computation].packed,
            autocast=edge.autocast,
            quantised=edge.quantised,
        )
        bank = LoraBank(model, self.settings.lora, self.settings.lora.target_modules)
        kind = session_of(own.plan.middle)
        self.session = kind(name, own, model, bank, self.settings, NodeStats("edge", "edge"))
        stage = DeviceStage(name, own, folder, self.settings, device)
        self.watched = Watched()
        self.link = linked(self.session, stage, self.watched)
        tokenizer = load_tokenizer(folder.path)
        data = prepare(config.devices[0], name, self.settings, tokenizer)
        self.trainer = Trainer(
            name,
            stage,
            data,
            tokenizer.pad_id,
            self.settings,
            self.link,
            NodeStats(name, "device"),
        )
        manifest = build_manifest(folder, task, num_labels, self.settings.lora)
        self.adapter = initial_adapter(
            manifest, self.settings.run.seed, given_values(folder, manifest)
        )

    def train(self, steps: int) -> Outcome:
        """One round of `steps`, then two of evaluation only."""
        codecs = self.settings.codecs(self.device, 1)
        self.learn(steps)
        after = self._round(2, 0, steps, codecs)
        through_codec, _ = self.evaluate(codecs.activation)
        return Outcome(after, through_codec, self.watched.up, self.watched.down)

    def learn(self, steps: int) -> None:
        """One round of `steps`, without a score."""
        self._round(1, steps, steps, self.settings.codecs(self.device, 1))
        middle = self.session.end_round()
        self.adapter |= middle | self.trainer.stage.state()

    def evaluate(self, codec: str) -> tuple[Score, Traffic]:
        """The adapter's score through a codec of evaluations, and what that took."""
        codecs = self.settings.codecs(self.device, 1).model_copy(update={"evaluation": codec})
        self.watched.evaluated = Traffic()
        score = self._round(3, 0, 1, codecs)
        return score, self.watched.evaluated

    def _round(self, number: int, steps: int, total: int, codecs: RoleCodecs) -> Score:
        assert self.settings.training.micro_batches != "auto", "nothing is timed here"
        start = replace(
            self.session.assignment,
            round=number,
            evaluate="none" if steps else "all",
            steps=Steps(steps, 0, total),
            codecs=uncoded(codecs),
            after=self.link.at,
        )
        outcome = self.trainer.run_round(self.link.begin_round(start, self.adapter))
        if steps:
            self.link.reached(outcome)
        return outcome.evaluation


def alone(config: Path, options: Iterable[str]) -> RunConfig:
    """A run's file with its first device only, whose data are all there are."""
    settings = load_run(config, options)
    return settings.model_copy(update={"devices": settings.devices[:1]})
