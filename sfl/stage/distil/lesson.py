"""What a teacher says of a micro-batch, as a part of its loss.

`alpha T^2 D(teacher / T, student / T) + (1 - alpha) cross-entropy` (Hinton et al., 1503.02531,
section 2): D over scored positions, in float32, divided by as many targets as the cross-entropy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from sfl.config.distil import DistilSettings
from sfl.models.span import SpanModel
from sfl.stage.distil.divergence import Measure, measure_of

ALL = slice(None)


@dataclass(frozen=True, slots=True)
class Weights:
    """How a teacher counts."""

    alpha: float
    temperature: float
    measure: Measure

    @classmethod
    def of(cls, settings: DistilSettings) -> Weights:
        """As the settings have it."""
        return cls(settings.alpha, settings.temperature, measure_of(settings.measure))

    def blend(self, cross_entropy: Tensor, divergence: Tensor) -> Tensor:
        """Both, over the same rows, as one loss."""
        scale = self.alpha * self.temperature**2
        return scale * divergence + (1.0 - self.alpha) * cross_entropy

    def cooled(self, logits: Tensor) -> Tensor:
        """Log-probabilities at the temperature, in float32."""
        return log_softmax(logits.float() / self.temperature, -1)


class Lesson(ABC):
    """What a teacher says of scored positions, or of sequences that are to be classified."""

    weights: Weights

    @abstractmethod
    def divergence(self, logits: Tensor, part: slice = ALL) -> Tensor:
        """Summed over these rows `[m, V]` of a student's logits, which are this part of them."""

    def padded_divergence(self, logits: Tensor, scored: Tensor, lengths: Tensor) -> Tensor:
        """The same of logits `[B, T, V]` of a padded batch, where `scored` `[B, T]`."""
        return self.divergence(logits[scored])

    def blend(self, cross_entropy: Tensor, logits: Tensor, part: slice = ALL) -> Tensor:
        """The loss of these rows, from their cross-entropy."""
        return self.weights.blend(cross_entropy, self.divergence(logits, part))


@dataclass(frozen=True, slots=True)
class HiddenLesson(Lesson):
    """By the teacher's last hidden states `[m, H]`: logits are taken from them in pieces.

    Heads of other widths than the tokenizer's `tokens` are cut to these.
    """

    weights: Weights
    teacher: SpanModel
    rows: Tensor
    tokens: int

    def divergence(self, logits: Tensor, part: slice = ALL) -> Tensor:
        """Summed over rows."""
        with torch.no_grad():
            said = self.teacher.logits(self.rows[part])
        return self._from(logits, said)

    def padded_divergence(self, logits: Tensor, scored: Tensor, lengths: Tensor) -> Tensor:
        """With the head over every position, as an unsplit loop has it, to the last bit."""
        hidden = self.rows.new_zeros((*scored.shape, self.rows.shape[-1]))
        hidden[scored] = self.rows
        with torch.no_grad():
            said = self.teacher.head(hidden, lengths)
        return self._from(logits[scored], said[scored])

    def _from(self, logits: Tensor, said: Tensor) -> Tensor:
        cooled, known = self.weights.cooled, self.tokens
        return self.weights.measure(cooled(logits[:, :known]), cooled(said[:, :known]))


@dataclass(frozen=True, slots=True)
class ClassLesson(Lesson):
    """By the teacher's logits of classes, `[B, C]`."""

    weights: Weights
    said: Tensor

    def divergence(self, logits: Tensor, part: slice = ALL) -> Tensor:
        """Summed over sequences."""
        cooled = self.weights.cooled
        return self.weights.measure(cooled(logits), cooled(self.said[part]))


@dataclass(frozen=True, slots=True)
class TopLesson(Lesson):
    """By the teacher's likeliest tokens: their log-probabilities at the temperature, `[m, k]`.

    All other tokens count as one, so that both have k + 1 outcomes.
    """

    weights: Weights
    tokens: int
    said: Tensor
    indices: Tensor

    def divergence(self, logits: Tensor, part: slice = ALL) -> Tensor:
        """Summed over rows."""
        own = self.weights.cooled(logits[:, : self.tokens])
        student = own.gather(-1, self.indices[part])
        return self.weights.measure(_with_rest(student), _with_rest(self.said[part]))


LEAST = 1e-7
"""The least probability of the rest: rounding could leave none."""


def _with_rest(chosen: Tensor) -> Tensor:
    """Log-probabilities of some outcomes, and of all others together: `[m, k]` -> `[m, k + 1]`."""
    rest = (1.0 - chosen.exp().sum(-1, keepdim=True)).clamp_min(LEAST)
    return torch.cat([chosen, rest.log()], -1)


def likeliest(
    weights: Weights, teacher: SpanModel, rows: Tensor, tokens: int, k: int, piece: int
) -> tuple[Tensor, Tensor]:
    """The k likeliest tokens `[m, k]` by last hidden states `[m, H]`: log-probabilities, indices.

    At most `piece` rows of logits are held at once.
    """
    found = []
    with torch.no_grad():
        for own in torch.split(rows, piece):
            cooled = weights.cooled(teacher.logits(own)[:, :tokens])
            found.append(cooled.topk(min(k, tokens), -1))
    values, indices = zip(*found, strict=True)
    return torch.cat(values), torch.cat(indices)
