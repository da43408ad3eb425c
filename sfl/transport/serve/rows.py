"""Rows of a conversation on the wire, by the codec of the role `serve`.

Nothing is remembered from one step to the next: a step may be sent again, or elsewhere. So only
codecs without transforms are taken. The default, `none`, is lossless. A lossy one is for whom a
smaller row is worth another word.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfl.codec.packet import Packet, is_finite
from sfl.codec.pipeline import Codec, Decoder, Encoder, parse
from sfl.errors import ConfigError, ProtocolError
from sfl.serving.steps import MOST_ROW_BYTES, WIDEST
from sfl.v1 import serve_pb2

_FLOAT32 = "float32"


def serve_codec(text: str, field: str = "codec.serve") -> Codec:
    """The codec of conversations that `text` specifies. Raises ConfigError."""
    codec = parse(text, field)
    if codec.transforms:
        stage = codec.transforms[0].name
        raise ConfigError(
            field,
            text,
            f"{stage} remembers rows, or leaves some out, and a step may be sent again",
            "Use none, fp16, int8, or another stage of one step.",
        )
    return codec


def row_bytes(codec: Codec, hidden_size: int) -> int:
    """Of one token's row on the wire, about: of random values, without what is around it."""
    row = torch.randn(1, hidden_size, generator=torch.Generator().manual_seed(0))
    return len(RowCodec(codec, hidden_size).encode(row).data)


class RowCodec:
    """Both directions of one stream."""

    def __init__(self, codec: Codec, hidden_size: int) -> None:
        self._encoder = Encoder(codec)
        self._decoder = Decoder()
        self._spec = codec.spec
        self._hidden = hidden_size

    def encode(self, rows: Tensor, key: int = 0) -> serve_pb2.TokenRows:
        """Rows `[count, H]` as the wire has them. Raises ProtocolError for NaN or infinite ones."""
        if self._encoder.codec.exact and not is_finite(rows):
            raise ProtocolError("rows hold NaN or infinite values")
        packet = self._encoder.encode(rows, key)
        dtype = "" if packet.dtype == _FLOAT32 else packet.dtype
        return serve_pb2.TokenRows(count=len(rows), dtype=dtype, data=bytes(packet.payload))

    def decode(self, said: serve_pb2.TokenRows) -> Tensor:
        """Rows `[count, H]`, finite, in memory of torch's own. Raises ProtocolError."""
        if said.count * self._hidden * WIDEST > MOST_ROW_BYTES or not said.count:
            raise ProtocolError(f"a step of {said.count} rows")
        if len(said.data) > 2 * MOST_ROW_BYTES:
            raise ProtocolError(f"{len(said.data)} bytes of rows")
        shape = (said.count, self._hidden)
        packet = Packet(self._spec, said.dtype or _FLOAT32, shape, said.data)
        return self._decoder.decode(packet, shape)
