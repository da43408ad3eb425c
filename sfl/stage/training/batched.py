"""Messages of several devices through the base as one batch: who is in it, and whose its time is.

Each row has its own device's LoRA. What comes of a message is its device's own, equal to that alone
up to rounding: sums run over other shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from sfl.errors import ProtocolError, SflError
from sfl.metrics.stats import Phase
from sfl.stage.messages import GradientNorm, Outgoing, Purpose, TensorMessage
from sfl.stage.session import Request, Session
from sfl.stage.timed import Task
from sfl.stage.training.session import TrainingSession, enter_each

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Item(Generic[T]):
    """A message of a batch that is sound, whose it is, and what goes with it."""

    number: int
    session: TrainingSession
    message: TensorMessage
    beside: T

    @property
    def count(self) -> int:
        """Its rows."""
        return sum(self.message.lengths)

    @property
    def task(self) -> Task:
        """What is timed."""
        return self.message.key, self.session.device, self.count

    def leaf(self, message: TensorMessage) -> torch.Tensor:
        """Rows where the base is, apart from all others: [num_tokens, H].

        Those of the message stay as they are: they may be gone through again.
        """
        blocks = self.session.blocks
        assert message.rows is not None
        boundary = message.rows.detach().to(blocks.model.device_of(blocks.span.first))
        return boundary.requires_grad_(blocks.wants_gradient)


def alike(session: TrainingSession, message: Request) -> int | None:
    """Messages of this number may be one batch; None for those that go alone.

    They train, over rows that are packed, and without dropout, which is each device's own. Longest
    sequences are alike, in powers of two: a GPU's attention pads a batch to its longest sequence.
    """
    if isinstance(message, GradientNorm) or message.key.purpose is not Purpose.TRAINING:
        return None
    if not session.blocks.computation.packed or session.model.drops:
        return None
    return max(message.lengths).bit_length()


def run_sound(
    tasks: Sequence[tuple[Session, Request]],
    look: Callable[[TrainingSession, TensorMessage], T],
    compute: Callable[[Sequence[Item[T]]], list[list[Outgoing]]],
) -> list[list[Outgoing] | SflError]:
    """What comes of each message; `look` gives what goes with it.

    A message that breaks the contract fails alone, and so does a device whose tensors cannot be
    read back.
    """
    results: dict[int, list[Outgoing] | SflError] = {}
    sound: list[Item[T]] = []
    for number, (session, message) in enumerate(tasks):
        # Only these hand out groups.
        assert isinstance(session, TrainingSession) and isinstance(message, TensorMessage)
        try:
            session.check(message)
            sound.append(Item(number, session, message, look(session, message)))
        except ProtocolError as error:
            results[number] = error
    lost = enter_each([item.session for item in sound])
    here = [item for item in sound if item.session.device not in lost]
    results |= {i.number: lost[i.session.device] for i in sound if i.session.device in lost}
    if here:
        results |= {i.number: own for i, own in zip(here, compute(here), strict=True)}
    return [results[number] for number in range(len(tasks))]


def through(
    items: Sequence[Item[T]], rows: Sequence[torch.Tensor], lengths: Sequence[int]
) -> torch.Tensor:
    """The blocks of all of them: [1, num_tokens, H] from the rows of each, in their order."""
    lead = items[0].session.blocks
    if not lead.model.training:
        lead.model.train(True)
    lead.model.recompute = any(item.session.blocks.recompute for item in items)
    activate(items)
    whole, span = torch.cat(list(rows))[None], lead.span
    return lead.model.blocks(whole, torch.tensor(lengths), first=span.first, last=span.last)


def activate(items: Sequence[Item[T]]) -> None:
    """Each row gets its own device's LoRA; blocks that are computed again need it, too."""
    parts = [(item.session.adapter, item.count) for item in items]
    items[0].session.blocks.bank.activate_parts(parts)


@contextmanager
def shared(phase: Phase, items: Sequence[Item[T]]) -> Iterator[None]:
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
