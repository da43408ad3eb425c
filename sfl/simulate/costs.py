"""What the fleet's nodes and links cost, from a model's shape and what the file states."""

from __future__ import annotations

from collections.abc import Callable

from sfl.config import LoraSettings
from sfl.config.codec import RoleCodecs
from sfl.config.simulate import BitsSettings, ComputeSettings, PassTimes, SimulatedModel
from sfl.cost.values import NodeCost, PassCost, ValueBits
from sfl.cost.work import Batch, Flops, Linear, ModelShape, PartShape, work
from sfl.errors import ConfigError
from sfl.planners.outset import BITS

BY_CUT: dict[str, tuple[float, ...]] = {"compact": (2.5, 2.5, 2.7, 2.95, 3.3)}
"""Of an activation where it differs from cut to cut, as measured on E2E."""


def stated_shape(model: SimulatedModel, lora: LoraSettings) -> ModelShape:
    """Of a decoder with a gated MLP, as Llama has it."""
    hidden = model.hidden_size
    wide = model.intermediate_size or 4 * hidden
    keys = model.key_value_size or hidden
    sizes = {
        "q_proj": (hidden, hidden),
        "k_proj": (hidden, keys),
        "v_proj": (hidden, keys),
        "o_proj": (hidden, hidden),
        "gate_proj": (hidden, wide),
        "up_proj": (hidden, wide),
        "down_proj": (wide, hidden),
    }
    targets = lora.target_modules or tuple(sizes)
    linears = tuple(
        Linear(inputs, outputs, lora=name in targets, reads_input=name in ("q_proj", "k_proj"))
        for name, (inputs, outputs) in sizes.items()
    )
    block = PartShape(linears, hidden)
    head = PartShape((Linear(hidden, model.vocab_size),))
    return ModelShape(hidden, (block,) * model.num_layers, head)


def node_cost(
    node: ComputeSettings, shape: ModelShape, batch: Batch, rank: int, slower: float = 1.0
) -> NodeCost:
    """Seconds a token of a node that takes `slower` times as long as stated."""
    fixed = slower * node.fixed_ms / 1000.0
    if node.block is not None:

        def timed(own: PassTimes) -> PassCost:
            factor = slower / 1000.0 / batch.tokens
            return PassCost(factor * own.forward_ms, factor * own.backward_ms)

        return NodeCost(timed(node.block), timed(node.embedding), timed(node.head), fixed)
    assert node.tflops is not None, "a node has one of the two"
    rate = 1e12 * node.tflops * node.utilisation

    def counted(flops: Flops) -> PassCost:
        factor = slower / rate / batch.tokens
        return PassCost(factor * flops.forward, factor * flops.backward)

    block, head = work(shape.blocks[-1], batch, rank), work(shape.head, batch, rank)
    return NodeCost(counted(block), head=counted(head), fixed=fixed)


def value_bits(stated: BitsSettings, codecs: RoleCodecs) -> ValueBits:
    """Bits of training's values. Raises ConfigError for a codec of which they are not known."""
    activation = _bits(stated.activation, "activation", codecs.activation, 0)
    gradient = _bits(stated.gradient, "gradient", codecs.gradient, 1)
    hidden = _bits(stated.activation, "activation", codecs.hidden, 0)
    return ValueBits(
        activation, gradient, hidden, _bits(stated.gradient, "gradient", codecs.tail_gradient, 1)
    )


def hop_bits(stated: BitsSettings, codecs: RoleCodecs) -> ValueBits | None:
    """The same behind an edge; None where the codecs there are those before it. Raises
    ConfigError."""
    hop = codecs.model_copy(
        update={
            "activation": codecs.stage_activation,
            "gradient": codecs.stage_gradient,
            "hidden": codecs.stage_hidden,
            "tail_gradient": codecs.stage_tail_gradient,
        }
    )
    return None if hop == codecs else value_bits(stated, hop)


def evaluation_bits(stated: BitsSettings, codecs: RoleCodecs) -> float:
    """Bits of evaluations' values. Raises ConfigError."""
    return _bits(stated.evaluation, "evaluation", codecs.evaluation, 0)[0]


def _bits(
    stated: float | tuple[float, ...] | None, field: str, codec: str, place: int
) -> tuple[float, ...]:
    if stated is not None:
        return stated if isinstance(stated, tuple) else (stated,)
    if codec in BY_CUT and not place:
        return BY_CUT[codec]
    if codec in BITS:
        return (BITS[codec][place],)
    raise ConfigError(
        f"simulate.bits.{field}",
        codec,
        "nobody knows how many bits a value takes with this codec",
        "State them: a run's summary has bytes and tokens.",
    )


Legal = Callable[[int, int], int]
"""Bytes that a device needs at a cut and a tail."""


def stated_memory(model: SimulatedModel | None) -> Legal:
    """By the figures of the file; nothing where it has none."""
    block = 0 if model is None else model.block_memory or 0
    process = 0 if model is None else model.process_memory or 0
    return lambda cut_layer, tail_layers: process + block * (cut_layer + tail_layers)
