"""Drafters that know, and err where they are told to."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sfl.models.kv.cache import KvPool
from sfl.models.span import SpanModel
from sfl.serving.sampling import Sampling
from sfl.stage.serving.drafting import DraftCache
from tests.house.tiny_models import VOCAB


class Told:
    """Guesses how a known text goes on; wrong at each `wrong`th place of it."""

    pool: KvPool | None = None

    def __init__(self, text: Sequence[int], wrong: int = 4, reads_rows: bool = False) -> None:
        self.text = [
            (token + 1) % VOCAB if place % wrong == 0 else token for place, token in enumerate(text)
        ]
        self.wrong = wrong
        self.reads_rows = reads_rows

    def join(self, front: SpanModel, tail: SpanModel | None) -> None:
        pass

    def note(self, own: DraftCache, rows: Tensor) -> None:
        raise AssertionError("it keeps nothing")

    def guess(
        self, own: DraftCache | None, ids: Sequence[int], most: int, sampling: Sampling
    ) -> tuple[int, ...]:
        guesses = tuple(self.text[len(ids) : len(ids) + most])
        return (*guesses, *(0 for _ in range(most - len(guesses)))) if self.reads_rows else guesses
