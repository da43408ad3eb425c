"""Tokens that follow what a conversation has: equal to transformers' `generate`, however cut."""

from __future__ import annotations

import random

import pytest
import torch

from sfl.errors import ProtocolError
from sfl.models.kv.attention import Extension
from sfl.models.kv.cache import KvCache, KvPool
from sfl.models.kv.pages import PAGE_TOKENS, NoPages, Pages, pages_for
from sfl.models.kv.size import cannot_keep, page_bytes
from sfl.models.span import SpanModel
from sfl.plan import Plan, Span
from tests.house.conversations import (
    DECODERS,
    NEW_TOKENS,
    PROMPT,
    Chain,
    chunks,
    generated,
    plans,
    span_model,
)
from tests.house.tiny_models import LAYERS, opened

CLOSE = 1e-5
WHOLE = Span(0, LAYERS, embedding=True, head=True)


def spans_of(kind: str, plan: Plan, implementation: str | None = None) -> list[SpanModel]:
    return [span_model(kind, held.span, implementation) for held in plan.spans]


def assert_as_generated(kind: str, plan: Plan, implementation: str | None = None) -> None:
    """Prefill whole and in chunks of 7, then 64 tokens one by one, each the greedy one."""
    tokens, logits = generated(kind, implementation)
    spans = spans_of(kind, plan, implementation)
    chain, chunked = Chain(spans), Chain(spans)
    found = chain.extend(PROMPT)
    parts = torch.cat([chunked.extend(part) for part in chunks(PROMPT, 7)])
    torch.testing.assert_close(parts, found, atol=CLOSE, rtol=0)
    if len(plan.spans) == 2:  # and goes on with what came in chunks
        chain = chunked
    answer: list[int] = []
    for step in range(NEW_TOKENS):
        torch.testing.assert_close(found[-1], logits[step], atol=CLOSE, rtol=0)
        answer.append(int(found[-1].argmax()))
        found = chain.extend(answer[-1:])
    assert tuple(answer) == tokens


@pytest.mark.parametrize("kind", DECODERS)
def test_every_cut_generates_what_the_unsplit_model_does(kind: str) -> None:
    for plan in plans():
        assert_as_generated(kind, plan)


@pytest.mark.parametrize("kind", [kind for kind in DECODERS if kind != "gemma2"])
def test_so_does_eager_attention(kind: str) -> None:
    """Gemma 2 has a soft cap, so it is eager above."""
    assert_as_generated(kind, Plan.split(LAYERS, 1, 0, "vanilla"), "eager")


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("kept", [0, 3, 9])
def test_what_was_taken_back_leaves_no_trace(kind: str, kept: int) -> None:
    (model,) = [span_model(kind, WHOLE)]
    straight, turned = Chain([model]), Chain([model])
    turned.extend((*PROMPT[:kept], 40, 41, 42, 43, 44, 45))
    turned.caches[0].truncate(kept)
    expected = straight.extend(PROMPT)[kept:]
    torch.testing.assert_close(turned.extend(PROMPT[kept:]), expected, atol=CLOSE, rtol=0)


def test_a_batch_of_ragged_conversations_is_each_alone() -> None:
    model = span_model("gemma3_text", WHOLE)
    texts = [PROMPT[:first] + PROMPT for first in (1, 4, 8)]
    alone = [Chain([model]).extend(text) for text in texts]
    caches = [KvCache(KvPool(1)) for _ in texts]
    rows: list[list[torch.Tensor]] = [[] for _ in texts]
    done = [0] * len(texts)
    for counts in ((5, 1, 2), (1, 9, 3), (6, 5, 14)):  # 12, 15 and 19 tokens
        ids = [t for n, text in enumerate(texts) for t in text[done[n] : done[n] + counts[n]]]
        grown = [Extension(own, count) for own, count in zip(caches, counts, strict=True)]
        found = model.logits(model.extend(torch.tensor(ids), grown))
        for n, part in enumerate(torch.split(found, list(counts))):
            rows[n].append(part)
            done[n] += counts[n]
    for n, expected in enumerate(alone):
        torch.testing.assert_close(torch.cat(rows[n]), expected, atol=CLOSE, rtol=0)


# -- pages ----------------------------------------------------------------------------------------


def busy_pool() -> tuple[KvPool, KvCache]:
    """A pool of 4 pages in which a cache has pages that do not lie behind each other."""
    pool = KvPool(4)
    own, other = KvCache(pool), KvCache(pool)
    own.reserve(PAGE_TOKENS)
    other.reserve(PAGE_TOKENS)
    own.reserve(3 * PAGE_TOKENS)
    return pool, own


def test_pages_in_pieces_hold_the_same_as_a_run() -> None:
    model = span_model("mistral", WHOLE)
    _, scattered = busy_pool()
    assert scattered.num_pages == 3
    ids = torch.arange(3, 3 + 2 * 29).remainder(50) + 3
    text = torch.cat([ids, ids])[: PAGE_TOKENS + 20]
    run = KvCache(KvPool(2))
    for part in torch.split(text, 30):
        expected = model.extend(part, [Extension(run, len(part))])
        assert torch.equal(model.extend(part, [Extension(scattered, len(part))]), expected)


