"""What planners are told of devices: their cuts, and what became of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Cut(NamedTuple):
    """A way to cut one device's model, with the bytes that the device then needs at most."""

    cut_layer: int
    tail_layers: int = 0
    memory: int = 0

    @property
    def at(self) -> tuple[int, int]:
        """Without the memory."""
        return self.cut_layer, self.tail_layers


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a device in the last round, where it took part."""

    success: bool
    seconds: float
