"""A device's own blocks of conversations: those before the edge's, and in the U-shape the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sfl.adapters.lora import Adapter, LoraBank
from sfl.adapters.served import place
from sfl.config import LoraSettings
from sfl.config.serving import BASE
from sfl.models.folder import ModelFolder
from sfl.models.kv.attention import Extension
from sfl.models.kv.cache import KvCache, KvPool
from sfl.models.kv.pages import pages_for
from sfl.models.kv.size import AT_ONCE, Keeping, check_kept, keeping_of
from sfl.models.span import SpanModel
from sfl.plan import Plan
from sfl.serving.sampling import GREEDY, Sampling
from sfl.stage.base import BaseForm
from sfl.stage.device import share_tied_weights
from sfl.stage.serving.drafting import DraftCache, Drafter
from sfl.stage.serving.sampler import confirmed
from sfl.stage.serving.spans import serving_span


@dataclass(frozen=True, slots=True)
class Guessing:
    """How far a draft goes, how its tokens are drawn, and whether each is computed by itself."""

    most: int = 0
    sampling: Sampling = GREEDY
    exact: bool = False


@dataclass(frozen=True, slots=True)
class FrontPart:
    """One span of the device, and the adapters in it by name."""

    model: SpanModel
    bank: LoraBank
    pool: KvPool
    adapters: dict[str, Adapter | None]


class FrontStage:
    """The spans of a device that serves; computes on one thread."""

    def __init__(
        self,
        folder: ModelFolder,
        plan: Plan,
        tokens: int,
        form: BaseForm | None = None,
        drafter: Drafter | None = None,
        embedding_on_disk: bool = False,
    ) -> None:
        """Room for keys and values of `tokens` tokens. Raises ConfigError, ModelError.

        With `embedding_on_disk` rows of the embedding are read as they are used.
        """
        check_kept("model", folder)
        form = form or BaseForm()
        self.plan = plan
        self.drafter = drafter
        self._pages = pages_for(tokens)
        self.parts = [
            _part(
                serving_span(folder, span, form, embedding_on_disk),
                keeping_of(folder, span),
                self._pages,
            )
            for span in plan.device_spans
        ]
        if len(self.parts) > 1:
            share_tied_weights(self.parts[0].model, self.parts[1].model)
        self._digests = {BASE: ""}
        if drafter is not None:
            drafter.join(self.parts[0].model, self.parts[1].model if self.ends else None)

    @property
    def ends(self) -> bool:
        """Whether the model's end is here, so that no token leaves this device."""
        return len(self.parts) > 1

    @property
    def nbytes(self) -> int:
        """Of all keys and values."""
        return sum(pool.nbytes for pool in self._pools)

    def has_room(self, own: FrontCache, tokens: int) -> bool:
        """Whether a conversation may have so many tokens."""
        return all(cache.fits(tokens) for cache in own.every)

    @property
    def _pools(self) -> list[KvPool]:
        own = None if self.drafter is None else self.drafter.pool
        return [part.pool for part in self.parts] + ([] if own is None else [own])

    def has_adapter(self, name: str, digest: str) -> bool:
        """Whether this device's part of it is here."""
        return self._digests.get(name) == digest

    def add_adapter(
        self, name: str, digest: str, values: Mapping[str, np.ndarray], scaling: float
    ) -> None:
        """Take this device's part of an adapter, in place of another of that name.

        Raises ProtocolError.
        """
        self._digests.pop(name, None)
        for part in self.parts:
            if part.adapters.pop(name, None) is not None:
                part.bank.remove(name)
        for part in self.parts:
            part.adapters[name] = place(part.bank, name, part.model.span, values, scaling)
        self._digests[name] = digest

    def begin(self, adapter: str) -> FrontCache:
        """A conversation's keys and values on this device."""
        caches = [KvCache(part.pool) for part in self.parts]
        if self.drafter is None or self.drafter.pool is None:
            return FrontCache(adapter, caches)
        draft = DraftCache(KvCache(self.drafter.pool))
        return FrontCache(adapter, caches, draft, self.drafter.reads_rows)

    def rows(self, own: FrontCache, tokens: Sequence[int]) -> Tensor:
        """Rows `[n, H]` at the cut, of tokens that follow what the front has."""
        parts = []
        for first in range(0, len(tokens), AT_ONCE):
            rows = self._extend(0, own, torch.tensor(tokens[first : first + AT_ONCE]))
            if self.drafter is not None and own.draft is not None:
                self.drafter.note(own.draft, rows)
            parts.append(rows)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def rows_and_draft(
        self, own: FrontCache, ids: Sequence[int], guessing: Guessing
    ) -> tuple[Tensor, tuple[int, ...]]:
        """Rows of the ids that the front lacks, and of guesses behind them; the guesses."""
        piece = ids[own.front :]
        drafter, most = self.drafter, guessing.most
        if drafter is None or most < 1:
            return self.rows(own, piece), ()
        if not drafter.reads_rows:
            draft = drafter.guess(own.draft, ids, most, guessing.sampling)
            if not guessing.exact:
                return self.rows(own, [*piece, *draft]), draft
            parts = [piece, *([token] for token in draft)]
            return torch.cat([self.rows(own, part) for part in parts]), draft
        rows, text = [self.rows(own, piece)], list(ids)
        for _ in range(most):
            (guess,) = drafter.guess(own.draft, text, 1, guessing.sampling)
            text.append(guess)
            rows.append(self.rows(own, [guess]))
        return torch.cat(rows), tuple(text[len(ids) :])

    def tokens(
        self,
        own: FrontCache,
        rows: Tensor,
        wanted: int,
        draft: Sequence[int],
        guessing: Guessing,
    ) -> tuple[int, ...]:
        """From the edge's rows of tokens that follow: those that come behind the last `wanted`.

        Of a draft those that it has guessed, and one more; what it has not is to be taken back.
        """
        if not wanted:
            self._extend(1, own, rows)
            return ()
        first = own.caches[1].length + len(rows) - wanted + 1
        singly = len(draft) if guessing.exact else 0
        logits = self._logits(own, rows, wanted, singly)
        return confirmed(logits, draft, guessing.sampling, first)

    def _logits(self, own: FrontCache, rows: Tensor, wanted: int, singly: int) -> Iterator[Tensor]:
        """Behind each of the last `wanted` rows; the last ones are computed as they are asked for,
        one by one."""
        certain, tail = len(rows) - singly, self.parts[1].model
        hidden = self._extend(1, own, rows[:certain])
        yield from tail.logits(hidden[-(wanted - singly) :])
        for row in rows[certain:]:
            yield tail.logits(self._extend(1, own, row[None]))[0]

    @torch.no_grad()
    def _extend(self, place_: int, own: FrontCache, inputs: Tensor) -> Tensor:
        part, cache = self.parts[place_], own.caches[place_]
        part.bank.activate(part.adapters[own.adapter])
        return part.model.extend(inputs, [Extension(cache, len(inputs))])


