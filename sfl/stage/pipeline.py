"""Micro-batches in flight on a device: through its front blocks, to the edge, and back.

They land in the order they were launched, so the sums of gradients do not depend on timing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch

from sfl.config import RunSettings
from sfl.errors import AdapterRefused, ProtocolError
from sfl.metrics.costs import Work
from sfl.metrics.stats import NodeStats
from sfl.models.span import ForwardKey, SpanModel
from sfl.rounds.values import NO_SCORE
from sfl.stage.computation import COMPUTATIONS, forward_key
from sfl.stage.device import DeviceStage
from sfl.stage.distil.taught import UNTAUGHT, Taught
from sfl.stage.layout import pack_labels
from sfl.stage.link import Link
from sfl.stage.messages import Key, Kind, Purpose, TensorMessage
from sfl.stage.micro import MicroBatch, row_context
from sfl.stage.timed import end_backward
from sfl.stage.window import Window


@dataclass(slots=True)
class Flight:
    """A micro-batch under way, with the graph that waits for its gradient."""

    micro: MicroBatch
    lengths: tuple[int, ...]
    output: torch.Tensor


def expect_loss(loss: float, device: str, key: Key) -> None:
    """Raise AdapterRefused where a loss is NaN or infinite."""
    if not math.isfinite(loss):
        raise AdapterRefused(
            f"{device}, {key.purpose.name.lower()} of round {key.round}, step {key.step}: the loss "
            f"is {loss}"
        )


def _check_answer(message: TensorMessage, flight: Flight) -> None:
    """Raise ProtocolError where an edge's answer does not fit what it answers."""
    purpose = message.key.purpose
    if (purpose, message.kind) not in _ANSWERS:
        raise ProtocolError(
            f"a {message.kind.name.lower()} came as an answer in {purpose.name.lower()}"
        )
    due = (sum(flight.lengths), flight.output.shape[-1])
    if message.rows is not None and tuple(message.rows.shape) != due:
        raise ProtocolError(
            f"an answer is {list(message.rows.shape)}, and {list(due)} was expected"
        )


_ANSWERS = {
    (Purpose.TRAINING, Kind.ACTIVATION),
    (Purpose.TRAINING, Kind.GRADIENT),
    (Purpose.EVALUATION, Kind.ACTIVATION),
    (Purpose.EVALUATION, Kind.SCORE),
}


