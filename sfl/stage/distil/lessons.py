"""Lessons of one device: what its messages bring for the teacher, and what comes of it.

The teacher's forward is a job of its own, before the student's. Jobs of several devices may be one
batch, whatever their cuts are. All of this runs on the edge's one compute thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sfl.errors import ProtocolError, SflError
from sfl.metrics.stats import NodeStats
from sfl.models.memory.footprint import piece_rows
from sfl.stage.distil.cache import RowCache, key_of
from sfl.stage.distil.kept_rows import Keeping
from sfl.stage.distil.lesson import ClassLesson, HiddenLesson, Lesson, Weights, likeliest
from sfl.stage.distil.scored import scored_places
from sfl.stage.distil.teacher import Ids, Teacher
from sfl.stage.messages import TEACHER, TensorMessage
from sfl.stage.session import Group

Places = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Asked:
    """Sequences for a teacher, as token ids or as hidden states, and where rows are wanted.

    `keys` tell them from all others, one each, where they have come as hidden states. Without
    `places` the sequences are to be classified.
    """

    sent: Ids | Tensor
    lengths: tuple[int, ...]
    places: Places | None
    keys: tuple[bytes, ...] = ()

    def each(self) -> Iterator[tuple[bytes, Asked]]:
        """Its sequences, each with what it is remembered by."""
        ends = np.cumsum(self.lengths)
        for number, (end, length) in enumerate(zip(ends, self.lengths, strict=True)):
            own, places = self.sent[end - length : end], None
            if self.places is not None:
                mine = (self.places >= end - length) & (self.places < end)
                places = self.places[mine] - (end - length)
            said = own.astype("<i4").tobytes() if isinstance(own, np.ndarray) else self.keys[number]
            yield key_of(said, places), Asked(own, (length,), places)


@dataclass(frozen=True, slots=True)
class School:
    """A teacher for all devices of an edge, and what is remembered of it."""

    teacher: Teacher
    weights: Weights
    keeping: Keeping
    topk: int
    cache: RowCache | None = None

    def lesson(self, said: Tensor) -> Lesson:
        """What was said of a message, as a part of its loss."""
        teacher = self.teacher
        if teacher.classifies:
            return ClassLesson(self.weights, said)
        return HiddenLesson(self.weights, teacher.model, said, teacher.tokens)

    def told(self, said: Tensor) -> Tensor:
        """The same for who has the loss elsewhere: logits of classes, or the likeliest tokens.

        These are `[m, 2 k]`: k log-probabilities at the temperature, and the k tokens.
        """
        teacher = self.teacher
        if teacher.classifies:
            return said.float()
        piece = piece_rows(teacher.model.vocab_size)
        known = likeliest(self.weights, teacher.model, said, teacher.tokens, self.topk, piece)
        return torch.cat([known[0], known[1].float()], -1)

    def close(self) -> None:
        """What is remembered is whole on the disk."""
        if self.cache is not None:
            self.cache.close()

    def say(self, requests: Sequence[Asked]) -> list[Tensor]:
        """Of each: the last hidden states of its places `[m, H]`, or logits of classes `[B, C]`."""
        if self.cache is None:
            return self._computed(requests)
        return [self._remembered(self.cache, asked) for asked in requests]

    def _computed(self, requests: Sequence[Asked]) -> list[Tensor]:
        """All of them as one batch."""
        lengths = [length for asked in requests for length in asked.lengths]
        whole = self.teacher.hidden(_joined([asked.sent for asked in requests]), lengths)
        each = torch.split(whole, [sum(asked.lengths) for asked in requests])
        return [self._of(asked, rows) for asked, rows in zip(requests, each, strict=True)]

    def _of(self, asked: Asked, rows: Tensor) -> Tensor:
        if asked.places is None:
            return self.teacher.classes(rows, asked.lengths)
        return rows[torch.from_numpy(asked.places)]

    def _remembered(self, cache: RowCache, asked: Asked) -> Tensor:
        """By sequence, each by itself: so what is kept depends on nothing that came beside it."""
        parts = dict(asked.each())
        kept = cache.get(list(parts))
        found = {k: data for k, data in kept.items() if len(data) == self._size(parts[k])}
        fresh = {}
        for key, part in parts.items():
            if key not in found:
                (rows,) = self._computed([part])
                fresh[key] = self.keeping.as_bytes(rows)
        cache.put(fresh)
        rows_of = {key: self.keeping.as_rows(data) for key, data in (found | fresh).items()}
        whole = torch.cat([rows_of[key] for key, _ in asked.each()])
        return whole.to(self.teacher.model.dtype)

    def _size(self, part: Asked) -> int:
        """Bytes that are kept of a sequence: of each place, or of its classes."""
        return self.keeping.num_bytes(1 if part.places is None else len(part.places))


def _joined(sent: Sequence[Ids | Tensor]) -> Ids | Tensor:
    """One behind the other."""
    ids = [one for one in sent if isinstance(one, np.ndarray)]
    if ids:
        return np.concatenate(ids)
    return torch.cat([one for one in sent if isinstance(one, Tensor)])


class Lessons:
    """One device's (sfl.stage.session.Computed)."""

    def __init__(
        self,
        device: str,
        school: School,
        stats: NodeStats,
        check: Callable[[TensorMessage], None],
    ) -> None:
        """`check` raises ProtocolError for a message that is not due."""
        self.device = device
        self.served_seconds = 0.0
        self.school = school
        self.stats = stats
        self._check = check

    def handle(self, message: TensorMessage) -> Tensor:
        """What the teacher says of a message. Raises ProtocolError."""
        asked = self.asked(message)
        with self.stats.phases.measure("teach", message.key, self.device):
            (said,) = self.school.say([asked])
        return said

    def group(self, message: TensorMessage) -> Group | None:
        """Packed sequences whose longest ones are alike, where each needs the teacher."""
        school = self.school
        if not school.teacher.computation.packed or school.cache is not None:
            return None
        return TaughtTogether(max(message.lengths).bit_length())

    def asked(self, message: TensorMessage) -> Asked:
        """What a message asks the teacher. Raises ProtocolError."""
        self._check(message)
        teacher = self.school.teacher
        sent: Ids | Tensor | None = message.ids
        if not teacher.takes_ids:
            sent = message.named.get(TEACHER)
        if sent is None:
            raise ProtocolError("a message came without what the teacher reads")
        if isinstance(sent, np.ndarray):
            _check_ids(sent, sum(message.lengths), teacher.model.vocab_size)
        elif len(message.sequence_keys) != len(message.lengths):
            raise ProtocolError("hidden states for the teacher came without their sequences' keys")
        # A device names its own sequences only: nobody's word counts for what others send.
        own = f"{self.device}/".encode()
        keys = tuple(own + key for key in message.sequence_keys)
        return Asked(sent, message.lengths, _places(teacher, message), keys)


