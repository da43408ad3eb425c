"""Vanilla: labels come along, so loss, backward and cut gradient are one round trip."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

from sfl.errors import ProtocolError, SflError
from sfl.metrics.costs import Work
from sfl.metrics.stats import Phase
from sfl.plan import Span, Toward
from sfl.stage.computation import Labels
from sfl.stage.messages import GradientNorm, Kind, Outgoing, Purpose, TensorMessage
from sfl.stage.session import Group, Request, Session
from sfl.stage.timed import Task, end_backward, forward_together, tokens_of
from sfl.stage.training.blocks import wait_for
from sfl.stage.training.session import Handlers, TrainingSession, enter_each


class VanillaSession(TrainingSession):
    """The edge holds the model's end: head and loss."""

    def group(self, message: Request) -> Group | None:
        """Training over the same blocks, with lengths alike; dropout is each device's own.

        A GPU's attention pads a batch to its longest sequence: less than twice a message's longest.
        """
        if isinstance(message, GradientNorm) or message.key.purpose is not Purpose.TRAINING:
            return None
        if not self.blocks.computation.packed or self.model.drops:
            return None
        return VanillaGroup(self.blocks.span, max(message.lengths).bit_length())

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

    def _train(self, message: TensorMessage) -> list[Outgoing]:
        labels = self.labels(message)
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
class Item:
    """A message of a batch that is sound, and whose it is."""

    number: int
    session: VanillaSession
    message: TensorMessage
    labels: Labels

    @property
    def count(self) -> int:
        """Its rows."""
        return sum(self.message.lengths)

    @property
    def task(self) -> Task:
        """What is timed."""
        return self.message.key, self.session.device, self.count


@dataclass(frozen=True, slots=True)
class VanillaGroup:
    """Training steps over the same span whose longest sequences are alike (in powers of two)."""

    span: Span
    length_bits: int

    def run(self, tasks: Sequence[tuple[Session, Request]]) -> list[list[Outgoing] | SflError]:
        """Through the base as one batch, each row with its own device's LoRA.

        Losses, gradients and steps are each device's own, equal to those alone up to rounding: sums
        run over other shapes. A message that breaks the contract fails alone, and so does a device
        whose tensors cannot be read back.
        """
        results: dict[int, list[Outgoing] | SflError] = {}
        sound: list[Item] = []
        for number, (session, message) in enumerate(tasks):
            # Only these hand out such a group.
            assert isinstance(session, VanillaSession) and isinstance(message, TensorMessage)
            try:
                session.check(message)
                sound.append(Item(number, session, message, session.labels(message)))
            except ProtocolError as error:
                results[number] = error
        lost = enter_each([item.session for item in sound])
        here = [item for item in sound if item.session.device not in lost]
        results |= {i.number: lost[i.session.device] for i in sound if i.session.device in lost}
        if here:
            answers = _train_together(here)
            results |= {item.number: own for item, own in zip(here, answers, strict=True)}
        return [results[number] for number in range(len(tasks))]


def _train_together(items: Sequence[Item]) -> list[list[Outgoing]]:
    lead = items[0].session.blocks
    boundaries = [_boundary(item) for item in items]
    if not lead.model.training:
        lead.model.train(True)
    lead.model.recompute = any(item.session.blocks.recompute for item in items)
    parts = [(item.session.adapter, item.count) for item in items]
    phases, tasks = items[0].session.stats.phases, [item.task for item in items]
    tokens, blocks = tokens_of(tasks), lead.span.num_blocks
    with _shared("forward", items):
        lead.bank.activate_parts(parts)
        with forward_together(phases, tasks, Work(tokens, blocks)):
            output = lead.model.blocks(
                torch.cat(boundaries)[None],
                torch.tensor([length for item in items for length in item.message.lengths]),
                first=lead.span.first,
                last=lead.span.last,
            )
            wait_for(output)
        with forward_together(phases, tasks, Work(tokens, head=True)):
            outputs = torch.split(output, [item.count for item in items], 1)
            losses = [_loss(item, own) for item, own in zip(items, outputs, strict=True)]
    with end_backward(phases, tasks, blocks, output):
        lead.bank.activate_parts(parts)  # for blocks that are computed again
        each = torch.stack(losses)
        each.sum().backward()  # type: ignore[no-untyped-call]
        means = each.tolist()
        wait_for(boundaries[0])
    return [_answer(*one) for one in zip(items, boundaries, means, strict=True)]


def _boundary(item: Item) -> torch.Tensor:
    blocks, rows = item.session.blocks, item.message.rows
    assert rows is not None
    boundary = rows.to(blocks.model.device_of(blocks.span.first))
    return boundary.requires_grad_(blocks.wants_gradient)


def _loss(item: Item, output: torch.Tensor) -> torch.Tensor:
    blocks, message = item.session.blocks, item.message
    blocks.bank.activate(blocks.adapter)  # a classifier's head is each device's own
    normalizer = message.normalizer or None
    return blocks.computation.loss(
        blocks.model, output, message.lengths, item.labels, normalizer, None
    )


def _answer(item: Item, boundary: torch.Tensor, mean: float) -> list[Outgoing]:
    message = item.message
    answer = replace(message, kind=Kind.GRADIENT, rows=boundary.grad, labels=None, loss=mean)
    return item.session.returned(answer)


@contextmanager
def _shared(phase: Phase, items: Sequence[Item]) -> Iterator[None]:
    """Book work for several devices to each: when it was, and an equal share of its seconds."""
    clock = items[0].session.stats.phases
    begin = clock.now()
    try:
        yield
    finally:
        end = clock.now()
        for item in items:
            phases, device = item.session.stats.phases, item.session.device
            phases.share(phase, item.message.key, device, begin, end, len(items))
