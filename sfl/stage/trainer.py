"""The device's side of a round: launch micro-batches, land their gradients, step.

Several micro-batches are in flight at once, as many as keep device, link and edge busy and as the
edge's credits allow (`sfl.stage.window`). They land in the order they were launched, so the sums of
gradients do not depend on timing.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from sfl.codec import RowContext
from sfl.config import RunSettings
from sfl.data.batches import Batch, Sampler, collate, split_micro
from sfl.data.example import Dataset, Example
from sfl.errors import AdapterRefused, ProtocolError
from sfl.metrics.stats import Measurement, NodeStats
from sfl.metrics.timeline import watched_step
from sfl.models.span import ForwardKey, SpanModel
from sfl.rounds.values import NO_SCORE, RoundStart, Score
from sfl.stage.computation import COMPUTATIONS
from sfl.stage.device import DeviceStage
from sfl.stage.layout import pack_labels, real_tokens
from sfl.stage.link import Link
from sfl.stage.messages import (
    GradientNorm,
    Key,
    Kind,
    Purpose,
    RoundOrder,
    RoundOutcome,
    Stack,
    TensorMessage,
)
from sfl.stage.optimizer import Optimizer
from sfl.stage.window import Window

log = logging.getLogger(__name__)

REHEARSED = 2  # timed steps of each number of micro-batches


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """A piece of a step's batch; `normalizer` counts the targets of the whole, 0 if alone."""

    key: Key
    num_micro_batches: int
    normalizer: int
    batch: Batch
    examples: tuple[int, ...] = ()


@dataclass(slots=True)
class Flight:
    """A micro-batch under way, with the graph that waits for its gradient."""

    micro: MicroBatch
    lengths: tuple[int, ...]
    output: torch.Tensor


def row_context(micro: MicroBatch) -> RowContext | None:
    """What a codec may know the rows of a training batch by."""
    if micro.key.purpose is Purpose.EVALUATION:
        return None
    ids, lengths = micro.batch.input_ids, micro.batch.lengths
    width = ids.shape[1]
    real = real_tokens(lengths, width)
    previous = torch.full_like(ids, -1)
    previous[:, 1:] = ids[:, :-1]
    positions = torch.arange(width).expand(ids.shape)
    examples = torch.tensor(micro.examples)[:, None].expand(ids.shape)
    columns = (ids, previous + 1, examples, positions)  # keys are not negative
    return RowContext(*(column[real].numpy().astype(np.int64) for column in columns))


def _expect_finite(order: RoundOrder) -> None:
    """Raise AdapterRefused where the round's adapter holds what nobody can compute with."""
    for name, values in order.values.items():
        if not np.isfinite(values).all():
            raise AdapterRefused(f"adapter of round {order.start.round}: {name} is not finite")


def _expect_loss(loss: float, device: str, key: Key) -> None:
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
        raise ProtocolError(f"an answer is {list(message.rows.shape)}, and {list(due)} was due")


_ANSWERS = {
    (Purpose.TRAINING, Kind.HIDDEN),
    (Purpose.TRAINING, Kind.GRADIENT),
    (Purpose.EVALUATION, Kind.HIDDEN),
    (Purpose.EVALUATION, Kind.SCORE),
}


