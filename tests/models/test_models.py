"""Folders, headers, spans: what is read, what is refused, and what a span holds."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers

from sfl.errors import ConfigError, ModelError
from sfl.models.families import FAMILIES
from sfl.models.families.family import Task
from sfl.models.folder import ModelFolder, open_model, read_into, span_tensor_names
from sfl.models.span import SpanModel, build_span
from sfl.models.vocabulary import NEEDS
from sfl.models.weights import read_tensor
from sfl.plan import Plan, Span
from sfl.rounds.values import Score
from sfl.stage.loss import evaluation_score, training_loss
from tests.house.paths import ROOT
from tests.house.tiny_models import (
    CASES,
    CONFIGS,
    ENCODERS,
    LABELS,
    LAYERS,
    base_model,
    model_folder,
    opened,
)

PLAN = Plan.split(LAYERS, 1, 1, "u_shaped")
SPANS = {"front": PLAN.front, "middle": PLAN.middle, "tail": PLAN.tail}
WHOLE = Span(0, LAYERS, embedding=True, head=True)
CLASSIFY: Task = "sequence_classification"


def build(
    folder: ModelFolder, span: Span, task: Task, dtype: torch.dtype = torch.float32
) -> SpanModel:
    return build_span(folder, span, task=task, num_labels=LABELS, dtype=dtype)


def copied(kind: str, to: Path) -> Path:
    shutil.copytree(model_folder(kind), to)
    return to


# -- spans -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", SPANS)
@pytest.mark.parametrize(("kind", "task"), CASES)
def test_a_span_holds_its_own_tensors_and_nothing_else(kind: str, task: Task, part: str) -> None:
    folder, span = opened(kind), SPANS[part]
    assert span is not None
    model = build(folder, span, task)
    wanted = base_model(folder.path, task).state_dict()
    held = model.model.state_dict()
    layout = model.layout
    for name, tensor in held.items():
        if not name.startswith(tuple(layout.saved)):
            assert torch.equal(tensor, wanted[name]), name
    assert not any(t.is_meta for t in [*model.parameters(), *model.buffers()])
    assert not any(parameter.requires_grad for parameter in model.parameters())
    blocks = {
        int(n.removeprefix(f"{layout.blocks}.").split(".")[0]) for n in held if layout.blocks in n
    }
    assert blocks == set(range(span.first, span.last))
    assert span.embedding == any(n.startswith(tuple(layout.embedding)) for n in held)
    assert span.head == any(n.startswith(tuple(layout.head)) for n in held)


@pytest.mark.parametrize(("kind", "task"), CASES)
def test_spans_of_a_plan_cover_the_model(kind: str, task: Task) -> None:
    folder = opened(kind)
    held = [n for s in SPANS.values() if s for n in build(folder, s, task).model.state_dict()]
    assert sorted(held) == sorted(base_model(folder.path, task).state_dict())


@pytest.mark.parametrize("part", SPANS)
@pytest.mark.parametrize("kind", CONFIGS)
def test_tensor_names_are_enough_to_build_from(kind: str, part: str, tmp_path: Path) -> None:
    """A device that is sent exactly these tensors needs no other file of the model."""
    folder, span = opened(kind), SPANS[part]
    assert span is not None
    names = span_tensor_names(folder, span, CLASSIFY)
    sent = {name: read_tensor(folder.tensors[name]) for name in names}
    safetensors.torch.save_file(sent, tmp_path / "model.safetensors")
    shutil.copy(folder.path / "config.json", tmp_path)
    mine, whole = build(open_model(tmp_path), span, CLASSIFY), build(folder, span, CLASSIFY)
    assert mine.saved == whole.saved
    wanted = whole.state_dict()
    assert mine.state_dict().keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in mine.state_dict().items())


def bytes_read() -> int:
    counters = Path("/proc/self/io").read_text(encoding="ascii")
    return int(counters.split("rchar: ")[1].split()[0])


@pytest.mark.skipif(not Path("/proc/self/io").is_file(), reason="only Linux counts read bytes")
def test_only_the_spans_bytes_are_read() -> None:
    folder = opened("llama")
    for span in (PLAN.front, PLAN.middle):
        build(folder, span, "causal_lm")  # imports are done now
        before = bytes_read()
        build(folder, span, "causal_lm")
        read = bytes_read() - before
        names = span_tensor_names(folder, span, "causal_lm")
        size = sum(folder.tensors[name].nbytes for name in names)
        assert size <= read < size + 4096
        assert size < sum(entry.nbytes for entry in folder.tensors.values())


@pytest.mark.process
def test_only_the_spans_bytes_are_held(tmp_path: Path) -> None:
    """In a process of its own, with a model large enough to see: 64 MB, of which a block is 4."""
    config = transformers.LlamaConfig(
        vocab_size=4096,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=8,
    )
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path)
    script = f"""
