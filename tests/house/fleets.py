"""Runs of tiny models: their settings, devices and data."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from tests.house.files import write_jsonl
from tests.house.tiny_models import VOCAB, model_folder

WORDS = [f"w{number}" for number in range(VOCAB - 3)]


CLASSES = ["zero", "one", "two"]


LOST_IS_LOST: dict[str, dict[str, Any]] = {
    "network": {"rejoin_timeout": 0},
    "launch": {"restarts": 0},
}
"""Settings of a run that waits for nobody who is lost, and starts nobody again."""


@cache
def tiny(kind: str, extra: str = "{}") -> Path:
    """A tiny random model of a family, with a tokenizer of its own; `extra` as `model_folder`'s."""
    folder = model_folder(kind, extra)
    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2}
    vocabulary |= {word: 3 + number for number, word in enumerate(WORDS)}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


def sentence(rng: random.Random, least: int, most: int) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(least, most)))


def completions(path: Path, seed: int, count: int = 14, same_length: bool = False) -> Path:
    rng = random.Random(seed)
    short, long = (5, 5) if same_length else (2, 8)
    rows = [
        {"prompt": sentence(rng, short, long), "completion": sentence(rng, short, long)}
        for _ in range(count)
    ]
    return write_jsonl(path, rows)


def classified(path: Path, seed: int, count: int = 14) -> Path:
    rng = random.Random(seed)
    rows = [{"text": sentence(rng, 2, 9), "label": CLASSES[number % 3]} for number in range(count)]
    return write_jsonl(path, rows)


def settings(folder: Path, /, **sections: dict[str, Any]) -> dict[str, Any]:
    """A small run, one thread everywhere as in this process; `sections` add to it."""
    values: dict[str, Any] = {
        "run": {"rounds": 2, "keep_round_adapters": True},
        "model": {"path": str(folder), "max_length": 24},
        "lora": {"rank": 4, "alpha": 8},
        "training": {"batch_size": 4, "local_steps": 4, "learning_rate": 0.01},
        "data": {"eval_fraction": 0.3},
        "edge": {"threads": 1},
        "codec": {"activation": "none", "gradient": "none"},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return values


def device(name: str, train: Path, cut_layer: int, **more: Any) -> dict[str, Any]:
    return {"name": name, "train": str(train), "cut_layer": cut_layer, "threads": 1, **more}


def of_unequal_ranks(
    folder: Path, data: Callable[[Path, int, int], Path] = completions
) -> list[dict[str, Any]]:
    """Three devices with 12, 24 and 36 examples, ranks 2, 4 and 8 at cuts 1, 2 and none."""
    return [
        device(name, data(folder / f"{name}.jsonl", seed, 12 * seed), cut, rank=rank)
        for name, seed, cut, rank in (("a", 1, 1, 2), ("b", 2, 2, 4), ("c", 3, 0, 8))
    ]


SLOW = {"delay_ms": 100.0}
"""A link that makes a step take a fifth of a second, without computing."""
LASTING = {"local_steps": 12}


def lasting(folder: Path, count: int = 3, **sections: dict[str, Any]) -> dict[str, Any]:
    """A fleet with rounds of more than two seconds in which little is computed: links are slow.

    The adapter is that of `fleet` with the same steps, `LASTING` unless told otherwise.
    """
    training = {**LASTING, **sections.get("training", {})}
    values = fleet(folder, count, **{**sections, "training": training})
    for entry in values["devices"]:
        entry["link"] = dict(SLOW)
    return values


def fleet(folder: Path, count: int = 3, **sections: dict[str, Any]) -> dict[str, Any]:
    """A run of tiny devices that lasts long enough to be disturbed."""
    values = settings(
        tiny("llama"),
        **{
            **sections,
            "run": {"rounds": 3, **sections.get("run", {})},
            "training": {"local_steps": 40, **sections.get("training", {})},
        },
    )
    values["devices"] = [
        device(f"d{number}", completions(folder / f"d{number}.jsonl", number), 1)
        for number in range(count)
    ]
    return values
