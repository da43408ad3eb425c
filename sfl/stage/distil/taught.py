"""A device that is taught: what it sends for the teacher, and what it hears of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from sfl.errors import ProtocolError
from sfl.models.span import SpanModel
from sfl.stage.computation import Computation, Labels
from sfl.stage.distil.lesson import ClassLesson, Lesson, TopLesson, Weights
from sfl.stage.distil.scored import scored_places
from sfl.stage.layout import pack_labels
from sfl.stage.messages import TEACHER, Purpose, TensorMessage
from sfl.stage.micro import MicroBatch

NO_TENSORS: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Beside:
    """What goes to the teacher with a micro-batch."""

    ids: np.ndarray | None = None
    keys: tuple[bytes, ...] = ()
    named: Mapping[str, Tensor] = field(default_factory=lambda: NO_TENSORS)


NOTHING = Beside()


class Taught:
    """What a device of a run with a teacher does for it; without one, nothing."""

    def asks(self, micro: MicroBatch) -> Beside:
        """What a micro-batch brings for the teacher."""
        return NOTHING

    def lesson(self, message: TensorMessage, labels: Labels) -> Lesson | None:
        """What came of it, where this device has the loss. Raises ProtocolError."""
        return None


UNTAUGHT = Taught()


@dataclass(frozen=True, slots=True)
class ByTeacher(Taught):
    """`front` are the teacher's first blocks, where this device holds them.

    `tokens` are those that the teacher's word is about; 0: it tells classes.
    """

    weights: Weights
    computation: Computation
    tokens: int
    front: SpanModel | None = None

    def asks(self, micro: MicroBatch) -> Beside:
        """Token ids, or hidden states by the teacher's first blocks; in training only."""
        if micro.key.purpose is not Purpose.TRAINING:
            return NOTHING
        lengths = micro.batch.lengths.tolist()
        ids = pack_labels(micro.batch.input_ids, lengths)
        if self.front is None:
            return Beside(ids)
        tokens = self.computation.tokens(micro.batch)
        with torch.no_grad():
            hidden = self.front.embed(tokens, micro.batch.lengths)
            hidden = self.front.blocks(hidden, micro.batch.lengths)
        rows = self.computation.rows(hidden, lengths)
        return Beside(keys=_keys(ids, lengths), named={TEACHER: rows})

    def lesson(self, message: TensorMessage, labels: Labels) -> Lesson | None:
        """From logits of classes, or from the likeliest tokens at each position."""
        said = message.named.get(TEACHER)
        if said is None:
            return None
        if not self.tokens:
            return ClassLesson(self.weights, said)
        values, numbers = said[scored_places(message.lengths, labels)].chunk(2, -1)
        if not bool(((numbers >= 0) & (numbers < self.tokens) & (numbers % 1 == 0)).all()):
            raise ProtocolError(f"a teacher's token is none of 0..{self.tokens - 1}")
        return TopLesson(self.weights, self.tokens, values, numbers.to(torch.int64))


def _keys(ids: np.ndarray, lengths: Sequence[int]) -> tuple[bytes, ...]:
    """What tells each sequence from all others."""
    parts = np.split(ids.astype("<i4"), np.cumsum(lengths)[:-1])
    return tuple(hashlib.sha256(part.tobytes()).digest()[:16] for part in parts)