@dataclass(frozen=True, slots=True)
class TaughtTogether:
    """Messages whose longest sequences are alike (in powers of two), of any devices."""

    length_bits: int

    def run(self, tasks: Sequence[tuple[Lessons, TensorMessage]]) -> list[Tensor | SflError]:
        """What the teacher says of each, as one batch; or why it says nothing."""
        results: dict[int, Tensor | SflError] = {}
        sound: list[tuple[int, Asked]] = []
        for number, (lessons, message) in enumerate(tasks):
            try:
                sound.append((number, lessons.asked(message)))
            except ProtocolError as error:
                results[number] = error
        if sound:
            phases = tasks[0][0].stats.phases
            begin = phases.now()
            said = tasks[0][0].school.say([asked for _, asked in sound])
            for (number, _), rows in zip(sound, said, strict=True):
                lessons, message = tasks[number]
                phases.share("teach", message.key, lessons.device, begin, phases.now(), len(sound))
                results[number] = rows
        return [results[number] for number in range(len(tasks))]


def _check_ids(ids: Ids, count: int, vocabulary: int) -> None:
    if ids.shape != (count,):
        raise ProtocolError(f"{count} token ids were expected, {ids.size} came")
    if not np.all((ids >= 0) & (ids < vocabulary)):
        raise ProtocolError(f"a token id is outside of 0..{vocabulary - 1}")


def _places(teacher: Teacher, message: TensorMessage) -> Places | None:
    """Where rows are wanted: everywhere, unless labels say where a token is scored."""
    if teacher.classifies:
        return None
    count = sum(message.lengths)
    if message.labels is None:
        return np.arange(count)
    if message.labels.shape != (count,):
        raise ProtocolError(f"{count} labels were expected")
    return scored_places(message.lengths, message.labels)
