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
from sfl.stage.layout import pack_rows, unpack_labels, unpack_rows
from sfl.stage.loss import evaluation_score, training_loss


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
    ) -> Tensor:
        """As transformers takes it, to the last bit."""
        logits = model.head(hidden, torch.tensor(lengths), key=key)
        targets = unpack_labels(labels, lengths, model.task == "causal_lm").to(logits.device)
        return training_loss(logits, targets, model.task, model.vocab_size, normalizer)

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