import torch
from transformers.models.llama import modeling_llama
from sfl.metrics.memory import memory_use
from sfl.models.folder import open_model
from sfl.models.span import build_span
from sfl.plan import Span
folder = open_model({str(tmp_path)!r})
def build(first, last):
    span = Span(first, last, embedding=False, head=False)
    return build_span(folder, span, task="causal_lm", num_labels=0, dtype=torch.float32)
one = build(0, 1)
before = memory_use().peak_resident
two = build(1, 3)
print(memory_use().peak_resident - before, sum(p.nbytes for p in two.parameters()))
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    grown, held = (int(word) for word in result.stdout.split())
    assert grown < held + 8e6


def test_tied_weights_are_held_once() -> None:
    model: Any = build(opened("llama"), WHOLE, "causal_lm").model
    assert model.lm_head.weight is not None
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_an_untied_head_is_kept_apart(tmp_path: Path) -> None:
    """A checkpoint with two different tensors is not tied, whatever its config says."""
    folder = copied("llama", tmp_path / "model")
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * 2
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    model: Any = build(open_model(folder), WHOLE, "causal_lm").model
    theirs: Any = base_model(folder, "causal_lm")
    assert torch.equal(model.lm_head.weight, theirs.lm_head.weight)
    assert torch.equal(model.model.embed_tokens.weight, theirs.model.embed_tokens.weight)


@pytest.mark.parametrize(("kind", "task"), CASES)
def test_bfloat16_weights_are_those_transformers_loads(kind: str, task: Task) -> None:
    folder = opened(kind)
    model = build(folder, WHOLE, task, torch.bfloat16)
    theirs = base_model(folder.path, task, dtype=torch.bfloat16)
    for name, tensor in model.model.state_dict().items():
        if not name.startswith(tuple(model.layout.saved)):
            assert tensor.dtype == torch.bfloat16
            assert torch.equal(tensor, theirs.state_dict()[name]), name
    for (name, mine), (_, buffer) in zip(
        model.model.named_buffers(), theirs.named_buffers(), strict=True
    ):
        assert torch.equal(mine.to(buffer.dtype), buffer), name


def test_stored_bfloat16_is_widened(tmp_path: Path) -> None:
    folder = copied("llama", tmp_path / "model")
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    halves = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    safetensors.torch.save_file(halves, folder / "model.safetensors", {"format": "pt"})
    for name, tensor in build(open_model(folder), WHOLE, "causal_lm").model.state_dict().items():
        if name in halves:
            assert torch.equal(tensor, halves[name].float())


def test_conversion_goes_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfl.models.weights.PIECE_BYTES", 48)
    values = torch.randn(7, 11).bfloat16()
    shutil.copy(model_folder("llama") / "config.json", tmp_path)
    safetensors.torch.save_file(
        {"x": values, "s": values[0, 0].clone()}, tmp_path / "model.safetensors"
    )
    entries = open_model(tmp_path).tensors
    assert torch.equal(read_tensor(entries["x"], torch.float32), values.float())
    assert torch.equal(read_tensor(entries["s"], torch.float32), values[0, 0].float())


# -- checkpoints of several kinds ------------------------------------------------------------------


def test_shards(tmp_path: Path) -> None:
    theirs: Any = base_model(model_folder("llama"), "causal_lm")
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    mine = build(open_model(tmp_path), PLAN.middle, "causal_lm").model.state_dict()
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in mine.items())


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    base_model(model_folder("llama"), "causal_lm").save_pretrained(  # type: ignore[operator]
        tmp_path, max_shard_size="20KB"
    )
    sorted(tmp_path.glob("*.safetensors"))[1].unlink()
    with pytest.raises(ModelError, match=r"shard 'model-00002-of-.*missing"):
        open_model(tmp_path)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "roberta", "distilbert"])
def test_names_with_and_without_the_base_models_prefix(kind: str, tmp_path: Path) -> None:
    folder = copied(kind, tmp_path / "model")
    prefix = opened(kind).family.layout(opened(kind).config, CLASSIFY).base + "."
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    bare = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    wanted = build(open_model(folder), WHOLE, CLASSIFY).state_dict()
    for names in (bare, {prefix + name: tensor for name, tensor in bare.items()}):
        safetensors.torch.save_file(names, folder / "model.safetensors", {"format": "pt"})
        model = build(open_model(folder), WHOLE, CLASSIFY)
        assert all(torch.equal(t, wanted[name]) for name, t in model.state_dict().items())


