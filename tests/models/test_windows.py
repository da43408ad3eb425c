"""Blocks that look at a window keep no more: the same tokens, bounded memory, and the way back."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
import torch

from device_agent.serving.talk import Wish
from sfl.models.folder import open_model
from sfl.models.kv.attention import Extension
from sfl.models.kv.cache import KvCache, KvPool
from sfl.models.kv.pages import PAGE_TOKENS
from sfl.models.kv.size import AT_ONCE, Keeping, keeping_of
from sfl.models.span import SpanModel
from sfl.plan import Plan, Span
from tests.house.conversations import span_model
from tests.house.serving import answered, device, edge_config, serving
from tests.house.tiny_models import CONFIGS, LAYERS, opened

WHOLE = Span(0, LAYERS, embedding=True, head=True)
WINDOWED = {"mistral": {0, 1, 2}, "qwen2": {1, 2}, "gemma2": {0, 2}, "gemma3_text": {0, 2}}
TEXT = [(7 * place * place + 3 * place) % 50 + 3 for place in range(1152)]


def keeping(kind: str, at_once: int = 32) -> Keeping:
    return keeping_of(opened(kind), WHOLE, at_once)


def said(model: SpanModel, cache: KvCache, tokens: list[int], size: int) -> torch.Tensor:
    """Logits of a text in pieces of `size` at most."""
    rows = []
    for first in range(0, len(tokens), size):
        part = tokens[first : first + size]
        rows.append(model.extend(torch.tensor(part), [Extension(cache, len(part))]))
    return model.logits(torch.cat(rows))


@pytest.mark.parametrize("kind", CONFIGS)
def test_windows_are_known_from_the_config_alone(kind: str) -> None:
    if kind in ("bert", "roberta", "distilbert"):
        return
    own = keeping(kind)
    assert own.windowed == WINDOWED.get(kind, set())
    assert own.window == (4 if own.windowed else 0)
    folder = opened(kind)
    bare = {key: value for key, value in folder.config.items() if key != "layer_types"}
    if kind not in ("gemma3_text",):  # whose config there is no pattern of
        assert keeping_of(replace(folder, config=bare), WHOLE).windowed == own.windowed


@pytest.mark.parametrize("kind", WINDOWED)
def test_texts_longer_than_the_window_say_the_same_in_bounded_memory(kind: str) -> None:
    """Bit for bit what is said where everything is kept; 1,152 tokens, in pieces of 1 to 32."""
    model = span_model(kind, WHOLE)
    own = keeping(kind)
    kept, dropped = KvPool(18), KvPool(18, own)
    whole, bounded = KvCache(kept), KvCache(dropped)
    block = 2 * 2 * 8 * 4  # bytes of a token: keys and values, heads, width, float32
    most = 0
    for first in range(0, len(TEXT), 96):
        piece = TEXT[first : first + 96]
        for size in (32, 1, 7):
            part, piece = piece[:32], piece[32:]
            expected = said(model, whole, part, size)
            assert torch.equal(said(model, bounded, part, size), expected)
        most = max(most, dropped.nbytes)
    paged = (LAYERS - len(own.windowed)) * 18 * PAGE_TOKENS
    assert dropped.nbytes == (paged + len(own.windowed) * own.recent) * block == most
    assert own.recent == PAGE_TOKENS * 3 and kept.nbytes == LAYERS * 18 * PAGE_TOKENS * block
    bounded.let_go()
    assert (dropped.nbytes, dropped.used) == (0, 0)


def test_a_step_of_many_tokens_is_taken_too() -> None:
    """More at once than was foreseen takes more memory, and says the same."""
    model = span_model("mistral", WHOLE)
    whole, bounded = KvCache(KvPool(19)), KvCache(KvPool(19, keeping("mistral")))
    for size in (40, 500, 3):
        expected = said(model, whole, TEXT[whole.length :][:size], size)
        assert torch.equal(said(model, bounded, TEXT[bounded.length :][:size], size), expected)


@pytest.mark.parametrize("kind", ["mistral", "gemma3_text"])
def test_going_back_within_the_window_is_free_and_further_forgets(kind: str) -> None:
    model = span_model(kind, WHOLE)
    cache = KvCache(KvPool(19, keeping(kind)))
    said(model, cache, TEXT[:700], 32)
    cache.truncate(690)
    fresh = KvCache(KvPool(19))
    said(model, fresh, TEXT[:690], 32)
    expected = said(model, fresh, TEXT[:20], 20)
    torch.testing.assert_close(said(model, cache, TEXT[:20], 20), expected, atol=1e-5, rtol=0)
    cache.truncate(300)
    assert cache.length == 0
    again = said(model, cache, TEXT[:40], 20)
    assert torch.equal(again, said(model, KvCache(KvPool(1)), TEXT[:40], 20))


@pytest.mark.parametrize("kind", ["mistral", "gemma3_text"])
def test_it_goes_out_of_the_pool_and_back(kind: str) -> None:
    model = span_model(kind, WHOLE)
    pool = KvPool(19, keeping(kind))
    cache = KvCache(pool)
    said(model, cache, TEXT[:700], 32)
    held = dict(cache.held())
    expected = said(model, cache, TEXT[700:760], 20)
    cache.let_go()
    cache.reserve(760)
    cache.take_back(held.items())
    assert cache.length == 700 and torch.equal(said(model, cache, TEXT[700:760], 20), expected)


def test_a_long_conversation_costs_what_it_keeps() -> None:
    own = Keeping(6, 512, frozenset(range(5)), AT_ONCE)  # five of six blocks slide
    assert own.recent == PAGE_TOKENS * 14
    assert own.cost(64 * 10) == 10  # shorter than its windows
    assert own.cost(64 * 600) == -(-(600 + 5 * 14) // 6)
    for pages in (20, 100, 1000):
        longest = own.longest(pages)
        assert own.cost(longest) <= pages < own.cost(longest + 7 * PAGE_TOKENS)
    assert replace(own, lazy=False).cost(64 * 600) == 600
    assert Keeping(4).cost(65) == 2 and Keeping(4).longest(3) == 192
    assert Keeping(2, 512, frozenset({0, 1})).cost(1 << 19) == 14


@pytest.mark.parametrize("topology", ["vanilla", "u_shaped"])
def test_answers_beyond_the_window_are_those_of_an_edge_that_keeps_all(
    topology: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the wire, and with an earlier turn that is said otherwise."""
    extra = '{"max_position_embeddings": 1024}'
    folder = str(opened("gemma3_text", extra).path)
    monkeypatch.setattr("tests.house.serving.folder_of", lambda kind: folder)
    monkeypatch.setattr("tests.house.serving.LONGEST", 1024)
    config = edge_config("gemma3_text", kv_memory="2MB", prefill_chunk=32)
    plan = Plan.split(LAYERS, 1, 1 if topology == "u_shaped" else 0, topology)
    wish = Wish("long", tuple(TEXT[:600]), 40)
    turned = replace(wish, ids=(*TEXT[:200], 9, *TEXT[200:400]), max_tokens=10)

    async def run() -> list[list[int]]:
        async with serving(config) as (_, at), device(at, kind="gemma3_text", plan=plan) as own:
            return [await own.say(one) for one in (wish, turned, wish)]

    first, other, again = asyncio.run(run())
    assert first == again
    monkeypatch.setattr("edge_server.serving.keeping_of", lambda *_, **__: Keeping(2))
    monkeypatch.setattr("sfl.stage.serving.front.keeping_of", lambda *_, **__: Keeping(1))

    async def kept() -> list[list[int]]:
        async with serving(config) as (_, at):
            return [
                await answered(at, one, "gemma3_text", plan=plan, name=f"d{n}")
                for n, one in enumerate((wish, turned))
            ]

    assert asyncio.run(kept()) == [first, other]
    assert open_model(folder).context_length == 1024
