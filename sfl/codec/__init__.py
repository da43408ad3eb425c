"""Hidden states and their gradients as few bytes: `[delta |] [topk |] quantiser [| lossless]`.

A packet describes itself; a `Decoder` needs nothing else but, for delta coding, the packets before
it. A further stage is one file, and one line in one of `pipeline`'s tables.
"""

from sfl.codec.memory import RowContext
from sfl.codec.packet import MAX_TENSOR_BYTES, Packet
from sfl.codec.pipeline import LOSSLESS, QUANTISERS, Codec, Decoder, Encoder, decode, parse
from sfl.codec.sizes import SizeStats
from sfl.codec.spec import GRADIENT_PRESETS, PRESETS

__all__ = [
    "GRADIENT_PRESETS",
    "LOSSLESS",
    "MAX_TENSOR_BYTES",
    "PRESETS",
    "QUANTISERS",
    "Codec",
    "Decoder",
    "Encoder",
    "Packet",
    "RowContext",
    "SizeStats",
    "decode",
    "parse",
]
