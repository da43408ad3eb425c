"""Every listed family, saved as today's transformers and older ones save it: the same logits.

The reference is always transformers' own `from_pretrained` on the same folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfl.errors import ModelError
from sfl.models.families.family import Task
from sfl.models.folder import open_model
from sfl.models.span import build_span
from sfl.plan import Span
from tests.house.tiny_models import AUTO, CASES, CONFIGS, ENCODERS, LABELS, LAYERS, batch

WHOLE = Span(0, LAYERS, embedding=True, head=True)
Tensors = dict[str, Tensor]
PREFIXES = {"gpt2": "transformer", **{kind: kind for kind in ENCODERS}}


def save(kind: str, task: Task, folder: Path, **options: Any) -> Path:
    """A model with the task's head, random, as today's transformers saves it."""
    more = {"num_labels": LABELS} if task == "sequence_classification" else {}
    config = transformers.AutoConfig.for_model(kind, **CONFIGS[kind], **more)
    torch.manual_seed(5)
    model = AUTO[task].from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    model.to(options.pop("dtype", torch.float32)).save_pretrained(folder, **options)
    return folder


def rename(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})


def assert_same_logits(folder: Path, task: Task) -> None:
    ids, lengths, _ = batch((9, 6, 3), task)
    model = build_span(open_model(folder), WHOLE, task=task, num_labels=LABELS, dtype=torch.float32)
    mask = (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()
    theirs = AUTO[task].from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        mine = model.head(model.blocks(model.embed(ids, lengths), lengths), lengths)
        wanted = theirs(input_ids=ids, attention_mask=mask).logits
    if task == "causal_lm":
        mine, wanted = mine[mask.bool()], wanted[mask.bool()]
    assert torch.equal(mine, wanted)


@pytest.mark.parametrize(("kind", "task"), CASES)
@pytest.mark.parametrize("how", ["one file", "shards", "bfloat16"])
def test_saved_by_todays_transformers(kind: str, task: Task, how: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {}
    if how == "shards":
        options["max_shard_size"] = "30KB"
    if how == "bfloat16":
        options["dtype"] = torch.bfloat16
    folder = save(kind, task, tmp_path / "m", **options)
    assert (folder / "model.safetensors.index.json").exists() == (how == "shards")
    assert_same_logits(folder, task)


@pytest.mark.parametrize(("kind", "task"), CASES)
def test_saved_without_the_prefix_of_the_base(kind: str, task: Task, tmp_path: Path) -> None:
    """As a bare base model is saved; heads keep their names."""
    folder = save(kind, task, tmp_path / "m")
    start = f"{PREFIXES.get(kind, 'model')}."
    rename(folder, lambda held: {name.removeprefix(start): t for name, t in held.items()})
    assert any(not name.startswith(start) for name in load_file(folder / "model.safetensors"))
    assert_same_logits(folder, task)


def norms_of_long_ago(held: Tensors) -> Tensors:
    """LayerNorm as TensorFlow named it; buffers that were saved once."""
    old = {
        re.sub(r"(LayerNorm\.)weight$", r"\1gamma", re.sub(r"(LayerNorm\.)bias$", r"\1beta", n)): t
        for n, t in held.items()
    }
    base = next(name for name in held if "embeddings" in name).split(".")[0]
    return old | {f"{base}.embeddings.position_ids": torch.arange(64)[None]}


def masks_of_long_ago(held: Tensors) -> Tensors:
    old = {
        f"transformer.h.{layer}.attn.{name}": torch.ones(1)
        for layer in range(LAYERS)
        for name in ("bias", "masked_bias")
    }
    return held | old


def frequencies_of_long_ago(held: Tensors) -> Tensors:
    old = {
        f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(4)
        for layer in range(LAYERS)
    }
    return held | old


@pytest.mark.parametrize(("kind", "task"), CASES)
def test_names_of_older_versions(kind: str, task: Task, tmp_path: Path) -> None:
    folder = save(kind, task, tmp_path / "m")
    change = norms_of_long_ago if kind in ENCODERS else frequencies_of_long_ago
    rename(folder, masks_of_long_ago if kind == "gpt2" else change)
    assert_same_logits(folder, task)


ROTARY = [kind for kind in CONFIGS if kind not in ("gpt2", *ENCODERS)]


@pytest.mark.parametrize("kind", ROTARY)
def test_settings_of_older_versions(kind: str, tmp_path: Path) -> None:
    """Rotary frequencies outside of `rope_parameters`, no `layer_types`, `torch_dtype`."""
    folder = save(kind, "causal_lm", tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    for name in ("rope_parameters", "layer_types", "dtype", "transformers_version"):
        config.pop(name, None)
    config |= {"rope_theta": 5000.0, "torch_dtype": "float32", "sliding_window": 4}
    if kind == "gemma3_text":
        config |= {"rope_local_base_freq": 100.0, "sliding_window_pattern": 2}
    if kind == "llama":
        config["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    (folder / "config.json").write_text(json.dumps(config))
    assert_same_logits(folder, "causal_lm")


@pytest.mark.parametrize("kind", [k for k in CONFIGS if k not in ENCODERS])
def test_a_head_that_is_tied_or_is_not(kind: str, tmp_path: Path) -> None:
    for tied in (True, False):
        folder = save(kind, "causal_lm", tmp_path / f"{tied}")
        config = json.loads((folder / "config.json").read_text())
        config["tie_word_embeddings"] = tied

        def head(held: Tensors, tied: bool = tied) -> Tensors:
            word = next(
                name for name in held if name.endswith(("embed_tokens.weight", "wte.weight"))
            )
            rest = {name: t for name, t in held.items() if name != "lm_head.weight"}
            return rest if tied else rest | {"lm_head.weight": held[word] * 2}

        rename(folder, head)
        (folder / "config.json").write_text(json.dumps(config))
        assert_same_logits(folder, "causal_lm")


def test_names_of_another_layout_are_refused_with_what_is_there(tmp_path: Path) -> None:
    """As the text part of a model of text and images; transformers' mapping does not apply."""
    folder = save("gemma3_text", "causal_lm", tmp_path / "m")
    rename(folder, lambda held: {f"language_model.{name}": t for name, t in held.items()})
    with pytest.raises(
        ModelError, match=r"lack model\.[\w.]+; it has language_model\.model\."
    ) as error:
        build_span(open_model(folder), WHOLE, task="causal_lm", num_labels=0, dtype=torch.float32)
    assert "another" in str(error.value)
