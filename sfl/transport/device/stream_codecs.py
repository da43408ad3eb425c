"""One end of a device's stream, where tensors become packets and packets tensors.

Both ends hold the same: the round's codecs by role, what delta coding remembers, and the masks that
the gradients of sparsified tensors are multiplied by.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sfl.codec.kernel import kernel
from sfl.codec.packet import Packet, is_finite
from sfl.codec.pipeline import Codec, Decoder, Encoder, parse
from sfl.codec.topk import Mask
from sfl.config import RunSettings
from sfl.config.codec import RoleCodecs
from sfl.errors import AdapterRefused, ProtocolError
from sfl.keys import derive_seed
from sfl.stage.messages import Key, Kind, Purpose, TensorMessage

SENDS = {
    "device": {Kind.ACTIVATION: "activation", Kind.GRADIENT: "tail_gradient"},
    "edge": {Kind.HIDDEN: "hidden", Kind.GRADIENT: "gradient"},
}
"""Which setting codes what an end sends in training; in evaluation everything is `evaluation`."""


def codecs_of(settings: RoleCodecs) -> dict[str, Codec]:
    """All roles parsed. Raises ConfigError, which names the setting."""
    return {
        role: parse(text, f"codec.{role}", gradient="gradient" in role)
        for role, text in settings.model_dump().items()
    }


def check_codecs(settings: RunSettings) -> None:
    """Parse every codec that some device will use in some round. Raises ConfigError."""
    rounds = {1, *(change.from_round for change in settings.codec.schedule)}
    for entry in settings.devices:
        for round_ in rounds:
            codecs_of(settings.codecs(entry.name, round_))


def remembers_samples(settings: RunSettings) -> bool:
    """Whether some device's activations are coded by what their examples' were an epoch ago."""
    rounds = {1, *(change.from_round for change in settings.codec.schedule)}
    return any(
        parse(settings.codecs(entry.name, round_).activation).on_disk
        for entry in settings.devices
        for round_ in rounds
    )


class StreamCodecs:
    """Encoders and decoders of one end of one stream; one thread may encode, one may decode.

    What delta coding remembers of samples lies in `folder`, the side's `cache_dir`.
    """

    def __init__(
        self, side: str, device: str, seed: int, peer_compiled: bool, folder: Path | None = None
    ) -> None:
        self._side = side
        self._peer = "edge" if side == "device" else "device"
        self._device = device
        self._seed = seed
        # Entropy codes are quick in C alone: without it on either side Zstandard takes their place.
        self._compiled = peer_compiled and kernel().name == "compiled"
        self._cache = folder, f"{side}.cache_dir"
        self._specs: dict[str, str] = {}
        self._encoders: dict[str, Encoder] = {}
        self._decoders: dict[tuple[Kind, bool], Decoder] = {}
        self._masks: dict[Key, Mask] = {}

    def begin_round(self, settings: RoleCodecs, round_: int) -> None:
        """Take the round's codecs; what was remembered for others, or rehearsed, is forgotten.

        Raises ConfigError.
        """
        codecs = codecs_of(settings)
        specs = {role: codec.spec for role, codec in codecs.items()}
        if specs != self._specs or round_ <= 1:
            self._specs = specs
            self._encoders = {role: self._encoder(role, codec) for role, codec in codecs.items()}
            self._decoders = {}
        self._masks.clear()

    def _encoder(self, role: str, codec: Codec) -> Encoder:
        if role != "activation":  # no other sender knows its rows by name
            codec = codec.without_context()
        return Encoder(codec.for_peer(self._compiled), *self._cache)

    @property
    def adapter_codec(self) -> Codec:
        """The round's codec of adapters, both ways; none before the first round."""
        encoder = self._encoders.get("adapter")
        return parse("none") if encoder is None else encoder.codec

    def encode(self, message: TensorMessage) -> Packet | None:
        """The packet of a message's rows.

        Raises AdapterRefused, naming device and step, where they are none to send.
        """
        if message.rows is None:
            return None
        role = self._role(message)
        encoder = self._encoders[role]
        seed = derive_seed(
            self._seed,
            self._device,
            message.key.round,
            message.key.step,
            message.key.micro_batch,
            message.kind.name,
            message.key.purpose.name,
        )
        try:
            if encoder.codec.exact and not is_finite(message.rows):
                raise ProtocolError("the tensor holds NaN or infinite values")
            packet = encoder.encode(
                message.rows, seed & 0xFFFFFFFF, message.lengths, message.context
            )
        except ProtocolError as error:
            place = f"{self._device}, {_place(message)}, codec.{role}"
            raise AdapterRefused(f"{place}: {error}") from None
        if encoder.mask is not None and _comes_back(message):
            self._masks[message.key] = encoder.mask
        return packet

    def value_bits(self, message: TensorMessage) -> float | None:
        """Bits a value that the next tensor like this one is expected to take, by those sent."""
        if message.rows is None:
            return None
        encoder = self._encoders[self._role(message)]
        rows, hidden = message.rows.shape
        return encoder.codec.bits((rows, hidden), encoder.sizes) / (rows * hidden)

    def decode(self, packet: Packet, message: TensorMessage, hidden: int | None) -> TensorMessage:
        """The message with its rows, `hidden` wide where that is given. Raises ProtocolError."""
        evaluation = message.key.purpose is Purpose.EVALUATION
        role = "evaluation" if evaluation else SENDS[self._peer].get(message.kind, "")
        # The other end has the same codecs; one that is not due may ask for any amount of memory.
        if role not in self._encoders or packet.codec != self._encoders[role].codec.spec:
            raise ProtocolError(
                f"{self._device}, {_place(message)}: codec {packet.codec!r} was not expected"
            )
        decoder = self._decoders.setdefault((message.kind, evaluation), Decoder(*self._cache))
        due = (packet.shape[0], packet.shape[1] if hidden is None else hidden)
        try:
            rows = decoder.decode(packet, due)
        except ProtocolError as error:
            raise ProtocolError(f"{self._device}, {_place(message)}: {error}") from None
        if (
            message.kind is Kind.GRADIENT
            and (mask := self._masks.pop(message.key, None)) is not None
        ):
            rows *= mask.dense()  # the derivative of leaving values out
        return replace(message, rows=rows)

    def _role(self, message: TensorMessage) -> str:
        if message.key.purpose is Purpose.EVALUATION:
            return "evaluation"
        return SENDS[self._side][message.kind]


def _comes_back(message: TensorMessage) -> bool:
    return message.kind is not Kind.GRADIENT and message.key.purpose is not Purpose.EVALUATION


def _place(message: TensorMessage) -> str:
    key = message.key
    return (
        f"{message.kind.name.lower()} of round {key.round}, step {key.step}, "
        f"micro-batch {key.micro_batch}"
    )
