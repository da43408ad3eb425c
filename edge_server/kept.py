"""Whole updates of an edge's devices, which it keeps until the cloud asks for their sum.

What the cloud would look at, the edge looks at: names, shapes, values and length, with the cloud's
own functions. An update is kept until the next round begins, whatever becomes of its device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sfl.aggregation.contribution import Array, Contribution, Shortened, verify
from sfl.aggregation.examine import length_of
from sfl.aggregation.strategy import make_strategy
from sfl.aggregation.sums import sum_bytes
from sfl.config import RunSettings
from sfl.errors import ProtocolError
from sfl.rounds.values import Assignment, HeldUpdate, Share, SumOrder, UpdateHeader
from sfl.transport.frames.chunks import Buffer, decode_adapter
from sfl.transport.security.signed import values_digest

Part = tuple[UpdateHeader, Buffer]


@dataclass(frozen=True, slots=True)
class Kept:
    """A device's update of a round."""

    round: int
    contribution: Contribution


class KeptUpdates:
    """Those of one round. `measure` and `add_up` are for a thread."""

    def __init__(self, settings: RunSettings) -> None:
        self._settings = settings
        self._strategy = make_strategy(settings.aggregation, settings.lora)
        self._round = 0
        self._began: dict[str, Array] = {}
        self._of: dict[str, Kept] = {}

    def begin(self, round_: int, values: dict[str, Array]) -> None:
        """A round begins with this adapter: what was kept of the one before is not needed."""
        if round_ != self._round:
            self._of.clear()
        self._round, self._began = round_, values

    @property
    def rounds(self) -> dict[str, int]:
        """Of which devices and rounds there is an update."""
        return {device: own.round for device, own in self._of.items()}

    def put(self, kept: Kept) -> None:
        """From now on this is kept, unless a later round has begun."""
        if kept.round == self._round:
            self._of[kept.contribution.device] = kept

    def measure(self, told: Assignment, parts: Sequence[Part]) -> tuple[Kept, HeldUpdate]:
        """Look at an update whose parts are all here; what is to be kept, and told of it.

        Raises ProtocolError where it is no adapter of this run.
        """
        device = parts[0][0].device
        payloads = tuple(payload for _, payload in parts)
        own = Contribution(device, 1, rank=told.rank, scaling=told.scaling, payloads=payloads)
        for header, _ in parts:
            if header.scaling != told.scaling:
                raise ProtocolError(
                    f"adapter of device {device}: scaled by {header.scaling:g}; alpha / rank is "
                    f"{told.scaling:g}"
                )
        options = self._settings.aggregation
        length = None
        if options.max_update_norm == "off":
            verify(own, self._strategy.shapes(own, self._began))
        else:
            length = length_of(own, self._start(own))
        digest = b"".join(_digest(*part) for part in parts)
        headers = tuple(header for header, _ in parts)
        return Kept(told.round, own), HeldUpdate(device, headers, digest, length)

    def _start(self, own: Contribution) -> Mapping[str, Array]:
        seed = self._settings.run.seed
        return self._strategy.start(own, self._began, seed, self._round)

    def asked(self, order: SumOrder) -> list[Contribution]:
        """What is to be added up. Raises ProtocolError where it is not here."""
        return [self._share(order, device, share) for device, share in order.shares.items()]

    def _share(self, order: SumOrder, device: str, share: Share) -> Contribution:
        kept = self._of.get(device)
        if kept is None or kept.round != order.round:
            raise ProtocolError(f"no update of device {device!r} of round {order.round} is here")
        own = replace(kept.contribution, num_examples=share.weight)
        if share.factor == 1.0:
            return own
        return replace(own, shortened=Shortened(self._start(own), share.factor))

    def add_up(self, devices: Sequence[Contribution]) -> bytes:
        """Their sum, as it is sent. Raises ProtocolError."""
        return sum_bytes(devices, self._strategy.shapes(devices[0], self._began))


def _digest(header: UpdateHeader, payload: Buffer) -> bytes:
    """Of the values that a device has signed, where it has."""
    return b"" if header.signature is None else values_digest(decode_adapter(payload))
