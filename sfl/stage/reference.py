"""Computing as transformers does: right-padded batches, the head over every position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sfl.data.batches import Batch
from sfl.models.span import ForwardKey, SpanModel
from sfl.rounds.values import Score
from sfl.stage.distil.lesson import Lesson
from sfl.stage.layout import IGNORED, pack_rows, unpack_labels, unpack_rows
from sfl.stage.loss import class_loss, evaluation_score, training_loss


class Reference:
    """See sfl.stage.computation.Computation."""

    packed = False

    def tokens(self, batch: Batch) -> Tensor:
        """[B, T]."""
        return batch.input_ids

    def rows(self, hidden: Tensor, lengths: Sequence[int]) -> Tensor:
        """[B, T, H] -> [num_tokens, H]."""
        return pack_rows(hidden, lengths)

    def hidden(self, rows: Tensor, lengths: Sequence[int]) -> Tensor:
        """[num_tokens, H] -> [B, T, H], zeros on padding."""
        return unpack_rows(rows, lengths)

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
        """As transformers takes it, to the last bit."""
        logits = model.head(hidden, torch.tensor(lengths), key=key)
        if model.task == "sequence_classification":
            return class_loss(logits, labels, normalizer, lesson)
        targets = unpack_labels(labels, lengths, per_token=True).to(logits.device)
        loss = training_loss(logits, targets, model.task, model.vocab_size, normalizer)
        if lesson is None:
            return loss
        scored = torch.zeros_like(targets, dtype=torch.bool)
        scored[:, :-1] = targets[:, 1:] != IGNORED
        total = normalizer or max(1, int(scored.sum()))
        apart = lesson.padded_divergence(logits, scored, torch.tensor(lengths))
        return lesson.weights.blend(loss, apart / total)

    def classes(
        self,
        model: SpanModel,
        hidden: Tensor,
        lengths: Sequence[int],
        key: ForwardKey | None,
    ) -> Tensor:
        """[B, C]."""
        return model.head(hidden, torch.tensor(lengths), key=key)

    def score(
        self,
        model: SpanModel,
        hidden: Tensor,
        lengths: Sequence[int],
        labels: npt.NDArray[np.int32],
    ) -> Score:
        """Of all positions at once."""
        with torch.no_grad():
            logits = model.head(hidden, torch.tensor(lengths))
        targets = unpack_labels(labels, lengths, model.task == "causal_lm").to(logits.device)
        return evaluation_score(logits, targets, model.task)
