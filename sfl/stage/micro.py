"""A round's data as micro-batches: which examples, collated, and what a codec may know them by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sfl.codec.transform import RowContext
from sfl.config import RunSettings
from sfl.data.batches import Batch, Sampler, collate, split_micro
from sfl.data.example import Dataset, Example
from sfl.metrics.costs import Work
from sfl.metrics.stats import NodeStats
from sfl.rounds.values import Assignment
from sfl.stage.layout import real_tokens
from sfl.stage.messages import Key, Purpose


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """A piece of a step's batch; `normalizer` counts the targets of the whole, 0 if alone."""

    key: Key
    num_micro_batches: int
    normalizer: int
    batch: Batch
    examples: tuple[int, ...] = ()


def row_context(micro: MicroBatch) -> RowContext | None:
    """What a codec may know the rows of a training batch by."""
    if micro.key.purpose is Purpose.EVALUATION:
        return None
    ids, lengths = micro.batch.input_ids, micro.batch.lengths
    width = ids.shape[1]
    real = real_tokens(lengths, width)
    previous = torch.full_like(ids, -1)
    previous[:, 1:] = ids[:, :-1]
    positions = torch.arange(width).expand(ids.shape)
    examples = torch.tensor(micro.examples)[:, None].expand(ids.shape)
    columns = (ids, previous + 1, examples, positions)  # keys are not negative
    return RowContext(*(column[real].numpy().astype(np.int64) for column in columns))


class MicroBatches:
    """Cuts a device's batches into pieces: as many as the run wants, at least `least_pieces`."""

    def __init__(
        self,
        device: str,
        dataset: Dataset,
        pad_id: int,
        settings: RunSettings,
        stats: NodeStats,
        least_pieces: int,
    ) -> None:
        self._device = device
        self._dataset = dataset
        self._pad_id = pad_id
        self._batch_size = settings.training.batch_size
        self._stats = stats
        self._least_pieces = least_pieces
        self._sampler = Sampler(len(dataset.train), self._batch_size, settings.run.seed, device)

    def of_step(self, own: Assignment, step: int) -> Iterator[MicroBatch]:
        """The step's batch, cut up; each piece knows the targets of the whole."""
        train = self._dataset.train
        here = Key(Purpose.TRAINING, own.round, step, 0)
        with self._stats.phases.measure("collate", here, self._device, Work(0)):
            indices = self._sampler.indices(own.steps.first + step)
            pieces = split_micro(indices, self._pieces(own))
            batches = [collate([train[index] for index in piece], self._pad_id) for piece in pieces]
        # One micro-batch takes the plain mean, bit for bit what an unsplit step does.
        normalizer = sum(b.num_targets for b in batches) if len(batches) > 1 else 0
        for number, batch in enumerate(batches):
            key = Key(Purpose.TRAINING, own.round, step, number)
            yield MicroBatch(key, len(batches), normalizer, batch, tuple(pieces[number]))

    def held_out(
        self, own: Assignment, examples: Sequence[Example], number: int
    ) -> Iterator[MicroBatch]:
        """Examples to evaluate, as large as training's pieces, numbered from `number` on."""
        size = -(-self._batch_size // self._pieces(own))
        for count, first in enumerate(range(0, len(examples), size), number):
            key = Key(Purpose.EVALUATION, own.round, count, 0)
            with self._stats.phases.measure("collate", key, self._device, Work(0)):
                batch = collate(examples[first : first + size], self._pad_id)
            yield MicroBatch(key, 1, 0, batch)

    def _pieces(self, own: Assignment) -> int:
        return max(own.micro_batches, self._least_pieces)
