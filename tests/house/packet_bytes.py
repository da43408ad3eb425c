"""What packets are made of fixed inputs, a digest for each codec: no refactoring changes a byte.

    python -m tests.house.packet_bytes

Inputs are made of whole numbers. The bytes of zstd's frames go by its version (constraints.txt).
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator

import numpy as np
import torch

from sfl.codec.packet import Packet
from sfl.codec.pipeline import Decoder, Encoder, parse
from sfl.codec.transform import RowContext
from tests.house.kernel_bytes import values

STAGES = (
    *("none", "fp16", "bf16", "int8", "int(2)", "int(3, 16)", "int(4, row)", "stochastic(2)"),
    *("stochastic(5)", "uniform(0.5)", "uniform(0.5, stochastic)", "uniform(0.25, dither)"),
)
SPECS = (
    *(first + rest for first in STAGES for rest in ("", " | zstd", " | rans")),
    *("zstd", "zstd(7)", "rans"),
    *("topk(0.3) | stochastic(4) | zstd", "topk(0.1, row) | int(4) | rans", "topk(0.5) | fp16"),
    "delta(bigram) | uniform(0.25, dither) | rans",
    *("delta(token) | int8", "delta(sample) | int(4) | zstd", "delta(bigram, 64) | fp16"),
    "delta(bigram) | topk(0.3) | stochastic(4) | zstd",
)
SHAPES = ((1, 1), (3, 8), (64, 32), (300, 48))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


DIGESTS = {
    "none": "845b3626cd5874a9",
    "none | zstd": "039aff4b9b9184e3",
    "none | rans": "49ca6d1faa3d3b8e",
    "fp16": "157caa5c4302790d",
    "fp16 | zstd": "7f7fcda384fedee0",
    "fp16 | rans": "8241fda03370bebc",
    "bf16": "d35b70edb3abcfed",
    "bf16 | zstd": "ddfffd5c37c68511",
    "bf16 | rans": "99cee576fd60e350",
    "int8": "4908c57f47eb1be0",
    "int8 | zstd": "691ced41a0274133",
    "int8 | rans": "74403e4f40bf721a",
    "int(2)": "83196d605c7fec10",
    "int(2) | zstd": "3d1576a3a69198dc",
    "int(2) | rans": "c23b3282ce40626b",
    "int(3, 16)": "e6b736bda41c5cae",
    "int(3, 16) | zstd": "38b39a4372b9e30b",
    "int(3, 16) | rans": "34338f9e38c01176",
    "int(4, row)": "8234563052546d98",
    "int(4, row) | zstd": "ac291b580694f031",
    "int(4, row) | rans": "2d48e6bd608dc436",
    "stochastic(2)": "1e4189a150dfac14",
    "stochastic(2) | zstd": "51d4188adf9aec6a",
    "stochastic(2) | rans": "6b57d178daa8d9f7",
    "stochastic(5)": "a27e03c08d1d5917",
    "stochastic(5) | zstd": "e82cb4c79be7bff9",
    "stochastic(5) | rans": "836ff30fe430fd92",
    "uniform(0.5)": "015beda706a58783",
    "uniform(0.5) | zstd": "4aebedbc2e4c515a",
    "uniform(0.5) | rans": "5f271657392fe411",
    "uniform(0.5, stochastic)": "801a6cc79dd5083f",
    "uniform(0.5, stochastic) | zstd": "103a6cb0d90313b4",
    "uniform(0.5, stochastic) | rans": "ce4d02d329ae9232",
    "uniform(0.25, dither)": "4b8364962cb67d3c",
    "uniform(0.25, dither) | zstd": "4204e7283e9b129b",
    "uniform(0.25, dither) | rans": "1d631642e8b1d468",
    "zstd": "039aff4b9b9184e3",
    "zstd(7)": "5e1752e332475be9",
    "rans": "49ca6d1faa3d3b8e",
    "topk(0.3) | stochastic(4) | zstd": "a112c72944e41f69",
    "topk(0.1, row) | int(4) | rans": "439358d6f976fba1",
    "topk(0.5) | fp16": "69110073cfce7c6c",
    "delta(bigram) | uniform(0.25, dither) | rans": "9d2037375bd7f615",
    "delta(token) | int8": "a916cc920006cd01",
    "delta(sample) | int(4) | zstd": "c0526559e9dd0041",
    "delta(bigram, 64) | fp16": "68d5981aa97aa373",
    "delta(bigram) | topk(0.3) | stochastic(4) | zstd": "8f01d363bb453b02",
}


def tensors() -> Iterator[torch.Tensor]:
    """Each shape in each type; every fifth row of the larger ones is zero."""
    for number, (rows, hidden) in enumerate(SHAPES):
        flat = values(rows * hidden + number)[number:] * np.float32(4)
        for dtype in DTYPES:
            tensor = torch.from_numpy(flat.copy()).view(rows, hidden).to(dtype)
            if rows > 3:
                tensor[::5] = 0
            yield tensor


def context(rows: int, number: int) -> RowContext:
    """Tokens that recur from packet to packet."""
    tokens = (np.arange(rows, dtype=np.int64) * 7 + number) % 50
    return RowContext(tokens, np.roll(tokens, 1), tokens // 9, np.arange(rows, dtype=np.int64))


def packets(spec: str) -> Iterator[tuple[Packet, torch.Tensor]]:
    """Every packet, and what it decodes to, each shape twice down one stream."""
    codec = parse(spec)
    for number, tensor in enumerate(tensors()):
        encoder, decoder = Encoder(codec), Decoder()
        rows = len(tensor)
        for turn in range(2):
            packet = encoder.encode(
                tensor * (1 + turn),
                key=number + turn,
                groups=(rows // 2, rows - rows // 2) if rows > 1 else (rows,),
                context=context(rows, number + turn),
            )
            yield packet, decoder.decode(packet)


def digest(spec: str) -> str:
    """Of all packets of a codec, and of what comes out of them."""
    total = hashlib.sha256()
    for packet, arrived in packets(spec):
        total.update(f"{packet.codec} {packet.dtype} {packet.shape}".encode())
        total.update(bytes(packet.payload))
        total.update(arrived.contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]


if __name__ == "__main__":
    for name in SPECS:
        sys.stdout.write(f'    "{name}": "{digest(name)}",\n')
