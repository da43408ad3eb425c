"""Model folders as other people save, fetch and break them."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from safetensors.numpy import load_file, save_file
from transformers import AutoTokenizer

import sfl.models.vocabulary as vocabulary
from sfl.cli.base import load_base
from sfl.config import load_run
from sfl.data import load_tokenizer
from sfl.errors import ModelError, ProtocolError
from sfl.models.folder import open_model
from sfl.models.tokenizer_copy import copy_tokenizer
from sfl.models.vocabulary import check_tokenizer, is_tokenizer_file, tokenizer_files
from sfl.plan import Span
from sfl.transport.bulk.fetch import _check_entry
from sfl.transport.bulk.files import SpanFiles
from sfl.v1 import edge_pb2
from tests.house.federation import sfl, write_config
from tests.house.files import edit, write_jsonl
from tests.house.paths import MODEL, SHARED
from tests.house.tiny_models import model_folder

CASES = SHARED / "cases"
ROWS = 1280
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0a1b\nsize 12345\n"
BOM = b"\xef\xbb\xbf"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The quickstart's model, to be spoilt."""
    return Path(shutil.copytree(MODEL, tmp_path / "model"))


def add_token(folder: Path, token: str, *, special: bool = True, **names: str) -> int:
    """Give the tokenizer one more token, behind the embedding's last row."""
    backend = AutoTokenizer.from_pretrained(folder)
    if names:
        backend.add_special_tokens(names)
    else:
        backend.add_tokens([token], special_tokens=special)
    backend.save_pretrained(folder)
    number = int(backend.convert_tokens_to_ids(token))
    assert number >= ROWS
    return number


# -- files that are missing -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "lacking"),
    [
        ("BertTokenizer", "vocab.txt"),
        ("RobertaTokenizer", "vocab.json and no merges.txt"),
        ("GPT2TokenizerFast", "vocab.json and no merges.txt"),
        ("Qwen2Tokenizer", "vocab.json and no merges.txt"),
        ("LlamaTokenizer", "tokenizer.model"),
        ("GemmaTokenizer", "tokenizer.model"),
        ("PreTrainedTokenizerFast", "the folder has none"),
        ("T5Tokenizer", "no tokenizer.json"),
        (None, "tokenizer.model"),
    ],
)
def test_a_tokenizer_without_a_vocabulary_is_refused(
    folder: Path, kind: str | None, lacking: str
) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    config = json.loads((folder / "config.json").read_text())
    for check in (load_tokenizer, lambda path: check_tokenizer(path, config)):
        with pytest.raises(ModelError, match=r"cannot be loaded.*needs tokenizer.json") as error:
            check(folder)
        assert lacking in str(error.value)


