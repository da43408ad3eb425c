"""What crosses the cut, as values; the wire's own form of them is the transport's business."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum

import numpy as np
import torch

from sfl.codec.transform import RowContext
from sfl.metrics.timeline import Interval
from sfl.plan import Toward
from sfl.rounds.values import NO_SCORE, Assignment, Score
from sfl.stage.remembered import IN_MEMORY, GoOn

ROWS = ""
"""The name of a message's rows among its tensors."""


TEACHER = "teacher"
"""The name of what travels beside rows for a teacher, or from one."""


class Kind(IntEnum):
    """What a tensor is; the numbers are the wire's."""

    ACTIVATION = 1
    GRADIENT = 3
    SCORE = 4

    @property
    def toward(self) -> Toward:
        """Activations go towards the loss; gradients and scores come back from it."""
        return Toward.LOSS if self is Kind.ACTIVATION else Toward.INPUT


class Purpose(IntEnum):
    """What a tensor is for; the numbers are the wire's."""

    TRAINING = 1
    EVALUATION = 2


@dataclass(frozen=True, slots=True)
class Key:
    """Which micro-batch of a run: step counts within the round."""

    purpose: Purpose
    round: int
    step: int
    micro_batch: int


@dataclass(frozen=True, slots=True)
class TensorMessage:
    """A tensor at the cut: `rows` `[num_tokens, H]` of real tokens only, or None.

    That is the short form. `named` are further tensors `[n, width]` that travel beside the rows;
    both ends know their names, widths, dtypes and codecs before.
    `lengths` rebuild padding and masks at the other side. `labels` (vanilla) hold one int32 per
    real token, or one per sequence. `normalizer` is the number of scored targets of the whole
    step, 0 where the micro-batch is the whole step. `loss` comes back with a vanilla gradient.
    `context` is what a codec may know rows by; it stays on the device. `arrived` is when it was
    there, whole, in seconds of the receiver's clock; an edge's answer has that of what it answers.
    `ids` [num_tokens] int32 are for a teacher, and `sequence_keys` tell it which sequences have
    come as hidden states. `taught` is what it has said; that stays on the edge.
    """

    kind: Kind
    key: Key
    num_micro_batches: int
    lengths: tuple[int, ...]
    rows: torch.Tensor | None = None
    labels: np.ndarray | None = None
    normalizer: int = 0
    loss: float = 0.0
    score: Score = NO_SCORE
    context: RowContext | None = None
    arrived: float | None = None
    named: Mapping[str, torch.Tensor] = field(default_factory=dict)
    ids: np.ndarray | None = None
    sequence_keys: tuple[bytes, ...] = ()
    taught: torch.Tensor | None = None

    def untaught(self) -> TensorMessage:
        """The same without what is for a teacher: the answer to it has nothing of that."""
        return replace(self, named={}, ids=None, sequence_keys=(), taught=None)

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """All of them by name, the rows first; none where there are no rows."""
        return {} if self.rows is None else {ROWS: self.rows, **self.named}


def begins_step(message: TensorMessage) -> bool:
    """Whether it is the first that a device sends in a step of a round; a rehearsal has none."""
    key = message.key
    trains = key.purpose is Purpose.TRAINING and message.kind is Kind.ACTIVATION
    return trains and key.round > 0 and key.micro_batch == 0


def asks_teacher(message: TensorMessage) -> bool:
    """Whether it brings something for a teacher."""
    return message.ids is not None or TEACHER in message.named


@dataclass(frozen=True, slots=True)
class GradientNorm:
    """Squared gradient norm of a step, in float64: of the stages on its way, or of one of them.

    Towards the input it is that of the sender and of all stages behind it. Towards the loss it is
    the sender's own, and `before` has those of the stages before it, the device's first. So every
    stage adds the same numbers in the same order: the last one's first.
    """

    round: int
    step: int
    squared: float
    toward: Toward = Toward.LOSS
    before: tuple[float, ...] = ()

    @property
    def key(self) -> Key:
        """The step it ends, as that of its first micro-batch."""
        return Key(Purpose.TRAINING, self.round, self.step, 0)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What a stage sends, and to which neighbour: the next one towards the loss, or the input.

    A device that holds both ends of the model is an edge's neighbour either way.
    """

    toward: Toward
    message: TensorMessage | GradientNorm

    def __post_init__(self) -> None:
        # A tensor's kind says the way, too; its codec goes by that.
        message = self.message
        way = message.kind.toward if isinstance(message, TensorMessage) else message.toward
        assert way is self.toward


@dataclass(frozen=True, slots=True)
class RoundOrder:
    """A round to run, and the part of the global adapter it begins with.

    `go_on` is what both sides go on from, as far as this one does not have it in memory.
    """

    assignment: Assignment
    values: Mapping[str, np.ndarray]
    go_on: GoOn = IN_MEMORY
    moments: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Those of blocks that come from the edge, by name."""


@dataclass(frozen=True, slots=True)
class BlockMoments:
    """The optimizer's moments of blocks that change sides as `round` begins, by name."""

    round: int
    moments: Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class BaseUpdate:
    """What `round` gave, to be added to the base once, by the names of LoRA's factors."""

    values: Mapping[str, np.ndarray]
    round: int


@dataclass(frozen=True, slots=True)
class Finish:
    """The run is over; `run_key` is what this run's snapshots are kept by."""

    ok: bool
    reason: str
    run_key: str = ""


@dataclass(frozen=True, slots=True)
class RoundOutcome:
    """What a device did in a round: mean loss, tokens, seconds, and the evaluation before it.

    `sample` is the part of the evaluation over the examples that every evaluation takes. `moments`
    are the optimizer's after the round, as it has them.
    """

    round: int
    num_steps: int
    train_loss: float
    num_tokens: int
    train_seconds: float
    evaluation: Score
    evaluation_seconds: float
    values: Mapping[str, np.ndarray]
    spans: tuple[Interval, ...] = ()
    rehearsal: tuple[float, ...] = ()
    sample: Score = NO_SCORE
    moments: Mapping[str, torch.Tensor] = field(default_factory=dict)


Message = TensorMessage | GradientNorm | BaseUpdate | RoundOrder | Finish