def test_room_is_counted_and_given_back() -> None:
    model = span_model("llama", WHOLE)
    pool = KvPool(4)
    own = KvCache(pool)
    model.extend(torch.tensor(PROMPT), [Extension(own, len(PROMPT))])
    page = LAYERS * 2 * 2 * PAGE_TOKENS * 8 * 4  # blocks, keys and values, heads, tokens, width
    assert (own.length, own.num_pages, pool.nbytes) == (len(PROMPT), 1, page)
    own.reserve(3 * PAGE_TOKENS)
    assert pool.nbytes == 3 * page
    own.shrink()
    assert pool.nbytes == page
    own.let_go()
    assert (pool.nbytes, pool.pages.free, own.length) == (0, 4, 0)


@pytest.mark.parametrize("kind", DECODERS)
def test_bytes_are_foretold_from_the_config_alone(kind: str) -> None:
    model, pool = span_model(kind, Span(1, LAYERS, embedding=False, head=True)), KvPool(3)
    rows = torch.zeros(5, model.hidden_size)
    model.extend(rows, [Extension(KvCache(pool), len(rows))])
    assert pool.nbytes == page_bytes(opened(kind).config, LAYERS - 1, 4)


def test_models_whose_conversations_cannot_be_kept_are_told() -> None:
    def told(kind: str, **more: object) -> str | None:
        folder = opened(kind)
        return cannot_keep(folder.family, {**folder.config, **more})

    assert [told(kind) for kind in DECODERS] == [None] * len(DECODERS)
    assert "later" in str(told("bert"))
    assert "longest text" in str(told("llama", rope_parameters={"rope_type": "dynamic"}))
    inner = {"full_attention": {"rope_type": "longrope"}}
    assert "longest text" in str(told("gemma3_text", rope_parameters=inner))
    assert told("llama", rope_parameters={"rope_type": "llama3"}) is None


def test_where_no_page_is_free_nothing_changes() -> None:
    model = span_model("llama", WHOLE)
    pool = KvPool(1)
    one, other = KvCache(pool), KvCache(pool)
    expected = Chain([model]).extend(PROMPT)
    first = model.logits(model.extend(torch.tensor(PROMPT[:5]), [Extension(one, 5)]))
    with pytest.raises(NoPages, match="1 pages are wanted, 0 are free"):
        model.extend(torch.tensor(PROMPT[:5]), [Extension(other, 5)])
    assert (one.length, other.length, other.num_pages) == (5, 0, 0)
    rest = model.logits(model.extend(torch.tensor(PROMPT[5:]), [Extension(one, 6)]))
    torch.testing.assert_close(torch.cat([first, rest]), expected, atol=CLOSE, rtol=0)


def test_a_conversation_goes_out_of_the_pool_and_back() -> None:
    model = span_model("gpt2", WHOLE)
    pool, own = busy_pool()
    whole = Chain([model]).extend(PROMPT)
    model.extend(torch.tensor(PROMPT[:8]), [Extension(own, 8)])
    held = dict(own.held())
    assert held["block.0"].shape == (2, 4, 8, 8)
    own.let_go()
    KvCache(pool).reserve(1)  # so that others get its pages
    own.take_back(held.items())
    assert own.length == 8
    rest = model.logits(model.extend(torch.tensor(PROMPT[8:]), [Extension(own, 3)]))
    torch.testing.assert_close(rest, whole[8:], atol=CLOSE, rtol=0)


@pytest.mark.parametrize(
    "spoiled",
    [
        {"block.0": torch.zeros(2, 2, 5, 8), "block.1": torch.zeros(2, 2, 4, 8)},
        {"block.0": torch.zeros(2, 3, 5, 8)},
        {"block.0": torch.zeros(2, 2, 5, 7)},
        {"else": torch.zeros(2, 2, 5, 8)},
    ],
)
def test_what_is_no_conversation_of_this_pool_is_refused(spoiled: dict[str, torch.Tensor]) -> None:
    model = span_model("llama", WHOLE)
    pool = KvPool(2)
    model.extend(torch.tensor(PROMPT), [Extension(KvCache(pool), len(PROMPT))])
    with pytest.raises(ProtocolError):
        KvCache(pool).take_back(spoiled.items())


def test_pages_are_never_given_twice() -> None:
    draw = random.Random(3)
    pages = Pages(40)
    taken: dict[int, list[int]] = {}
    for turn in range(600):
        name = draw.randrange(8)
        if draw.random() < 0.5:
            count = draw.randrange(1, 9)
            own = taken.setdefault(name, [])
            if count > pages.free:
                with pytest.raises(NoPages):
                    pages.take(count)
            else:
                own += pages.take(count, own[-1] if own else None)
        else:
            pages.give_back(taken.pop(name, []))
        every = [page for own in taken.values() for page in own]
        assert len(every) == len(set(every)) == 40 - pages.free, turn
        assert all(0 <= page < 40 for page in every)


def test_pages_behind_each_other_are_preferred() -> None:
    pages = Pages(10)
    assert pages.take(2) == [0, 1]
    assert pages.take(2) == [2, 3]
    assert pages.take(2, behind=3) == [4, 5]
    pages.give_back([0, 1])
    assert pages.take(2) == [0, 1]  # the smallest run that it fits
    pages.give_back([2])
    assert pages.take(5) == [2, 6, 7, 8, 9]
    assert (pages_for(0), pages_for(1), pages_for(64), pages_for(65)) == (0, 1, 1, 2)
