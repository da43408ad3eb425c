"""Conversations over spans of tiny models, and what transformers itself makes of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sfl.models.folder import open_model
from sfl.models.kv.attention import Extension
from sfl.models.kv.cache import KvCache, KvPool
from sfl.models.kv.pages import pages_for
from sfl.models.packed import accept_packed
from sfl.models.span import SpanModel, build_span
from sfl.plan import Plan, Span
from tests.house.tiny_models import CONFIGS, ENCODERS, LAYERS, base_model, model_folder

DECODERS = tuple(kind for kind in CONFIGS if kind not in ENCODERS)
NEW_TOKENS = 64
PROMPT = (5, 17, 33, 8, 52, 21, 44, 9, 3, 28, 14)
LONGEST = 128


def folder_of(kind: str) -> str:
    """A model whose context holds prompt and answer."""
    name = "n_positions" if kind == "gpt2" else "max_position_embeddings"
    return str(model_folder(kind, json.dumps({name: LONGEST})))


@cache
def generated(kind: str, implementation: str | None = None) -> tuple[tuple[int, ...], Tensor]:
    """Greedy tokens of transformers' `generate` behind PROMPT, and the logits `[64, V]` of each."""
    more = {} if implementation is None else {"attn_implementation": implementation}
    model = base_model(open_model(folder_of(kind)).path, "causal_lm", **more).eval()
    ids = torch.tensor([PROMPT])
    made = model.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return tuple(made.sequences[0, len(PROMPT) :].tolist()), torch.cat(made.logits)


@cache
def span_model(kind: str, span: Span, implementation: str | None = None) -> SpanModel:
    """A span that is ready to be extended."""
    model = build_span(
        open_model(folder_of(kind)), span, task="causal_lm", num_labels=0, dtype=torch.float32
    )
    if implementation is not None:
        config: Any = model.model.config
        config._attn_implementation = implementation
    accept_packed(model.model)
    model.packed = True
    return model


def plans(num_layers: int = LAYERS) -> list[Plan]:
    """Every legal cut, vanilla and U-shaped."""
    found = [Plan.split(num_layers, cut, 0, "vanilla") for cut in range(num_layers)]
    for cut in range(num_layers):
        found += [Plan.split(num_layers, cut, tail, "u_shaped") for tail in range(num_layers - cut)]
    return found


class Chain:
    """The spans of a plan one behind the other, with a cache in each for one conversation."""

    def __init__(self, spans: Sequence[SpanModel], num_tokens: int = LONGEST) -> None:
        self.spans = spans
        self.caches = [KvCache(KvPool(pages_for(num_tokens))) for _ in spans]

    def extend(self, tokens: Sequence[int]) -> Tensor:
        """Logits `[n, V]` of tokens that follow."""
        rows = torch.tensor(tokens)
        for span, own in zip(self.spans, self.caches, strict=True):
            rows = span.extend(rows, [Extension(own, len(tokens))])
        return self.spans[-1].logits(rows)


def chunks(tokens: Sequence[int], size: int) -> list[Sequence[int]]:
    """Tokens in pieces of `size` at most."""
    return [tokens[first : first + size] for first in range(0, len(tokens), size)]
