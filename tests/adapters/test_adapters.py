"""Adapters are PEFT's: names, shapes, selection, arithmetic, and what PEFT loads from disk."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict

from sfl.adapters.artifact import load_adapter, save_adapter
from sfl.adapters.initial import initial_adapter
from sfl.adapters.lora import LoraBank, build_manifest, given_values
from sfl.adapters.manifest import AdapterManifest, ParameterSpec
from sfl.adapters.names import belongs_to, block_of
from sfl.config import LoraSettings
from sfl.errors import ConfigError, ModelError, ProtocolError
from sfl.models.families.family import Task
from sfl.models.folder import ModelFolder, open_model
from sfl.models.span import build_span
from sfl.plan import Plan, Span
from tests.house.tiny_models import (
    CASES,
    CONFIGS,
    LABELS,
    LAYERS,
    VOCAB,
    base_model,
    batch,
    busy_values,
    manifest_of,
    model_folder,
    opened,
    peft_model,
)

LORA = LoraSettings(rank=4, alpha=8.0)
WHOLE = Span(0, LAYERS, embedding=True, head=True)
CLASSIFY: Task = "sequence_classification"
CLASSIFIERS = [kind for kind, task in CASES if task == CLASSIFY]


def quietly_loaded(folder: ModelFolder, task: Task, adapter: Path, **more: Any) -> PeftModel:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PEFT warns of keys that it misses
        warnings.simplefilter("ignore", FutureWarning)
        return PeftModel.from_pretrained(base_model(folder.path, task, **more), adapter).eval()


def our_logits(
    folder: ModelFolder,
    task: Task,
    values: dict[str, np.ndarray],
    ids: torch.Tensor,
    lengths: torch.Tensor,
    lora: LoraSettings = LORA,
) -> torch.Tensor:
    model = build_span(folder, WHOLE, task=task, num_labels=LABELS, dtype=torch.float32)
    bank = LoraBank(model, lora, lora.target_modules)
    adapter = bank.add("me", WHOLE)
    adapter.load(values)
    bank.activate(adapter)
    with torch.no_grad():
        return model.head(model.blocks(model.embed(ids, lengths), lengths), lengths)


# -- the same as PEFT ------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "task"), CASES)
def test_names_and_shapes_are_those_peft_saves(kind: str, task: Task) -> None:
    """PEFT is told its own way here: target names as a user would give them, task type."""
    folder = opened(kind)
    manifest = manifest_of(folder, task, LORA)
    layout = folder.family.layout(folder.config, task)
    config = LoraConfig(
        task_type="CAUSAL_LM" if task == "causal_lm" else "SEQ_CLS",
        r=LORA.rank,
        target_modules=list(folder.family.targets(kind)),
        exclude_modules=rf"(?!{layout.blocks}).*",
        modules_to_save=list(layout.saved) or None,
        fan_in_fan_out=kind == "gpt2",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = get_peft_model(base_model(folder.path, task), config)
    saved = get_peft_model_state_dict(model)
    assert {p.name: p.shape for p in manifest.parameters} == {
        name: tuple(tensor.shape) for name, tensor in saved.items()
    }
    assert [p.name for p in manifest.parameters] == sorted(saved)


@pytest.mark.parametrize(("kind", "task"), CASES)
def test_peft_loads_the_artifact_and_computes_the_same(
    kind: str, task: Task, tmp_path: Path
) -> None:
    folder = opened(kind)
    manifest = manifest_of(folder, task, LORA)
    values = busy_values(manifest)
    save_adapter(tmp_path, values, manifest.peft_config)
    model = quietly_loaded(folder, task, tmp_path)
    loaded = get_peft_model_state_dict(model)
    assert loaded.keys() == values.keys()
    assert all(np.array_equal(loaded[name].numpy(), values[name]) for name in values)
    ids, lengths, _ = batch((9, 5, 3), task)
    mask = (torch.arange(ids.shape[1])[None] < lengths[:, None]).long()
    with torch.no_grad():
        theirs = model(input_ids=ids, attention_mask=mask).logits
    mine = our_logits(folder, task, values, ids, lengths)
    real = mask.bool() if task == "causal_lm" else torch.ones(len(ids), dtype=torch.bool)
    assert torch.equal(mine[real], theirs[real])
    assert not torch.equal(mine, our_logits(folder, task, busy_values(manifest, 1), ids, lengths))


@pytest.mark.parametrize(("kind", "task"), CASES)
def test_peft_trains_exactly_what_we_train(kind: str, task: Task) -> None:
    folder = opened(kind)
    manifest = manifest_of(folder, task, LORA)
    model = peft_model(folder, task, manifest, busy_values(manifest))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == sum(np.prod(p.shape) for p in manifest.parameters)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_name_that_matches_outside_of_the_blocks_becomes_an_expression(kind: str) -> None:
    selector = manifest_of(opened(kind), CLASSIFY, LORA).peft_config["target_modules"]
    assert selector == rf"{kind}\.encoder\.layer\.\d+\.(?:.+\.)?(?:dense|key|query|value)"
    assert isinstance(
        manifest_of(opened("llama"), "causal_lm", LORA).peft_config["target_modules"], list
    )


def test_target_modules_of_ones_own(tmp_path: Path) -> None:
    folder = opened("bert")
    lora = LORA.model_copy(update={"target_modules": ("output.dense", "query")})
    manifest = manifest_of(folder, CLASSIFY, lora)
    modules = {
        p.name.split(".layer.0.")[1].split(".lora")[0]
        for p in manifest.parameters
        if ".layer.0." in p.name
    }
    assert modules == {"attention.self.query", "attention.output.dense", "output.dense"}
    values = busy_values(manifest)
    save_adapter(tmp_path, values, manifest.peft_config)
    ids, lengths, _ = batch((6, 6), CLASSIFY)
    with torch.no_grad():
        theirs = quietly_loaded(folder, CLASSIFY, tmp_path)(input_ids=ids).logits
    assert torch.equal(our_logits(folder, CLASSIFY, values, ids, lengths, lora), theirs)


@pytest.mark.parametrize("name", ["q_porj", "self_attn", "lm_head", "proj", "embed_tokens"])
def test_an_unknown_target_is_refused_with_what_exists(name: str) -> None:
    lora = LORA.model_copy(update={"target_modules": ("q_proj", name)})
    with pytest.raises(
        ConfigError, match=rf"lora\.target_modules = '{name}'.*down_proj, gate_proj"
    ):
        manifest_of(opened("llama"), "causal_lm", lora)


def test_an_encoder_has_no_manifest_for_causal_lm() -> None:
    with pytest.raises(ConfigError, match=r"model\.task"):
        manifest_of(opened("bert"), "causal_lm", LORA)


def test_the_config_is_plain_json() -> None:
    config = manifest_of(opened("gpt2"), "causal_lm", LORA).peft_config
    assert json.loads(json.dumps(config)) == config
    assert (config["r"], config["lora_alpha"], config["fan_in_fan_out"]) == (4, 8, True)
    assert (config["peft_type"], config["task_type"]) == ("LORA", "CAUSAL_LM")


# -- names, manifest, first values -----------------------------------------------------------------


@pytest.mark.parametrize(("kind", "task"), CASES)
def test_parts_of_a_plan_make_the_adapter(kind: str, task: Task) -> None:
    names = [p.name for p in manifest_of(opened(kind), task, LORA).parameters]
    for plan in (Plan.split(LAYERS, 1, 1, "u_shaped"), Plan.split(LAYERS, 2, 0, "vanilla")):
        parts = [plan.front, plan.middle, *([plan.tail] if plan.tail else [])]
        assert [sum(belongs_to(name, span) for span in parts) for name in names] == [1] * len(names)
        head = next(span for span in parts if span.head)
        assert all(belongs_to(n, head) for n in names if block_of(n) is None)


def test_block_of() -> None:
    assert block_of("base_model.model.model.layers.10.self_attn.q_proj.lora_A.weight") == 10
    assert block_of("base_model.model.transformer.h.3.mlp.c_fc.lora_B.weight") == 3
    assert block_of("base_model.model.classifier.dense.weight") is None


@pytest.mark.parametrize(("kind", "task"), CASES)
def test_a_bank_over_a_span_has_the_manifests_part(kind: str, task: Task) -> None:
    folder = opened(kind)
    manifest = manifest_of(folder, task, LORA)
    for span in (Span(1, LAYERS, False, True), Span(0, 2, True, False)):
        model = build_span(folder, span, task=task, num_labels=LABELS, dtype=torch.float32)
        found = [(p.name, p.shape) for p in LoraBank(model, LORA).manifest_specs()]
        assert found == [(p.name, p.shape) for p in manifest.parameters if belongs_to(p.name, span)]


def test_manifest_survives_json() -> None:
    manifest = manifest_of(opened("roberta"), CLASSIFY, LORA)
    assert AdapterManifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"parameters": [["x", [2], "magic", 1]], "num_layers": 1}',
        '{"parameters": [[1]]}',
    ],
)
def test_a_malformed_manifest(text: str) -> None:
    with pytest.raises(ProtocolError, match="manifest"):
        AdapterManifest.from_json(text)


def test_first_values() -> None:
    manifest = manifest_of(opened("distilbert"), CLASSIFY, LORA)
    values = initial_adapter(manifest, 5)
    assert {v.dtype for v in values.values()} == {np.dtype(np.float32)}
    for spec in manifest.parameters:
        value = values[spec.name]
        assert value.shape == spec.shape
        if ".lora_A." in spec.name:
            bound = 1 / np.sqrt(spec.shape[1])
            assert 0.8 * bound < np.abs(value).max() <= bound
        elif spec.name.endswith(("bias", "lora_B.weight")):
            assert not value.any()
        else:
            assert 0.01 < value.std() < 0.03


def test_first_values_depend_on_seed_and_name_alone() -> None:
    manifest = manifest_of(opened("llama"), "causal_lm", LORA)
    few = AdapterManifest(manifest.parameters[::-3], LAYERS, {})
    values = initial_adapter(manifest, 5)
    assert all(np.array_equal(v, values[n]) for n, v in initial_adapter(few, 5).items())
    other = initial_adapter(manifest, 6)
    a = [name for name in values if ".lora_A." in name]
    assert not any(np.array_equal(values[name], other[name]) for name in a)
    assert len({values[name].tobytes() for name in a}) == len(a)


def test_first_values_are_these() -> None:
    """Pinned: another numpy or platform that drew others would break reruns."""
    spec = ParameterSpec("base_model.model.x.lora_A.weight", (1, 4), "kaiming", 4)
    drawn = initial_adapter(AdapterManifest((spec,), 1, {}), 0)[spec.name]
    assert drawn.tobytes().hex() == PINNED


PINNED = "3169efbe207bb33ea33bb73ed4db0bbe"


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_head_weights_of_the_checkpoint_are_taken_over(kind: str, tmp_path: Path) -> None:
    """A classifier fine-tuned before, with as many classes: training goes on from it."""
    theirs: Any = base_model(model_folder(kind), CLASSIFY)
    theirs.save_pretrained(tmp_path)
    folder = open_model(tmp_path)
    manifest = manifest_of(folder, CLASSIFY, LORA)
    given = given_values(folder, manifest)
    assert given.keys() == {p.name for p in manifest.parameters if block_of(p.name) is None}
    for name, value in given.items():
        tensor = theirs.state_dict()[name.removeprefix("base_model.model.")]
        assert np.array_equal(value, tensor.numpy())
    values = initial_adapter(manifest, 1, given)
    ids, lengths, _ = batch((6, 6), CLASSIFY)
    with torch.no_grad():
        assert torch.equal(
            our_logits(folder, CLASSIFY, values, ids, lengths), theirs(input_ids=ids).logits
        )
    with pytest.raises(ProtocolError, match="was not sent"):
        initial_adapter(manifest, 1)


def test_a_head_for_other_classes_starts_afresh(tmp_path: Path) -> None:
    base_model(model_folder("bert"), CLASSIFY).save_pretrained(tmp_path)  # type: ignore[operator]
    folder = open_model(tmp_path)
    manifest = build_manifest(folder, CLASSIFY, LABELS + 2, LORA)
    assert not any(p.init == "given" for p in manifest.parameters)
    model = build_span(folder, WHOLE, task=CLASSIFY, num_labels=LABELS + 2, dtype=torch.float32)
    assert model.model.get_parameter("classifier.weight").shape == (LABELS + 2, 32)


def test_a_missing_pooler_is_part_of_the_adapter(tmp_path: Path) -> None:
    folder = open_model(model_folder("bert", masked_lm=True))
    manifest = manifest_of(folder, CLASSIFY, LORA)
    saved = {p.name: p.init for p in manifest.parameters if block_of(p.name) is None}
    assert saved["base_model.model.bert.pooler.dense.weight"] == "normal"
    values = busy_values(manifest)
    save_adapter(tmp_path, values, manifest.peft_config)
    ids, lengths, _ = batch((6, 6), CLASSIFY)
    with torch.no_grad():
        theirs = quietly_loaded(folder, CLASSIFY, tmp_path)(input_ids=ids).logits
    assert torch.equal(our_logits(folder, CLASSIFY, values, ids, lengths), theirs)


# -- bank and adapter ------------------------------------------------------------------------------


def bank_of(kind: str, task: Task, span: Span = WHOLE) -> tuple[Any, LoraBank]:
    model = build_span(opened(kind), span, task=task, num_labels=LABELS, dtype=torch.float32)
    return model, LoraBank(model, LORA)


def test_loading_is_in_place_and_state_is_a_copy() -> None:
    _, bank = bank_of("llama", "causal_lm")
    adapter = bank.add("a", WHOLE)
    values = busy_values(manifest_of(opened("llama"), "causal_lm", LORA))
    before = {name: p.data_ptr() for name, p in adapter.parameters.items()}
    adapter.load(values)
    assert {name: p.data_ptr() for name, p in adapter.parameters.items()} == before
    state = adapter.state()
    assert list(state) == sorted(values)
    assert all(np.array_equal(state[name], values[name]) for name in values)
    next(iter(state.values()))[:] = 9.0
    adapter.load({name: torch.tensor(value) for name, value in values.items()})
    assert all(np.array_equal(adapter.state()[name], values[name]) for name in values)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in adapter.parameters.values())


def test_values_that_do_not_fit_are_refused_and_change_nothing() -> None:
    _, bank = bank_of("llama", "causal_lm")
    adapter = bank.add("a", Span(1, 2, False, False))
    good = {name: np.ones(p.shape, np.float32) for name, p in adapter.parameters.items()}
    adapter.load(good)
    name = next(iter(good))
    misfits: list[dict[str, np.ndarray]] = [
        {k: v * 2 for k, v in good.items() if k != name},
        {**good, "base_model.model.other": np.ones(1, np.float32)},
        {**{k: v * 2 for k, v in good.items()}, name: np.ones((1, 1), np.float32)},
    ]
    for values in misfits:
        with pytest.raises(ProtocolError):
            adapter.load(values)
    assert all((value == 1.0).all() for value in adapter.state().values())


def test_without_an_adapter_the_base_speaks() -> None:
    model, bank = bank_of("llama", "causal_lm")
    ids, lengths, _ = batch((6, 6), "causal_lm")
    adapter = bank.add("a", WHOLE)
    adapter.load(busy_values(manifest_of(opened("llama"), "causal_lm", LORA)))

    def logits() -> torch.Tensor:
        result: torch.Tensor = model.head(model.blocks(model.embed(ids, lengths), lengths), lengths)
        return result.detach()

    theirs: Any = base_model(model_folder("llama"), "causal_lm")
    with torch.no_grad():
        wanted = theirs(input_ids=ids).logits
    assert torch.equal(logits(), wanted)
    bank.activate(adapter)
    assert not torch.equal(logits(), wanted)
    bank.activate(None)
    assert torch.equal(logits(), wanted)
    bank.activate(adapter)
    bank.remove("a")
    assert torch.equal(logits(), wanted)


def test_switching_leaves_requires_grad_alone_and_the_base_frozen() -> None:
    model, bank = bank_of("bert", CLASSIFY)
    adapters = [bank.add(name, WHOLE) for name in "ab"]
    for adapter in [*adapters, None]:
        bank.activate(adapter)
        assert all(p.requires_grad for a in adapters for p in a.parameters.values())
    assert not any(p.requires_grad for p in model.parameters())


def test_saved_modules_of_two_devices_are_apart() -> None:
    model, bank = bank_of("roberta", CLASSIFY)
    manifest = manifest_of(opened("roberta"), CLASSIFY, LORA)
    ids, lengths, _ = batch((6, 4), CLASSIFY)
    outputs = []
    for seed, name in enumerate("ab"):
        adapter = bank.add(name, WHOLE)
        adapter.load(busy_values(manifest, seed))
        bank.activate(adapter)
        logits = model.head(model.blocks(model.embed(ids, lengths), lengths), lengths)
        outputs.append((adapter, logits))
    outputs[0][1].sum().backward()
    assert all(p.grad is not None for p in outputs[0][0].parameters.values())
    assert all(p.grad is None for p in outputs[1][0].parameters.values())


def test_bfloat16_base_keeps_a_float32_adapter() -> None:
    model = build_span(
        opened("bert"), WHOLE, task=CLASSIFY, num_labels=LABELS, dtype=torch.bfloat16
    )
    bank = LoraBank(model, LORA)
    adapter = bank.add("a", WHOLE)
    adapter.load(busy_values(manifest_of(opened("bert"), CLASSIFY, LORA)))
    bank.activate(adapter)
    ids, lengths, _ = batch((6, 4), CLASSIFY)
    hidden = model.blocks(model.embed(ids, lengths), lengths)
    logits = model.head(hidden, lengths)
    logits.sum().backward()  # type: ignore[no-untyped-call]
    assert (hidden.dtype, logits.dtype) == (torch.bfloat16, torch.float32)
    for parameter in adapter.parameters.values():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32


# -- on disk ---------------------------------------------------------------------------------------


def test_artifacts_are_replaced_whole(tmp_path: Path) -> None:
    values = {"base_model.model.x.lora_A.weight": np.ones((2, 3), np.float32)}
    for factor in (1, 2):
        save_adapter(
            tmp_path / "adapter", {n: v * factor for n, v in values.items()}, {"r": factor}
        )
    found, config = load_adapter(tmp_path / "adapter")
    assert config == {"r": 2}
    assert np.array_equal(found["base_model.model.x.lora_A.weight"], np.full((2, 3), 2.0))
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_a_view_is_saved_as_what_it_shows(tmp_path: Path) -> None:
    whole = np.arange(12, dtype=np.float32).reshape(3, 4)
    save_adapter(tmp_path, {"x": whole.T}, {})
    assert np.array_equal(load_adapter(tmp_path)[0]["x"], whole.T)


@pytest.mark.parametrize("broken", ["config", "weights", "folder"])
def test_a_folder_that_is_no_adapter(broken: str, tmp_path: Path) -> None:
    save_adapter(tmp_path, {"x": np.ones(2, np.float32)}, {})
    if broken == "config":
        (tmp_path / "adapter_config.json").write_text("{", encoding="utf-8")
    elif broken == "weights":
        (tmp_path / "adapter_model.safetensors").write_bytes(b"\xff" * 20)
    else:
        shutil.rmtree(tmp_path)
    with pytest.raises(ModelError, match="not an adapter"):
        load_adapter(tmp_path)


def test_every_type_is_covered() -> None:
    assert {kind for kind, _ in CASES} == set(CONFIGS)
    assert opened("llama").vocab_size == VOCAB