def test_names_of_long_ago(tmp_path: Path) -> None:
    folder = copied("bert", tmp_path / "model")
    wanted = build(open_model(folder), WHOLE, CLASSIFY).state_dict()
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    old = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): t
        for n, t in tensors.items()
    }
    old["embeddings.position_ids"] = torch.arange(64)[None]
    assert old.keys() != tensors.keys()
    safetensors.torch.save_file(old, folder / "model.safetensors", {"format": "pt"})
    opened_again = open_model(folder)
    model = build(opened_again, WHOLE, CLASSIFY)
    assert all(torch.equal(t, wanted[name]) for name, t in model.state_dict().items())
    assert not any("position_ids" in n for n in span_tensor_names(opened_again, WHOLE, CLASSIFY))


def test_a_missing_pooler_is_trained_whole() -> None:
    folder = open_model(model_folder("bert", masked_lm=True))
    assert build(folder, WHOLE, CLASSIFY).saved == ("bert.pooler", "classifier")
    assert build(opened("bert"), WHOLE, CLASSIFY).saved == ("classifier",)


@pytest.mark.parametrize("kind", CONFIGS)
def test_sizes(kind: str) -> None:
    folder = opened(kind)
    assert (folder.num_layers, folder.hidden_size, folder.vocab_size) == (LAYERS, 32, 61)
    assert folder.context_length == (63 if kind == "roberta" else 64)
    assert folder.model_type == kind


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ENCODERS)
def test_encoders_classify_only(kind: str) -> None:
    for attempt in (
        lambda: build(opened(kind), WHOLE, "causal_lm"),
        lambda: span_tensor_names(opened(kind), WHOLE, "causal_lm"),
    ):
        with pytest.raises(ConfigError, match=r"model\.task = 'causal_lm'.*sequence_class"):
            attempt()


def refused(path: object, match: str) -> str:
    with pytest.raises(ModelError, match=match) as caught:
        open_model(str(path))
    assert "\n" not in str(caught.value)
    assert caught.value.field == "model.path"
    return str(caught.value)


def test_no_such_folder(tmp_path: Path) -> None:
    refused(tmp_path / "none", "no such folder")


def test_no_config(tmp_path: Path) -> None:
    refused(tmp_path, r"no config\.json")


def test_broken_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    refused(tmp_path, "Expecting property name")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"model_type": "mamba"}, "'mamba' is not supported.*llama"),
        ({"model_type": None}, "None is not supported"),
        ({"quantization_config": {}}, "quantised"),
        ({"hidden_size": None}, None),
        ({"num_attention_heads": "many"}, "transformers does not accept it"),
        ({"num_attention_heads": 0}, "transformers does not accept it"),
        ({"intermediate_size": -1}, "transformers does not accept it"),
        ({"dtype": []}, "transformers does not accept it"),
    ],
)
def test_a_config_that_cannot_run(
    change: dict[str, object], match: str | None, tmp_path: Path
) -> None:
    folder = copied("llama", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | change
    if match is None:
        del config["hidden_size"]
        match = "has no 'hidden_size'"
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelError, match=match):
        build(open_model(folder), WHOLE, "causal_lm")


@pytest.mark.parametrize("pad", [-1, 10**9, "vocab_size"])
def test_a_pad_id_beyond_the_embedding_builds_the_same_model(
    pad: int | str, tmp_path: Path
) -> None:
    """As a token leaves it that was added to the tokenizer alone: lengths mask padding."""
    folder = copied("llama", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["pad_token_id"] = config.get(pad, pad)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert "pad_token_id" not in open_model(folder).config
    build(open_model(folder), WHOLE, "causal_lm")


def test_variants_that_cannot_run(tmp_path: Path) -> None:
    for number, (kind, entry) in enumerate(
        [
            ("gemma3_text", "use_bidirectional_attention"),
            ("gpt2", "add_cross_attention"),
            ("bert", "is_decoder"),
        ]
    ):
        folder = copied(kind, tmp_path / str(number))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps(config | {entry: True}), encoding="utf-8")
        refused(folder, "which is not supported")


