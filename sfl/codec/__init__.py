"""Hidden states and their gradients as bytes: one quantiser, then at most one lossless stage.

A packet describes itself; `decode` needs nothing else. A further stage is one file, and one line
in `pipeline.QUANTISERS` or `pipeline.LOSSLESS`.
"""

from sfl.codec.packet import MAX_TENSOR_BYTES, Packet
from sfl.codec.pipeline import LOSSLESS, QUANTISERS, Codec, decode, parse

__all__ = ["LOSSLESS", "MAX_TENSOR_BYTES", "QUANTISERS", "Codec", "Packet", "decode", "parse"]
