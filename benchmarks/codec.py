"""Every codec on real tensors: bits, error, speed, beside fp16, bitsandbytes, zstd and the entropy.

    python benchmarks/codec.py               # 10 minutes on 2 cores
    python benchmarks/codec.py --models stories260k
    python benchmarks/codec.py --models minilm --tables masks values

Activations and gradients of real training steps at several cuts: stories260K on E2E,
all-MiniLM-L6-v2 on emotion, and a GPT-2 of 124M's shape with random weights. Each codec sees the
steps in order (delta coding remembers); the last ones count. Bits and error are over their values,
GB/s over their fp32 bytes, from tensor to the payload of a packet and back, by medians. The entropy
bound is what the symbols that the encoder made would take, each coded by its frequency in the
tensor, without any context or table; with topk the mask at its own entropy comes on top. Then how
masks and raw values can be coded (codec_sections.py), and last tensor to frame bytes and back,
beside the aims (codec_speed.py). Needs `../shared`, `pip install sfl[minilm]` and, for its row,
bitsandbytes (`pip install sfl[bench]`).
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import codec_sections, codec_speed
from benchmarks.accuracy import STORIES, TEXT
from benchmarks.emotion import DATA as EMOTION
from benchmarks.emotion import minilm
from benchmarks.runs import ROOT, needed
from benchmarks.simulation import Simulation
from benchmarks.throughput import full_length, make_texts
from sfl.codec.kernel import kernel
from sfl.codec.packet import Quantised, Quantiser, Source, Symbols
from sfl.codec.pipeline import Codec, Decoder, Encoder, parse
from sfl.config import RunConfig
from sfl.stage.messages import Kind, TensorMessage

STEPS, COUNTED = 16, 6
CODECS = ("none", "fp16", "none | zstd", "int8", "int8 | zstd", "sft", "compact", "extreme")
TABLES = ("codecs", "masks", "values", "speed")
CUTS = {"stories260k": (1, 3), "minilm": (1, 3), "gpt2": (1, 6)}


@dataclass(frozen=True, slots=True)
class Row:
    """What a codec came to on one tensor's last steps."""

    bits: float
    error: float
    encode: float
    decode: float
    entropy: float | None = None


def settings(model: str, cut: int, folder: Path) -> RunConfig:
    """A run with one device that trains uncompressed."""
    values: dict[str, Any] = {
        "training": {"learning_rate": 1e-3, "local_steps": STEPS},
        "codec": {"activation": "none", "gradient": "none"},
        "devices": [{"name": "device", "cut_layer": cut}],
    }
    if model == "minilm":
        labels = ["sadness", "joy", "love", "anger", "fear", "surprise"]
        values["model"] = {
            "path": str(minilm()),
            "task": "sequence_classification",
            "labels": labels,
            "max_length": 64,
        }
        values["data"] = {
            "train": str(EMOTION / "train.txt"),
            "format": "csv",
            "delimiter": ";",
            "label_field": "label_name",
        }
        values["training"]["batch_size"] = 32
    elif model == "gpt2":
        values["model"] = {"path": str(gpt2(folder)), "max_length": 128}
        values["data"] = {"train": str(folder / "texts.jsonl"), **full_length()}
    else:
        values["model"] = {"path": str(STORIES), "max_length": 128}
        values["data"] = {"train": str(folder / "train.jsonl")}
        values["training"]["batch_size"] = 16
    values["evaluation"] = {"max_examples": 1, "full": False}
    return RunConfig.model_validate(values)


def gpt2(folder: Path) -> Path:
    """A random GPT-2 of 124M's shape but for the vocabulary, which is the quickstart's."""
    import shutil

    from transformers import GPT2Config, GPT2LMHeadModel

    path = folder / "gpt2"
    if not path.exists():
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config(vocab_size=8192)).save_pretrained(path)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(ROOT / "examples" / "quickstart" / "model" / name, path / name)
        make_texts(folder / "texts.jsonl", 256)
    return path


def tensors(config: RunConfig) -> list[TensorMessage]:
    """Everything that crosses the cut in some steps."""
    simulation = Simulation(config)
    simulation.watched.seen = []
    simulation.train(STEPS)
    return simulation.watched.seen