@pytest.mark.process
def test_pickled_weights_are_refused_with_the_conversion_to_run(tmp_path: Path) -> None:
    folder = copied("gpt2", tmp_path / "model")
    wanted = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(wanted, folder / "pytorch_model.bin")
    message = refused(folder, r"\.bin.*safetensors")
    code = message.split('python -c "')[1].split('"')[0]
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    found = open_model(folder).tensors
    assert all(torch.equal(read_tensor(found[name]), tensor) for name, tensor in wanted.items())


def test_no_weights_at_all(tmp_path: Path) -> None:
    folder = copied("llama", tmp_path / "model")
    (folder / "model.safetensors").unlink()
    refused(folder, r"no model\.safetensors")
    assert open_model(folder, weights=False).num_layers == LAYERS


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01\x00\x00\x00\x00\x00\x00\x00{",
        b"\xff" * 64,
        b"\x08\x00\x00\x00\x00\x00\x00\x00not json",
        b"\x02\x00\x00\x00\x00\x00\x00\x00[]",
        b'\x0f\x00\x00\x00\x00\x00\x00\x00{"x":{"a":"b"}}',
    ],
)
def test_a_file_that_is_no_safetensors(content: bytes, tmp_path: Path) -> None:
    folder = copied("llama", tmp_path / "model")
    (folder / "model.safetensors").write_bytes(content)
    refused(folder, "not a safetensors file")


def test_a_truncated_file(tmp_path: Path) -> None:
    folder = copied("llama", tmp_path / "model")
    whole = open_model(folder)
    size = (folder / "model.safetensors").stat().st_size
    os.truncate(folder / "model.safetensors", size - 8)
    refused(folder, "is the file complete")
    last = max(whole.tensors.values(), key=lambda entry: entry.offset)
    with pytest.raises(ModelError, match="ends within"):
        read_into(last, memoryview(bytearray(last.nbytes)))


def test_an_unknown_tensor_type(tmp_path: Path) -> None:
    folder = copied("llama", tmp_path / "model")
    odd = {"x": torch.zeros(2).to(torch.float8_e4m3fn)}
    safetensors.torch.save_file(odd, folder / "model.safetensors")
    refused(folder, "x has type F8_E4M3")


@pytest.mark.parametrize("change", ["drop", "reshape"])
def test_weights_that_do_not_fit_the_config(change: str, tmp_path: Path) -> None:
    folder = copied("llama", tmp_path / "model")
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    if change == "drop":
        del tensors[name]
    else:
        tensors[name] = tensors[name][:-1].clone()
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match=rf"{name}"):
        build(open_model(folder), WHOLE, "causal_lm")
    build(open_model(folder), PLAN.front, "causal_lm")  # block 1 is another node's


# -- the hub ---------------------------------------------------------------------------------------

OPEN = (
    "import sys; from sfl.models.folder import open_model; from sfl.errors import ModelError\n"
    "import sfl.models.hub; sfl.models.hub.TIMEOUT = 1.0\n"
    "try: print(open_model(sys.argv[1]).path)\n"
    "except ModelError as error: sys.exit(str(error))"
)


