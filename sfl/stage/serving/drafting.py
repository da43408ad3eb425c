"""Guesses at what follows, made on the device: from the text, or by a small model.

Guesses are drawn by the numbers of what they guess (`sfl.stage.serving.sampler`), and never change
what is said. An exit over the device's own blocks is in `sfl.stage.serving.exits`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sfl.models.folder import ModelFolder
from sfl.models.kv.attention import Extension
from sfl.models.kv.cache import KvCache, KvPool
from sfl.models.kv.pages import pages_for
from sfl.models.kv.size import keeping_of
from sfl.models.span import SpanModel
from sfl.plan import Span
from sfl.serving.lookup import lookup
from sfl.serving.sampling import Sampling
from sfl.stage.base import BaseForm
from sfl.stage.serving.sampler import next_token
from sfl.stage.serving.spans import serving_span

CATCH_UP = 256
"""Most tokens of a prompt that a small model computes at a time."""


@dataclass(slots=True)
class DraftCache:
    """What a drafter with a pool keeps of one conversation.

    `last` is what its last token came out as.
    """

    cache: KvCache
    last: Tensor | None = None


class Drafter(Protocol):
    """Guesses; on the compute thread of the device."""

    pool: KvPool | None
    """Its keys and values, where it needs any."""
    reads_rows: bool
    """Whether it goes by rows of the device's blocks, guess by guess."""

    def join(self, front: SpanModel, tail: SpanModel | None) -> None:
        """The device's first blocks, and its last ones in the U-shape, which it works beside."""

    def note(self, own: DraftCache, rows: Tensor) -> None:
        """Rows `[n, H]` at the cut, of tokens that follow those it has heard of."""

    def guess(
        self, own: DraftCache | None, ids: Sequence[int], most: int, sampling: Sampling
    ) -> tuple[int, ...]:
        """At most so many ids behind a text; one where it reads rows."""


class LookupDrafter:
    """What followed when the text's last tokens stood there before."""

    pool: KvPool | None = None
    reads_rows = False

    def join(self, front: SpanModel, tail: SpanModel | None) -> None:
        """It has nothing of them."""

    def note(self, own: DraftCache, rows: Tensor) -> None:
        """It looks at ids alone."""

    def guess(
        self, own: DraftCache | None, ids: Sequence[int], most: int, sampling: Sampling
    ) -> tuple[int, ...]:
        """See `sfl.serving.lookup`."""
        return lookup(ids, most)


class ModelDrafter:
    """How a small model of the same tokens would go on."""

    reads_rows = False

    def __init__(
        self, folder: ModelFolder, vocab_size: int, tokens: int, form: BaseForm | None = None
    ) -> None:
        """Loads it, with room for so many tokens. `vocab_size` is that of what it guesses."""
        whole = Span(0, folder.num_layers, embedding=True, head=True)
        self.pool: KvPool | None = KvPool(pages_for(tokens), keeping_of(folder, whole))
        self._model: SpanModel = serving_span(folder, whole, form or BaseForm())
        self._vocabulary = vocab_size
        self._context = folder.context_length

    def join(self, front: SpanModel, tail: SpanModel | None) -> None:
        """It has weights of its own."""

    def note(self, own: DraftCache, rows: Tensor) -> None:
        """It has rows of its own."""

    def guess(
        self, own: DraftCache | None, ids: Sequence[int], most: int, sampling: Sampling
    ) -> tuple[int, ...]:
        """Token by token, behind all of the text that it has not computed yet."""
        assert own is not None
        if len(ids) + most > self._context or max(ids) >= self._model.vocab_size:
            return ()
        own.cache.truncate(min(own.cache.length, len(ids) - 1))
        for first in range(own.cache.length, len(ids), CATCH_UP):
            hidden = self._extend(own, ids[first : first + CATCH_UP])
        guesses: list[int] = []
        while True:
            logits = self._model.logits(hidden[-1:])[0, : self._vocabulary]
            guesses.append(next_token(logits, sampling, len(ids) + len(guesses)))
            if len(guesses) == most:
                return tuple(guesses)
            hidden = self._extend(own, guesses[-1:])

    def _extend(self, own: DraftCache, tokens: Sequence[int]) -> Tensor:
        return self._model.extend(torch.tensor(tokens), [Extension(own.cache, len(tokens))])