class Pipeline:
    """Launches micro-batches and takes their answers; topology is in which answers come.

    `loss` and `score` add up over those that have landed since they were last set to nothing.
    """

    def __init__(
        self,
        device: str,
        stage: DeviceStage,
        settings: RunSettings,
        link: Link,
        stats: NodeStats,
        window: Window,
        taught: Taught = UNTAUGHT,
    ) -> None:
        """`taught` is what this device asks a teacher, and hears of it."""
        self.loss = 0.0
        self.score = NO_SCORE
        self.window = window
        self._device = device
        self._stage = stage
        self._seed = settings.run.seed
        self._taught = taught
        self._computation = COMPUTATIONS[settings.computation]
        self._link = link
        self._stats = stats
        self._flights: dict[Key, Flight] = {}
        self._answers = {
            Kind.GRADIENT: self._land,
            Kind.ACTIVATION: self._finish_locally,
            Kind.SCORE: self._note_score,
        }

    # -- the way out ----------------------------------------------------------------------------

    def begin_step(self) -> None:
        """Nothing is in flight, and no loss is counted."""
        self.loss = 0.0
        self.window.begin_step()

    def end_step(self) -> None:
        """Wait for all answers; the window learns from their times."""
        self.land_all()
        self.window.end_step()
        self._stats.window = self.window.size

    def launch(self, micro: MicroBatch) -> None:
        """Send a micro-batch on its way, once there is room for it in flight."""
        training = micro.key.purpose is Purpose.TRAINING
        self._make_room(self.window.size if training else self.window.granted)
        began = self._stats.phases.now()
        self._launch(micro)
        if training:
            self.window.launched(began, self._stats.phases.now())

    def _make_room(self, most: int) -> None:
        """Land answers until another micro-batch may be launched."""
        while len(self._flights) >= most:
            self._take_answer()

    def _launch(self, micro: MicroBatch) -> None:
        """Front blocks, then off to the edge."""
        batch = micro.batch
        with self._stats.phases.measure("collate", micro.key, self._device, Work(0, passes=0)):
            lengths = tuple(batch.lengths.tolist())
            labels = pack_labels(batch.labels, lengths) if self._stage.tail is None else None
            context = row_context(micro)
            beside = self._taught.asks(micro)
        with self._stats.phases.measure("forward", micro.key, self._device):
            output = self._through_front(micro, sum(lengths))
            rows = self._computation.rows(output.detach(), lengths)
            self._flights[micro.key] = Flight(micro, lengths, output)
            self._stats.queue_depth = len(self._flights)
            self._link.send(
                TensorMessage(
                    kind=Kind.ACTIVATION,
                    key=micro.key,
                    num_micro_batches=micro.num_micro_batches,
                    lengths=lengths,
                    rows=rows,
                    labels=labels,
                    normalizer=micro.normalizer,
                    context=context,
                    ids=beside.ids,
                    sequence_keys=beside.keys,
                    named=beside.named,
                )
            )

    def _through_front(self, micro: MicroBatch, tokens: int) -> torch.Tensor:
        """Embedding and blocks, each timed by itself."""
        front, lengths, key = self._stage.front.model, micro.batch.lengths, micro.key
        drawn_by = self._forward_key(key)
        part = partial(self._stats.phases.part, "forward", key, self._device)
        with part(Work(tokens, embedding=True)):
            embedded = front.embed(self._computation.tokens(micro.batch), lengths, key=drawn_by)
        with part(Work(tokens, front.span.num_blocks)):
            return front.blocks(embedded, lengths, key=drawn_by)

    # -- the way back --------------------------------------------------------------------------

    def land_all(self) -> None:
        """Wait until nothing is in flight."""
        while self._flights:
            self._take_answer()

    def _take_answer(self) -> None:
        message = self._link.receive()
        if not isinstance(message, TensorMessage) or message.key not in self._flights:
            raise ProtocolError("the edge answered with something that was not asked for")
        _check_answer(message, self._flights[message.key])
        began = self._stats.phases.now()
        in_flight = len(self._flights)
        self._answers[message.kind](message)
        self.window.answered(self._stats.phases.now() - began)
        if len(self._flights) < in_flight:
            self.window.landed(began if message.arrived is None else message.arrived)
        self._stats.queue_depth = len(self._flights)

    def _land(self, message: TensorMessage) -> None:
        """The gradient is back: run it through the front blocks."""
        flight = self._flights.pop(message.key)
        self.loss += message.loss
        expect_loss(self.loss, self._device, message.key)
        if message.rows is None:
            return
        work = Work(sum(flight.lengths), self._stage.front.span.num_blocks)
        with self._stats.phases.measure("backward", flight.micro.key, self._device, work):
            gradient = self._computation.hidden(message.rows, flight.lengths)
            flight.output.backward(gradient)  # type: ignore[no-untyped-call]

    def _finish_locally(self, message: TensorMessage) -> None:
        """Hidden states are back (U-shaped): tail, head and loss, with labels of its own."""
        finish = {
            Purpose.TRAINING: self._train_tail,
            Purpose.EVALUATION: self._score_tail,
        }
        finish[message.key.purpose](message, self._flights[message.key])

    def _train_tail(self, message: TensorMessage, flight: Flight) -> None:
        micro, tokens = flight.micro, sum(flight.lengths)
        phases, device = self._stats.phases, self._device
        labels = pack_labels(micro.batch.labels, flight.lengths)
        lesson = self._taught.lesson(message, labels)
        with phases.measure("forward", micro.key, device):
            boundary = self._boundary(message, flight).requires_grad_()
            output = self._through_tail(boundary, flight)
            with phases.part("forward", micro.key, device, Work(tokens, head=True)):
                loss = self._computation.loss(
                    self._tail,
                    output,
                    flight.lengths,
                    labels,
                    micro.normalizer or None,
                    self._forward_key(micro.key),
                    lesson,
                )
        with end_backward(phases, [(micro.key, device, tokens)], self._tail_blocks, output):
            loss.backward()  # type: ignore[no-untyped-call]
            self.loss += float(loss.detach())
            expect_loss(self.loss, self._device, micro.key)
            assert boundary.grad is not None
            rows = self._computation.rows(boundary.grad, flight.lengths)
        self._link.send(
            TensorMessage(
                kind=Kind.GRADIENT,
                key=micro.key,
                num_micro_batches=micro.num_micro_batches,
                lengths=flight.lengths,
                rows=rows,
            )
        )

    def _score_tail(self, message: TensorMessage, flight: Flight) -> None:
        del self._flights[message.key]
        with self._stats.phases.measure("forward", message.key, self._device):
            with torch.no_grad():
                output = self._through_tail(self._boundary(message, flight), flight)
            labels = pack_labels(flight.micro.batch.labels, flight.lengths)
            work = Work(sum(flight.lengths), head=True)
            with self._stats.phases.part("forward", message.key, self._device, work):
                self.score += self._computation.score(self._tail, output, flight.lengths, labels)
        expect_loss(self.score.loss_sum, self._device, message.key)

    def _note_score(self, message: TensorMessage) -> None:
        del self._flights[message.key]
        self.score += message.score
        expect_loss(self.score.loss_sum, self._device, message.key)

    @property
    def _tail(self) -> SpanModel:
        if self._stage.tail is None:
            raise ProtocolError("hidden states came back, but this device has no tail")
        return self._stage.tail.model

    def _boundary(self, message: TensorMessage, flight: Flight) -> torch.Tensor:
        if message.rows is None:
            raise ProtocolError("hidden states came back empty")
        return self._computation.hidden(message.rows, flight.lengths)

    def _through_tail(self, boundary: torch.Tensor, flight: Flight) -> torch.Tensor:
        key = flight.micro.key
        work = Work(sum(flight.lengths), self._tail_blocks)
        with self._stats.phases.part("forward", key, self._device, work):
            lengths, drawn_by = flight.micro.batch.lengths, self._forward_key(key)
            return self._tail.blocks(boundary, lengths, key=drawn_by)

    @property
    def _tail_blocks(self) -> int:
        return self._tail.span.num_blocks

    def _forward_key(self, key: Key) -> ForwardKey | None:
        return forward_key(self._seed, self._device, key)
