"""Which span of blocks runs where: the values that decisions produce and stages execute."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from enum import Enum
from typing import Literal, Self, get_args

from sfl.errors import ConfigError

Topology = Literal["vanilla", "u_shaped", "three_tier", "three_tier_u_shaped"]
"""Where the loss is, and whether deeper stages follow the edge."""

U_SHAPED: tuple[Topology, ...] = ("u_shaped", "three_tier_u_shaped")
"""Those in which the device also holds the end of the model."""

TIERED: tuple[Topology, ...] = ("three_tier", "three_tier_u_shaped")
"""Those with a stage behind the edge, or several."""


Holder = Literal["device", "edge", "stage", "stage2", "stage3"]
"""Who holds a span of one device's model, and so a part of its adapter."""

HOLDERS: tuple[Holder, ...] = get_args(Holder)

TWO_TIERS: tuple[Holder, ...] = HOLDERS[:2]
"""Everybody where no stage follows the edge."""

SERVERS: tuple[Holder, ...] = HOLDERS[1:]
"""Stage servers in the order in which activations reach them; the first is the edge."""

MOST_STAGES = len(SERVERS) - 1
"""Stages that may follow an edge."""


def without_stages(topology: Topology) -> Topology:
    """The same as two tiers have it: what a device holds does not depend on the others."""
    return "u_shaped" if topology in U_SHAPED else "vanilla"


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
    def split(
        cls,
        num_layers: int,
        cut_layer: int,
        tail_layers: int,
        topology: Topology,
        stage_cuts: tuple[int, ...] = (),
    ) -> Self:
        """`cut_layer` front blocks on the device, the rest on the edge and the stages behind it.

        `stage_cuts` has the blocks before each stage. In a U-shape the last `tail_layers` blocks
        and the head are the device's too, so labels and logits never leave it. Every server has a
        block at least. Raises ConfigError.
        """
        _check(num_layers, cut_layer, tail_layers, topology)
        last, vanilla = num_layers - tail_layers, topology not in U_SHAPED
        _check_stages(cut_layer, stage_cuts, last, topology)
        front = Held(Span(0, cut_layer, embedding=True, head=False), "device")
        tail = Held(Span(last, num_layers, embedding=False, head=True), "device")
        ends = itertools.pairwise((cut_layer, *stage_cuts, last))
        servers = [
            Held(Span(begin, end, embedding=False, head=vanilla and end == last), holder)
            for holder, (begin, end) in zip(SERVERS, ends, strict=False)
        ]
        return cls((front, *servers) if vanilla else (front, *servers, tail))

    def at(self, cut_layer: int, tail_layers: int | None = None) -> Plan:
        """The same with another cut at the device. Raises ConfigError."""
        tail = self.tail_layers if tail_layers is None else tail_layers
        return Plan.split(self.num_layers, cut_layer, tail, self.topology, self.stage_cuts)

    @property
    def topology(self) -> Topology:
        """What it is a plan of."""
        deep, ends = bool(self.stage_cuts), self.tail is not None
        if deep:
            return "three_tier_u_shaped" if ends else "three_tier"
        return "u_shaped" if ends else "vanilla"

    @property
    def servers(self) -> tuple[Held, ...]:
        """The spans that are no device's: the edge's, and those of the stages behind it."""
        return tuple(held for held in self.spans if held.holder != "device")

    @property
    def stage_cuts(self) -> tuple[int, ...]:
        """Blocks before each stage behind the edge."""
        return tuple(held.span.first for held in self.servers[1:])

    def span_of(self, holder: Holder) -> Span:
        """The span of a stage server: it has one. Raises KeyError where it has none."""
        found = self.of(holder)
        if len(found) != 1:
            raise KeyError(f"{holder} holds {len(found)} spans")
        return found[0]

    def behind(self, holder: Holder) -> tuple[Holder, ...]:
        """The stage servers behind this one."""
        names = [held.holder for held in self.servers]
        return tuple(names[names.index(holder) + 1 :])

    def next_of(self, holder: Holder) -> Holder | None:
        """The stage server behind this one, None behind the last."""
        return next(iter(self.behind(holder)), None)

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
        return self.span_of("edge")

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
    if tail_layers and topology not in U_SHAPED:
        raise ConfigError(
            "tail_layers",
            tail_layers,
            f"in topology {topology} the device does not hold the end",
            'Set it to 0, or run.topology to "u_shaped" or "three_tier_u_shaped".',
        )
    if not 0 <= tail_layers <= most - cut_layer:
        raise ConfigError(
            "tail_layers",
            tail_layers,
            f"with cut_layer {cut_layer} of {num_layers} blocks none is left for the edge",
            f"Choose 0 to {most - cut_layer}.",
        )


def _check_stages(
    cut_layer: int, stage_cuts: tuple[int, ...], last: int, topology: Topology
) -> None:
    """Raise ConfigError unless every stage server has a block at least, and there are as many as
    the topology wants."""
    if bool(stage_cuts) != (topology in TIERED):
        wants = "one number for each stage" if topology in TIERED else "none"
        raise ConfigError(
            "stage_cuts",
            list(stage_cuts),
            f"topology {topology} has {wants}",
            'Give the blocks before each stage, with run.topology "three_tier".',
        )
    if len(stage_cuts) > MOST_STAGES:
        raise ConfigError(
            "stage_cuts",
            list(stage_cuts),
            f"at most {MOST_STAGES} stages may follow an edge",
            "Give fewer.",
        )
    for before, cut in itertools.pairwise((cut_layer, *stage_cuts, last)):
        if cut <= before:
            raise ConfigError(
                "stage_cuts",
                list(stage_cuts),
                f"with cut_layer {cut_layer} a server between {before} and {cut} has no block",
                f"Give numbers above {cut_layer} and below {last}, each above the one before.",
            )
