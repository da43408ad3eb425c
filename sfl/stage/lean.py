"""Computing only what counts: no padding, the head and the loss at scored positions, in pieces.

Logits of a piece are the most that is ever held of `[positions, vocabulary]`; its gradient is taken
at once, so that the head runs as often as it would over the whole (the idea of chunked losses,
e.g. Liger Kernel, 2410.10989, section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sfl.data.batches import Batch
from sfl.models.memory.footprint import piece_rows
from sfl.models.span import ForwardKey, SpanModel
from sfl.rounds.values import Score
from sfl.stage.distil.lesson import Lesson
from sfl.stage.distil.scored import following
from sfl.stage.layout import IGNORED, real_tokens
from sfl.stage.loss import class_loss, evaluation_score


class Lean:
    """See sfl.stage.computation.Computation; hidden states are [1, num_tokens, H]."""

    packed = True

    def tokens(self, batch: Batch) -> Tensor:
        """[1, num_tokens]."""
        return batch.input_ids[real_tokens(batch.lengths, batch.input_ids.shape[1])][None]

    def rows(self, hidden: Tensor, lengths: Sequence[int]) -> Tensor:
        """[1, num_tokens, H] -> [num_tokens, H]."""
        return hidden[0].contiguous()

    def hidden(self, rows: Tensor, lengths: Sequence[int]) -> Tensor:
        """[num_tokens, H] -> [1, num_tokens, H]."""
        return rows[None]

    def loss(
        self,
        model: SpanModel,
        hidden: Tensor,
        lengths: Sequence[int],
        labels: npt.NDArray[np.int32],
        normalizer: int | None,
        key: ForwardKey | None,
        lesson: Lesson | None = None,
    ) -> Tensor:
        """In float32, equal to the reference's to rounding."""
        if model.task == "sequence_classification":
            logits = self.classes(model, hidden, lengths, key)
            return class_loss(logits, labels, normalizer, lesson)
        places, targets = _scored(lengths, labels)
        total = normalizer or max(1, len(targets))
        piece_loss = _PieceLoss(model, targets.to(hidden.device), lesson)
        loss: Tensor = _PiecewiseLoss.apply(hidden[0][places], piece_loss, total)  # type: ignore[no-untyped-call]
        return loss

    def classes(
        self,
        model: SpanModel,
        hidden: Tensor,
        lengths: Sequence[int],
        key: ForwardKey | None,
    ) -> Tensor:
        """[B, C], from the one token of each sequence that the classifier reads."""
        ends = np.cumsum(lengths)
        places = ends - 1 if model.family.causal else ends - np.asarray(lengths)
        read = hidden[0][torch.from_numpy(places)][:, None]
        return model.head(read, torch.ones(len(lengths), dtype=torch.int64), key=key)

    def score(
        self,
        model: SpanModel,
        hidden: Tensor,
        lengths: Sequence[int],
        labels: npt.NDArray[np.int32],
    ) -> Score:
        """As `evaluation_score`, piece by piece."""
        with torch.no_grad():
            if model.task == "sequence_classification":
                logits = self.classes(model, hidden, lengths, None)
                targets = torch.from_numpy(labels.astype(np.int64)).to(logits.device)
                return evaluation_score(logits, targets, model.task)
            return _causal_score(model, hidden, lengths, labels)


def _scored(lengths: Sequence[int], labels: npt.NDArray[np.int32]) -> tuple[Tensor, Tensor]:
    """Which tokens predict a scored one, and what follows each: int64 [m] both."""
    behind = following(lengths, labels)
    places = np.flatnonzero(behind != IGNORED)
    return torch.from_numpy(places), torch.from_numpy(behind[places].astype(np.int64))


def _pieces(model: SpanModel, count: int) -> list[slice]:
    size = piece_rows(model.vocab_size)
    return [slice(first, first + size) for first in range(0, count, size)]


@dataclass(frozen=True, slots=True)
class _PieceLoss:
    """The loss of a piece of the scored rows, summed: by their targets, and by a lesson."""

    model: SpanModel
    targets: Tensor
    lesson: Lesson | None

    def __call__(self, rows: Tensor, piece: slice) -> Tensor:
        logits = self.model.logits(rows).float()
        loss = cross_entropy(logits, self.targets[piece], reduction="sum")
        return loss if self.lesson is None else self.lesson.blend(loss, logits, piece)


class _PiecewiseLoss(torch.autograd.Function):
    """Sum of pieces' losses over `total`, whose gradient by the rows [m, H] is made on the way.

    The head has nothing to train: a language model's LoRA is in its blocks.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, piece_loss: _PieceLoss, total: int) -> Tensor:
        loss = torch.zeros((), device=rows.device)
        gradient = torch.empty_like(rows) if rows.requires_grad else None
        for piece in _pieces(piece_loss.model, len(rows)):
            with torch.set_grad_enabled(gradient is not None):
                own = rows[piece].detach().requires_grad_(gradient is not None)
                part = piece_loss(own, piece) / total
            loss += part.detach()
            if gradient is not None:
                (gradient[piece],) = torch.autograd.grad(part, own)
        ctx.gradient = gradient
        return loss

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, None, None]:
        gradient = ctx.gradient
        return (None if gradient is None else gradient * outputs[0]), None, None


def _causal_score(
    model: SpanModel, hidden: Tensor, lengths: Sequence[int], labels: npt.NDArray[np.int32]
) -> Score:
    places, targets = _scored(lengths, labels)
    rows, loss_sum, right = hidden[0][places], 0.0, []
    targets = targets.to(rows.device)
    for piece in _pieces(model, len(rows)):
        logits = model.logits(rows[piece]).float()
        losses = cross_entropy(logits, targets[piece], reduction="none")
        loss_sum += float(losses.double().sum())
        right.append((logits.argmax(-1) == targets[piece]).cpu().numpy())
    example = np.searchsorted(np.cumsum(lengths), places.numpy(), side="right")
    wrong = example[~np.concatenate([*right, np.empty(0, np.bool_)])]
    num_correct = len(lengths) - len(np.unique(wrong))
    return Score(loss_sum, len(targets), num_correct, len(lengths))
