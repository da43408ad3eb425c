"""Adapters between a device and its edge, compressed: what changed, and what was lost last time.

Down, the edge sends the global adapter as its difference from what the device holds; up, the device
sends what its training changed. Either way the receiver adds the difference to a reference that
both ends have. What a codec loses is not lost for good: down, the next difference is taken from
what really arrived; up, the device adds what is still due to its next update (error feedback,
1901.09847). A stream's first adapter travels whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from sfl.codec.packet import Packet
from sfl.codec.pipeline import Codec, decode
from sfl.errors import AdapterRefused, ProtocolError
from sfl.keys import derive_seed
from sfl.transport.frames.chunks import Buffer, adapter_bytes, decode_adapter

_HELD, _LOST = "held/", "lost/"
ROW = 64  # values of a row that a codec sees; an adapter is one long vector

Array = npt.NDArray[np.float32]
Values = Mapping[str, np.ndarray]


class UpdateSender:
    """One direction's sending end."""

    def __init__(self, device: str, seed: int, direction: str, feedback: bool) -> None:
        self._seed = derive_seed(seed, device, direction)
        self._feedback = feedback
        self._lost: Values = {}

    def encode(
        self, codec: Codec, values: Values, reference: Values, round_: int
    ) -> tuple[Buffer, dict[str, np.ndarray]]:
        """(payload, the values as they come out at the receiver).

        Raises AdapterRefused where the codec cannot hold the change.
        """
        flat = _flat(values)
        if not codec.exact:
            flat -= _flat(reference)
            if self._lost:
                flat += _flat({name: self._due(name, like) for name, like in values.items()})
        rows = torch.from_numpy(_padded(flat))
        key = derive_seed(self._seed, round_) & 0xFFFFFFFF
        try:
            packet = codec.encode(rows, key, (len(rows),))
        except ProtocolError as error:
            raise AdapterRefused(f"adapter of round {round_}: {error}") from None
        arrived = decode(packet).reshape(-1).numpy()[: flat.size]
        if self._feedback and not codec.exact:
            self._lost = _named(flat - arrived, values, {})
        return packet.payload, _named(arrived, values, {} if codec.exact else reference)

    def _due(self, name: str, like: np.ndarray) -> np.ndarray:
        """What codecs have lost of a parameter; nothing of one that is new here, or was wider."""
        lost = self._lost.get(name)
        return np.zeros_like(like) if lost is None or lost.shape != like.shape else lost

    @property
    def lost(self) -> Values:
        """What codecs have lost so far, which the next update adds, by name."""
        return self._lost

    def add_next(self, lost: Values) -> None:
        """Go on from what an earlier sender had still to add."""
        self._lost = lost


def decode_update(codec: Codec, payload: Buffer, reference: Values) -> dict[str, np.ndarray]:
    """The values that a sender meant, to the bit as it knows them. Raises ProtocolError."""
    size = sum(array.size for array in reference.values())
    packet = Packet(codec.spec, "float32", (-(-size // ROW), ROW), payload)
    flat = decode(packet).reshape(-1).numpy()[:size]
    return _named(flat, reference, {} if codec.exact else reference)


@dataclass(frozen=True, slots=True)
class Part:
    """An adapter's values on their way: `codec` is empty where the payload has them whole.

    `arrived` is what the receiver will have.
    """

    payload: Buffer
    codec: str
    arrived: Values


class AdapterChanges:
    """One end's adapters as changes: `held` is what the device has, to the bit as it arrived there.

    Both ends keep it, from round to round, where adapters are coded. A round's adapter moves it; a
    device's update is a change of it, and leaves it where it is.
    """

    def __init__(self, side: str, device: str, seed: int) -> None:
        self.held: Values = {}
        self._device = device
        sends_up = side == "device"
        self._sender = UpdateSender(device, seed, "up" if sends_up else "down", feedback=sends_up)

    def send_round(self, codec: Codec, values: Values, round_: int) -> Part:
        """The adapter of a round for the device: whole, or as what it lacks of it."""
        if codec.spec == "none":
            self.send_whole()
            return Part(adapter_bytes(values), "", values)
        if not values or not _alike(values, self.held):
            self.held = values
            return Part(adapter_bytes(values), "", values)
        payload, self.held = self._sender.encode(codec, values, self.held, round_)
        return Part(payload, codec.spec, self.held)

    def send_whole(self) -> None:
        """The adapter of a round goes out in no code: nothing of it is remembered."""
        self.held = {}

    def take_round(self, codec: Codec, payload: Buffer, coded_as: str) -> Values:
        """The same at the device, `coded_as` what came with it. Raises ProtocolError."""
        if not coded_as:
            values: Values = decode_adapter(payload)
        elif coded_as != codec.spec or not self.held:
            raise self._not_due(coded_as)
        else:
            values = decode_update(codec, payload, self.held)
        self.held = values if codec.spec != "none" else {}
        return values

    def send_update(self, codec: Codec, values: Values, round_: int) -> Part:
        """What a device trained: whole, or as what changed since the round began."""
        if codec.spec == "none" or not values:
            return Part(adapter_bytes(values), "", values)
        held = {name: self.held[name] for name in values}
        payload, arrived = self._sender.encode(codec, values, held, round_)
        return Part(payload, codec.spec, arrived)

    def take_update(
        self, codec: Codec, payload: Buffer, coded_as: str, trains: Callable[[str], bool]
    ) -> Buffer:
        """The same at the edge, as a whole adapter's bytes; `trains` tells a device's names.

        Raises ProtocolError.
        """
        if not coded_as:
            return payload
        if coded_as != codec.spec:
            raise self._not_due(coded_as)
        held = {name: array for name, array in self.held.items() if trains(name)}
        return adapter_bytes(decode_update(codec, payload, held))

    def remembered(self) -> dict[str, np.ndarray]:
        """What it has of the device's adapter, and what codecs have lost of it, by name."""
        held = {f"{_HELD}{name}": array for name, array in self.held.items()}
        return held | {f"{_LOST}{name}": array for name, array in self._sender.lost.items()}

    def take_back(self, arrays: Values) -> None:
        """Go on from what an earlier end remembered; without anything, from the beginning."""
        self.held = _behind(_HELD, arrays)
        self._sender.add_next(_behind(_LOST, arrays))

    def _not_due(self, coded_as: str) -> ProtocolError:
        return ProtocolError(f"{self._device}: an adapter in codec {coded_as!r} was not expected")


def _behind(start: str, arrays: Values) -> dict[str, np.ndarray]:
    """Those whose names begin so, by the rest of the name."""
    return {name.removeprefix(start): a for name, a in arrays.items() if name.startswith(start)}


def _alike(values: Values, held: Values) -> bool:
    """Whether both have the same parameters, of the same shapes."""
    same = values.keys() == held.keys()
    return same and all(array.shape == held[name].shape for name, array in values.items())


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
