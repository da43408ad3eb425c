"""The loss that is trained on, and the score that is reported."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sfl.models.families.family import Task
from sfl.rounds.values import Score
from sfl.stage.distil.lesson import Lesson

IGNORED = -100


def training_loss(
    logits: Tensor, labels: Tensor, task: Task, vocab_size: int, normalizer: int | None = None
) -> Tensor:
    """Cross-entropy as transformers takes it; a scalar.

    Causal: logits [B, T, V], labels [B, T] with -100 unscored, shifted inside. Classification:
    logits [B, C], labels [B]. The mean over this batch's targets, or their sum divided by
    `normalizer`, where the batch is one of several of a step.
    """
    if task == "causal_lm":
        # Loaded with the model's own code by now; the loss alone should not load transformers.
        from transformers.loss.loss_utils import ForCausalLMLoss

        loss: Tensor = ForCausalLMLoss(logits, labels, vocab_size, num_items_in_batch=normalizer)
        return loss
    if normalizer is None:
        return cross_entropy(logits, labels)
    return cross_entropy(logits, labels, reduction="sum") / normalizer


def class_loss(
    logits: Tensor,
    labels: npt.NDArray[np.int32],
    normalizer: int | None,
    lesson: Lesson | None = None,
) -> Tensor:
    """Of logits [B, C] and labels [B]: cross-entropy, and what a teacher says; a scalar."""
    targets = torch.from_numpy(labels.astype(np.int64)).to(logits.device)
    loss = training_loss(logits, targets, "sequence_classification", logits.shape[-1], normalizer)
    if lesson is None:
        return loss
    return lesson.weights.blend(loss, lesson.divergence(logits) / (normalizer or len(targets)))


def evaluation_score(logits: Tensor, labels: Tensor, task: Task) -> Score:
    """Score of one forward; shapes as in `training_loss`, the loss summed in float64.

    An example is correct when every target is the argmax given the gold tokens before it, which
    is what greedy decoding would write.
    """
    num_examples = len(labels)
    if task == "causal_lm":
        logits, labels = logits[:, :-1], labels[:, 1:]
    else:
        logits, labels = logits[:, None], labels[:, None]
    scored = labels != IGNORED
    kept, targets = logits[scored].float(), labels[scored]
    loss_sum = float(cross_entropy(kept, targets, reduction="none").double().sum())
    wrong = torch.zeros_like(scored)
    wrong[scored] = kept.argmax(-1) != targets
    num_correct = num_examples - int(wrong.any(1).sum())
    return Score(loss_sum, int(scored.sum()), num_correct, num_examples)
