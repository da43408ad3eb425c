"""Which way a tensor goes over which hop, and what both ends know of one before it comes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from sfl.codec.packet import Packet
from sfl.config.codec import CODED_BY, DOWN, UP
from sfl.errors import ProtocolError
from sfl.plan import Holder, Hop, Toward
from sfl.stage.messages import Kind, Purpose, TensorMessage

SLACK = 1 << 16
"""Bytes that a packet may take beyond four for each value."""


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
        """What codes the rows of its messages."""
        return "evaluation" if self.evaluation else CODED_BY[self.hop, self.toward]

    @property
    def draws(self) -> str:
        """What its random bits are keyed by. These words must stay: they are in every result."""
        if self.hop not in (UP, DOWN):
            return f"{self.hop.before}-{self.hop.after}-{self.toward.name}"
        if self.toward is Toward.INPUT:
            return "GRADIENT"
        return "HIDDEN" if self.hop == DOWN else "ACTIVATION"


@dataclass(frozen=True, slots=True)
class Declared:
    """A named tensor `[rows, width]` that travels beside the rows of a lane's messages.

    In each of the lanes that `codecs` has, and in no other, it comes with every message that has
    rows: so no end takes what it has no room for. `dtype` is one of `sfl.codec.packet.DTYPES`.
    """

    name: str
    width: int
    most_rows: int
    dtype: str
    codecs: Mapping[Lane, str]

    @property
    def most_bytes(self) -> int:
        """What its packet may take."""
        return 4 * self.most_rows * self.width + SLACK

    def check(self, packet: Packet) -> None:
        """Hold a packet against this, before anything of it is decoded. Raises ProtocolError."""
        if packet.dtype != self.dtype:
            raise ProtocolError(f"dtype {packet.dtype!r:.40} where {self.dtype} is expected")
        rows, width = packet.shape
        if width != self.width or not 1 <= rows <= self.most_rows:
            raise ProtocolError(
                f"shape {list(packet.shape)}; 1 to {self.most_rows} rows of {self.width} are "
                "expected"
            )
        if len(packet.payload) > self.most_bytes:
            raise ProtocolError(f"{len(packet.payload)} bytes; {self.most_bytes} are allowed")