def open_elsewhere(name: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Hub settings count at import only: a fresh process."""
    return subprocess.run(
        [sys.executable, "-c", OPEN, name],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.process
def test_a_hub_name_without_network_fails_within_seconds(tmp_path: Path) -> None:
    started = time.monotonic()
    result = open_elsewhere(
        "nobody/nothing", HF_HOME=str(tmp_path), HF_ENDPOINT="http://127.0.0.1:9"
    )
    assert time.monotonic() - started < 30
    assert result.returncode == 1
    assert result.stderr.startswith("model.path = 'nobody/nothing': no such folder, and the hub")
    assert "HF_HUB_OFFLINE" in result.stderr


@pytest.mark.process
def test_a_hub_name_offline_comes_from_the_cache(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub/models--me--tiny/snapshots/abc"
    shutil.copytree(model_folder("llama"), snapshot)
    refs = tmp_path / "hub/models--me--tiny/refs"
    refs.mkdir()
    (refs / "main").write_text("abc", encoding="utf-8")
    offline = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    result = open_elsewhere("me/tiny", **offline)
    assert result.stdout.strip() == str(snapshot.resolve()), result.stderr
    assert "no such folder" in open_elsewhere("me/other", **offline).stderr


@pytest.mark.process
def test_a_hub_that_never_answers(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        started = time.monotonic()
        result = open_elsewhere(
            "me/tiny", HF_HOME=str(tmp_path), HF_ENDPOINT=f"http://127.0.0.1:{port}"
        )
    assert time.monotonic() - started < 30
    assert "no such folder, and the hub" in result.stderr


@pytest.mark.process
def test_validation_needs_no_torch() -> None:
    code = (
        "import sys, sfl.models.folder, sfl.adapters.initial, sfl.adapters.artifact\n"
        f"sfl.models.folder.open_model({str(model_folder('llama'))!r})\n"
        "heavy = {'torch', 'transformers', 'peft', 'huggingface_hub'} & sys.modules.keys()\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.process
def test_a_span_needs_no_peft() -> None:
    code = (
        "import sys, torch; import sfl.adapters.lora\n"
        "from sfl.models.folder import open_model; from sfl.models.span import build_span\n"
        "from sfl.plan import Span\n"
        f"folder = open_model({str(model_folder('llama'))!r})\n"
        "build_span(folder, Span(0, 1, True, False), task='causal_lm', num_labels=0, "
        "dtype=torch.float32)\n"
        "sys.exit(', '.join({'peft', 'datasets'} & sys.modules.keys()) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_listed_type_has_a_family() -> None:
    assert set(FAMILIES) == set(CONFIGS)


def test_facts_about_a_family_stand_in_its_file() -> None:
    names = {*FAMILIES, *(family.name for family in FAMILIES.values())}
    named = re.compile(rf"[\"'](?:{'|'.join(names)})[\"']")
    found = [
        f"{path.name}: {line.strip()}"
        for package in ("models", "data", "adapters", "stage", "transport", "config")
        for path in (ROOT / "sfl" / package).rglob("*.py")
        if path.parent.name != "families"
        for line in path.read_text(encoding="utf-8").splitlines()
        if named.search(line)
    ]
    assert found == []


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_model_type_has_its_tokenizer_and_its_memory(kind: str) -> None:
    family = FAMILIES[kind]
    assert family.tokenizer(kind).name in NEEDS
    assert 0 < family.mlp_tensors_fused <= family.mlp_tensors
    assert family.transposed == (kind == "gpt2")


# -- loss ------------------------------------------------------------------------------------------


def test_causal_score_counts_examples_whose_every_target_is_the_argmax() -> None:
    labels = torch.tensor([[-100, 4, 2], [-100, -100, 3], [-100, 1, -100]])
    logits = torch.zeros(3, 3, 6)
    logits[0, 0, 4], logits[0, 1, 2] = 5.0, 5.0  # both right
    logits[1, 1, 2] = 5.0  # wrong
    logits[2, 0, 1], logits[2, 1, 0] = 5.0, 9.0  # right; the second is not scored
    score = evaluation_score(logits, labels, "causal_lm")
    assert (score.num_targets, score.num_correct, score.num_examples) == (4, 2, 3)
    mean = training_loss(logits, labels, "causal_lm", 6, None)
    assert score.loss_sum == pytest.approx(4 * float(mean), rel=1e-6)
    assert float(training_loss(logits, labels, "causal_lm", 6, 8)) == pytest.approx(
        score.loss_sum / 8
    )


def test_classification_score() -> None:
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    labels = torch.tensor([0, 1])
    score = evaluation_score(logits, labels, CLASSIFY)
    assert (score.num_targets, score.num_correct, score.num_examples) == (2, 1, 2)
    mean = float(training_loss(logits, labels, CLASSIFY, 0, None))
    assert score.loss_sum == pytest.approx(2 * mean)
    assert float(training_loss(logits, labels, CLASSIFY, 0, 4)) == pytest.approx(mean / 2)
    assert score + Score(1.0, 1, 1, 1) == Score(score.loss_sum + 1.0, 3, 2, 3)


@pytest.mark.parametrize("kind", CONFIGS)
def test_dropout_is_known_from_config_json_alone(kind: str) -> None:
    unused = ("summary_first_dropout", "qa_dropout")  # of heads that no task here has
    defaults = {
        name: value
        for name, value in transformers.AutoConfig.for_model(kind).to_dict().items()
        if ("dropout" in name or "pdrop" in name) and name not in unused
    }
    family, none = FAMILIES[kind], {"model_type": kind, **dict.fromkeys(defaults, 0.0)}
    assert defaults and not family.drops(none)
    assert all(family.drops({**none, name: 0.1}) for name in defaults)
    assert family.drops({"model_type": kind}) == any(defaults.values())
    for name, value in defaults.items():
        lacking = {key: rate for key, rate in none.items() if key != name}
        assert family.drops(lacking) == bool(value)