def test_half_a_vocabulary_is_refused(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    with pytest.raises(ModelError, match=r"no tokenizer.json and no merges.txt\."):
        load_tokenizer(folder)


def test_a_vocabulary_of_markers_alone_is_refused(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    with pytest.raises(ModelError, match="no tokens but its markers"):
        load_tokenizer(folder)


@pytest.mark.parametrize("broken", ["{", '{"model": 3}', "[]", ""])
def test_a_broken_tokenizer_is_one_sentence(folder: Path, broken: str) -> None:
    (folder / "tokenizer.json").write_text(broken)
    with pytest.raises(ModelError, match=r"cannot be loaded|not JSON"):
        load_tokenizer(folder)


# -- ids beyond the embedding ---------------------------------------------------------------------


def test_a_pad_token_beyond_the_embedding_is_not_used(folder: Path) -> None:
    assert add_token(folder, "[PAD]", pad_token="[PAD]") == ROWS
    tokenizer = load_tokenizer(folder)
    assert 0 <= tokenizer.pad_id < ROWS
    assert not tokenizer.names_pad
    with pytest.raises(ModelError, match=r"'\[PAD\]', has the id 1280.* has 1280 rows"):
        tokenizer.encode(["lamp on", "lamp [PAD] off"])
    assert tokenizer.encode(["lamp on"])


def test_a_token_that_no_text_has_may_lie_beyond(folder: Path) -> None:
    """As Gemma 3's place of an image does in its models of text."""
    add_token(folder, "<image_soft_token>")
    assert load_tokenizer(folder).encode(["lamp on"]) == load_tokenizer(MODEL).encode(["lamp on"])
    check_tokenizer(folder, json.loads((folder / "config.json").read_text()))


@pytest.mark.parametrize("marker", ["eos_token", "bos_token"])
def test_a_marker_beyond_the_embedding_is_refused(folder: Path, marker: str) -> None:
    number = add_token(folder, "<|mark|>", **{marker: "<|mark|>"})
    if marker == "bos_token":

        def begin(content: dict[str, Any]) -> None:
            content["post_processor"] = {
                "type": "TemplateProcessing",
                "single": [
                    {"SpecialToken": {"id": "<|mark|>", "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}},
                ],
                "pair": [],
                "special_tokens": {
                    "<|mark|>": {"id": "<|mark|>", "ids": [number], "tokens": ["<|mark|>"]}
                },
            }

        edit(folder / "tokenizer.json", begin)
    with pytest.raises(ModelError, match=r"<\|mark\|>.* id 1280.* 1280 rows.*resize_token_emb"):
        load_tokenizer(folder)


def test_a_vocabulary_larger_than_the_embedding_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    check_tokenizer(folder, config)
    edit(folder / "config.json", lambda content: content.update(vocab_size=1000))
    with pytest.raises(ModelError, match=r"the id 1279, and the model's embedding has 1000 rows"):
        load_tokenizer(folder)
    with pytest.raises(ModelError, match=r"tokenizer.json'.*the id 1279.*has 1000 rows"):
        check_tokenizer(folder, {**config, "vocab_size": 1000})


def test_padding_is_never_what_ends_a_text_to_classify(folder: Path) -> None:
    """transformers' classifiers take the last token that is not the pad token."""

    eos = json.loads((folder / "tokenizer_config.json").read_text())["eos_token"]

    def end(content: dict[str, Any]) -> None:
        content["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": eos, "type_id": 0}},
            ],
            "pair": [],
            "special_tokens": {eos: {"id": eos, "ids": [2], "tokens": [eos]}},
        }

    edit(folder / "tokenizer_config.json", lambda content: content.pop("pad_token"))
    edit(folder / "config.json", lambda content: content.pop("pad_token_id"))
    assert load_tokenizer(folder).pad_id == 2
    edit(folder / "tokenizer.json", end)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.suffix == (2,)
    assert tokenizer.pad_id != 2


# -- SentencePiece --------------------------------------------------------------------------------


@pytest.mark.skipif(not CASES.is_dir(), reason="the small inputs are not here")
def test_a_lone_sentencepiece_model_works_or_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = CASES / "sentencepiece_only"
    if importlib.util.find_spec("sentencepiece"):
        tokenizer = load_tokenizer(folder)
        assert tokenizer.prefix == (1,)
        assert tokenizer.decode(tokenizer.encode(["the lamp is on"])[0]) == "the lamp is on"
    monkeypatch.setattr(vocabulary.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"tokenizer.model'.*pip install sentencepiece") as error:
        load_tokenizer(folder)
    assert "tiktoken" not in str(error.value)


@pytest.mark.skipif(
    importlib.util.find_spec("sentencepiece") is None, reason="sentencepiece is not installed"
)
@pytest.mark.parametrize("tiktoken", [None, ValueError("Error parsing line b'no vocabulary'")])
def test_a_broken_sentencepiece_model_is_not_taken_for_tiktoken_s(
    tiktoken: Exception | None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tiktoken is not None:  # what transformers passes on where tiktoken is installed
        monkeypatch.setattr(AutoTokenizer, "from_pretrained", Mock(side_effect=tiktoken))
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"no vocabulary at all")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    with pytest.raises(ModelError, match="not a SentencePiece vocabulary; is it complete"):
        load_tokenizer(folder)


# -- all of a tokenizer's files, and nothing else -------------------------------------------------

KEPT = [
    "added_tokens.json",
    "additional_chat_templates/rag.jinja",
    "chat_template.jinja",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tekken.json",
    "tokenizer.model",
    "tokenizer.model.v3",
    "vocab.json",
    "vocab.txt",
]
NEVER = [
    "modeling_evil.py",
    "tokenization_evil.py",
    "pytorch_model.bin",
    "optimizer.pt",
    "model-00001-of-00002.safetensors",
    "training_args.bin",
    "notes.txt",
    ".env",
    "../config.json",
    "additional_chat_templates/../../x.jinja",
    "tokenizer.json\n",
]


def test_a_device_gets_every_file_of_the_tokenizer_and_no_other(folder: Path) -> None:
    for name in [*KEPT, *NEVER[:7]]:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    opened = open_model(folder)
    listing = SpanFiles(opened, [Span(0, 1, embedding=True, head=False)], "causal_lm").listing()
    names = {entry.name for entry in listing}
    assert names >= {*KEPT, "config.json", "tokenizer.json", "tokenizer_config.json"}
    assert not names & set(NEVER)
    assert tokenizer_files(folder) == sorted({*KEPT, "tokenizer.json", "tokenizer_config.json"})


@pytest.mark.parametrize("name", NEVER)
def test_a_device_takes_no_other_file(name: str) -> None:
    assert not is_tokenizer_file(name)
    with pytest.raises(ProtocolError, match="not a plain file name"):
        _check_entry(edge_pb2.FileEntry(name=name, num_bytes=1, sha256="0" * 64))


# -- files that are not what they should be -------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_pointer_of_git_lfs_is_named_as_such(folder: Path, name: str) -> None:
    (folder / name).write_text(POINTER)
    with pytest.raises(ModelError, match=rf"{name}.*Git LFS pointer.*`git lfs pull`"):
        open_model(folder)
        load_tokenizer(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
def test_a_byte_order_mark_changes_nothing(folder: Path, name: str) -> None:
    (folder / name).write_bytes(BOM + (folder / name).read_bytes())
    assert open_model(folder).num_layers == open_model(MODEL).num_layers
    tokenizer, plain = load_tokenizer(folder), load_tokenizer(MODEL)
    assert tokenizer.encode(["lamp on"]) == plain.encode(["lamp on"])
    assert tokenizer.markers == plain.markers


@pytest.mark.process
def test_no_byte_order_mark_reaches_transformers(folder: Path, tmp_path: Path) -> None:
    templates = folder / "additional_chat_templates"
    templates.mkdir()
    (templates / "tool.jinja").write_text("{{ messages }}")
    for path in (*folder.glob("*.json"), templates / "tool.jinja"):
        path.write_bytes(BOM + path.read_bytes())
    values: dict[str, Any] = {"model": {"path": str(folder)}, "devices": [{"name": "a"}]}
    config = load_run(write_config(tmp_path, values))
    model, missing = load_base(config, open_model(folder), load_tokenizer(folder))
    assert (missing, model.name_or_path) == (set(), str(folder))
    (tmp_path / "out").mkdir()
    assert "additional_chat_templates/tool.jinja" in copy_tokenizer(folder, tmp_path / "out")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (
        theirs("lamp on")["input_ids"]
        == AutoTokenizer.from_pretrained(MODEL)("lamp on")["input_ids"]
    )


def test_a_config_in_another_encoding_is_named(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text, encoding="utf-16")
    with pytest.raises(ModelError, match=r"config.json'.*not UTF-8.*Save it as UTF-8"):
        open_model(folder)


@pytest.mark.parametrize("sizes", [{"num_hidden_layers": "4"}, {"vocab_size": -1}])
def test_sizes_that_are_none_are_named(folder: Path, sizes: dict[str, Any]) -> None:
    edit(folder / "config.json", lambda content: content.update(sizes))
    with pytest.raises(ModelError, match="not positive whole numbers"):
        open_model(folder)


def spoil(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a safetensors file's header; its tensors stay."""
    data = path.read_bytes()
    count = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + count])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + count :])


