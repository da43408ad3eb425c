"""Adapters between a device and its edge, compressed: what changed, and what was lost last time.

Down, the edge sends the global adapter as its difference from what the device holds; up, the device
sends what its training changed. Either way the receiver adds the difference to a reference that
both ends have. What a codec loses is not lost for good: down, the next difference is taken from
what really arrived; up, the device adds what it still owes to its next update (error feedback,
1901.09847). A stream's first adapter travels whole.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from sfl.codec import Codec, Packet, decode
from sfl.errors import AdapterRefused, ProtocolError
from sfl.keys import derive_seed
from sfl.transport.frames.chunks import Buffer

ROW = 64  # values of a row that a codec sees; an adapter is one long vector

Array = npt.NDArray[np.float32]
Values = Mapping[str, np.ndarray]


class UpdateSender:
    """One direction's sending end."""

    def __init__(self, device: str, seed: int, direction: str, feedback: bool) -> None:
        self._seed = derive_seed(seed, device, direction)
        self._feedback = feedback
        self._owed: Array | None = None

    def encode(
        self, codec: Codec, values: Values, reference: Values, round_: int
    ) -> tuple[Buffer, dict[str, np.ndarray]]:
        """(payload, the values as they come out at the receiver).

        Raises AdapterRefused where the codec cannot hold the change.
        """
        flat = _flat(values)
        if not codec.exact:
            flat -= _flat(reference)
            if self._owed is not None:
                flat += self._owed
        rows = torch.from_numpy(_padded(flat))
        key = derive_seed(self._seed, round_) & 0xFFFFFFFF
        try:
            packet = codec.encode(rows, key, (len(rows),))
        except ProtocolError as error:
            raise AdapterRefused(f"adapter of round {round_}: {error}") from None
        arrived = decode(packet).reshape(-1).numpy()[: flat.size]
        if self._feedback and not codec.exact:
            self._owed = flat - arrived
        return packet.payload, _named(arrived, values, {} if codec.exact else reference)


def decode_update(codec: Codec, payload: Buffer, reference: Values) -> dict[str, np.ndarray]:
    """The values that a sender meant, to the bit as it knows them. Raises ProtocolError."""
    size = sum(array.size for array in reference.values())
    packet = Packet(codec.spec, "float32", (-(-size // ROW), ROW), payload)
    flat = decode(packet).reshape(-1).numpy()[:size]
    return _named(flat, reference, {} if codec.exact else reference)


def _flat(values: Values) -> Array:
    """All values as one vector, by name."""
    arrays = [np.asarray(values[name], np.float32).reshape(-1) for name in sorted(values)]
    return np.concatenate(arrays)


def _padded(flat: Array) -> Array:
    rows = np.zeros((-(-flat.size // ROW), ROW), np.float32)
    rows.reshape(-1)[: flat.size] = flat
    return rows


def _named(flat: Array, like: Values, base: Values) -> dict[str, np.ndarray]:
    """The vector cut into arrays again, on top of `base`."""
    result: dict[str, np.ndarray] = {}
    at = 0
    for name in sorted(like):
        shape = like[name].shape
        size = int(np.prod(shape, dtype=np.int64))
        piece = flat[at : at + size].reshape(shape)
        result[name] = base[name] + piece if base else piece.copy()
        at += size
    return result
