"""What an edge remembers about one device, as engine, residence, floor and stream see it.

A kind of session is one implementation: training (`sfl.stage.training`) is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from sfl.plan import Plan
from sfl.stage.messages import GradientNorm, Outgoing, TensorMessage
from sfl.stage.swapping import Swappable

Request = TensorMessage | GradientNorm


class Computed(Protocol):
    """What the engine needs of whoever its messages are for, whatever they ask."""

    device: str
    served_seconds: float
    """Compute time it has had, in this round if it trains: what a job order may go by."""

    def handle(self, message: Any) -> Any:
        """Do the work a message asks for; what is to be said then. Raises SflError."""

    def group(self, message: Any) -> Group | None:
        """What the message could be computed together with; None: with nothing."""


class Session(Swappable, Protocol):
    """One device's state over the shared base; used on the edge's compute thread only.

    It knows nothing of sockets: messages in, messages out.
    """

    served_seconds: float
    """Compute time it has had in this round: what a job order may go by."""

    @property
    def plan(self) -> Plan:
        """Who computes what of the device's model."""

    @property
    def steps_left(self) -> int:
        """Steps that its open round has yet to take; 1 where none is open."""

    def handle(self, message: Request) -> list[Outgoing]:
        """Do the work a message asks for; what to send then, in order. Raises SflError.

        Each says to which neighbour it goes, whoever asked.
        """

    def group(self, message: Request) -> Group | None:
        """What the message could be computed together with; None: with nothing."""

    def close(self) -> None:
        """Give back what it holds: the device is gone."""


class Group(Protocol):
    """Messages of equal groups may go through the base as one batch; a group is hashable."""

    def run(self, tasks: Sequence[tuple[Any, Any]]) -> Sequence[Any]:
        """Do the work of several messages of this group at once, each with whom it is for.

        Returns what `handle` would for each, or the error that is this message's alone.
        """
