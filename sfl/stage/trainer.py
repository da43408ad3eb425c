"""The device's side of a round: launch micro-batches, land their gradients, step.

Several micro-batches are in flight at once, as many as keep device, link and edge busy and as the
edge's credits allow (`sfl.stage.window`). They land in the order they were launched, so the sums of
gradients do not depend on timing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from sfl.config import RunSettings
from sfl.data.example import Dataset, Example
from sfl.errors import AdapterRefused, ProtocolError
from sfl.metrics.costs import Work
from sfl.metrics.stats import Measurement, NodeStats
from sfl.metrics.timeline import watched_step
from sfl.plan import given_by
from sfl.rounds.values import NO_SCORE, Assignment, Point, Score
from sfl.stage.device import DeviceStage
from sfl.stage.distil.taught import UNTAUGHT, Taught
from sfl.stage.link import Link
from sfl.stage.messages import (
    BaseUpdate,
    BlockMoments,
    GradientNorm,
    Key,
    Purpose,
    RoundOrder,
    RoundOutcome,
)
from sfl.stage.micro import MicroBatches
from sfl.stage.optimizer import NO_MOMENTS, Optimizer
from sfl.stage.pipeline import Pipeline
from sfl.stage.remembered import Within, nobody
from sfl.stage.so_far import SoFar
from sfl.stage.window import Window

log = logging.getLogger(__name__)

REHEARSED = 2  # timed steps of each number of micro-batches


def expect_finite(order: RoundOrder) -> None:
    """Raise AdapterRefused where the round's adapter holds what nobody can compute with."""
    for name, values in order.values.items():
        if not np.isfinite(values).all():
            raise AdapterRefused(f"adapter of round {order.assignment.round}: {name} is not finite")


