"""The larger model on an edge: whole, frozen, one for all devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sfl.data.batches import Batch
from sfl.models.span import SpanModel
from sfl.stage.computation import Computation
from sfl.stage.layout import real_tokens

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Teacher:
    """`model` has the blocks behind those that devices hold, and the head.

    `tokens` are those that its tokenizer and the student's have.
    """

    model: SpanModel
    computation: Computation
    tokens: int

    @property
    def takes_ids(self) -> bool:
        """Whether devices send token ids, and no hidden states."""
        return self.model.span.embedding

    @property
    def classifies(self) -> bool:
        """Whether it gives logits of classes, and not of tokens."""
        return self.model.task == "sequence_classification"

    @torch.no_grad()
    def hidden(self, sent: Ids | Tensor, lengths: Sequence[int]) -> Tensor:
        """Last hidden states `[num_tokens, H]` by ids `[num_tokens]`, or by rows of them."""
        sizes = torch.tensor(lengths)
        if isinstance(sent, torch.Tensor):
            inside = self.computation.hidden(sent.to(self.model.dtype), lengths)
        else:
            tokens = self.computation.tokens(batch_of(sent, lengths))
            inside = self.model.embed(tokens.to(self._device), sizes)
        return self.computation.rows(self.model.blocks(inside, sizes), lengths)

    @torch.no_grad()
    def classes(self, rows: Tensor, lengths: Sequence[int]) -> Tensor:
        """Logits of classes `[B, C]` by last hidden states `[num_tokens, H]`."""
        hidden = self.computation.hidden(rows, lengths)
        return self.computation.classes(self.model, hidden, lengths, None)

    @property
    def _device(self) -> torch.device:
        return self.model.device_of(self.model.span.first)


def batch_of(ids: Ids, lengths: Sequence[int]) -> Batch:
    """Token ids as a padded batch without targets."""
    sizes, width = torch.tensor(lengths), max(lengths)
    padded = torch.zeros((len(lengths), width), dtype=torch.int64)
    padded[real_tokens(sizes, width)] = torch.from_numpy(ids.astype(np.int64))
    return Batch(padded, sizes, torch.empty(0), 0, sum(lengths))