@dataclass(slots=True)
class Recorded:
    """A quantiser that keeps what it made last."""

    inner: Quantiser
    last: Quantised | None = None

    @property
    def name(self) -> str:
        """As written."""
        return self.inner.name

    @property
    def exact(self) -> bool:
        """As it is."""
        return self.inner.exact

    def encode(
        self, values: torch.Tensor, columns: int, scale_of: torch.Tensor, key: int
    ) -> Quantised:
        """As it does."""
        self.last = self.inner.encode(values, columns, scale_of, key)
        return self.last

    def decode(self, read: Source, count: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
        """As it does."""
        return self.inner.decode(read, count, columns, dtype)

    def fixed_bits(self, count: int, columns: int, dtype: torch.dtype) -> float | None:
        """As it has."""
        return self.inner.fixed_bits(count, columns, dtype)


def try_codec(codec: Codec, messages: list[TensorMessage]) -> Row:
    """All messages in order; the last ones count."""
    recorded = Recorded(codec.quantiser)
    encoder, decoder = Encoder(replace(codec, quantiser=recorded)), Decoder()
    size = values = 0
    wrong = power = symbols = 0.0
    times: list[tuple[float, float]] = []
    for number, message in enumerate(messages):
        assert message.rows is not None
        began = time.perf_counter()
        packet = encoder.encode(message.rows, number, message.lengths, message.context)
        encoded = time.perf_counter()
        back = decoder.decode(packet)
        decoded = time.perf_counter()
        if number < len(messages) - COUNTED:
            continue
        raw = 4 * message.rows.numel()
        times.append((raw / (encoded - began), raw / (decoded - encoded)))
        size, values = size + len(packet.payload), values + message.rows.numel()
        wrong += float((back - message.rows).square().sum())
        power += float(message.rows.square().sum())
        symbols += entropy_bits(recorded.last)
        if encoder.mask is not None:
            kept = encoder.mask.dense()[(message.rows != 0).any(1)].float()
            symbols += kept.numel() * codec_sections.entropy(float(kept.mean()))
    encode, decode = (median(column) for column in zip(*times, strict=True))
    bound = symbols / values if symbols else None
    return Row(8 * size / values, (wrong / power) ** 0.5, encode, decode, bound)


def entropy_bits(made: Quantised | None) -> float:
    """Bits of the symbols at their own frequencies; 0 where there are only bytes."""
    if made is None or not isinstance(made.body, Symbols):
        return 0.0
    codes = made.body.codes
    counts = np.bincount(codes)
    shares = counts[counts > 0] / codes.size
    return float(-(shares * np.log2(shares)).sum() * codes.size)


def blockwise(messages: list[TensorMessage]) -> Row | None:
    """bitsandbytes' blockwise 8 bits, which hivemind and Petals send."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return None
    import bitsandbytes.functional as bnb

    times, size, values, wrong, power = [], 0, 0, 0.0, 0.0
    for message in messages[-COUNTED:]:
        rows = message.rows
        assert rows is not None
        began = time.perf_counter()
        codes, state = bnb.quantize_blockwise(rows, blocksize=4096)
        encoded = time.perf_counter()
        back = bnb.dequantize_blockwise(codes, state)
        decoded = time.perf_counter()
        raw = 4 * rows.numel()
        times.append((raw / (encoded - began), raw / (decoded - encoded)))
        size += codes.numel() + 4 * state.absmax.numel()
        values += rows.numel()
        wrong += float((back - rows).square().sum())
        power += float(rows.square().sum())
    encode, decode = (median(column) for column in zip(*times, strict=True))
    return Row(8 * size / values, (wrong / power) ** 0.5, encode, decode)


def rows_of(messages: list[TensorMessage], gradient: bool) -> Iterator[tuple[str, Row]]:
    """Every codec's row."""
    for name in CODECS:
        yield name, try_codec(parse(name, gradient=gradient), messages)
    reference = blockwise(messages)
    if reference is not None:
        yield "bitsandbytes blockwise 8", reference


def main() -> None:
    """A table for each model, cut and direction."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--models", nargs="+", choices=list(CUTS), default=list(CUTS))
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    given = parser.parse_args()
    needed(STORIES, TEXT, EMOTION)
    from examples.e2e.prepare import main as prepare

    print(f"{kernel().name} kernel, {torch.get_num_threads()} threads, real tokens only")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(TEXT, folder)
        for model in given.models if set(given.tables) - {"speed"} else ():
            for cut in CUTS[model]:
                seen = tensors(settings(model, cut, folder))
                for kind in (Kind.ACTIVATION, Kind.GRADIENT):
                    own = [one for one in seen if one.kind is kind]
                    show(model, cut, kind, own, given.tables)
    if "speed" in given.tables:
        codec_speed.main()


def show(
    model: str, cut: int, kind: Kind, messages: list[TensorMessage], tables: list[str]
) -> None:
    """One tensor's tables."""
    assert messages[-1].rows is not None
    tokens, hidden = messages[-1].rows.shape
    print(f"\n{model}, cut {cut}, {kind.name.lower()}s of about [{tokens}, {hidden}]")
    if "masks" in tables:
        codec_sections.show_masks(messages[-COUNTED:])
    if "values" in tables:
        codec_sections.show_values(messages[:-COUNTED], messages[-COUNTED:])
    if "codecs" not in tables:
        return
    print(f"  {'codec':26} {'bits':>6} {'entropy':>8} {'error':>8} {'encode':>12} {'decode':>12}")
    for name, row in rows_of(messages, kind is Kind.GRADIENT):
        entropy = "" if row.entropy is None else f"{row.entropy:8.2f}"
        print(
            f"  {name:26} {row.bits:6.2f} {entropy:8} {row.error:8.2%} "
            f"{row.encode / 1e9:7.2f} GB/s {row.decode / 1e9:7.2f} GB/s",
            flush=True,
        )


if __name__ == "__main__":
    main()