class Trainer:
    """Runs rounds on one device over a link.

    `rest` is called between steps, when nothing is in flight, and returns when the device may
    compute. `keep` is given what there is after some steps, a copy. As many
    micro-batches are in flight as the assignment has credits; in training the window may be
    narrower.
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
        keep: Callable[[Within], None] = nobody,
        taught: Taught = UNTAUGHT,
    ) -> None:
        self.device = device
        self.stage = stage
        self.dataset = dataset
        self.settings = settings
        self.link = link
        self.stats = stats
        self.rest = rest
        self.keep = keep
        window = Window(self._granted(stage.assignment))
        self.pipeline = Pipeline(device, stage, settings, link, stats, window, taught)
        self.batches = MicroBatches(device, dataset, pad_id, settings, stats, stage.micro_batches)
        self.optimizer = Optimizer(stage.parameters, settings.training, settings.aggregation)
        self.optimizer.forget()  # what a trainer left whose link broke within a step

    def _granted(self, own: Assignment) -> int:
        """Micro-batches in flight: one piece at a time where that is all that memory holds."""
        return 1 if self.stage.micro_batches > 1 else own.credits

    def _take(self, order: RoundOrder) -> None:
        """Be built for a round's assignment, with the moments of what stays and what comes."""
        own = order.assignment
        self._hand_over(order)
        if order.go_on.moments is not None:
            self.optimizer.let_go()
        if self.stage.take(own):
            held = self.optimizer.held()
            options = self.settings
            self.optimizer = Optimizer(self.stage.parameters, options.training, options.aggregation)
            self.optimizer.adopt(held)
        self.optimizer.adopt(order.go_on.moments or NO_MOMENTS)
        self.optimizer.adopt(order.moments)
        if order.go_on.moves or self.pipeline.window.granted != self._granted(own):
            self.pipeline.window = Window(self._granted(own))

    def _hand_over(self, order: RoundOrder) -> None:
        """Send the edge the moments of the blocks that it gets, before anything changes here."""
        if blocks := given_by("device", order.go_on.moves):
            moments = order.go_on.of_blocks(blocks, self.optimizer.moments())
            self.link.send(BlockMoments(order.assignment.round, moments))

    def fold(self, base_update: BaseUpdate) -> None:
        """Add what a round gave to this device's base, for good, unless that was done before.

        Raises ProtocolError where a round before it is missing.
        """
        self.stage.fold(base_update.values, base_update.round)

    def run_round(self, order: RoundOrder) -> RoundOutcome:
        """Evaluate the global adapter, train from it, and tell what came of it.

        The optimizer's moments are the order's; without, they stay where they mean the same, by
        name. A block that changes sides takes its own along. An order within a round goes on with
        its next step.
        """
        own = order.assignment
        expect_finite(order)
        self._take(order)
        self.stage.load(order.values, own.round)
        self.optimizer.begin_round()
        if own.rehearse:
            return self.rehearse(own)
        self.stats.start_round(own.round, own.steps.count)
        self.rest()
        began = time.perf_counter()
        so_far = self._so_far(order)
        evaluated = time.perf_counter()
        self.stats.phases.timeline.watch(self.device, own.round, watched_step(own.steps.count))
        self.stage.train(True)
        for step in range(order.go_on.step, own.steps.count):
            self.rest()
            loss, num_tokens = self.train_step(own, step)
            so_far.took(loss, num_tokens)
            self.stats.finish_step(loss, num_tokens)
            if self.stats.steps_total == 1:
                log.info("first step taken")
            if step + 1 < own.steps.count and self.settings.recovery.due(step + 1):
                self.keep(self._within(own.point(step + 1), so_far))
        self.optimizer.check_finite()
        return RoundOutcome(
            round=own.round,
            num_steps=own.steps.count,
            train_loss=so_far.mean_loss,
            num_tokens=so_far.tokens,
            train_seconds=time.perf_counter() - evaluated,
            evaluation=so_far.score,
            evaluation_seconds=evaluated - began,
            values=self.stage.state(),
            spans=tuple(self.stats.phases.timeline.take(self.device)),
            sample=so_far.sample,
            moments=self.optimizer.moments(),
        )

    def _so_far(self, order: RoundOrder) -> SoFar:
        """What of the round is behind: the evaluation, and any steps that a snapshot has."""
        own, go_on = order.assignment, order.go_on
        if not go_on.step:
            score, sample = self.evaluate(own)
            so_far = SoFar(score, sample)
        else:
            self.stage.resume(go_on.values)
            self.optimizer.adopt(go_on.moments or NO_MOMENTS)
            so_far = SoFar.of(go_on.facts)
            log.info("round %d goes on after step %d", own.round, go_on.step)
        self._note_quality(so_far.score, own.round - 1)
        return so_far

    def _within(self, point: Point, so_far: SoFar) -> Within:
        moments = {name: tensor.clone() for name, tensor in self.optimizer.moments().items()}
        values = {name: array.copy() for name, array in self.stage.whole().items()}
        return Within(point, moments, values, so_far.facts())

    def rehearse(self, own: Assignment) -> RoundOutcome:
        """Time steps of different numbers of micro-batches, and forget what they would change."""
        self.stage.train(True)
        seconds = []
        step = 0
        for count in own.rehearse:
            attempt = replace(own, micro_batches=count)
            self.pipeline.window = Window(self.pipeline.window.granted)
            times = []
            for _ in range(REHEARSED + (step == 0)):  # the very first one warms up
                began = time.perf_counter()
                self._exchange(attempt, step)
                self.optimizer.forget()
                times.append(time.perf_counter() - began)
                step += 1
            seconds.append(min(times))
        return RoundOutcome(
            round=own.round,
            num_steps=0,
            train_loss=0.0,
            num_tokens=0,
            train_seconds=sum(seconds),
            evaluation=NO_SCORE,
            evaluation_seconds=0.0,
            values={},
            rehearsal=tuple(seconds),
        )

    def train_step(self, own: Assignment, step: int) -> tuple[float, int]:
        """One optimizer step on both sides of the cut: (mean loss, real tokens)."""
        num_tokens = self._exchange(own, step)
        with self._stepping(own, step, ends=True):
            self.optimizer.step(own.steps.first + step, own.steps.total)
        return self.pipeline.loss, num_tokens

    def _stepping(self, own: Assignment, step: int, ends: bool = False) -> Measurement:
        """The time of what is done once a step; `ends`: nothing of it follows."""
        here = Key(Purpose.TRAINING, own.round, step, 0)
        blocks = sum(span.num_blocks for span in own.plan.device_spans)
        work = Work(0, blocks, passes=int(ends))
        return self.stats.phases.measure("step", here, self.device, work)

    def _exchange(self, own: Assignment, step: int) -> int:
        """A step's micro-batches out and back, their gradients summed and clipped: real tokens."""
        pipeline, num_tokens = self.pipeline, 0
        pipeline.begin_step()
        for micro in self.batches.of_step(own, step):
            pipeline.launch(micro)
            num_tokens += micro.batch.num_tokens
        pipeline.end_step()
        with self._stepping(own, step):
            self.optimizer.pull()
        self._clip(own, step)
        return num_tokens

    def evaluate(self, own: Assignment) -> tuple[Score, Score]:
        """Score held-out examples through the split model, in batches as large as training's.

        The score over all that are due, and over those that every evaluation takes.
        """
        pipeline = self.pipeline
        pipeline.score = NO_SCORE
        if own.evaluate == "none":
            return NO_SCORE, NO_SCORE
        self.stage.train(False)
        number = self._evaluate(own, self.dataset.sampled, 0)
        sample = pipeline.score
        if own.evaluate == "all":
            self._evaluate(own, self.dataset.unsampled, number)
        return pipeline.score, sample

    def _evaluate(self, own: Assignment, examples: list[Example], number: int) -> int:
        """Add these examples' score, in batches numbered from `number` on; the next number."""
        for micro in self.batches.held_out(own, examples, number):
            with torch.no_grad():
                self.pipeline.launch(micro)
            number += 1
        self.pipeline.land_all()
        return number

    def _note_quality(self, score: Score, adapter: int) -> None:
        """Show the evaluation in the statistics; plain text has no accuracy."""
        if score.num_targets:
            self.stats.eval_round = adapter
            self.stats.eval_loss = score.loss_sum / score.num_targets
        if score.num_examples and self.dataset.kind != "text":
            self.stats.eval_accuracy = score.num_correct / score.num_examples

    # -- the step ------------------------------------------------------------------------------

    def _clip(self, own: Assignment, step: int) -> None:
        """Exchange squared norms with the edge, so that both scale by the same number."""
        if self.settings.training.max_grad_norm is None:
            return
        with self._stepping(own, step):
            norm = self.optimizer.squared_norm()
        self.link.send(GradientNorm(own.round, step, norm))
        other = self.link.receive()
        if not isinstance(other, GradientNorm) or other.step != step:
            raise ProtocolError(f"the edge's gradient norm of step {step} was expected")
        with self._stepping(own, step):  # the edge adds in the same order: the device's first
            self.optimizer.clip(norm + other.squared)
