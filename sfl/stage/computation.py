"""How a batch is laid out in memory and what its loss comes from: two ways to the same gradients.

`reference` computes what an unsplit transformers loop computes, to the last bit: sequences padded,
logits at every position. `lean` leaves out what counts for nothing, and differs by rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypedDict

import numpy as np
import numpy.typing as npt
from torch import Tensor

from sfl.data.batches import Batch
from sfl.models.span import ForwardKey, SpanModel
from sfl.rounds.values import Score
from sfl.stage.distil.lesson import Lesson
from sfl.stage.lean import Lean
from sfl.stage.messages import Key, Purpose
from sfl.stage.reference import Reference

Labels = npt.NDArray[np.int32]


class Computation(Protocol):
    """Hidden states are [B, T, H], or [1, num_tokens, H] where the model is packed.

    `labels` are as they travel: one for each real token, or one for each sequence.
    """

    packed: bool

    def tokens(self, batch: Batch) -> Tensor:
        """The batch's ids as `SpanModel.embed` takes them."""

    def rows(self, hidden: Tensor, lengths: Sequence[int]) -> Tensor:
        """Hidden states as they travel: [num_tokens, H], contiguous."""

    def hidden(self, rows: Tensor, lengths: Sequence[int]) -> Tensor:
        """The inverse of `rows`."""

    def loss(
        self,
        model: SpanModel,
        hidden: Tensor,
        lengths: Sequence[int],
        labels: Labels,
        normalizer: int | None,
        key: ForwardKey | None,
        lesson: Lesson | None = None,
    ) -> Tensor:
        """Head and loss: the mean over the batch's targets, or their sum over `normalizer`.

        With a `lesson` it is what settings make of the targets and of what a teacher says.
        """

    def classes(
        self,
        model: SpanModel,
        hidden: Tensor,
        lengths: Sequence[int],
        key: ForwardKey | None,
    ) -> Tensor:
        """A classifier's logits, [B, C]."""

    def score(
        self, model: SpanModel, hidden: Tensor, lengths: Sequence[int], labels: Labels
    ) -> Score:
        """Head and score, without gradients."""


class Computations(TypedDict):
    """One for each way that `training.computation` comes to."""

    reference: Computation
    lean: Computation


COMPUTATIONS: Computations = {"reference": Reference(), "lean": Lean()}


def forward_key(seed: int, device: str, key: Key) -> ForwardKey | None:
    """What a micro-batch's dropout is keyed by, on whichever side; None in evaluation."""
    if key.purpose is Purpose.EVALUATION:
        return None
    return ForwardKey(seed, device, key.round, key.step, key.micro_batch)
