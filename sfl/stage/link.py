"""The seam between a device and its edge: one way of carrying messages, in process or over gRPC."""

from __future__ import annotations

from typing import Protocol

from sfl.stage.messages import BlockMoments, GradientNorm, Message, TensorMessage


class Link(Protocol):
    """A device's end of its session; order is kept in both directions."""

    def send(self, message: TensorMessage | GradientNorm | BlockMoments) -> None:
        """Send; returns when the bytes are queued. Raises LinkLost, ProtocolError."""

    def receive(self) -> Message:
        """Wait for the next message. Raises LinkLost, ProtocolError."""
