"""One end of a device's stream, where tensors become packets and packets tensors.

Both ends hold the same: the round's codecs, what delta coding remembers, and the masks that the
gradients of sparsified tensors are multiplied by. A codec belongs to a lane: a hop of the plan, and
a way over it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from sfl.codec.kernel import kernel
from sfl.codec.packet import MAX_TENSOR_BYTES, Packet, is_finite
from sfl.codec.pipeline import Codec, Decoder, Encoder, parse
from sfl.codec.topk import Mask
from sfl.config import RunSettings
from sfl.config.codec import CODED_BY, RoleCodecs
from sfl.errors import AdapterRefused, ProtocolError
from sfl.keys import derive_seed
from sfl.plan import Holder, Toward
from sfl.stage.messages import ROWS, Key, TensorMessage
from sfl.transport.device.lanes import Declared, Lane
from sfl.transport.frames.tensors import ALONE, MOST_NAMED, NAME
from sfl.transport.serve.rows import serve_codec


def codecs_of(settings: RoleCodecs) -> dict[str, Codec]:
    """All parsed, by setting. Raises ConfigError, which names the setting."""
    return {
        name: parse(text, f"codec.{name}", gradient="gradient" in name)
        for name, text in settings.model_dump().items()
    }


def check_codecs(settings: RunSettings) -> None:
    """Parse every codec that some device will use in some round, or conversations.

    Raises ConfigError.
    """
    rounds = {1, *(change.from_round for change in settings.codec.schedule)}
    for entry in settings.devices:
        for round_ in rounds:
            codecs_of(settings.codecs(entry.name, round_))
    serve_codec(settings.codec.serve)


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

    Each tensor of a lane has its own, by its name; a message's rows have none (`ROWS`). What delta
    coding remembers of samples is in `folder`, the side's `cache_dir`.
    """

    def __init__(
        self,
        side: Holder,
        device: str,
        seed: int,
        peer_compiled: bool,
        folder: Path | None = None,
        peer: Holder | None = None,
    ) -> None:
        """`peer` is who is at the other end; by default the other one of device and edge."""
        self._side = side
        self._peer: Holder = peer or ("edge" if side == "device" else "device")
        self._device = device
        self._seed = seed
        # Entropy codes are quick in C alone: without it on either side Zstandard takes their place.
        self._compiled = peer_compiled and kernel().name == "compiled"
        self._cache = folder, f"{'device' if side == 'device' else 'edge'}.cache_dir"
        self._specs: dict[str, str] = {}
        self._codecs: dict[str, Codec] = {}
        self._declared: dict[tuple[Lane, str], Declared] = {}
        self._named: dict[tuple[Lane, str], Codec] = {}
        self._encoders: dict[tuple[Lane, str], Encoder] = {}
        self._decoders: dict[tuple[Lane, str], Decoder] = {}
        self._masks: dict[tuple[Key, str], Mask] = {}

    def declare(self, tensors: Sequence[Declared]) -> None:
        """From now on these travel beside rows, and no others. Raises ConfigError."""
        assert len(tensors) <= MOST_NAMED and all(NAME.fullmatch(one.name) for one in tensors)
        self._declared = {(lane, one.name): one for one in tensors for lane in one.codecs}
        self._named = {
            (lane, name): self._as_sent(
                parse(one.codecs[lane], name, lane.toward is Toward.INPUT), rows=False
            )
            for (lane, name), one in self._declared.items()
        }

    def begin_round(self, settings: RoleCodecs, round_: int) -> None:
        """Take the round's codecs; what was remembered for others, or rehearsed, is forgotten.

        Raises ConfigError.
        """
        codecs = codecs_of(settings)
        specs = {name: codec.spec for name, codec in codecs.items()}
        if specs != self._specs or round_ <= 1:
            self._specs = specs
            self._codecs = {
                role: self._as_sent(codec, rows=role == "activation")
                for role, codec in codecs.items()
            }
            self._encoders, self._decoders = {}, {}
        self._masks.clear()

    @property
    def specs(self) -> dict[str, str]:
        """The round's codecs as they are written: what is remembered is of these."""
        return dict(self._specs)

    def held(self) -> dict[str, np.ndarray]:
        """What encoders and decoders remember, by name, while nothing is in flight."""
        ends: Mapping[str, Mapping[tuple[Lane, str], Encoder | Decoder]]
        # Copies: the other way's thread may add a lane meanwhile.
        ends = {"encoder": dict(self._encoders), "decoder": dict(self._decoders)}
        return {
            f"{kind}/{_called(lane)}/{name}/{own}": array
            for kind, coders in ends.items()
            for (lane, name), coder in coders.items()
            for own, array in coder.held().items()
        }

    def take_back(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Forget what is remembered, and remember what ends of the same codecs `held`."""
        self._encoders, self._decoders = {}, {}
        self._masks.clear()
        coders: dict[tuple[str, str, str], dict[str, np.ndarray]] = {}
        for called, array in arrays.items():
            kind, lane, name, own = called.split("/", 3)
            coders.setdefault((kind, lane, name), {})[own] = array
        for (kind, called, name), own_arrays in coders.items():
            way = _LANES.get(called)
            if way is None or (codec := self._codec(way, name)) is None:
                continue
            if kind == "encoder":
                self._encoder(way, name).take_back(own_arrays)
            else:
                decoder = self._decoders[way, name] = Decoder(*self._cache)
                decoder.take_back(codec.spec, own_arrays)

    def _as_sent(self, codec: Codec, rows: bool) -> Codec:
        if not rows:  # a device knows the rows of its activations by name, and nobody any others
            codec = codec.without_context()
        return codec.for_peer(self._compiled)

    def _codec(self, lane: Lane, name: str) -> Codec | None:
        return self._codecs.get(lane.setting) if name == ROWS else self._named.get((lane, name))

    def _encoder(self, lane: Lane, name: str) -> Encoder:
        if (lane, name) not in self._encoders:
            codec = self._codec(lane, name)
            if codec is None:
                raise ProtocolError(f"{_tensor(name)} has no codec here")
            self._encoders[lane, name] = Encoder(codec, *self._cache)
        return self._encoders[lane, name]

    @property
    def adapter_codec(self) -> Codec:
        """The round's codec of adapters, both ways; none before the first round."""
        codec = self._codecs.get("adapter")
        return parse("none") if codec is None else codec

    def encode(self, message: TensorMessage, name: str = ROWS) -> Packet | None:
        """The packet of one of a message's tensors.

        Raises AdapterRefused, naming device and step, where its values are none to send.
        """
        tensor = message.tensors.get(name)
        if tensor is None:
            return None
        lane = Lane.of(message, self._side, self._peer)
        encoder = self._encoder(lane, name)
        context, groups = (message.context, message.lengths) if name == ROWS else (None, ())
        try:
            if encoder.codec.exact and not is_finite(tensor):
                raise ProtocolError("the tensor holds NaN or infinite values")
            packet = encoder.encode(tensor, self._draws(message, lane, name), groups, context)
        except ProtocolError as error:
            where = f"{self._device}, {_where(message, name)}, {_setting(lane, name)}"
            raise AdapterRefused(f"{where}: {error}") from None
        if encoder.mask is not None and _comes_back(lane):
            self._masks[message.key, name] = encoder.mask
        return packet

    def encode_named(self, message: TensorMessage) -> dict[str, Packet]:
        """The packets of what travels beside its rows. Raises AdapterRefused, ProtocolError."""
        if message.rows is None:
            return {}
        self._expect_names(Lane.of(message, self._side, self._peer), message.named)
        packets = {name: self.encode(message, name) for name in message.named}
        return {name: packet for name, packet in packets.items() if packet is not None}

    def _draws(self, message: TensorMessage, lane: Lane, name: str) -> int:
        key = message.key
        drawn = (key.round, key.step, key.micro_batch, lane.draws, key.purpose.name)
        own = () if name == ROWS else (name,)
        return derive_seed(self._seed, self._device, *drawn, *own) & 0xFFFFFFFF

    def value_bits(self, message: TensorMessage) -> float | None:
        """Bits a value that the next tensors like these are expected to take, by those sent."""
        if message.rows is None:
            return None
        lane, bits, values = Lane.of(message, self._side, self._peer), 0.0, 0
        for name, tensor in message.tensors.items():
            encoder = self._encoder(lane, name)
            rows, width = tensor.shape
            bits += encoder.codec.bits((rows, width), encoder.sizes)
            values += rows * width
        return bits / values

    def decode(
        self,
        packet: Packet,
        message: TensorMessage,
        hidden: int | None,
        named: Mapping[str, Packet] = ALONE,
    ) -> TensorMessage:
        """The message with its tensors, its rows `hidden` wide where that is given.

        All that packets say of themselves is checked before any is decoded. Raises ProtocolError.
        """
        lane = Lane.of(message, self._peer, self._side)
        packets = {ROWS: packet, **named}
        try:
            self._expect(lane, packets)
        except ProtocolError as error:
            raise ProtocolError(f"{self._device}, {_where(message, ROWS)}: {error}") from None
        width = packet.shape[1] if hidden is None else hidden
        rows = self._tensor(lane, packet, message, ROWS, (packet.shape[0], width))
        beside = {
            name: self._tensor(lane, one, message, name, (one.shape[0], one.shape[1]))
            for name, one in named.items()
        }
        return replace(message, rows=rows, named=beside)

    def _expect(self, lane: Lane, packets: Mapping[str, Packet]) -> None:
        """Raise ProtocolError unless these are the packets that are due."""
        self._expect_names(lane, packets.keys() - {ROWS})
        for name, packet in packets.items():
            codec = self._codec(lane, name)
            # The other end has the same codecs; another may ask for any amount of memory.
            if codec is None or packet.codec != codec.spec:
                raise ProtocolError(f"codec {packet.codec!r} was not expected")
            if name != ROWS:
                self._declared[lane, name].check(packet)
        if len(packets) > 1 and sum(one.raw_bytes for one in packets.values()) > MAX_TENSOR_BYTES:
            raise ProtocolError(f"tensors of more than {MAX_TENSOR_BYTES} bytes, the limit")

    def _expect_names(self, lane: Lane, names: Collection[str]) -> None:
        due = {name for known, name in self._declared if known == lane}
        for name in sorted(due ^ set(names)):
            raise ProtocolError(
                f"{_tensor(name)} {'is missing' if name in due else 'was not expected'}"
            )

    def _tensor(
        self,
        lane: Lane,
        packet: Packet,
        message: TensorMessage,
        name: str,
        shape: tuple[int, int],
    ) -> Tensor:
        decoder = self._decoders.setdefault((lane, name), Decoder(*self._cache))
        try:
            values = decoder.decode(packet, shape)
            if lane.toward is Toward.INPUT:
                self._leave_out(values, self._masks.pop((message.key, name), None))
        except ProtocolError as error:
            raise ProtocolError(f"{self._device}, {_where(message, name)}: {error}") from None
        return values

    def _leave_out(self, gradient: Tensor, mask: Mask | None) -> None:
        """Multiply by the derivative of leaving values out. Raises ProtocolError."""
        if mask is None:
            return
        if tuple(gradient.shape) != (mask.rows, mask.hidden):
            raise ProtocolError(
                f"shape {list(gradient.shape)} of the gradient of [{mask.rows}, {mask.hidden}]"
            )
        gradient *= mask.dense()


def _called(lane: Lane) -> str:
    """A lane's name among what is saved."""
    use = "evaluation" if lane.evaluation else "training"
    return f"{lane.hop.before}-{lane.hop.after}-{lane.toward.name}-{use}"


_LANES = {
    _called(lane): lane
    for hop, toward in CODED_BY
    for lane in (Lane(hop, toward, evaluation=True), Lane(hop, toward, evaluation=False))
}


def _comes_back(lane: Lane) -> bool:
    return lane.toward is Toward.LOSS and not lane.evaluation


def _tensor(name: str) -> str:
    return "the rows" if name == ROWS else f"tensor {name!r:.40}"


def _setting(lane: Lane, name: str) -> str:
    return f"codec.{lane.setting}" if name == ROWS else _tensor(name)


def _where(message: TensorMessage, name: str) -> str:
    key = message.key
    own = "" if name == ROWS else f" ({_tensor(name)})"
    return (
        f"{message.kind.name.lower()} of round {key.round}, step {key.step}, "
        f"micro-batch {key.micro_batch}{own}"
    )
