"""Which span of blocks runs where: the values that decisions produce and stages execute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sfl.errors import ConfigError

Topology = Literal["vanilla", "u_shaped"]


@dataclass(frozen=True, slots=True)
class Span:
    """Blocks `first..last-1`, with the embedding before them and the head after them, or not."""

    first: int
    last: int
    embedding: bool
    head: bool

    def __post_init__(self) -> None:
        assert 0 <= self.first <= self.last

    @property
    def num_blocks(self) -> int:
        """How many transformer blocks the span holds."""
        return self.last - self.first

    def __contains__(self, block: int) -> bool:
        return self.first <= block < self.last


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """Where one device's model is cut.

    `cut_layer` front blocks (0..L-1) lie on the device. With `u_shaped` the last `tail_layers`
    blocks and the head lie there too, so labels and logits never leave it. At least one block is
    the edge's.
    """

    num_layers: int
    cut_layer: int
    tail_layers: int
    topology: Topology

    def __post_init__(self) -> None:
        most = self.num_layers - 1
        if not 0 <= self.cut_layer <= most:
            raise ConfigError(
                "cut_layer",
                self.cut_layer,
                f"the model has {self.num_layers} blocks",
                f"Choose 0 to {most}, so that the edge keeps at least one block.",
            )
        if self.tail_layers and self.topology == "vanilla":
            raise ConfigError(
                "tail_layers",
                self.tail_layers,
                "in the vanilla topology the edge holds the end",
                'Set it to 0, or run.topology to "u_shaped".',
            )
        if not 0 <= self.tail_layers <= most - self.cut_layer:
            raise ConfigError(
                "tail_layers",
                self.tail_layers,
                f"with cut_layer {self.cut_layer} of {self.num_layers} blocks none is left "
                "for the edge",
                f"Choose 0 to {most - self.cut_layer}.",
            )

    @property
    def front(self) -> Span:
        """The device's first blocks, with the embedding."""
        return Span(0, self.cut_layer, embedding=True, head=False)

    @property
    def middle(self) -> Span:
        """The edge's blocks; with the head when the topology is vanilla."""
        last = self.num_layers - self.tail_layers
        return Span(self.cut_layer, last, embedding=False, head=self.topology == "vanilla")

    @property
    def tail(self) -> Span | None:
        """The device's last blocks and the head, or None in the vanilla topology."""
        if self.topology == "vanilla":
            return None
        first = self.num_layers - self.tail_layers
        return Span(first, self.num_layers, embedding=False, head=True)

    @property
    def device_spans(self) -> tuple[Span, ...]:
        """Everything that lies on the device."""
        return (self.front,) if self.tail is None else (self.front, self.tail)
