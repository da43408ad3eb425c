"""Which span of blocks runs where: the values that decisions produce and stages execute."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from enum import Enum
from typing import Literal, Self, get_args

from sfl.errors import ConfigError

Topology = Literal["vanilla", "u_shaped"]

Holder = Literal["device", "edge"]
"""Who holds a span of one device's model, and so a part of its adapter."""

HOLDERS: tuple[Holder, ...] = get_args(Holder)


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
class Held:
    """A span and who holds it."""

    span: Span
    holder: Holder


class Toward(Enum):
    """Which way along a plan's spans a message goes."""

    LOSS = "loss"
    INPUT = "input"


@dataclass(frozen=True, slots=True)
class Hop:
    """Between two spans that follow each other: activations go to `after`, gradients to `before`.

    So what somebody sends to a neighbour, and which way it goes, tells which hop it crosses.
    """

    before: Holder
    after: Holder

    @classmethod
    def crossed(cls, sender: Holder, receiver: Holder, toward: Toward) -> Self:
        """The hop of what goes from `sender` to `receiver`."""
        return cls(sender, receiver) if toward is Toward.LOSS else cls(receiver, sender)


@dataclass(frozen=True, slots=True)
class Plan:
    """Where one device's model is cut: its spans in the model's order, each with its holder.

    The spans follow each other without a gap, from the embedding to the head. Activations go along
    them towards the loss, gradients back.
    """

    spans: tuple[Held, ...]

    def __post_init__(self) -> None:
        spans = [held.span for held in self.spans]
        assert spans[0].embedding and spans[0].first == 0 and spans[-1].head
        assert all(one.last == other.first for one, other in itertools.pairwise(spans))

    @classmethod
    def split(cls, num_layers: int, cut_layer: int, tail_layers: int, topology: Topology) -> Self:
        """`cut_layer` front blocks on the device, the rest on the edge.

        With `u_shaped` the last `tail_layers` blocks and the head are the device's too, so labels
        and logits never leave it. At least one block is the edge's. Raises ConfigError.
        """
        _check(num_layers, cut_layer, tail_layers, topology)
        last, vanilla = num_layers - tail_layers, topology == "vanilla"
        front = Held(Span(0, cut_layer, embedding=True, head=False), "device")
        middle = Held(Span(cut_layer, last, embedding=False, head=vanilla), "edge")
        tail = Held(Span(last, num_layers, embedding=False, head=True), "device")
        return cls((front, middle) if vanilla else (front, middle, tail))

    def at(self, cut_layer: int, tail_layers: int | None = None) -> Plan:
        """The same with other cuts. Raises ConfigError."""
        topology: Topology = "vanilla" if self.tail is None else "u_shaped"
        tail = self.tail_layers if tail_layers is None else tail_layers
        return Plan.split(self.num_layers, cut_layer, tail, topology)

    def holder_of(self, block: int) -> Holder:
        """Who holds a block."""
        return next(held.holder for held in self.spans if block in held.span)

    @property
    def holders(self) -> tuple[Holder, ...]:
        """Everybody who holds a part of the model, and of its adapter; the first one first."""
        return tuple(dict.fromkeys(held.holder for held in self.spans))

    @property
    def hops(self) -> tuple[Hop, ...]:
        """Where tensors cross from one span to the next, in the model's order."""
        return tuple(Hop(one.holder, other.holder) for one, other in itertools.pairwise(self.spans))

    def of(self, holder: Holder) -> tuple[Span, ...]:
        """What somebody holds, in the model's order."""
        return tuple(held.span for held in self.spans if held.holder == holder)

    @property
    def num_layers(self) -> int:
        """Blocks of the whole model."""
        return self.spans[-1].span.last

    @property
    def cut_layer(self) -> int:
        """Blocks before the first cut."""
        return self.spans[0].span.last

    @property
    def tail_layers(self) -> int:
        """Blocks behind the last cut that are the device's."""
        return 0 if self.tail is None else self.tail.num_blocks

    @property
    def front(self) -> Span:
        """The device's first blocks, with the embedding."""
        return self.spans[0].span

    @property
    def middle(self) -> Span:
        """The edge's blocks; with the head in the vanilla topology."""
        (span,) = self.of("edge")
        return span

    @property
    def tail(self) -> Span | None:
        """The device's last blocks and the head, or None in the vanilla topology."""
        last = self.spans[-1]
        return last.span if last.holder == "device" else None

    @property
    def device_spans(self) -> tuple[Span, ...]:
        """Everything that the device holds."""
        return self.of("device")


@dataclass(frozen=True, slots=True)
class Move:
    """A block that somebody else holds from now on."""

    block: int
    giver: Holder
    taker: Holder


Moves = tuple[Move, ...]


def moves(before: Plan, after: Plan) -> Moves:
    """The blocks that change sides between two plans of one model, in its order."""
    if before == after:
        return ()
    holders = ((n, before.holder_of(n), after.holder_of(n)) for n in range(after.num_layers))
    return tuple(Move(n, giver, taker) for n, giver, taker in holders if giver != taker)


def given_by(holder: Holder, moved: Moves) -> frozenset[int]:
    """The blocks that somebody gives away."""
    return frozenset(move.block for move in moved if move.giver == holder)


def taken_by(holder: Holder, moved: Moves) -> frozenset[int]:
    """The blocks that somebody gets."""
    return frozenset(move.block for move in moved if move.taker == holder)


def _check(num_layers: int, cut_layer: int, tail_layers: int, topology: Topology) -> None:
    most = num_layers - 1
    if not 0 <= cut_layer <= most:
        raise ConfigError(
            "cut_layer",
            cut_layer,
            f"the model has {num_layers} blocks",
            f"Choose 0 to {most}, so that the edge keeps at least one block.",
        )
    if tail_layers and topology == "vanilla":
        raise ConfigError(
            "tail_layers",
            tail_layers,
            "in the vanilla topology the edge holds the end",
            'Set it to 0, or run.topology to "u_shaped".',
        )
    if not 0 <= tail_layers <= most - cut_layer:
        raise ConfigError(
            "tail_layers",
            tail_layers,
            f"with cut_layer {cut_layer} of {num_layers} blocks none is left for the edge",
            f"Choose 0 to {most - cut_layer}.",
        )
