"""Vanilla: labels come along, so loss, backward and cut gradient are one round trip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from sfl.errors import ProtocolError, SflError
from sfl.metrics.costs import Work
from sfl.plan import Span, Toward
from sfl.stage.computation import Labels
from sfl.stage.distil.lesson import Lesson
from sfl.stage.messages import Kind, Outgoing, Purpose, TensorMessage
from sfl.stage.session import Group, Request, Session
from sfl.stage.timed import end_backward, forward_together, tokens_of
from sfl.stage.training.batched import Item, activate, alike, run_sound, shared, through
from sfl.stage.training.blocks import wait_for
from sfl.stage.training.session import Handlers, TrainingSession

Scoring = tuple[Labels, Lesson | None]
"""What the loss of a message is taken by."""


class VanillaSession(TrainingSession):
    """The edge holds the model's end: head and loss."""

    def group(self, message: Request) -> Group | None:
        """Training over the same blocks, with lengths alike."""
        number = alike(self, message)
        return None if number is None else VanillaGroup(self.blocks.span, number)

    def _handlers(self) -> Handlers:
        return {
            (Purpose.TRAINING, Kind.ACTIVATION): self._train,
            (Purpose.EVALUATION, Kind.ACTIVATION): self._evaluate,
        }

    def labels(self, message: TensorMessage) -> Labels:
        """The labels that came along. Raises ProtocolError where they do not fit."""
        per_token = self.settings.model.task == "causal_lm"
        count = sum(message.lengths) if per_token else len(message.lengths)
        classes = len(self.settings.model.labels) or self.model.vocab_size
        packed = message.labels
        if packed is None or packed.shape != (count,):
            raise ProtocolError(f"{count} labels were expected")
        if not np.all((packed < classes) & ((packed >= 0) | (packed == -100))):
            raise ProtocolError(f"a label is outside of 0..{classes - 1}")
        return packed

    def lesson(self, message: TensorMessage) -> Lesson | None:
        """What a teacher's word adds to the loss of a message. Raises ProtocolError."""
        said = self.said(message)
        if self.lessons is None or said is None:
            return None
        return self.lessons.school.lesson(said)

    def _train(self, message: TensorMessage) -> list[Outgoing]:
        labels, lesson = self.labels(message), self.lesson(message)
        message = message.untaught()
        boundary, output = self.blocks.forward(message)
        phases, tokens = self.stats.phases, sum(message.lengths)
        head = Work(tokens, head=True)
        with phases.measure("forward", message.key, self.device, head):
            loss = self.blocks.computation.loss(
                self.model,
                output,
                message.lengths,
                labels,
                message.normalizer or None,
                self.blocks.forward_key(message.key),
                lesson,
            )
        task = (message.key, self.device, tokens)
        with end_backward(phases, [task], self.blocks.span.num_blocks, output):
            loss.backward()  # type: ignore[no-untyped-call]
            mean = float(loss.detach())
            wait_for(boundary)
        return self.returned(replace(self.blocks.cut_gradient(message, boundary), loss=mean))

    def _evaluate(self, message: TensorMessage) -> list[Outgoing]:
        labels = self.labels(message)
        _, output = self.blocks.forward(message)
        head = Work(sum(message.lengths), head=True)
        with self.stats.phases.measure("forward", message.key, self.device, head):
            score = self.blocks.computation.score(self.model, output, message.lengths, labels)
        answer = replace(message, kind=Kind.SCORE, rows=None, labels=None, score=score)
        return [Outgoing(Toward.INPUT, answer)]


@dataclass(frozen=True, slots=True)
class VanillaGroup:
    """Training steps over the same span whose longest sequences are alike (in powers of two)."""

    span: Span
    length_bits: int

    def run(self, tasks: Sequence[tuple[Session, Request]]) -> list[list[Outgoing] | SflError]:
        """Forward, losses and backward as one batch."""
        return run_sound(tasks, _scoring, _train_together)


def _scoring(session: TrainingSession, message: TensorMessage) -> Scoring:
    assert isinstance(session, VanillaSession)  # only these hand out such a group
    return session.labels(message), session.lesson(message)


def _train_together(items: Sequence[Item[Scoring]]) -> list[list[Outgoing]]:
    phases, tasks = items[0].session.stats.phases, [item.task for item in items]
    tokens, blocks = tokens_of(tasks), items[0].session.blocks.span.num_blocks
    boundaries = [item.leaf(item.message) for item in items]
    with shared("forward", items):
        with forward_together(phases, tasks, Work(tokens, blocks)):
            lengths = [length for item in items for length in item.message.lengths]
            output = through(items, boundaries, lengths)
            wait_for(output)
        with forward_together(phases, tasks, Work(tokens, head=True)):
            outputs = torch.split(output, [item.count for item in items], 1)
            losses = [_loss(item, own) for item, own in zip(items, outputs, strict=True)]
    with end_backward(phases, tasks, blocks, output):
        activate(items)  # for blocks that are computed again
        each = torch.stack(losses)
        each.sum().backward()  # type: ignore[no-untyped-call]
        means = each.tolist()
        wait_for(boundaries[0])
    return [_answer(*one) for one in zip(items, boundaries, means, strict=True)]


def _loss(item: Item[Scoring], output: torch.Tensor) -> torch.Tensor:
    blocks, message = item.session.blocks, item.message
    blocks.bank.activate(blocks.adapter)  # a classifier's head is each device's own
    normalizer = message.normalizer or None
    labels, lesson = item.beside
    return blocks.computation.loss(
        blocks.model, output, message.lengths, labels, normalizer, None, lesson
    )


def _answer(item: Item[Scoring], boundary: torch.Tensor, mean: float) -> list[Outgoing]:
    message = item.message.untaught()
    answer = replace(message, kind=Kind.GRADIENT, rows=boundary.grad, labels=None, loss=mean)
    return item.session.returned(answer)
