"""Examples to padded tensors, in an order that is a pure function of seed, device and step."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from sfl.data.example import UNSCORED, Example
from sfl.keys import derive_seed

E = TypeVar("E")


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences padded on the right to the longest of them."""

    input_ids: Tensor  # int64 [B, T]
    lengths: Tensor  # int64 [B]
    labels: Tensor  # int64 [B, T], -100 where unscored; classification: [B]
    num_targets: int
    num_tokens: int  # real ones


def collate(examples: Sequence[Example], pad_id: int) -> Batch:
    """One batch of all the examples, which are of one kind."""
    assert examples
    lengths = [len(example.input_ids) for example in examples]
    longest = max(lengths)
    input_ids = torch.full((len(examples), longest), pad_id)
    for row, example in enumerate(examples):
        input_ids[row, : lengths[row]] = torch.tensor(example.input_ids)
    if is_classified(examples[0]):
        labels = torch.tensor([example.labels[0] for example in examples])
        num_targets = len(examples)
    else:
        labels = torch.full((len(examples), longest), UNSCORED)
        for row, example in enumerate(examples):
            labels[row, : lengths[row]] = torch.tensor(example.labels)
        num_targets = int((labels != UNSCORED).sum())
    return Batch(input_ids, torch.tensor(lengths), labels, num_targets, sum(lengths))


def is_classified(example: Example) -> bool:
    """Whether the label is a class: a causal example has two tokens at least, and as many
    labels."""
    return len(example.labels) == 1


def split_micro(examples: Sequence[E], count: int) -> list[list[E]]:
    """Examples, or their numbers, in `count` runs of equal size to one; fewer where too few."""
    assert examples and count > 0
    count = min(count, len(examples))
    base, extra = divmod(len(examples), count)
    runs, start = [], 0
    for number in range(count):
        stop = start + base + (number < extra)
        runs.append(list(examples[start:stop]))
        start = stop
    return runs


def batch_order(
    num_examples: int, batch_size: int, epoch: int, seed: int, device: str
) -> list[list[int]]:
    """The batches of one epoch: a keyed permutation of all examples; the last may be smaller."""
    order = list(range(num_examples))
    random.Random(derive_seed(seed, device, epoch, "batch order")).shuffle(order)
    return [order[start : start + batch_size] for start in range(0, num_examples, batch_size)]


@dataclass(slots=True)
class Sampler:
    """Which examples a device takes at a step; epoch follows epoch, and any step can be asked."""

    num_examples: int
    batch_size: int
    seed: int
    device: str
    _epoch: int = field(default=-1, init=False, repr=False)
    _batches: list[list[int]] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        assert self.num_examples > 0 and self.batch_size > 0

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every example comes once."""
        return -(-self.num_examples // self.batch_size)

    def indices(self, step: int) -> list[int]:
        """The examples of global step `step`, counted from 0 over all rounds."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._batches = batch_order(
                self.num_examples, self.batch_size, epoch, self.seed, self.device
            )
            self._epoch = epoch
        return self._batches[place]
