"""Floating-point operations and bytes of a model's parts, from the shapes of its weights alone.

Counted as `torch.utils.flop_counter` does: two for each multiplication with its addition, in
matrix products only. Attention is counted in full, without what a mask hides.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

ADAPTER_VALUE_BYTES = 4
"""Adapters and moments are float32."""
MOMENTS = 2
"""AdamW's, of each value that is trained."""


@dataclass(frozen=True, slots=True)
class Linear:
    """A matrix product. `lora`: it has an adapter. `trained`: it is trained whole.

    `reads_input`: its input is the block's own. `pooled`: it is computed for one row a sequence.
    """

    inputs: int
    outputs: int
    lora: bool = False
    reads_input: bool = False
    trained: bool = False
    pooled: bool = False


@dataclass(frozen=True, slots=True)
class PartShape:
    """A block, or the head. `attention_width`: features of all heads together, 0 without.

    `num_bytes` are those of its weights as they are stored.
    """

    linears: tuple[Linear, ...]
    attention_width: int = 0
    num_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences of one length, in tokens."""

    sequences: int
    length: int

    @property
    def tokens(self) -> int:
        """All of them."""
        return self.sequences * self.length


@dataclass(frozen=True, slots=True)
class Flops:
    """Of a batch."""

    forward: float
    backward: float

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.forward + other.forward, self.backward + other.backward)

    @property
    def both(self) -> float:
        """A training step's."""
        return self.forward + self.backward

    @property
    def recomputed(self) -> Flops:
        """Where the forward runs again within the backward."""
        return Flops(self.forward, self.backward + self.forward)


NO_FLOPS = Flops(0.0, 0.0)


def work(part: PartShape, batch: Batch, rank: int, *, bottom: bool = False) -> Flops:
    """Of one part with an adapter of that rank.

    `bottom`: nothing before it is trained, so that its input needs no gradient: the first block of
    a model, on the device. An edge's first block has to give the device a gradient.
    """
    total = _attention(part, batch)
    for linear in part.linears:
        needed = not (bottom and linear.reads_input)
        rows = batch.sequences if linear.pooled else batch.tokens
        total += _linear(linear, rows, needed)
        if linear.lora:
            total += _lora(linear, rows, rank, needed)
    return total


def _linear(linear: Linear, rows: int, needed: bool) -> Flops:
    once = 2.0 * rows * linear.inputs * linear.outputs
    return Flops(once, once * (needed + linear.trained))


def _lora(linear: Linear, rows: int, rank: int, needed: bool) -> Flops:
    down, up = (2.0 * rows * rank * size for size in (linear.inputs, linear.outputs))
    return Flops(down + up, 2.0 * up + down * (1 + needed))


def _attention(part: PartShape, batch: Batch) -> Flops:
    """Scores, and values by them; backward each has two products."""
    once = 4.0 * batch.sequences * batch.length**2 * part.attention_width
    return Flops(once, 2.0 * once)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A model as its headers and its config describe it, for one task and one set of targets."""

    hidden_size: int
    blocks: tuple[PartShape, ...]
    head: PartShape
    embedding_bytes: int = 0

    @property
    def num_layers(self) -> int:
        """Transformer blocks."""
        return len(self.blocks)

    def span(self, first: int, last: int, batch: Batch, rank: int) -> Flops:
        """Of blocks `first..last-1`; block 0 is the model's own first one."""
        each = (
            work(self.blocks[block], batch, rank, bottom=block == 0) for block in range(first, last)
        )
        return sum(each, NO_FLOPS)

    def weights(self, batch: Batch, rank: int) -> tuple[float, ...]:
        """Each block's work over that of the last one; () where all are alike."""
        works = [work(block, batch, rank).both for block in self.blocks]
        alike = all(one == works[-1] for one in works)
        return () if alike else tuple(one / works[-1] for one in works)

    def lora_bytes(self, block: int, rank: int) -> int:
        """Of one block's adapter."""
        return ADAPTER_VALUE_BYTES * _lora_values(self.blocks[block].linears, rank)

    def moment_bytes(self, block: int, rank: int) -> int:
        """Of its optimizer's moments."""
        return MOMENTS * self.lora_bytes(block, rank)

    def cut_bytes(self, batch: Batch, bits: float) -> float:
        """Of the hidden states at any cut, at so many bits a value."""
        return batch.tokens * self.hidden_size * bits / 8.0


def _lora_values(linears: Iterable[Linear], rank: int) -> int:
    return sum(rank * (one.inputs + one.outputs) for one in linears if one.lora)
