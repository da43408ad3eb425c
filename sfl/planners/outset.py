"""Costs before anything was measured: a model's work, stated speeds, and the settings' own links.

They are a guess. With equal speeds on all nodes it says what a link costs beside the work, and no
more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sfl.config import RunSettings
from sfl.config.codec import AUTO_CODECS
from sfl.config.devices import LinkSettings
from sfl.config.stages import StagesSettings
from sfl.cost.values import (
    FREE,
    DeviceCost,
    EdgeCost,
    LinkCost,
    NodeCost,
    PassCost,
    ValueBits,
    Workload,
)
from sfl.cost.work import MOMENTS, Batch, Flops, ModelShape, work
from sfl.plan import U_SHAPED

FLOPS = 20e9
"""Operations a second of a node of which nobody knows anything."""
NO_LIMIT = 1.25e9
"""Bytes a second of a link without a limit (10 Gbit/s)."""
BITS: dict[str, tuple[float, float]] = {
    "none": (32.0, 32.0),
    "fp16": (16.0, 16.0),
    "bf16": (16.0, 16.0),
    "int8": (8.2, 8.2),
    "fine": (6.2, 6.2),
    "compact": (2.7, 0.6),
    "sft": (2.2, 2.2),
    "extreme": (1.9, 0.4),
}
"""Of an activation and of a gradient, as measured (docs/figures/compression.md)."""
OTHER_BITS = (4.0, 4.0)
UNKNOWN_BLOCK = PassCost(FLOPS / 1000, FLOPS / 1000)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model as a planner needs it: operations a token, and bytes of one block's adapter.

    The operations are those of the last block, and of the head. Nobody knows them of a model whose
    headers are not there: then a block counts as `FLOPS` / 1000, and the head as nothing.
    """

    num_layers: int
    hidden_size: int
    lora_bytes: float = 0.0
    block: PassCost = UNKNOWN_BLOCK
    head: PassCost = FREE
    weights: tuple[float, ...] = ()

    @staticmethod
    def of(shape: ModelShape, batch: Batch, rank: int) -> ModelFacts:
        """From a model's headers."""

        def each(flops: Flops) -> PassCost:
            return PassCost(flops.forward / batch.tokens, flops.backward / batch.tokens)

        last = shape.num_layers - 1
        return ModelFacts(
            shape.num_layers,
            shape.hidden_size,
            shape.lora_bytes(last, rank),
            each(work(shape.blocks[last], batch, rank)),
            each(work(shape.head, batch, rank)),
            shape.weights(batch, rank),
        )


def guessed_node(facts: ModelFacts, flops: float = FLOPS) -> NodeCost:
    """Of a node that does so many operations a second."""

    def seconds(one: PassCost) -> PassCost:
        return PassCost(one.forward / flops, one.backward / flops)

    return NodeCost(seconds(facts.block), head=seconds(facts.head))


def guessed_edge(facts: ModelFacts, flops: float = FLOPS) -> EdgeCost:
    """Of an edge."""
    return EdgeCost(guessed_node(facts, flops))


def guessed_stage_node(facts: ModelFacts, flops: float | None, edge: NodeCost) -> NodeCost:
    """Of a stage behind the edges.

    Where no speed is stated it is as quick as that edge, whose head nobody may have timed.
    """
    if flops is not None:
        return guessed_node(facts, flops)
    if edge.head == FREE and facts.block.both:
        return replace(edge, head=facts.head.times(edge.block.both / facts.block.both))
    return edge


def guessed_device(
    facts: ModelFacts, settings: RunSettings, device: str, flops: float = FLOPS
) -> DeviceCost:
    """Of a device of the run, with the limits of its link as the settings have them."""
    lora = adapter_bytes(facts, settings, device)
    return DeviceCost(
        guessed_node(facts, flops),
        stated_link(settings, device),
        stated_bits(settings, device),
        lora,
        MOMENTS * lora,
    )


def adapter_bytes(facts: ModelFacts, settings: RunSettings, device: str) -> float:
    """Of one block's adapter, at the device's rank."""
    return facts.lora_bytes * settings.rank(device) / settings.lora.rank


def stated_link(settings: RunSettings, device: str) -> LinkCost:
    """By the device's limits."""
    return _limited(settings.device(device).link)


def stated_hop(settings: RunSettings) -> LinkCost:
    """Between an edge and the stage behind it, and between stages, by the run's limits."""
    return _limited(settings.stages)


def _limited(own: LinkSettings | StagesSettings) -> LinkCost:
    up, down = (1e6 / 8 * mbit or NO_LIMIT for mbit in (own.up_mbit, own.down_mbit))
    return LinkCost(up, down, own.delay_ms / 1000.0)


def stated_bits(settings: RunSettings, device: str) -> ValueBits:
    """What its codecs usually take; of one that is not in the list nobody knows."""
    own = settings.codecs(device, 1, AUTO_CODECS[-1])
    return _bits((own.activation, own.gradient, own.hidden, own.tail_gradient))


def stated_hop_bits(settings: RunSettings, device: str) -> ValueBits | None:
    """The same behind its edge; None where the codecs there are those before it."""
    own = settings.codecs(device, 1, AUTO_CODECS[-1])
    here = (own.activation, own.gradient, own.hidden, own.tail_gradient)
    hop = (own.stage_activation, own.stage_gradient, own.stage_hidden, own.stage_tail_gradient)
    return None if hop == here else _bits(hop)


def _bits(roles: Sequence[str]) -> ValueBits:
    known = [BITS.get(spec, OTHER_BITS) for spec in roles]
    return ValueBits(*((pair[number % 2],) for number, pair in enumerate(known)))


def workload(
    facts: ModelFacts,
    settings: RunSettings,
    steps: int,
    tokens: float | None = None,
    micro_batches: float | None = None,
) -> Workload:
    """A round of so many steps. Without `tokens` of a step, of full batches.

    Without `micro_batches` of a step, of those that the settings say; 1 where that is open.
    """
    given = settings.training.micro_batches
    pieces = round(micro_batches or (1 if given == "auto" else given))
    most = settings.training.batch_size  # no device has more, whatever it says
    full = settings.training.batch_size * settings.model.max_length
    return Workload(
        facts.num_layers,
        facts.hidden_size,
        full if tokens is None else max(1, round(tokens)),
        max(1, steps),
        settings.run.topology in U_SHAPED,
        facts.weights,
        min(max(1, pieces), most),
        settings.network.credits,
    )
