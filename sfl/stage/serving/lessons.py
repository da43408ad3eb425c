"""What an exit learns: texts that the model itself says, and how it says them.

Distillation of the model's own probabilities on its own texts: what is to be guessed is what the
model says, not what anybody wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sfl.adapters.lora import Adapter, LoraBank
from sfl.adapters.served import ServedAdapter, place
from sfl.config import LoraSettings
from sfl.models.folder import ModelFolder
from sfl.models.kv.attention import Extension
from sfl.models.kv.cache import KvCache, KvPool
from sfl.models.kv.pages import pages_for
from sfl.models.span import SpanModel
from sfl.plan import Span
from sfl.stage.base import BaseForm
from sfl.stage.device import share_tied_weights
from sfl.stage.serving.spans import serving_span


@dataclass(frozen=True, slots=True)
class Lesson:
    """Of n texts of T tokens: their rows at the cut and behind the last block, `[n, T, H]` each."""

    rows: Tensor
    last: Tensor

    def part(self, first: int, end: int) -> Lesson:
        """Some of the texts."""
        return Lesson(self.rows[first:end], self.last[first:end])


class Teacher:
    """The whole model, cut in two, with an adapter or without."""

    def __init__(
        self,
        folder: ModelFolder,
        cut_layer: int,
        adapter: ServedAdapter | None = None,
        form: BaseForm | None = None,
    ) -> None:
        """Raises ModelError, and ProtocolError where the adapter is another model's."""
        last = folder.num_layers
        spans = (
            Span(0, cut_layer, embedding=True, head=False),
            Span(cut_layer, last, embedding=False, head=True),
        )
        self.front, self.rest = (serving_span(folder, span, form or BaseForm()) for span in spans)
        share_tied_weights(self.front, self.rest)
        for model in (self.front, self.rest):
            _wear(model, adapter)

    @torch.no_grad()
    def lesson(
        self, prompts: Sequence[Sequence[int]], length: int, generator: torch.Generator
    ) -> Lesson:
        """Go on with each prompt until it has `length` tokens, drawn at temperature 1."""
        count = len(prompts)
        pools = [KvPool(count * pages_for(length)) for _ in range(2)]
        caches = [[KvCache(pool) for _ in prompts] for pool in pools]
        pieces = [list(prompt[:length]) for prompt in prompts]
        rows = torch.empty(count, length, self.front.hidden_size)
        last = torch.empty_like(rows)
        going = list(range(count))
        while going:
            counts = [len(pieces[n]) for n in going]
            tokens = torch.tensor([token for n in going for token in pieces[n]])
            at_cut, behind = self._extend(
                tokens, [[own[n] for n in going] for own in caches], counts
            )
            parts = zip(
                going, torch.split(at_cut, counts), torch.split(behind, counts), strict=True
            )
            for n, row, hidden in parts:
                end = caches[0][n].length
                rows[n, end - len(row) : end], last[n, end - len(row) : end] = row, hidden
            ends = torch.tensor(counts).cumsum(0) - 1
            drawn = torch.multinomial(
                self.rest.logits(behind[ends]).float().softmax(-1), 1, generator=generator
            )
            for n, token in zip(going, drawn[:, 0].tolist(), strict=True):
                pieces[n] = [token]
            going = [n for n in going if caches[0][n].length < length]
        return Lesson(rows, last)

    def _extend(
        self, tokens: Tensor, caches: Sequence[Sequence[KvCache]], counts: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Rows at the cut, and behind the last block."""
        front, rest = (
            [Extension(cache, count) for cache, count in zip(own, counts, strict=True)]
            for own in caches
        )
        at_cut = self.front.extend(tokens, front)
        return at_cut, self.rest.extend(at_cut, rest)


def _wear(model: SpanModel, adapter: ServedAdapter | None) -> None:
    if adapter is None:
        return
    bank = LoraBank(model, LoraSettings(), adapter.target_modules)
    own: Adapter = place(bank, "taught", model.span, adapter.values, adapter.scaling)
    bank.activate(own)