class Trainer:
    """Runs rounds on one device over a link; topology is in which answers its edge sends.

    `rest` is called between steps, when nothing is in flight, and returns when the device may
    compute. At most `allowance` micro-batches are in flight, by default `network.credits`; in
    training the window may be narrower.
    """

    def __init__(
        self,
        device: str,
        stage: DeviceStage,
        dataset: Dataset,
        pad_id: int,
        settings: RunSettings,
        link: Link,
        stats: NodeStats,
        rest: Callable[[], None] = lambda: None,
        allowance: int | None = None,
    ) -> None:
        self.device = device
        self.stage = stage
        self.dataset = dataset
        self.pad_id = pad_id
        self.settings = settings
        self.link = link
        self.stats = stats
        self.rest = rest
        granted = settings.network.credits if allowance is None else allowance
        self.window = Window(1 if stage.micro_batches > 1 else granted)
        self.computation = COMPUTATIONS[settings.computation]
        self.optimizer = Optimizer(stage.parameters, settings.training, settings.aggregation)
        self.sampler = Sampler(
            len(dataset.train), settings.training.batch_size, settings.run.seed, device
        )
        self._flights: dict[Key, Flight] = {}
        self._loss = 0.0
        self._score = NO_SCORE
        self._answers = {
            Kind.GRADIENT: self._land,
            Kind.HIDDEN: self._finish_locally,
            Kind.SCORE: self._note_score,
        }

    def fold(self, stack: Stack) -> None:
        """Add what the round before gave to this device's base, for good."""
        self.stage.fold(stack.values)

    def run_round(self, order: RoundOrder) -> RoundOutcome:
        """Evaluate the global adapter, train from it, and tell what came of it."""
        start = order.start
        _expect_finite(order)
        self.stage.load(order.values, start.round)
        self.optimizer.begin_round()
        if start.rehearse:
            return self.rehearse(start)
        self.stats.start_round(start.round, start.num_steps)
        self.rest()
        began = time.perf_counter()
        score, sample = self.evaluate(start)
        self._note_quality(score, start.round - 1)
        evaluated = time.perf_counter()
        losses, tokens = [], 0
        self.stats.phases.timeline.watch(self.device, start.round, watched_step(start.num_steps))
        self.stage.train(True)
        for step in range(start.num_steps):
            self.rest()
            loss, num_tokens = self.train_step(start, step)
            losses.append(loss)
            tokens += num_tokens
            self.stats.finish_step(loss, num_tokens)
            if self.stats.steps_total == 1:
                log.info("first step taken")
        self.optimizer.check_finite()
        return RoundOutcome(
            round=start.round,
            num_steps=start.num_steps,
            train_loss=sum(losses) / len(losses) if losses else 0.0,
            num_tokens=tokens,
            train_seconds=time.perf_counter() - evaluated,
            evaluation=score,
            evaluation_seconds=evaluated - began,
            values=self.stage.state(),
            spans=tuple(self.stats.phases.timeline.take(self.device)),
            sample=sample,
        )

    def rehearse(self, start: RoundStart) -> RoundOutcome:
        """Time steps of different numbers of micro-batches, and forget what they would change."""
        self.stage.train(True)
        seconds = []
        step = 0
        for count in start.rehearse:
            attempt = replace(start, micro_batches=count)
            self.window = Window(self.window.granted)
            times = []
            for _ in range(REHEARSED + (step == 0)):  # the very first one warms up
                began = time.perf_counter()
                self._exchange(attempt, step)
                self.optimizer.forget()
                times.append(time.perf_counter() - began)
                step += 1
            seconds.append(min(times))
        return RoundOutcome(
            round=start.round,
            num_steps=0,
            train_loss=0.0,
            num_tokens=0,
            train_seconds=sum(seconds),
            evaluation=NO_SCORE,
            evaluation_seconds=0.0,
            values={},
            rehearsal=tuple(seconds),
        )

    def train_step(self, start: RoundStart, step: int) -> tuple[float, int]:
        """One optimizer step on both sides of the cut: (mean loss, real tokens)."""
        num_tokens = self._exchange(start, step)
        with self._stepping(start, step):
            self.optimizer.step(start.first_step + step, start.total_steps)
        return self._loss, num_tokens

    def _stepping(self, start: RoundStart, step: int) -> Measurement:
        """The time of what is done once a step."""
        here = Key(Purpose.TRAINING, start.round, step, 0)
        return self.stats.phases.measure("step", here, self.device)

    def _exchange(self, start: RoundStart, step: int) -> int:
        """A step's micro-batches out and back, their gradients summed and clipped: real tokens."""
        self._loss, num_tokens = 0.0, 0
        self.window.begin_step()
        for micro in self._micro_batches(start, step):
            self._make_room(self.window.size)
            began = self.stats.phases.now()
            self._launch(micro)
            self.window.launched(began, self.stats.phases.now())
            num_tokens += micro.batch.num_tokens
        self._land_all()
        self.window.end_step()
        self.stats.window = self.window.size
        with self._stepping(start, step):
            self.optimizer.pull()
        self._clip(start, step)
        return num_tokens

    def evaluate(self, start: RoundStart) -> tuple[Score, Score]:
        """Score held-out examples through the split model, in batches as large as training's.

        The score over all that are due, and over those that every evaluation takes.
        """
        self._score = NO_SCORE
        if start.evaluate == "none":
            return NO_SCORE, NO_SCORE
        self.stage.train(False)
        number = self._evaluate(start, self.dataset.sampled, 0)
        sample = self._score
        if start.evaluate == "all":
            self._evaluate(start, self.dataset.unsampled, number)
        return self._score, sample

    def _evaluate(self, start: RoundStart, examples: list[Example], number: int) -> int:
        """Add these examples' score, in batches numbered from `number` on; the next number."""
        size = -(-self.settings.training.batch_size // self._pieces(start))
        for first in range(0, len(examples), size):
            self._make_room(self.window.granted)
            key = Key(Purpose.EVALUATION, start.round, number, 0)
            with self.stats.phases.measure("collate", key, self.device):
                batch = collate(examples[first : first + size], self.pad_id)
            with torch.no_grad():
                self._launch(MicroBatch(key, 1, 0, batch))
            number += 1
        self._land_all()
        return number

    def _note_quality(self, score: Score, adapter: int) -> None:
        """Show the evaluation in the statistics; plain text has no accuracy."""
        if score.num_targets:
            self.stats.eval_round = adapter
            self.stats.eval_loss = score.loss_sum / score.num_targets
        if score.num_examples and self.dataset.kind != "text":
            self.stats.eval_accuracy = score.num_correct / score.num_examples

    # -- the way out ----------------------------------------------------------------------------

    def _micro_batches(self, start: RoundStart, step: int) -> Iterator[MicroBatch]:
        """The step's batch, cut up; each piece knows the targets of the whole."""
        train = self.dataset.train
        here = Key(Purpose.TRAINING, start.round, step, 0)
        with self.stats.phases.measure("collate", here, self.device):
            indices = self.sampler.indices(start.first_step + step)
            pieces = split_micro(indices, self._pieces(start))
            batches = [collate([train[index] for index in piece], self.pad_id) for piece in pieces]
        # One micro-batch takes the plain mean, bit for bit what an unsplit step does.
        normalizer = sum(b.num_targets for b in batches) if len(batches) > 1 else 0
        for number, batch in enumerate(batches):
            key = Key(Purpose.TRAINING, start.round, step, number)
            yield MicroBatch(key, len(batches), normalizer, batch, tuple(pieces[number]))

    def _pieces(self, start: RoundStart) -> int:
        """Of a batch: as many as the run wants, or this device's memory."""
        return max(start.micro_batches, self.stage.micro_batches)

    def _make_room(self, most: int) -> None:
        """Land answers until another micro-batch may be launched."""
        while len(self._flights) >= most:
            self._take_answer()

    def _launch(self, micro: MicroBatch) -> None:
        """Front blocks, then off to the edge."""
        batch, key = micro.batch, self._forward_key(micro.key)
        with self.stats.phases.measure("collate", micro.key, self.device):
            lengths = tuple(batch.lengths.tolist())
            labels = pack_labels(batch.labels, lengths) if self.stage.tail is None else None
            context = row_context(micro)
        with self.stats.phases.measure("forward", micro.key, self.device):
            front = self.stage.front.model
            embedded = front.embed(self.computation.tokens(batch), batch.lengths, key=key)
            output = front.blocks(embedded, batch.lengths, key=key)
            rows = self.computation.rows(output.detach(), lengths)
            self._flights[micro.key] = Flight(micro, lengths, output)
            self.stats.queue_depth = len(self._flights)
            self.link.send(
                TensorMessage(
                    kind=Kind.ACTIVATION,
                    key=micro.key,
                    num_micro_batches=micro.num_micro_batches,
                    lengths=lengths,
                    rows=rows,
                    labels=labels,
                    normalizer=micro.normalizer,
                    context=context,
                )
            )

    # -- the way back --------------------------------------------------------------------------

    def _land_all(self) -> None:
        while self._flights:
            self._take_answer()

    def _take_answer(self) -> None:
        message = self.link.receive()
        if not isinstance(message, TensorMessage) or message.key not in self._flights:
            raise ProtocolError("the edge answered with something that was not asked for")
        _check_answer(message, self._flights[message.key])
        began = self.stats.phases.now()
        in_flight = len(self._flights)
        self._answers[message.kind](message)
        self.window.answered(self.stats.phases.now() - began)
        if len(self._flights) < in_flight:
            self.window.landed(began if message.arrived is None else message.arrived)
        self.stats.queue_depth = len(self._flights)

    def _land(self, message: TensorMessage) -> None:
        """The gradient is back: run it through the front blocks."""
        flight = self._flights.pop(message.key)
        self._loss += message.loss
        _expect_loss(self._loss, self.device, message.key)
        if message.rows is None:
            return
        with self.stats.phases.measure("backward", flight.micro.key, self.device):
            gradient = self.computation.hidden(message.rows, flight.lengths)
            flight.output.backward(gradient)  # type: ignore[no-untyped-call]

    def _finish_locally(self, message: TensorMessage) -> None:
        """Hidden states are back (U-shaped): tail, head and loss, labels at hand."""
        finish = {
            Purpose.TRAINING: self._train_tail,
            Purpose.EVALUATION: self._score_tail,
        }
        finish[message.key.purpose](message, self._flights[message.key])

    def _train_tail(self, message: TensorMessage, flight: Flight) -> None:
        micro = flight.micro
        with self.stats.phases.measure("forward", micro.key, self.device):
            boundary = self._boundary(message, flight).requires_grad_()
            loss = self.computation.loss(
                self._tail,
                self._through_tail(boundary, flight),
                flight.lengths,
                pack_labels(micro.batch.labels, flight.lengths),
                micro.normalizer or None,
                self._forward_key(micro.key),
            )
        with self.stats.phases.measure("backward", flight.micro.key, self.device):
            loss.backward()  # type: ignore[no-untyped-call]
            self._loss += float(loss.detach())
            _expect_loss(self._loss, self.device, micro.key)
            assert boundary.grad is not None
            rows = self.computation.rows(boundary.grad, flight.lengths)
        self.link.send(
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
        with self.stats.phases.measure("forward", message.key, self.device):
            with torch.no_grad():
                output = self._through_tail(self._boundary(message, flight), flight)
            labels = pack_labels(flight.micro.batch.labels, flight.lengths)
            self._score += self.computation.score(self._tail, output, flight.lengths, labels)
        _expect_loss(self._score.loss_sum, self.device, message.key)

    def _note_score(self, message: TensorMessage) -> None:
        del self._flights[message.key]
        self._score += message.score
        _expect_loss(self._score.loss_sum, self.device, message.key)

    @property
    def _tail(self) -> SpanModel:
        if self.stage.tail is None:
            raise ProtocolError("hidden states came back, but this device has no tail")
        return self.stage.tail.model

    def _boundary(self, message: TensorMessage, flight: Flight) -> torch.Tensor:
        if message.rows is None:
            raise ProtocolError("hidden states came back empty")
        return self.computation.hidden(message.rows, flight.lengths)

    def _through_tail(self, boundary: torch.Tensor, flight: Flight) -> torch.Tensor:
        key = self._forward_key(flight.micro.key)
        return self._tail.blocks(boundary, flight.micro.batch.lengths, key=key)

    # -- the step ------------------------------------------------------------------------------

    def _clip(self, start: RoundStart, step: int) -> None:
        """Exchange squared norms with the edge, so that both scale by the same number."""
        if self.settings.training.max_grad_norm is None:
            return
        with self._stepping(start, step):
            own = self.optimizer.squared_norm()
        self.link.send(GradientNorm(start.round, step, own))
        other = self.link.receive()
        if not isinstance(other, GradientNorm) or other.step != step:
            raise ProtocolError(f"the edge's gradient norm of step {step} was due")
        with self._stepping(start, step):  # the edge adds in the same order: the device's first
            self.optimizer.clip(own + other.squared)

    def _forward_key(self, key: Key) -> ForwardKey | None:
        if key.purpose is Purpose.EVALUATION:
            return None
        seed = self.settings.run.seed
        return ForwardKey(seed, self.device, key.round, key.step, key.micro_batch)
