"""Blocks over several devices: who gets which, and that hidden states and gradients go along.

No accelerator is at hand: the same range of code runs with the CPU listed several times, bit for
bit as without, and with torch's `meta` device, which refuses tensors of two devices in one product.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sfl.adapters.lora import LoraBank
from sfl.adapters.names import belongs_to
from sfl.config import EdgeConfig, ModelSettings, RunSettings, load_edge
from sfl.errors import ConfigError
from sfl.models.memory.footprint import logit_bytes, piece_rows
from sfl.models.placement import Stretch, lay_out
from sfl.models.span import build_span
from sfl.plan import Span
from sfl.stage.base import lay_over_devices, settle
from tests.house.sessions import edge_model, outcome
from tests.house.tiny_models import opened


@pytest.mark.parametrize(
    ("blocks", "free", "expected"),
    [
        ((1, 13), (10, 10), [(1, 7), (7, 13)]),
        ((0, 12), (30, 10), [(0, 9), (9, 12)]),
        ((2, 3), (1, 1), [(2, 3)]),
        ((0, 4), (0, 8), [(0, 4)]),
        ((0, 4), (0, 0), [(0, 4)]),
        ((0, 24), (80, 40, 40), [(0, 12), (12, 18), (18, 24)]),
    ],
)
def test_blocks_in_proportion_to_free_memory(
    blocks: tuple[int, int], free: tuple[int, ...], expected: list[tuple[int, int]]
) -> None:
    span = Span(*blocks, embedding=False, head=True)
    found = lay_out(span, [f"cuda:{n}" for n in range(len(free))], free)
    assert [(stretch.first, stretch.last) for stretch in found] == expected


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        ((1500, 1500), [("a", 0, 15), ("b", 15, 24)]),
        ((1500, 560), [("a", 0, 24), ("b", 24, 24)]),  # room for the head and nothing else
        ((2500, 500), [("a", 0, 24)]),  # not even for that
        ((1500, 1500, 200), [("a", 0, 15), ("b", 15, 24)]),
    ],
)
def test_a_head_takes_its_share_of_the_last_device(
    free: tuple[int, ...], expected: list[tuple[str, int, int]]
) -> None:
    # 24 blocks of 60 and a head of 545, as Qwen2 0.5B has in MB.
    span = Span(0, 24, embedding=False, head=True)
    found = lay_out(span, "abc"[: len(free)], free, [60] * 24, 545)
    assert [(s.device, s.first, s.last) for s in found] == expected
    for stretch in found:
        held = 60 * (stretch.last - stretch.first) + (545 if stretch is found[-1] else 0)
        assert held <= free["abc".index(stretch.device)]


def test_blocks_of_unequal_size_are_shared_out_by_bytes() -> None:
    span = Span(3, 7, embedding=False, head=False)
    found = lay_out(span, "ab", [10, 10], [5, 1, 2, 2])
    assert [(s.first, s.last) for s in found] == [(3, 4), (4, 7)]


@pytest.mark.parametrize(("packed", "head"), [(True, True), (True, False), (False, True)])
def test_bytes_that_are_laid_out_are_those_of_the_weights(packed: bool, head: bool) -> None:
    folder = opened("gpt2")
    span = Span(1, folder.num_layers, embedding=False, head=head)
    model = build_span(
        folder, span, task="causal_lm", num_labels=0, dtype=torch.float32, packed=packed
    )
    blocks, after = model.held_bytes()
    held = sum(p.nbytes for p in model.parameters()) + sum(b.nbytes for b in model.buffers())
    assert len(blocks) == span.num_blocks and sum(blocks) + after == held
    block = sum(p.nbytes for p in model.model.get_submodule("transformer.h.1").parameters())
    assert blocks[0] == block
    assert (after > 4 * folder.vocab_size * folder.hidden_size) == head


def test_an_edge_lays_its_blocks_where_a_piece_of_the_logits_has_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    laid: list[Any] = []
    folder = opened("gpt2")
    model = edge_model("gpt2", "causal_lm", packed=True)[0]
    blocks, after = model.held_bytes()
    own = EdgeConfig(device=("cuda:0", "cuda:1"))
    monkeypatch.setattr(model, "lay_over", laid.append)
    # The second has room for all weights, but not for logits of a piece beside its head.
    free = {"cuda:0": 1 << 40, "cuda:1": sum(blocks) + after}
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (free[device], 0))
    lay_over_devices(model, own)
    work = logit_bytes(piece_rows(folder.vocab_size), folder.vocab_size, folder.hidden_size, False)
    assert free["cuda:1"] < after + work
    free["cuda:1"] = after + work
    lay_over_devices(model, own)
    where = [[(s.device, s.last - s.first) for s in stretches] for stretches in laid]
    assert where == [[("cuda:0", 3)], [("cuda:0", 3), ("cuda:1", 0)]]


@given(
    first=st.integers(0, 5),
    count=st.integers(1, 40),
    free=st.lists(st.integers(0, 10**11), min_size=1, max_size=6),
)
def test_every_block_lies_once_and_in_order(first: int, count: int, free: list[int]) -> None:
    span = Span(first, first + count, embedding=False, head=False)
    found = lay_out(span, [str(n) for n in range(len(free))], free)
    blocks = [n for stretch in found for n in range(stretch.first, stretch.last)]
    assert blocks == list(range(first, first + count))
    assert [s.device for s in found] == sorted((s.device for s in found), key=int)
    for stretch in found:
        share = count * free[int(stretch.device)] / max(1, sum(free))
        assert sum(free) == 0 or abs(stretch.last - stretch.first - share) <= 1.0


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ('"gpu"', "edge.device = 'gpu': 'gpu' is not a device; use cpu"),
        ('["cuda:0", "cuda"]', "cuda:0 is given twice"),
        ('["cpu", "cuda:0"]', "CUDA devices, not both"),
        ("[]", "one or more CUDA"),
        ("3", "edge.device"),
    ],
)
def test_devices_that_make_no_sense(tmp_path: Path, device: str, words: str) -> None:
    path = tmp_path / "edge.toml"
    path.write_text(f"[edge]\ndevice = {device}\n")
    with pytest.raises(ConfigError, match=re.escape(words)):
        load_edge(path, [])


def test_devices_by_name() -> None:
    assert EdgeConfig().devices == ("cpu",)
    assert EdgeConfig(device="cuda").devices == ("cuda:0",)
    assert EdgeConfig(device=("cuda:1", "cuda:0")).devices == ("cuda:1", "cuda:0")


def test_a_device_that_is_not_there_is_an_error_before_anything_is_loaded() -> None:
    with pytest.raises(ConfigError, match=r"edge\.device = 'cuda:99': this machine has no such"):
        settle(EdgeConfig(device="cuda:99"), ModelSettings(path="x"), 1)


@pytest.mark.parametrize(
    ("kind", "topology", "computation", "task"),
    [
        ("llama", "vanilla", "lean", "causal_lm"),
        ("gemma2", "u_shaped", "lean", "causal_lm"),
        ("gpt2", "vanilla", "reference", "causal_lm"),
        ("llama", "vanilla", "lean", "sequence_classification"),
    ],
)
def test_the_cpu_listed_several_times_gives_the_same_bits(
    kind: str, topology: str, computation: str, task: str
) -> None:
    (replies, state), (wanted, wanted_state) = (
        outcome(kind, topology, computation, task, over) for over in (True, False)
    )
    for (rows, loss), (wanted_rows, wanted_loss) in zip(replies, wanted, strict=True):
        assert loss == wanted_loss and torch.equal(rows, wanted_rows)
    assert all(state[name].tobytes() == wanted_state[name].tobytes() for name in wanted_state)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
def test_everything_a_block_needs_goes_along_to_its_device(kind: str) -> None:
    model, plan = edge_model(kind, "causal_lm", packed=True)
    last = plan.middle.last
    rotary = {m: dict(m._buffers) for m in model.model.modules() if "Rotary" in type(m).__name__}
    model.lay_over([Stretch("cpu", 0, 1), Stretch("meta", 1, last)])
    for module, buffers in rotary.items():
        # Each block's device gets a copy of these; out of `meta` nothing can be copied.
        module._buffers.update(buffers)
    settings = RunSettings.model_validate({"model": {"path": "m"}, "devices": [{"name": "a"}]})
    bank = LoraBank(model, settings.lora, settings.lora.target_modules)
    adapter = bank.add("a", plan.middle)
    places = {name: p.device.type for name, p in adapter.parameters.items()}
    assert set(places.values()) == {"cpu", "meta"}
    for name, place in places.items():
        assert (place == "cpu") == belongs_to(name, Span(0, 1, embedding=False, head=False)), name
    bank.activate(adapter)
    hidden = torch.randn(1, 8, model.hidden_size)
    lengths = torch.tensor([5, 3])
    output = model.blocks(hidden, lengths)
    assert (output.device.type, output.shape) == ("meta", hidden.shape)
    assert model.head(output, lengths).device.type == "meta"
    assert model.head(hidden, lengths).device.type == "meta"
    assert model.blocks(hidden, lengths, first=0, last=1).device.type == "cpu"
