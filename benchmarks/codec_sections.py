"""How top-k's mask can be written, and raw values made compressible: each way's bits and time.

Used by codec.py on the activations and gradients it has recorded. Masks: of `topk(share)` by
sequence, against n H2(share) bits, which no code needs less of whose ones fall anywhere alike.
Elias-Fano's size is by its formula, everything else is coded. Values: zstd over them as they lie,
over their bytes apart (all first bytes, all second ones, ...), and with a dictionary trained on the
steps before, which no receiver would have; it is not counted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from statistics import mean, median

import numpy as np
import torch
import zstandard

from sfl.codec.packet import Symbols
from sfl.codec.pipeline import Encoder, parse
from sfl.codec.rans import Rans
from sfl.stage.messages import TensorMessage

SHARES = (0.05, 0.1, 0.3, 0.5)
DICTIONARY = 112_640  # bytes, zstd's own default

Mask = np.ndarray
Coder = Callable[[Mask], int]


@dataclass(frozen=True, slots=True)
class Cost:
    """Bits a value of the tensor, and milliseconds to write them for a million values."""

    bits: float
    milliseconds: float


def masks_of(messages: Iterable[TensorMessage], share: float) -> list[Mask]:
    """`[rows, H]`, True where a value is kept."""
    encoder, found = Encoder(parse(f"topk({share}) | fp16")), []
    for message in messages:
        assert message.rows is not None
        encoder.encode(message.rows, 0, message.lengths)
        assert encoder.mask is not None
        found.append(encoder.mask.dense().numpy()[(message.rows != 0).any(1).numpy()])
    return found


def _zstd(data: bytes, level: int = 1) -> int:
    return len(zstandard.ZstdCompressor(level=level).compress(data))


def _bits(mask: Mask) -> bytes:
    return np.packbits(mask.reshape(-1), bitorder="little").tobytes()


def gaps(mask: Mask) -> np.ndarray:
    """Distances between ones as bytes; 255 says that more follows."""
    steps = np.diff(np.flatnonzero(mask), prepend=-1) - 1
    out = np.full(len(steps) + int((steps // 255).sum()), 255, np.uint8)
    out[np.cumsum(steps // 255 + 1) - 1] = steps % 255
    return out


def _rans(codes: np.ndarray, columns: int, levels: int) -> int:
    coded = Rans().compress(Symbols(np.ascontiguousarray(codes), columns, levels, 0))
    return codes.size if coded is None else len(coded[1])


def _packed_columns(mask: Mask) -> int:
    """The mask, column by column: some are nearly always kept."""
    return _zstd(_bits(np.ascontiguousarray(mask.T)))


MASK_CODERS: dict[str, Coder] = {
    "bits": lambda mask: len(_bits(mask)),
    "bits | zstd (ours)": lambda mask: _zstd(_bits(mask)),
    "bits | zstd(19)": lambda mask: _zstd(_bits(mask), 19),
    "bits by column | zstd": _packed_columns,
    "gaps | zstd": lambda mask: _zstd(gaps(mask).tobytes()),
    "gaps | rans": lambda mask: _rans(gaps(mask), 1, 256),
    "each bit | rans": lambda mask: _rans(mask.reshape(-1).view(np.uint8), mask.shape[1], 2),
}
"""What is measured -> bytes of a mask."""


def entropy(share: float) -> float:
    """H2 in bits."""
    return -sum(p * math.log2(p) for p in (share, 1.0 - share) if p > 0)


def elias_fano(count: int, ones: int) -> int:
    """Bits: the low ones of each position as they are, the high ones in unary."""
    low = max(0, math.floor(math.log2(count / ones)))
    return ones * low + ones + (count >> low) + 1


def column_entropy(masks: list[Mask]) -> float:
    """Bits a value where each column's share of ones is known: what contexts could gain."""
    shares = np.mean(np.concatenate(masks), axis=0)
    return float(np.mean([entropy(float(share)) for share in shares]))


def _cost(parts: list[np.ndarray], code: Callable[[np.ndarray], int]) -> Cost:
    sizes, times = [], []
    for part in parts:
        began = time.perf_counter()
        sizes.append(code(part))
        times.append(1e9 * (time.perf_counter() - began) / part.size)
    return Cost(8 * sum(sizes) / sum(part.size for part in parts), median(times))


def show_masks(messages: list[TensorMessage]) -> None:
    """A column for each share of values kept."""
    masks = {share: masks_of(messages, share) for share in SHARES}
    print("  masks of topk, bits a value (and ms for a million values)")
    print(f"    {'share kept':24}" + "".join(f"{share:16.0%}" for share in SHARES))
    bound = [mean(entropy(float(mask.mean())) for mask in masks[share]) for share in SHARES]
    known = [column_entropy(masks[share]) for share in SHARES]
    fano = [mean(elias_fano(m.size, int(m.sum())) / m.size for m in masks[s]) for s in SHARES]
    for name, figures in (
        ("H2(share)", bound),
        ("H2, columns known", known),
        ("Elias-Fano, by formula", fano),
    ):
        print(f"    {name:24}" + "".join(f"{figure:9.3f}       " for figure in figures))
    for name, code in MASK_CODERS.items():
        costs = [_cost(masks[share], code) for share in SHARES]
        cells = "".join(f"{cost.bits:9.3f} ({cost.milliseconds:4.1f})" for cost in costs)
        print(f"    {name:24}{cells}", flush=True)


# -- values --------------------------------------------------------------------------------------


def _apart(data: np.ndarray) -> bytes:
    """All first bytes, then all second ones, and so on."""
    return np.ascontiguousarray(data.view(np.uint8).reshape(-1, data.itemsize).T).tobytes()


def show_values(before: list[TensorMessage], messages: list[TensorMessage]) -> None:
    """zstd over values of four and of two bytes, in three ways."""
    print("  values under zstd, bits a value (and ms for a million values)")
    for name, dtype in (("none", torch.float32), ("fp16", torch.float16)):
        old, new = _values(before, dtype), _values(messages, dtype)
        samples: list[bytes | bytearray | memoryview] = []
        samples += [row.tobytes() for part in old for row in part.reshape(-1, 64)]
        dictionary = zstandard.train_dictionary(DICTIONARY, samples)
        trained = zstandard.ZstdCompressor(level=1, dict_data=dictionary)
        ways: dict[str, Callable[[np.ndarray], int]] = {
            "zstd": lambda part: _zstd(part.tobytes()),
            "zstd, dictionary": lambda part, own=trained: len(own.compress(part.tobytes())),  # type: ignore[misc]
            "zstd, bytes apart": lambda part: _zstd(_apart(part)),
        }
        for way, code in ways.items():
            cost = _cost(new, code)
            print(f"    {name + ' | ' + way:30}{cost.bits:9.3f} ({cost.milliseconds:4.1f})")


def _values(messages: list[TensorMessage], dtype: torch.dtype) -> list[np.ndarray]:
    found = []
    for message in messages:
        assert message.rows is not None
        rows = message.rows[(message.rows != 0).any(1)]
        found.append(rows.to(dtype).contiguous().numpy())
    return found
