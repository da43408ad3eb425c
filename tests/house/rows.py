"""Rows of conversations, and what is scored of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sfl.config import ModelSettings
from sfl.data import Example, Row

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


CORPUS = [
    "turn on the lamp in the kitchen please",
    "Once upon a time, there was a little girl named Lily.",
    '{"device": "lamp", "room": "kitchen", "level": 40}',
    "name : Blue Spice | Type : coffee shop = Blue Spice is a coffee shop .",
]


def byte_level_pieces() -> tuple[dict[str, int], list[tuple[str, str]]]:
    from tokenizers import Tokenizer as Rust
    from tokenizers import models, pre_tokenizers, trainers

    rust = Rust(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    rust.train_from_iterator(CORPUS, trainer)
    return pieces_of(rust)


def marker_pieces(*specials: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Pieces of the SentencePiece kind: `▁` for a space, bytes to fall back on."""
    from tokenizers import Tokenizer as Rust
    from tokenizers import models, pre_tokenizers, trainers

    rust = Rust(models.BPE(byte_fallback=True, unk_token="<unk>"))
    rust.pre_tokenizer = pre_tokenizers.Metaspace()
    given_first = [*specials, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=given_first, show_progress=False, limit_alphabet=60
    )
    rust.train_from_iterator(CORPUS, trainer)
    return pieces_of(rust)


def pieces_of(rust: Any) -> tuple[dict[str, int], list[tuple[str, str]]]:
    model = json.loads(rust.to_str())["model"]
    return model["vocab"], [(first, second) for first, second in model["merges"]]


def wordpieces() -> dict[str, int]:
    letters = sorted({letter for text in CORPUS for letter in text.lower() if letter != " "})
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "lamp", "kit", "##chen", *letters]
    return {name: number for number, name in enumerate([*names, *(f"##{x}" for x in letters)])}


def save_tokenizer(folder: Path, class_name: str, model_type: str, **extra: Any) -> Path:
    """A model folder that holds a tokenizer of that class, and a config."""
    import transformers

    kind = getattr(transformers, class_name)
    if class_name == "BertTokenizer":
        tokenizer = kind(vocab=wordpieces())
    elif class_name in ("LlamaTokenizer", "GemmaTokenizer"):
        specials = ["<unk>", "<s>", "</s>"] if class_name[0] == "L" else []
        specials = specials or ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
        vocab, merges = marker_pieces(*specials)
        tokenizer = kind(vocab=vocab, merges=merges, add_bos_token=True)
    else:
        vocab, merges = byte_level_pieces()
        tokenizer = kind(vocab=vocab, merges=merges)
    for name, value in extra.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


def causal(max_length: int = 512) -> ModelSettings:
    return ModelSettings(path="m", max_length=max_length)


def rows_of(*values: dict[str, Any], source: str = "f.jsonl") -> list[Row]:
    return [Row(value, source, f"line {number}") for number, value in enumerate(values, 1)]


def scored(example: Example) -> list[int]:
    return [label for label in example.labels if label != -100]
