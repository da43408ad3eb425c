"""One end of a device's stream, where tensors become packets and packets tensors.

Both ends hold the same: the round's codecs, what delta coding remembers, and the masks that the
gradients of sparsified tensors are multiplied by. A codec belongs to a lane: a hop of the plan, and
a way over it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from sfl.codec.kernel import kernel
from sfl.codec.packet import Packet, is_finite
from sfl.codec.pipeline import Codec, Decoder, Encoder, parse
from sfl.codec.topk import Mask
from sfl.config import RunSettings
from sfl.config.codec import CODED_BY, DOWN, RoleCodecs
from sfl.errors import AdapterRefused, ProtocolError
from sfl.keys import derive_seed
from sfl.plan import Holder, Hop, Toward
from sfl.stage.messages import Key, Kind, Purpose, TensorMessage


@dataclass(frozen=True, slots=True)
class Lane:
    """One way over one hop: activations forward, gradients backward; evaluations have their own."""

    hop: Hop
    toward: Toward
    evaluation: bool

    @classmethod
    def of(cls, message: TensorMessage, sender: Holder, receiver: Holder) -> Self:
        """The lane of a message between two neighbours. Raises ProtocolError for one of none."""
        if message.kind is Kind.SCORE:
            raise ProtocolError("a SCORE has no tensor")
        toward = message.kind.toward
        hop = Hop.crossed(sender, receiver, toward)
        return cls(hop, toward, message.key.purpose is Purpose.EVALUATION)

    @property
    def setting(self) -> str:
        """What codes its tensors."""
        return "evaluation" if self.evaluation else CODED_BY[self.hop, self.toward]

    @property
    def draws(self) -> str:
        """What its random bits are keyed by. These words must stay: they are in every result."""
        if self.toward is Toward.INPUT:
            return "GRADIENT"
        return "HIDDEN" if self.hop == DOWN else "ACTIVATION"


def codecs_of(settings: RoleCodecs) -> dict[str, Codec]:
    """All parsed, by setting. Raises ConfigError, which names the setting."""
    return {
        name: parse(text, f"codec.{name}", gradient="gradient" in name)
        for name, text in settings.model_dump().items()
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
        self, side: Holder, device: str, seed: int, peer_compiled: bool, folder: Path | None = None
    ) -> None:
        self._side = side
        self._peer: Holder = "edge" if side == "device" else "device"
        self._device = device
        self._seed = seed
        # Entropy codes are quick in C alone: without it on either side Zstandard takes their place.
        self._compiled = peer_compiled and kernel().name == "compiled"
        self._cache = folder, f"{side}.cache_dir"
        self._specs: dict[str, str] = {}
        self._codecs: dict[str, Codec] = {}
        self._encoders: dict[Lane, Encoder] = {}
        self._decoders: dict[Lane, Decoder] = {}
        self._masks: dict[Key, Mask] = {}

    def begin_round(self, settings: RoleCodecs, round_: int) -> None:
        """Take the round's codecs; what was remembered for others, or rehearsed, is forgotten.

        Raises ConfigError.
        """
        codecs = codecs_of(settings)
        specs = {name: codec.spec for name, codec in codecs.items()}
        if specs != self._specs or round_ <= 1:
            self._specs = specs
            self._codecs = {name: self._as_sent(name, codec) for name, codec in codecs.items()}
            self._encoders, self._decoders = {}, {}
        self._masks.clear()

    def _as_sent(self, name: str, codec: Codec) -> Codec:
        if name != "activation":  # no other sender knows its rows by name
            codec = codec.without_context()
        return codec.for_peer(self._compiled)

    def _encoder(self, lane: Lane) -> Encoder:
        if lane not in self._encoders:
            self._encoders[lane] = Encoder(self._codecs[lane.setting], *self._cache)
        return self._encoders[lane]

    @property
    def adapter_codec(self) -> Codec:
        """The round's codec of adapters, both ways; none before the first round."""
        codec = self._codecs.get("adapter")
        return parse("none") if codec is None else codec

    def encode(self, message: TensorMessage) -> Packet | None:
        """The packet of a message's rows.

        Raises AdapterRefused, naming device and step, where they are none to send.
        """
        if message.rows is None:
            return None
        lane = Lane.of(message, self._side, self._peer)
        encoder = self._encoder(lane)
        seed = derive_seed(
            self._seed,
            self._device,
            message.key.round,
            message.key.step,
            message.key.micro_batch,
            lane.draws,
            message.key.purpose.name,
        )
        try:
            if encoder.codec.exact and not is_finite(message.rows):
                raise ProtocolError("the tensor holds NaN or infinite values")
            packet = encoder.encode(
                message.rows, seed & 0xFFFFFFFF, message.lengths, message.context
            )
        except ProtocolError as error:
            where = f"{self._device}, {_named(message)}, codec.{lane.setting}"
            raise AdapterRefused(f"{where}: {error}") from None
        if encoder.mask is not None and _comes_back(lane):
            self._masks[message.key] = encoder.mask
        return packet

    def value_bits(self, message: TensorMessage) -> float | None:
        """Bits a value that the next tensor like this one is expected to take, by those sent."""
        if message.rows is None:
            return None
        encoder = self._encoder(Lane.of(message, self._side, self._peer))
        rows, hidden = message.rows.shape
        return encoder.codec.bits((rows, hidden), encoder.sizes) / (rows * hidden)

    def decode(self, packet: Packet, message: TensorMessage, hidden: int | None) -> TensorMessage:
        """The message with its rows, `hidden` wide where that is given. Raises ProtocolError."""
        lane = Lane.of(message, self._peer, self._side)
        due_codec = self._codecs.get(lane.setting)
        # The other end has the same codecs; one that is not due may ask for any amount of memory.
        if due_codec is None or packet.codec != due_codec.spec:
            raise ProtocolError(
                f"{self._device}, {_named(message)}: codec {packet.codec!r} was not expected"
            )
        decoder = self._decoders.setdefault(lane, Decoder(*self._cache))
        due = (packet.shape[0], packet.shape[1] if hidden is None else hidden)
        try:
            rows = decoder.decode(packet, due)
        except ProtocolError as error:
            raise ProtocolError(f"{self._device}, {_named(message)}: {error}") from None
        if (
            message.kind is Kind.GRADIENT
            and (mask := self._masks.pop(message.key, None)) is not None
        ):
            rows *= mask.dense()  # the derivative of leaving values out
        return replace(message, rows=rows)


def _comes_back(lane: Lane) -> bool:
    return lane.toward is Toward.LOSS and not lane.evaluation


def _named(message: TensorMessage) -> str:
    key = message.key
    return (
        f"{message.kind.name.lower()} of round {key.round}, step {key.step}, "
        f"micro-batch {key.micro_batch}"
    )