def over_each_other(header: dict[str, Any]) -> None:
    one, other = sorted(name for name in header if "q_proj" in name)[:2]
    header[one]["data_offsets"] = header[other]["data_offsets"]


def before_the_file(header: dict[str, Any]) -> None:
    name = next(name for name in header if "q_proj" in name)
    begin, end = header[name]["data_offsets"]
    header[name]["data_offsets"] = [begin - end, 0]


def negative_shape(header: dict[str, Any]) -> None:
    name = next(name for name in header if "q_proj" in name)
    header[name]["shape"] = [-size for size in header[name]["shape"]]


@pytest.mark.parametrize("lie", [over_each_other, before_the_file, negative_shape])
def test_a_header_that_lies_is_refused(
    folder: Path, lie: Callable[[dict[str, Any]], object]
) -> None:
    spoil(folder / "model.safetensors", lie)
    with pytest.raises(ModelError, match=r"overlap|does not fit its place"):
        open_model(folder)


@pytest.mark.parametrize("left", [4, 100, 0.5])
def test_a_file_cut_short_is_refused(folder: Path, left: float) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(left * len(data)) if left < 1 else int(left)])
    with pytest.raises(ModelError, match=r"is the file complete|not a safetensors file"):
        open_model(folder)


@pytest.mark.parametrize(
    "index", ["{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}', "nothing", POINTER]
)
def test_a_broken_index_is_named(folder: Path, index: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError, match=r"index.json"):
        open_model(folder)


def test_an_index_without_its_shard_is_named(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "model-00001-of-00002.safetensors")
    places = dict.fromkeys(tensors, "model-00001-of-00002.safetensors")
    places["lm_head.weight"] = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(
        ModelError, match=r"the shard 'model-00002-of-00002.safetensors' is missing"
    ):
        open_model(folder)


def test_the_check_without_loading_takes_every_listed_family(tmp_path: Path) -> None:
    for kind in ("llama", "gpt2", "bert"):
        # Other tests lay tokenizers beside these models.
        config = json.loads((model_folder(kind) / "config.json").read_text())
        with pytest.raises(ModelError, match=r"needs tokenizer.json"):
            check_tokenizer(tmp_path, config)


def test_an_adapter_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    with pytest.raises(ModelError, match=r"an adapter, not a model; its base is org/base"):
        open_model(tmp_path)


# -- before anything starts -----------------------------------------------------------------------


@pytest.mark.process
def test_a_run_whose_tokenizer_does_not_fit_starts_nothing(folder: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "lamp", "completion": " on"}] * 8
    values: dict[str, Any] = {
        "model": {"path": str(folder)},
        "devices": [{"name": "a", "train": str(write_jsonl(tmp_path / "a.jsonl", rows))}],
    }
    config = write_config(tmp_path, values)
    edit(folder / "config.json", lambda content: content.update(vocab_size=1000))
    done = sfl("run", config)
    assert done.returncode == 2
    assert "the id 1279, and the model's embedding has 1000 rows" in done.stderr
    edit(folder / "config.json", lambda content: content.update(vocab_size=ROWS))
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:100_000])
    done = sfl("run", config)
    assert done.returncode == 2
    assert "is the file complete" in done.stderr
    (folder / "model.safetensors").write_bytes(whole)
    (folder / "tokenizer.json").unlink()
    done = sfl("run", config, "--set", f"devices.a.model={folder}", "--set", f"model.path={MODEL}")
    assert done.returncode == 2
    assert "needs tokenizer.json" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()
