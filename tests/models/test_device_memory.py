"""What a device saves memory by changes no bit; a memory budget is kept, or refused."""

from __future__ import annotations

import json
import random
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.activations import ACT2FN

from sfl.config import LocalDevice, load_device
from sfl.errors import ConfigError
from sfl.models.families.family import Task
from sfl.models.folder import ModelFolder, open_model
from sfl.models.memory.device_budget import fit_device
from sfl.models.memory.footprint import Load, Thrift, device_footprint
from sfl.models.piecewise import Piecewise
from sfl.models.span import build_span
from sfl.plan import Plan, Span
from tests.house.federation import run
from tests.house.files import write_jsonl
from tests.house.paths import STORIES
from tests.house.splits import (
    DROPOUT,
    FULL,
    KEY,
    LORA,
    PADDED,
    PLANS,
    Split,
    assert_same,
    make_split,
    plan_name,
    split_step,
)
from tests.house.tiny_models import CASES, LABELS, VOCAB, batch, busy_values, manifest_of, opened

# -- blocks that run again for their backward ------------------------------------------------------


def recomputing(split: Split) -> Split:
    for node in split.nodes:
        node.model.recompute = True
    return split


@pytest.mark.parametrize("plan", [PLANS[1], PLANS[5]], ids=plan_name)
@pytest.mark.parametrize(
    ("kind", "task", "extra", "lora_dropout", "_modules"), DROPOUT, ids=[d[0] for d in DROPOUT]
)
def test_recomputing_changes_no_bit_with_dropout(
    kind: str, task: Task, extra: dict[str, float], lora_dropout: float, _modules: Any, plan: Any
) -> None:
    folder = opened(kind, json.dumps(extra))
    lora = LORA.model_copy(update={"dropout": lora_dropout})
    values = busy_values(manifest_of(folder, task, lora))
    for lengths in (FULL, PADDED):
        wanted = make_split(folder, plan, task, lora, values, key=KEY)
        found = recomputing(make_split(folder, plan, task, lora, values, key=KEY))
        wanted_loss = split_step(wanted, *batch(lengths, task))
        assert torch.equal(split_step(found, *batch(lengths, task)), wanted_loss)
        assert_same(found.gradients(), wanted.gradients())


