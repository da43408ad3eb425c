"""One device and its edge in one process, through the real codecs and frames: no sockets.

Tensors become packets and packets frames exactly as between processes, so results and bytes are
those of a real run; only gRPC's own framing and time are missing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from sfl.adapters.initial import initial_adapter
from sfl.adapters.lora import LoraBank, build_manifest, given_values
from sfl.adapters.names import belongs_to
from sfl.config import RunConfig, load_run
from sfl.config.codec import RoleCodecs
from sfl.data import load_tokenizer, prepare
from sfl.metrics.stats import NodeStats
from sfl.models.folder import open_model
from sfl.models.span import build_span
from sfl.node.buffers import Chunks
from sfl.rounds.values import RoundStart, Score
from sfl.stage.base import settle
from sfl.stage.computation import COMPUTATIONS
from sfl.stage.device import DeviceStage
from sfl.stage.messages import GradientNorm, Message, Purpose, RoundOrder, TensorMessage
from sfl.stage.session import Reply
from sfl.stage.trainer import Trainer
from sfl.stage.training import SESSIONS, TrainingSession
from sfl.transport.device.stream_codecs import StreamCodecs
from sfl.transport.frames.tensors import decode_tensor, encode_tensor

PEER_COMPILED = True  # both ends are this process


@dataclass(slots=True)
class Traffic:
    """Bytes of tensors in one direction, as frames, and at 4 bytes a value."""

    wire: int = 0
    raw: int = 0


class SimulatedLink:
    """Hands each message to a session as its frames would bring it, and back likewise."""

    def __init__(self, session: TrainingSession, device: StreamCodecs, edge: StreamCodecs) -> None:
        self._session = session
        self._device, self._edge = device, edge
        self._replies: deque[Message] = deque()
        self.up, self.down, self.evaluated = Traffic(), Traffic(), Traffic()
        self.seen: list[TensorMessage] | None = None
        """Where a list, it gets every training tensor before its coding."""

    def send(self, message: TensorMessage | GradientNorm) -> None:
        """Have the session do the work at once."""
        for reply in self._session.handle(self._carry(message, self._device, self._edge, self.up)):
            self._replies.append(self._carry(reply, self._edge, self._device, self.down))

    def receive(self) -> Message:
        """The oldest reply that was not taken yet."""
        return self._replies.popleft()

    def _carry(
        self, message: Reply, sender: StreamCodecs, receiver: StreamCodecs, traffic: Traffic
    ) -> Reply:
        if isinstance(message, GradientNorm):
            return message
        training = message.key.purpose is Purpose.TRAINING
        if self.seen is not None and training and message.rows is not None:
            self.seen.append(message)
        frames = encode_tensor(message, sender.encode(message))
        if message.rows is not None:
            counted = traffic if training else self.evaluated
            counted.wire += sum(frame.wire_bytes for frame in frames)
            counted.raw += 4 * message.rows.numel()
        payload = Chunks([piece for frame in frames for piece in frame.data.pieces])
        assert frames[0].header is not None
        arrived, packet = decode_tensor(frames[0].header, payload)
        return arrived if packet is None else receiver.decode(packet, arrived, None)


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
        plan = self.settings.plan(name, folder.num_layers)
        task, num_labels = self.settings.model.task, len(self.settings.model.labels)
        threads = torch.get_num_threads()
        edge = settle(config.edge, self.settings.model, threads)
        device = settle(config.devices[0], self.settings.model, threads)
        model = build_span(
            folder,
            plan.middle,
            task=task,
            num_labels=num_labels,
            dtype=edge.weights,
            packed=COMPUTATIONS[self.settings.computation].packed,
            autocast=edge.autocast,
            quantised=edge.quantised,
        )
        bank = LoraBank(model, self.settings.lora, self.settings.lora.target_modules)
        kind = SESSIONS[self.settings.run.topology]
        self.session = kind(name, plan, model, bank, self.settings, NodeStats("edge", "edge"))
        seed = self.settings.run.seed
        self.cuts = [StreamCodecs(side, name, seed, PEER_COMPILED) for side in ("device", "edge")]
        self.link = SimulatedLink(self.session, *self.cuts)
        tokenizer = load_tokenizer(folder.path)
        data = prepare(config.devices[0], name, self.settings, tokenizer)
        self.trainer = Trainer(
            name,
            DeviceStage(name, plan, folder, self.settings, device),
            data,
            tokenizer.pad_id,
            self.settings,
            self.link,
            NodeStats(name, "device"),
        )
        manifest = build_manifest(folder, task, num_labels, self.settings.lora)
        self.adapter = initial_adapter(manifest, seed, given_values(folder, manifest))

    def train(self, steps: int) -> Outcome:
        """One round of `steps`, then two of evaluation only."""
        codecs = self.settings.codecs(self.device, 1)
        self.learn(steps)
        after = self._round(2, 0, steps, codecs)
        through_codec, _ = self.evaluate(codecs.activation)
        return Outcome(after, through_codec, self.link.up, self.link.down)

    def learn(self, steps: int) -> None:
        """One round of `steps`, without a score."""
        self._round(1, steps, steps, self.settings.codecs(self.device, 1))
        middle = self.session.end_round()
        self.adapter |= middle | self.trainer.stage.state()

    def evaluate(self, codec: str) -> tuple[Score, Traffic]:
        """The adapter's score through a codec of evaluations, and what that took."""
        codecs = self.settings.codecs(self.device, 1).model_copy(update={"evaluation": codec})
        self.link.evaluated = Traffic()
        score = self._round(3, 0, 1, codecs)
        return score, self.link.evaluated

    def _round(self, number: int, steps: int, total: int, codecs: RoleCodecs) -> Score:
        micro_batches = self.settings.training.micro_batches
        assert micro_batches != "auto", "nothing is timed here"
        start = RoundStart(
            number,
            evaluate="none" if steps else "all",
            num_steps=steps,
            first_step=0,
            total_steps=total,
            micro_batches=micro_batches,
        )
        for cut in self.cuts:
            cut.begin_round(codecs, number)
        middle = self.session.plan.middle
        mine = {name: value for name, value in self.adapter.items() if belongs_to(name, middle)}
        theirs = {name: value for name, value in self.adapter.items() if name not in mine}
        self.session.begin_round(start, mine)
        return self.trainer.run_round(RoundOrder(start, theirs)).evaluation


def alone(config: Path, options: Iterable[str]) -> RunConfig:
    """A run's file with its first device only, whose data are all there are."""
    settings = load_run(config, options)
    return settings.model_copy(update={"devices": settings.devices[:1]})
