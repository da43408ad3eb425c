"""Which files of a model folder are its tokenizer's, and whether they can belong to the model.

Reads names, headers and vocabularies; no torch, no transformers. What only a loaded tokenizer
tells, `sfl.data.tokenizer` looks at, by the same rules.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from sfl.errors import ModelError
from sfl.models.families import FAMILIES
from sfl.models.jsonfile import FIELD, check_fetched, read_object
from sfl.node.textfile import POINTER

FILE = re.compile(
    r"tokenizer[\w.-]*\.json|tokenizer\.model(\.v\d+)?|"
    r"(special_tokens_map|added_tokens|vocab|encoder|normalizer|tekken|chat_template)\.json|"
    r"(spiece|spm|sentencepiece|sentencepiece\.bpe|tiktoken)\.model|"
    r"(vocab|merges|dict)\.txt|vocab\.bpe|bpe\.codes|chat_template\.jinja",
    re.ASCII,
)
TEMPLATES = "additional_chat_templates"
TEMPLATE = re.compile(rf"{TEMPLATES}/[A-Za-z0-9_][\w.-]*\.jinja", re.ASCII)
VOCABULARY = re.compile(
    r".*\.model(\.v\d+)?|vocab\.(json|txt|bpe)|tekken\.json|tokenizer[.\d]*\.json"
)
NEEDS = {
    "TokenizersBackend": ("tokenizer.json",),
    "PreTrainedTokenizer": ("tokenizer.json",),
    "BertTokenizer": ("vocab.txt",),
    "DistilBertTokenizer": ("vocab.txt",),
    "RobertaTokenizer": ("vocab.json", "merges.txt"),
    "GPT2Tokenizer": ("vocab.json", "merges.txt"),
    "Qwen2Tokenizer": ("vocab.json", "merges.txt"),
    "LlamaTokenizer": ("tokenizer.model",),
    "GemmaTokenizer": ("tokenizer.model",),
}
"""By class, the files that do in place of tokenizer.json."""


def is_tokenizer_file(name: str) -> bool:
    """Whether a file of a model folder, by its name within it, is part of the tokenizer."""
    return bool(FILE.fullmatch(name) or TEMPLATE.fullmatch(name))


def tokenizer_files(folder: Path) -> list[str]:
    """Names within `folder` of all the files that its tokenizer consists of, sorted."""
    inside = [*_names(folder), *(f"{TEMPLATES}/{name}" for name in _names(folder / TEMPLATES))]
    return sorted(name for name in inside if is_tokenizer_file(name))


def check_tokenizer(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise ModelError where the tokenizer of `folder` lacks a file, or goes beyond the model.

    Looks at what is on disk alone, so it is quick and may let a fault pass that loading finds.
    """
    check_files(folder, config)
    rows = config.get("vocab_size")
    name = next((n for n in ("tokenizer.json", "vocab.json") if (folder / n).is_file()), None)
    if name is not None and isinstance(rows, int):
        highest = max(_ordinary_ids(folder / name), default=-1)
        if highest >= rows:
            raise beyond(folder / name, "an ordinary token", highest, rows)


def check_files(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise ModelError unless there is a vocabulary, whole, and what reads it is installed."""
    names = tokenizer_files(folder)
    for name in names:
        with (folder / name).open("rb") as file:
            check_fetched(folder / name, file.read(len(POINTER)))
    if any(re.fullmatch(r"tokenizer[.\d]*\.json", name) for name in names):
        return
    declared: dict[str, Any] = {}
    if "tokenizer_config.json" in names:
        declared = read_object(folder / "tokenizer_config.json")
    kind = class_of(declared, str(config.get("model_type", "")))
    lacking = [name for name in NEEDS.get(kind, ()) if name not in names]
    if lacking or not any(VOCABULARY.fullmatch(name) for name in names):
        raise _without(folder, kind, lacking)
    pieces = _pieces(names)
    if pieces and kind not in ("BertTokenizer", "GPT2Tokenizer", "Qwen2Tokenizer"):
        _require_sentencepiece(folder / pieces[0])


def unreadable_pieces(folder: Path) -> str | None:
    """The folder's SentencePiece vocabulary that is none, where a tokenizer is to be made of it."""
    names = tokenizer_files(folder)
    if "tokenizer.json" in names or importlib.util.find_spec("sentencepiece") is None:
        return None
    from sentencepiece import SentencePieceProcessor

    for name in _pieces(names):
        try:
            SentencePieceProcessor(model_file=str(folder / name))
        except (RuntimeError, OSError):
            return name
    return None


def _pieces(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.endswith(".model") and not name.startswith("tiktoken")]


def class_of(declared: Mapping[str, Any], model_type: str) -> str:
    """The tokenizer's class by tokenizer_config.json, else by the model's type; may be empty."""
    named = declared.get("tokenizer_class")
    family = FAMILIES.get(model_type)
    own = family.tokenizer(model_type).name if family else ""
    return str(named or own).removesuffix("Fast")


def beyond(path: Path, what: str, number: int, rows: int) -> ModelError:
    """The error for a token id that the model's embedding has no row for."""
    return ModelError(
        FIELD,
        str(path),
        f"{what} has the id {number}, and the model's embedding has {rows} rows, 0 to {rows - 1}",
        "Take the tokenizer that the model was trained with, or give the model more rows: "
        f"model.resize_token_embeddings({number + 1}), then model.save_pretrained(folder).",
    )


def _without(folder: Path, kind: str, lacking: Collection[str]) -> ModelError:
    needed = " and ".join(NEEDS.get(kind, ()))
    either = f", or {needed}" if needed and needed != "tokenizer.json" else ""
    there = f"the folder has no {' and no '.join(['tokenizer.json', *lacking])}"
    if needed == "tokenizer.json":
        there = "the folder has none"
    return ModelError(
        FIELD,
        str(folder),
        f"its tokenizer cannot be loaded: {kind or 'it'} needs tokenizer.json{either}, and {there}",
        "Fetch them too, or save a tokenizer beside the model with "
        "tokenizer.save_pretrained(folder).",
    )


def _require_sentencepiece(path: Path) -> None:
    if importlib.util.find_spec("sentencepiece") is None:
        raise ModelError(
            FIELD,
            str(path),
            "its tokenizer cannot be loaded: it is a SentencePiece vocabulary with no "
            "tokenizer.json beside it, and sentencepiece is not installed",
            "Install it with `pip install sentencepiece`, or fetch the model's tokenizer.json too.",
        )


def _ordinary_ids(path: Path) -> Iterable[int]:
    """Ids of the tokens that any text may contain: not those that were added, as markers are."""
    content = read_object(path)
    if path.name == "vocab.json":
        more = path.with_name("added_tokens.json")
        added = set(_numbers(read_object(more))) if more.is_file() else set()
        return (number for number in _numbers(content) if number not in added)
    listed = content.get("added_tokens")
    tokens = listed if isinstance(listed, list) else ()
    added = set(_numbers({k: t.get("id") for k, t in enumerate(tokens) if isinstance(t, dict)}))
    model = content.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    return (number for number in _numbers(vocabulary) if number not in added)


def _numbers(vocabulary: object) -> Iterable[int]:
    if isinstance(vocabulary, list):
        return range(len(vocabulary))
    if isinstance(vocabulary, dict):
        return (number for number in vocabulary.values() if isinstance(number, int))
    return ()


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
