"""What nodes and links cost, as plain values: seconds a token, bytes a second, bits a value."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sfl.cost.energy import FIXED_CLOCK, NO_POWER, ClockRange, PowerModel


@dataclass(frozen=True, slots=True)
class PassCost:
    """Seconds a token that a part of a model takes, forward and backward."""

    forward: float = 0.0
    backward: float = 0.0

    def times(self, factor: float) -> PassCost:
        """So many times as long."""
        return PassCost(factor * self.forward, factor * self.backward)

    @property
    def both(self) -> float:
        """Seconds a token of a training step."""
        return self.forward + self.backward


FREE = PassCost()


@dataclass(frozen=True, slots=True)
class LineCost:
    """Seconds that something takes however large it is, and seconds of each unit of its size."""

    fixed: float = 0.0
    unit: float = 0.0

    def times(self, factor: float) -> LineCost:
        """So many times as long."""
        return LineCost(factor * self.fixed, factor * self.unit)

    def seconds(self, size: float) -> float:
        """Of so many units."""
        return self.fixed + size * self.unit


NO_TIME = LineCost()


@dataclass(frozen=True, slots=True)
class NodeCost:
    """What a node takes to compute: seconds a token of one block, of the embedding and of the head.

    `overhead` are the seconds of each block in every pass, whatever its tokens. `fixed` seconds
    pass in every forward and every backward of a span, whatever its size. Tensors on their way are
    coded by `encode` and `decode`, a message of so many tokens. A `step` of the optimizer goes by
    the blocks that the node trains. `spread` is the standard deviation of measured over foretold
    seconds, as a share. The figures are of one thread count and dtype; 0 and "" where nobody said.
    """

    block: PassCost
    embedding: PassCost = FREE
    head: PassCost = FREE
    fixed: float = 0.0
    spread: float = 0.0
    threads: int = 0
    dtype: str = ""
    overhead: PassCost = FREE
    encode: LineCost = NO_TIME
    decode: LineCost = NO_TIME
    step: LineCost = NO_TIME

    def slower(self, factor: float) -> NodeCost:
        """A node that takes so many times as long for all of it."""
        if factor == 1.0:
            return self
        passes = ("block", "embedding", "head", "overhead")
        lines = ("encode", "decode", "step")
        scaled: dict[str, Any] = {name: getattr(self, name).times(factor) for name in passes}
        scaled |= {name: getattr(self, name).times(factor) for name in lines}
        return replace(self, fixed=factor * self.fixed, **scaled)

    def forward(self, tokens: float, blocks: float) -> float:
        """Seconds of so many blocks, without embedding and head."""
        return self.fixed + blocks * (self.overhead.forward + tokens * self.block.forward)

    def backward(self, tokens: float, blocks: float) -> float:
        """Of the same, the other way."""
        return self.fixed + blocks * (self.overhead.backward + tokens * self.block.backward)


@dataclass(frozen=True, slots=True)
class LinkCost:
    """A device's link: bytes a second each way, seconds that every message takes beside them.

    `spread` is the standard deviation of measured over foretold seconds, as a share.
    """

    up: float
    down: float
    latency: float = 0.0
    spread: float = 0.0

    def up_seconds(self, num_bytes: float) -> float:
        """Of one message to the edge."""
        return self.latency + num_bytes / self.up

    def down_seconds(self, num_bytes: float) -> float:
        """Of one message to the device."""
        return self.latency + num_bytes / self.down


@dataclass(frozen=True, slots=True)
class ValueBits:
    """Bits of one value on the wire, by role.

    Of `activation` and `gradient` the number at index c is of cut c, and of the other two at index
    t of a tail of t blocks. The last number holds for all beyond it.
    """

    activation: tuple[float, ...] = (32.0,)
    gradient: tuple[float, ...] = (32.0,)
    hidden: tuple[float, ...] = (32.0,)
    tail_gradient: tuple[float, ...] = (32.0,)


@dataclass(frozen=True, slots=True)
class Workload:
    """What every device trains with: a model's shape, and `tokens` in a step of a batch.

    A batch is cut into `micro_batches`, of which `window` are under way at most; 0: all.

    `weights` are the blocks' work over that of the block that `NodeCost` is of; () where all are
    alike. `steps` of each device make a round.
    """

    num_layers: int
    hidden_size: int
    tokens: int
    steps: int = 1
    u_shaped: bool = False
    weights: tuple[float, ...] = ()
    micro_batches: int = 1
    window: int = 0

    def blocks(self, first: int, last: int) -> float:
        """The work of blocks `first..last-1`, in blocks."""
        return sum(self.weights[first:last]) if self.weights else float(last - first)


@dataclass(frozen=True, slots=True)
class DeviceCost:
    """What one device costs. `lora_bytes` and `moment_bytes` are of the adapter of one block.

    `block_load` are the seconds until a block that it gains is read and ready. `handover` are those
    of each micro-batch and round trip that no pass and no link has: threads that wait for a core.
    """

    node: NodeCost
    link: LinkCost
    bits: ValueBits = ValueBits()
    lora_bytes: float = 0.0
    moment_bytes: float = 0.0
    block_load: float = 0.0
    power: PowerModel = NO_POWER
    handover: float = 0.0
    hop_bits: ValueBits | None = None
    """Of what crosses between the servers behind it; None: as `bits`."""


@dataclass(frozen=True, slots=True)
class EdgeCost:
    """What an edge costs: `node` at its fastest clock."""

    node: NodeCost
    clock: ClockRange = FIXED_CLOCK


@dataclass(frozen=True, slots=True)
class StageCost:
    """What a stage behind an edge costs. `hop` leads to it from each server before it, `up` towards
    the stage: all devices of that server share it."""

    node: NodeCost
    hop: LinkCost
