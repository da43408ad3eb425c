"""Each row of a decode step with an adapter of its own: as each alone, to rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sfl.adapters.lora import Adapter, LoraBank
from sfl.config import LoraSettings
from sfl.models.folder import open_model
from sfl.models.kv.attention import Extension
from sfl.models.kv.cache import KvCache, KvPool
from sfl.models.span import SpanModel, build_span
from sfl.plan import Span
from tests.house.paths import STORIES
from tests.house.tiny_models import LAYERS, busy_values, manifest_of, opened

WHOLE = Span(0, LAYERS, embedding=True, head=True)
RANKS = (2, 4, 4, 8, 3)


def bank_with(model: SpanModel, span: Span, ranks: tuple[int, ...]) -> tuple[LoraBank, Any]:
    """A bank, and adapters with nothing in them that is zero."""
    bank = LoraBank(model, LoraSettings(rank=4, alpha=6))
    adapters = []
    random = torch.Generator().manual_seed(1)
    for number, rank in enumerate(ranks):
        adapter = bank.add(f"a{number}", span, rank)
        adapter.load(
            {
                name: 0.2 * torch.randn(parameter.shape, generator=random)
                for name, parameter in adapter.parameters.items()
            }
        )
        adapters.append(adapter)
    return bank, adapters


def tiny(kind: str) -> SpanModel:
    return build_span(
        opened(kind), WHOLE, task="causal_lm", num_labels=0, dtype=torch.float32, packed=True
    )


def step(model: SpanModel, rows: list[int]) -> Tensor:
    """Logits of one token for each of some conversations that have none yet."""
    grown = [Extension(KvCache(KvPool(1)), 1) for _ in rows]
    return model.logits(model.extend(torch.tensor([7 + row for row in rows]), grown))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "owners",
    [(0, 1, 2, 3, 4), (3, None, 3, 0, 0, 4), (1, None), (2, 2, 2), (None, None), (4, 0)],
    ids=str,
)
def test_each_row_is_what_it_is_alone(kind: str, owners: tuple[int | None, ...]) -> None:
    model = tiny(kind)
    bank, adapters = bank_with(model, WHOLE, RANKS)

    def of(owner: int | None) -> Adapter | None:
        return None if owner is None else adapters[owner]

    alone = []
    for row, owner in enumerate(owners):
        bank.activate(of(owner))
        alone.append(step(model, [row]))
    bank.stack(adapters)
    bank.activate_rows([of(owner) for owner in owners])
    together = step(model, list(range(len(owners))))
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-5, rtol=1e-5)
    bank.activate(of(owners[0]))
    torch.testing.assert_close(step(model, [0]), alone[0], atol=2e-5, rtol=1e-5)
    distinct = len({0.0 if owner is None else owner + 1.0 for owner in owners})
    assert distinct == 1 or not torch.allclose(together, step(model, list(range(len(owners)))))


def test_an_adapter_of_infinite_values_touches_its_own_rows_alone() -> None:
    model = tiny("llama")
    bank, adapters = bank_with(model, WHOLE, (2, 2))
    bank.activate(adapters[0])
    alone = step(model, [0])
    for parameter in adapters[1].parameters.values():
        parameter.data.fill_(1e38)  # and so its products
    bank.stack(adapters)
    bank.activate_rows(adapters)
    together = step(model, [0, 1])
    torch.testing.assert_close(together[:1], alone, atol=2e-5, rtol=1e-5)
    assert not together[1].isfinite().all()


def test_stacked_adapters_have_one_copy_and_can_be_loaded() -> None:
    model = tiny("llama")
    bank, adapters = bank_with(model, WHOLE, (2, 4))
    bank.stack(adapters)
    one = adapters[0]
    bank.activate_rows(adapters)
    before = step(model, [0, 1])
    assert all(p.untyped_storage().nbytes() > p.nbytes for p in one.parameters.values())
    one.load({name: torch.zeros(value.shape) for name, value in one.parameters.items()})
    after = step(model, [0, 1])
    bank.activate(None)
    torch.testing.assert_close(after[:1], step(model, [0]), atol=2e-5, rtol=1e-5)
    assert torch.equal(after[1], before[1])


def test_a_bfloat16_base_goes_by_row_too() -> None:
    model = build_span(
        opened("llama"), WHOLE, task="causal_lm", num_labels=0, dtype=torch.bfloat16, packed=True
    )
    bank, adapters = bank_with(model, WHOLE, (2, 4))
    alone = []
    for row, adapter in enumerate(adapters):
        bank.activate(adapter)
        alone.append(step(model, [row]))
    bank.stack(adapters)
    bank.activate_rows(adapters)
    together = step(model, [0, 1])
    assert together.dtype == torch.bfloat16
    torch.testing.assert_close(together, torch.cat(alone), atol=0.1, rtol=0.1)


def test_without_rows_nothing_is_another_bit() -> None:
    folder = opened("llama")
    manifest = manifest_of(folder, "causal_lm", LoraSettings(rank=4, alpha=6))
    values = busy_values(manifest)
    found = []
    for others in (False, True):
        model = tiny("llama")
        bank = LoraBank(model, LoraSettings(rank=4, alpha=6))
        adapter = bank.add("trained", WHOLE)
        adapter.load(values)
        if others:
            served = [bank.add(f"served {n}", WHOLE, 2) for n in range(2)]
            bank.stack(served)
            bank.activate_rows(served)
            step(model, [0, 1])
        bank.activate(adapter)
        ids = torch.arange(3, 15)[None]
        rows = model.blocks(model.embed(ids, torch.tensor([12])), torch.tensor([12]))
        trained = list(adapter.parameters.values())
        found.append(torch.autograd.grad(model.logits(rows[0]).sum(), trained))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.skipif(not STORIES.is_dir(), reason="the stories model is not here")
def test_greedy_texts_in_a_batch_are_those_alone() -> None:
    """24 conversations with 5 adapters and the base: alone, and in batches of 4 and 24."""
    folder = open_model(STORIES)
    span = Span(0, folder.num_layers, embedding=True, head=True)
    model = build_span(
        folder, span, task="causal_lm", num_labels=0, dtype=torch.float32, packed=True
    )
    bank, adapters = bank_with(model, span, RANKS)
    for adapter in adapters:
        for parameter in adapter.parameters.values():
            parameter.data.mul_(0.3)
    bank.stack(adapters)
    owners = [None if n % 6 == 5 else adapters[n % 6] for n in range(24)]
    random = torch.Generator().manual_seed(5)
    prompts = [
        torch.randint(3, folder.vocab_size, (3 + n % 7,), generator=random).tolist()
        for n in range(24)
    ]

    def texts(some: list[int]) -> list[list[int]]:
        caches = [KvCache(KvPool(1)) for _ in some]
        last = []
        for number, own in zip(some, caches, strict=True):
            bank.activate(owners[number])
            prompt = torch.tensor(prompts[number])
            rows = model.extend(prompt, [Extension(own, len(prompt))])
            last.append(int(model.logits(rows[-1:]).argmax()))
        found = [[token] for token in last]
        bank.activate_rows([owners[number] for number in some])
        for _ in range(24):
            rows = model.extend(torch.tensor(last), [Extension(own, 1) for own in caches])
            last = model.logits(rows).argmax(-1).tolist()
            for text, token in zip(found, last, strict=True):
                text.append(token)
        return found

    alone = [texts([number])[0] for number in range(24)]
    assert len({tuple(text) for text in alone}) > 12
    for size in (4, 24):
        parts = [list(range(first, first + size)) for first in range(0, 24, size)]
        assert [text for part in parts for text in texts(part)] == alone
