"""What a device may have under way at its edge, counted by the edge; no I/O."""

from __future__ import annotations

from sfl.errors import ProtocolError
from sfl.stage.messages import GradientNorm, Kind, Purpose, TensorMessage

SETTINGS = "(network.credits, edge.credits)"


class Credits:
    """Counts a device's micro-batches, its tensors and the answers to them, within `count`.

    Methods raise ProtocolError where a device goes beyond.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.in_flight = 0
        """Micro-batches that are not answered for the last time."""
        self.waiting = 0
        """Tensors that have arrived and are not computed with yet."""
        self.unsent = 0
        """Answers that the device has not taken off the link yet."""

    def begin_round(self, count: int) -> None:
        """Nothing of the round before is in flight any more; `count` may be from now on."""
        self.in_flight = 0
        self.count = count

    def arrived(self, kind: Kind) -> None:
        """A whole tensor of that kind has come."""
        if kind is Kind.ACTIVATION:
            self.in_flight += 1
            if self.in_flight > self.count:
                raise ProtocolError(
                    f"{self.in_flight} micro-batches in flight, {self.count} are allowed {SETTINGS}"
                )
        if self.unsent > 2 * self.count:
            raise ProtocolError(
                f"{self.unsent} answers are not read, and {self.count} micro-batches may be in "
                f"flight {SETTINGS}"
            )
        if self.waiting >= 2 * self.count:
            raise ProtocolError(
                f"{self.waiting} tensors wait, and each of {self.count} micro-batches in flight "
                "has two at most"
            )
        self.waiting += 1

    def computed(self) -> None:
        """One that waited has been computed with."""
        self.waiting -= 1

    def answered(self, answer: TensorMessage | GradientNorm) -> None:
        """An answer is to be sent."""
        if isinstance(answer, TensorMessage):
            self.in_flight -= is_last(answer)
            self.unsent += 1

    def sent(self) -> None:
        """The link has taken a whole answer."""
        self.unsent -= 1


def is_last(answer: TensorMessage) -> bool:
    """Whether it is the last of its micro-batch: only activations in training ask for more."""
    return answer.kind is not Kind.ACTIVATION or answer.key.purpose is Purpose.EVALUATION
