"""A device's own blocks of conversations: those before the edge's, and in the U-shape the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sfl.adapters.lora import Adapter, LoraBank
from sfl.adapters.served import place
from sfl.config import LoraSettings
from sfl.errors import ConfigError
from sfl.models.folder import ModelFolder
from sfl.models.kv.attention import Extension
from sfl.models.kv.cache import KvCache, KvPool
from sfl.models.kv.pages import pages_for
from sfl.models.kv.size import cannot_keep
from sfl.models.span import SpanModel, build_span
from sfl.plan import Plan, Span
from sfl.serving.sampling import Sampling
from sfl.stage.base import BaseForm
from sfl.stage.device import share_tied_weights
from sfl.stage.serving.sampler import next_token


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
        self, folder: ModelFolder, plan: Plan, tokens: int, form: BaseForm | None = None
    ) -> None:
        """Room for keys and values of `tokens` tokens. Raises ConfigError, ModelError."""
        if (problem := cannot_keep(folder.family, folder.config)) is not None:
            raise ConfigError("model", folder.name, problem, "Serve another model.")
        form = form or BaseForm()
        self.plan = plan
        self._pages = pages_for(tokens)
        self.parts = [_part(folder, span, form, self._pages) for span in plan.device_spans]
        if len(self.parts) > 1:
            share_tied_weights(self.parts[0].model, self.parts[1].model)

    @property
    def ends(self) -> bool:
        """Whether the model's end is here, so that no token leaves this device."""
        return len(self.parts) > 1

    @property
    def nbytes(self) -> int:
        """Of all keys and values."""
        return sum(part.pool.nbytes for part in self.parts)

    def has_room(self, own: FrontCache, tokens: int) -> bool:
        """Whether a conversation may have so many tokens."""
        more = pages_for(tokens) - own.caches[0].num_pages
        return more <= min(part.pool.pages.free for part in self.parts)

    def add_adapter(self, name: str, values: Mapping[str, np.ndarray], scaling: float) -> None:
        """Take this device's part of an adapter. Raises ProtocolError."""
        for part in self.parts:
            if name not in part.adapters:
                part.adapters[name] = place(part.bank, name, part.model.span, values, scaling)

    def begin(self, adapter: str) -> FrontCache:
        """A conversation's keys and values on this device."""
        return FrontCache(adapter, [KvCache(part.pool) for part in self.parts])

    def rows(self, own: FrontCache, tokens: Sequence[int]) -> Tensor:
        """Rows `[n, H]` at the cut, of tokens that follow what the front has."""
        return self._extend(0, own, torch.tensor(tokens))

    def tokens(
        self, own: FrontCache, rows: Tensor, wanted: int, sampling: Sampling
    ) -> tuple[int, ...]:
        """From the edge's rows of tokens that follow: those that come behind the last `wanted`."""
        hidden = self._extend(1, own, rows)
        if not wanted:
            return ()
        logits = self.parts[1].model.logits(hidden[-wanted:])
        first = own.caches[1].length - wanted + 1
        return tuple(next_token(row, sampling, first + n) for n, row in enumerate(logits))

    @torch.no_grad()
    def _extend(self, place_: int, own: FrontCache, inputs: Tensor) -> Tensor:
        part, cache = self.parts[place_], own.caches[place_]
        part.bank.activate(part.adapters[own.adapter])
        return part.model.extend(inputs, [Extension(cache, len(inputs))])


@dataclass(frozen=True, slots=True)
class FrontCache:
    """One conversation's keys and values in each of the device's spans."""

    adapter: str
    caches: list[KvCache]

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

    def reserve(self, tokens: int) -> None:
        """Have room for so many tokens. Raises NoPages."""
        for cache in self.caches:
            cache.reserve(tokens)

    def let_go(self) -> None:
        """Give back all."""
        for cache in self.caches:
            cache.let_go()


def serving_span(folder: ModelFolder, span: Span, form: BaseForm) -> SpanModel:
    """Blocks that answer, at either end of the cut."""
    return build_span(
        folder,
        span,
        task="causal_lm",
        num_labels=0,
        dtype=form.weights,
        packed=True,
        autocast=form.autocast,
        quantised=form.quantised,
    )


def _part(folder: ModelFolder, span: Span, form: BaseForm, pages: int) -> FrontPart:
    model = serving_span(folder, span, form)
    return FrontPart(model, LoraBank(model, LoraSettings()), KvPool(pages), {"base": None})
