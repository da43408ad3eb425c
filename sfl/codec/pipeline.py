"""From a specification such as `int8 | zstd` to a codec, and from a packet back to a tensor."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfl.codec.cast import BF16, FP16, NONE
from sfl.codec.int8 import INT8
from sfl.codec.packet import DTYPES, MAX_TENSOR_BYTES, Lossless, Packet, Quantiser, is_finite
from sfl.codec.zstd import ZSTD
from sfl.errors import ConfigError, ProtocolError

QUANTISERS: dict[str, Quantiser] = {stage.name: stage for stage in (NONE, FP16, BF16, INT8)}
LOSSLESS: dict[str, Lossless] = {stage.name: stage for stage in (ZSTD,)}
_NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Codec:
    """A quantiser and, where wanted, a lossless stage after it."""

    quantiser: Quantiser
    lossless: Lossless | None = None

    @property
    def spec(self) -> str:
        """The specification that `parse` reads back to this codec."""
        if self.lossless is None:
            return self.quantiser.name
        return f"{self.quantiser.name} | {self.lossless.name}"

    def encode(self, rows: Tensor) -> Packet:
        """`[rows, hidden]`, fp32 or bf16, as a packet.

        Where the lossless stage gains nothing, the packet's `codec` names the quantiser alone.
        Raises ProtocolError for values the quantiser cannot hold.
        """
        assert rows.dim() == 2 and rows.numel() > 0 and rows.dtype in _NAMES, (
            f"a codec takes [rows, hidden] in {list(DTYPES)}, not {rows.dtype} {list(rows.shape)}"
        )
        dtype, shape = _NAMES[rows.dtype], tuple(rows.shape)
        payload = self.quantiser.encode(rows)
        if self.lossless is not None:
            shorter = self.lossless.compress(payload)
            if len(shorter) < len(payload):
                return Packet(self.spec, dtype, shape, shorter)
        return Packet(self.quantiser.name, dtype, shape, payload)


def parse(text: str, field: str = "codec") -> Codec:
    """The codec that `text` specifies: `none`, `int8`, `fp16 | zstd`, `zstd` (of exact values).

    `field` is the setting that errors name. Raises ConfigError.
    """
    names = [name.strip() for name in text.split("|")]
    if names[0] in LOSSLESS:
        names.insert(0, NONE.name)
    first, *rest = names
    known = first in QUANTISERS and all(name in LOSSLESS for name in rest)
    if not known or len(rest) > 1:
        raise ConfigError(
            field,
            text,
            "not a codec",
            f"Write one of {', '.join(QUANTISERS)}, alone or followed by "
            f"{' or '.join(f'| {name}' for name in LOSSLESS)}.",
        )
    return Codec(QUANTISERS[first], LOSSLESS[rest[0]] if rest else None)


def decode(packet: Packet, shape: tuple[int, int] | None = None) -> Tensor:
    """The packet's tensor `[rows, hidden]`, in fresh memory that torch allocated.

    With `shape` any other is refused. Size, type and codec are checked before anything is
    allocated, values after. Raises ProtocolError.
    """
    try:
        codec = parse(packet.codec)
    except ConfigError:
        raise ProtocolError(f"unknown codec {packet.codec!r}") from None
    dtype = DTYPES.get(packet.dtype)
    if dtype is None:
        raise ProtocolError(f"dtype {packet.dtype!r} is none of {', '.join(DTYPES)}")
    rows, hidden = _checked_shape(packet, shape, dtype)
    values = codec.quantiser.decode(_payload(packet, codec, dtype), rows, hidden, dtype)
    if not is_finite(values):
        raise ProtocolError("the tensor holds NaN or infinite values")
    return values


def _checked_shape(
    packet: Packet, wanted: tuple[int, int] | None, dtype: torch.dtype
) -> tuple[int, int]:
    if wanted is not None and packet.shape != wanted:
        raise ProtocolError(f"shape {list(packet.shape)} where {list(wanted)} is due")
    if len(packet.shape) != 2 or min(packet.shape) < 1:
        raise ProtocolError(f"shape {list(packet.shape)} is not [rows, hidden]")
    rows, hidden = packet.shape
    if rows * hidden * dtype.itemsize > MAX_TENSOR_BYTES:
        raise ProtocolError(
            f"shape {list(packet.shape)} takes more than {MAX_TENSOR_BYTES} bytes, the limit"
        )
    return rows, hidden


def _payload(packet: Packet, codec: Codec, dtype: torch.dtype) -> bytes:
    """The quantiser's bytes, of exactly the size that the shape asks for."""
    rows, hidden = packet.shape
    num_bytes = codec.quantiser.num_bytes(rows, hidden, dtype)
    payload = packet.payload
    if codec.lossless is not None:
        payload = codec.lossless.decompress(payload, num_bytes)
    if len(payload) != num_bytes:
        raise ProtocolError(
            f"{len(payload)} bytes of {codec.quantiser.name} where {list(packet.shape)} "
            f"in {packet.dtype} needs {num_bytes}"
        )
    return payload
