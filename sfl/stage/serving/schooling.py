"""Training of an exit: the likelier it finds what its model says, the more of its guesses stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from sfl.models.folder import ModelFolder
from sfl.models.span import SpanModel
from sfl.stage.base import BaseForm
from sfl.stage.device import share_tied_weights
from sfl.stage.serving.exits import exit_span, own_parameters
from sfl.stage.serving.lessons import Lesson, Teacher

Progress = Callable[[int, float], None]

AT_ONCE = 64
"""Texts that the model says at a time."""
HELD_OUT = 8


@dataclass(frozen=True, slots=True)
class Schooling:
    """How an exit is trained, on so many texts of `length` tokens.

    One in HELD_OUT of them is not trained on. Each step takes `batch` of them, with the loss at
    `places` of their tokens. The learning rate falls to a twentieth, linearly.
    """

    texts: int = 256
    length: int = 128
    steps: int = 600
    batch: int = 8
    places: int = 512
    learning_rate: float = 2e-3


def school(
    folder: ModelFolder,
    teacher: Teacher,
    prompts: Sequence[Sequence[int]],
    schooling: Schooling,
    progress: Progress,
) -> tuple[SpanModel, float, float]:
    """A trained exit, and its acceptance before and after; the same each time.

    Texts begin as `prompts` do, in turn. Raises ModelError.
    """
    generator = torch.Generator().manual_seed(0)
    model = exit_span(folder, BaseForm())
    share_tied_weights(teacher.front, model)
    length = min(schooling.length, folder.context_length)
    begins = [prompts[n % len(prompts)][: length // 2] for n in range(schooling.texts)]
    lesson = _together(
        [
            teacher.lesson(begins[first : first + AT_ONCE], length, generator)
            for first in range(0, len(begins), AT_ONCE)
        ]
    )
    held_out = max(1, schooling.texts // HELD_OUT)
    seen, unseen = lesson.part(held_out, schooling.texts), lesson.part(0, held_out)
    before = acceptance(model, teacher.rest, unseen)
    train_exit(model, teacher.rest, seen, schooling, generator, progress)
    return model, before, acceptance(model, teacher.rest, unseen)


def _together(lessons: Sequence[Lesson]) -> Lesson:
    return Lesson(
        torch.cat([lesson.rows for lesson in lessons]),
        torch.cat([lesson.last for lesson in lessons]),
    )


def train_exit(
    model: SpanModel,
    head: SpanModel,
    lesson: Lesson,
    schooling: Schooling,
    generator: torch.Generator,
    progress: Progress,
) -> None:
    """Train it by the probabilities that `head`, the model's own, gives (KL divergence)."""
    trained = list(own_parameters(model).values())
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=schooling.learning_rate, weight_decay=0.0)
    for step in range(schooling.steps):
        for group in optimizer.param_groups:
            left = 1 - step / schooling.steps
            group["lr"] = schooling.learning_rate * max(0.05, left)
        count = len(lesson.rows)
        texts = torch.randint(count, (min(schooling.batch, count),), generator=generator)
        loss = _loss(model, head, lesson, texts, schooling.places, generator)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        progress(step + 1, loss.item())
    for parameter in trained:
        parameter.requires_grad_(False)


def _loss(
    model: SpanModel,
    head: SpanModel,
    lesson: Lesson,
    texts: Tensor,
    most: int,
    generator: torch.Generator,
) -> Tensor:
    length = lesson.rows.shape[1]
    places = torch.randperm(len(texts) * length, generator=generator)[:most]
    with torch.no_grad():
        taught = head.logits(lesson.last[texts].flatten(0, 1)[places]).float().log_softmax(-1)
    said = model.logits(_through(model, lesson.rows[texts])[places]).float().log_softmax(-1)
    return functional.kl_div(said, taught, log_target=True, reduction="batchmean")


@torch.no_grad()
def acceptance(model: SpanModel, head: SpanModel, lesson: Lesson) -> float:
    """The share of places at which its likeliest token is the model's."""
    right = total = 0
    for rows, last in zip(lesson.rows, lesson.last, strict=True):
        guesses = model.logits(_through(model, rows[None])).argmax(-1)
        right += int((guesses == head.logits(last).argmax(-1)).sum())
        total += len(guesses)
    return right / total


def _through(model: SpanModel, rows: Tensor) -> Tensor:
    """[n, T, H] through its block, one text behind the other: [n * T, H]."""
    count, length, width = rows.shape
    lengths = torch.full((count,), length)
    return model.blocks(rows.reshape(1, count * length, width), lengths)[0]