def test_recomputing_keeps_less() -> None:
    folder = opened("llama")
    values = busy_values(manifest_of(folder, "causal_lm", LORA))
    kept = {}
    for recompute in (False, True):
        split = make_split(folder, PLANS[2], "causal_lm", LORA, values)
        front = split.nodes[0]
        front.activate()
        front.model.recompute = recompute
        sizes: list[int] = []

        def keep(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        ids, lengths, _ = batch(PADDED, "causal_lm")
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            front.model.blocks(front.model.embed(ids, lengths), lengths)
        kept[recompute] = sum(sizes)
    assert kept[True] < kept[False] / 4


# -- an embedding that stays on disk ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("kind", "task"), CASES)
def test_rows_read_from_disk_are_the_embedding_s(kind: str, task: Task, dtype: torch.dtype) -> None:
    folder = opened(kind)
    for packed in (False, True):
        held, read = (
            build_span(
                folder,
                Span(0, 1, embedding=True, head=False),
                task=task,
                num_labels=LABELS,
                dtype=dtype,
                packed=packed,
                embedding_on_disk=on_disk,
            )
            for on_disk in (False, True)
        )
        assert sum(p.numel() for p in read.parameters()) < sum(p.numel() for p in held.parameters())
        ids, lengths, _ = batch(PADDED, task)
        if packed:
            ids = ids[torch.arange(ids.shape[1])[None] < lengths[:, None]][None]
        assert torch.equal(read.embed(ids, lengths), held.embed(ids, lengths))
        hidden = held.embed(ids, lengths)
        assert torch.equal(read.blocks(hidden, lengths), held.blocks(hidden, lengths))


def test_a_token_beyond_the_vocabulary_is_an_error() -> None:
    span = Span(0, 1, embedding=True, head=False)
    model = build_span(
        opened("llama"),
        span,
        task="causal_lm",
        num_labels=0,
        dtype=torch.float32,
        embedding_on_disk=True,
    )
    with pytest.raises(IndexError, match="vocabulary"):
        model.embed(torch.tensor([[VOCAB]]), torch.tensor([1]))


# -- activation functions in pieces ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["gelu_new", "gelu_fast", "gelu_accurate"])
@pytest.mark.parametrize("shape", [(1, 300, 3072), (5, 33333), (3, 7, 131)], ids=str)
def test_pieces_change_no_bit(name: str, shape: tuple[int, ...]) -> None:
    draw = torch.Generator().manual_seed(1)
    values, gradient = (torch.randn(shape, generator=draw) * 3 for _ in range(2))
    results = []
    for function in (ACT2FN[name], Piecewise(ACT2FN[name])):
        x = values.clone().requires_grad_()
        output = function(x)
        output.backward(gradient)
        with torch.no_grad():
            assert torch.equal(function(values), output)
        results.append((output.detach(), x.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


# -- a budget --------------------------------------------------------------------------------------

LONG = Load(batch_size=96, length=128)
PROCESS = 320_000_000


def stories(cut: int) -> tuple[ModelFolder, Plan]:
    if not STORIES.is_dir():
        pytest.skip(f"{STORIES} is not here")
    folder = open_model(STORIES)
    return folder, Plan.split(folder.num_layers, cut, 0, "vanilla")


def total(cut: int, load: Load = LONG, base: int = PROCESS, **thrift: Any) -> int:
    folder, plan = stories(cut)
    spans = plan.device_spans
    return device_footprint(folder, spans, load, base, Thrift(returned=True, **thrift)).total


def fit(cut: int, load: Load = LONG, **own: Any) -> Thrift:
    folder, plan = stories(cut)
    return fit_device(folder, plan, load, LocalDevice(**own), PROCESS, returned=True)


def test_a_device_picks_the_cheapest_that_fits() -> None:
    assert total(4, recompute=True) < total(4) - 50_000_000
    assert fit(4) == Thrift(returned=True)
    assert fit(4, memory=total(4)) == Thrift(returned=True)
    assert fit(4, embedding="disk") == Thrift(embedding_on_disk=True, returned=True)
    tight = fit(4, memory=total(4) - 1_000_000)
    assert tight == Thrift(embedding_on_disk=True, recompute=True, returned=True)
    held = fit(4, memory=total(4, recompute=True), embedding="memory")
    assert held == Thrift(recompute=True, returned=True)


SAVED: dict[str, Any] = {"embedding_on_disk": True, "recompute": True}


def test_what_changes_no_bit_does_not_do_then_batches_are_cut() -> None:
    needs = [total(4, micro_batches=pieces, **SAVED) for pieces in (1, 2, 4)]
    assert needs == sorted(needs, reverse=True)
    for pieces, least in ((1, needs[0]), (2, needs[1]), (4, needs[2])):
        assert fit(4, memory=least) == Thrift(returned=True, micro_batches=pieces, **SAVED)
    given = fit(4, memory=total(4, micro_batches=3), micro_batches=3)
    assert given == Thrift(returned=True, micro_batches=3)
    doubled = fit(4, memory=total(4, micro_batches=6, **SAVED), micro_batches=3)
    assert doubled == Thrift(returned=True, micro_batches=6, **SAVED)


def test_an_open_precision_is_chosen_last() -> None:
    folder, plan = stories(4)
    needs = [total(4, micro_batches=96, bfloat16=half, **SAVED) for half in (False, True)]
    assert needs[1] < needs[0]
    for room, half in ((needs[0], False), (total(4, bfloat16=True, **SAVED), False)):
        own = LocalDevice(memory=room)
        way = fit_device(folder, plan, LONG, own, PROCESS, returned=True, open_dtype=True)
        assert way.bfloat16 is half
    own = LocalDevice(memory=needs[1])
    way = fit_device(folder, plan, LONG, own, PROCESS, returned=True, open_dtype=True)
    assert way == Thrift(returned=True, micro_batches=96, bfloat16=True, **SAVED)
    with pytest.raises(ConfigError, match='dtype "bfloat16"'):
        fit_device(folder, plan, LONG, own, PROCESS, returned=True)


def test_a_refusal_names_what_would_fit() -> None:
    room = total(4, Load(batch_size=96, length=64), micro_batches=96, **SAVED)
    with pytest.raises(ConfigError) as refused:
        fit(4, memory=room)
    assert refused.value.field == "device.memory"
    needed = total(4, micro_batches=96, **SAVED)
    assert f"take {needed / 1e6:,.0f} MB at least" in refused.value.problem
    assert "cut into 96 pieces" in refused.value.problem
    cut = re.search(r"cut_layer (\d)", refused.value.fix)
    assert cut is not None
    for more, fits in ((0, True), (1, False)):
        assert (total(int(cut[1]) + more, micro_batches=96, **SAVED) <= room) is fits
    size = re.search(r"model\.max_length (\d+)", refused.value.fix)
    assert size is not None
    for more, fits in ((0, True), (1, False)):
        load = Load(batch_size=96, length=int(size[1]) + more)
        assert (total(4, load, micro_batches=96, **SAVED) <= room) is fits


def test_a_head_that_shares_the_embedding_keeps_it_in_memory() -> None:
    folder = opened("llama")
    plan = Plan.split(folder.num_layers, 1, 0, "u_shaped")
    own = LocalDevice(embedding="disk")
    assert not fit_device(folder, plan, LONG, own, PROCESS, returned=False).embedding_on_disk


@pytest.mark.parametrize("text", ["much", "450 megs", "-1MB"])
def test_a_size_that_is_none_is_an_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "device.toml"
    file.write_text(f'[device]\nname = "d"\nmemory = "{text}"\n')
    with pytest.raises(ConfigError, match=r"device\.memory.*size"):
        load_device(file)


def busy_run(folder: Path, memory: int) -> dict[str, Any]:
    """One device with four blocks and large batches of full length."""
    if not STORIES.is_dir():
        pytest.skip(f"{STORIES} is not here")
    words = random.Random(0).choices(["once", "upon", "time", "cat", "sun", "ran"], k=150)
    texts = write_jsonl(folder / "texts.jsonl", [{"text": " ".join(words)}] * 110)
    return {
        "run": {"rounds": 1},
        "model": {"path": str(STORIES), "max_length": 128},
        "training": {"batch_size": 96, "local_steps": 2},
        "data": {"eval_fraction": 0.05, "blocks": "first"},
        "evaluation": {"max_examples": 1, "full": False},
        "codec": {"activation": "none", "gradient": "none"},
        "devices": [
            {"name": "d", "cut_layer": 4, "threads": 1, "train": str(texts), "memory": memory}
        ],
    }


@pytest.mark.process
def test_a_device_without_room_refuses_to_join(tmp_path: Path) -> None:
    outcome = run(tmp_path, busy_run(tmp_path, 200_000_000), alone=True)
    assert outcome.code != 0
    assert re.search(
        r"device\.memory = '200 MB': cut_layer 4.* take \d+ MB at least", outcome.output
    )
    assert "Traceback" not in outcome.output + outcome.logs()


@pytest.mark.process
def test_a_budget_is_kept(tmp_path: Path) -> None:
    # Whole batches do not fit, halves do in a forked process; one of its own takes smaller ones.
    budget = total(4, base=300_000_000, micro_batches=2, **SAVED)
    outcome = run(tmp_path, busy_run(tmp_path, budget), alone=True)
    assert outcome.code == 0, outcome.output
    assert "blocks computed again" in outcome.logs()
    effective = tomllib.loads((outcome.folder / "config.toml").read_text())
    pieces = effective["devices"][0]["micro_batches"]
    assert pieces > 1
    assert f"batches in {pieces} pieces" in outcome.logs()
    (node,) = outcome.summary["devices"]
    assert node["peak_rss_bytes"] <= budget * 1.05