@dataclass(frozen=True, slots=True)
class FrontCache:
    """One conversation's keys and values in each of the device's spans.

    A draft may follow the front row by row (`together`): then both know as many tokens.
    """

    adapter: str
    caches: list[KvCache]
    draft: DraftCache | None = None
    together: bool = False

    @property
    def front(self) -> int:
        """Tokens that the front has."""
        return self.caches[0].length

    @property
    def held(self) -> int:
        """Tokens that the end has, for it cannot do without the edge; else all."""
        return self.caches[1].length if len(self.caches) > 1 else self.caches[0].length

    def truncate(self, front: int, tail: int) -> None:
        """Forget what comes behind so many tokens, in each."""
        for cache, length in zip(self.caches, (front, tail), strict=False):
            cache.truncate(min(length, cache.length))
        if self.draft is None:
            return
        own = self.draft.cache
        own.truncate(min(front, own.length))
        if self.together and own.length != self.front:  # one of them has dropped too much
            own.truncate(0)
            self.caches[0].truncate(0)

    def reserve(self, tokens: int) -> None:
        """Have room for so many tokens. Raises NoPages."""
        for cache in self.every:
            cache.reserve(tokens)

    def let_go(self) -> None:
        """Give back all."""
        for cache in self.every:
            cache.let_go()

    @property
    def every(self) -> list[KvCache]:
        """In each of the spans, and of the draft."""
        return self.caches + ([] if self.draft is None else [self.draft.cache])


def _part(model: SpanModel, keeping: Keeping, pages: int) -> FrontPart:
    pool = KvPool(pages, keeping)
    return FrontPart(model, LoraBank(model, LoraSettings()), pool, {BASE: None})
