"""Graphs of five models as `torch.export` sees them, with what each vertex takes.

Weights are on the `meta` device: shapes, and no values. Vertex 0 stands for the batch, so that a
model with two inputs has one first vertex.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
import transformers
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from sfl.planners.graph import Costs, Graph

RANK = 16
BATCH = 8


@dataclass(frozen=True, slots=True)
class Exported:
    """Of each vertex: FLOPs of a forward, bytes that it sends and gets back, and its LoRA's bytes.

    The device holds the first `held` vertices.
    """

    parents: tuple[tuple[int, ...], ...]
    flops: tuple[float, ...]
    sent: tuple[float, ...]
    returned: tuple[float, ...]
    trained: tuple[float, ...]
    held: int

    @property
    def graph(self) -> Graph:
        """Built anew."""
        return Graph(self.parents)

    def costs(self, device: float, server: float, rate: float, steps: int = 10) -> Costs:
        """Seconds of a round at FLOP/s of both and bytes a second; a backward is two forwards."""
        exchange = [2.0 * one / rate for one in self.trained]
        work = [3.0 * steps * one for one in self.flops]
        cross = [
            steps * (up + down) / rate for up, down in zip(self.sent, self.returned, strict=True)
        ]
        return Costs(
            [one / device + more for one, more in zip(work, exchange, strict=True)],
            [inf] * self.held + [one / server for one in work[self.held :]],
            cross,
        )


# -- reading a graph -------------------------------------------------------------------------------


def exported(model: nn.Module, inputs: Mapping[str, Tensor]) -> Exported:
    """The vertices between a model's inputs and its first output."""
    with torch.no_grad():
        program = torch.export.export(model.eval(), (), dict(inputs), strict=False)
    signature = program.graph_signature
    given = [n for n in program.graph.nodes if n.name in set(signature.user_inputs)]
    last = next(n for n in program.graph.nodes if n.name == signature.user_outputs[0])
    kept = _between(given, last, program.graph.nodes)
    weights = {n for n in program.graph.nodes if n.name in signature.inputs_to_parameters}
    number = {node: at for at, node in enumerate(kept, start=1)}
    parents = [(0,) if n in given else _parents(n, number) for n in kept]
    return Exported(
        ((), *parents),
        (0.0, *(_flops(node) for node in kept)),
        (0.0, *(float(_bytes(node, gradient=False)) for node in kept)),
        (0.0, *(float(_bytes(node, gradient=True)) for node in kept)),
        (0.0, *(float(_lora(node, weights)) for node in kept)),
        1 + sum(node in given for node in kept),
    )


def _between(given: Sequence[fx.Node], last: fx.Node, nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """Inputs first, and then what depends on one and leads to the output."""
    reached, needed = set(given), {last}
    for node in nodes:
        if any(one in reached for one in node.all_input_nodes):
            reached.add(node)
    for node in reversed(list(nodes)):
        if node in needed:
            needed.update(node.all_input_nodes)
    within = [node for node in nodes if node in reached and node in needed]
    return sorted(within, key=lambda node: node not in given)


def _parents(node: fx.Node, number: Mapping[fx.Node, int]) -> tuple[int, ...]:
    return tuple(number[one] for one in node.all_input_nodes if one in number)


def _tensors(node: fx.Node) -> list[Tensor]:
    value = node.meta.get("val")
    every = value if isinstance(value, tuple | list) else [value]
    return [one for one in every if isinstance(one, Tensor)]


def _bytes(node: fx.Node, *, gradient: bool) -> int:
    """What a vertex sends; a gradient comes back for what is no integer."""
    return sum(
        one.numel() * one.element_size()
        for one in _tensors(node)
        if one.dtype.is_floating_point or not gradient
    )


def _flops(node: fx.Node) -> float:
    """As torch counts them, and one for each value of what it does not count."""
    if node.op != "call_function":
        return 0.0
    arguments, named = fx.node.map_arg((node.args, node.kwargs), lambda one: one.meta["val"])
    with FlopCounterMode(display=False) as counter:
        _call(node.target, arguments, named)
    return float(counter.get_total_flops() or sum(one.numel() for one in _tensors(node)))


def _call(target: Any, arguments: Any, named: Any) -> None:
    with torch.no_grad():
        target(*arguments, **named)


def _lora(node: fx.Node, weights: set[fx.Node]) -> int:
    """Bytes of LoRA in fp32 for each matrix or kernel; none for tables of embeddings."""
    if "embedding" in str(node.target):
        return 0
    shapes = [one.meta["val"].shape for one in node.all_input_nodes if one in weights]
    return sum(4 * RANK * (one[0] + one[1:].numel()) for one in shapes if len(one) > 1)


# -- models ----------------------------------------------------------------------------------------


class Inception(nn.Module):
    """Four branches beside each other, as in GoogLeNet (1409.4842)."""

    def __init__(self, before: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        one, small, middle, little, large, pooled = widths
        self.one = nn.Conv2d(before, one, 1)
        self.three = nn.Sequential(
            nn.Conv2d(before, small, 1), nn.ReLU(), nn.Conv2d(small, middle, 3, padding=1)
        )
        self.five = nn.Sequential(
            nn.Conv2d(before, little, 1), nn.ReLU(), nn.Conv2d(little, large, 5, padding=2)
        )
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(before, pooled, 1))

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W)
        """All branches, side by side."""
        each = [branch(x) for branch in (self.one, self.three, self.five, self.pool)]
        return torch.relu(torch.cat(each, dim=1))


WIDTHS = (
    (64, 96, 128, 16, 32, 32),
    (128, 128, 192, 32, 96, 64),
    (192, 96, 208, 16, 48, 64),
    (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128),
    (256, 160, 320, 32, 128, 128),
    (384, 192, 384, 48, 128, 128),
)


class GoogLeNet(nn.Module):
    """Nine blocks of four branches, 1000 classes; without its side outputs."""

    def __init__(self) -> None:
        super().__init__()
        parts: list[nn.Module] = [
            *(nn.Conv2d(3, 64, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
            *(nn.Conv2d(64, 64, 1), nn.ReLU(), nn.Conv2d(64, 192, 3, padding=1), nn.ReLU()),
            nn.MaxPool2d(3, 2, 1),
        ]
        width = 192
        for number, widths in enumerate(WIDTHS):
            if number in (2, 7):
                parts.append(nn.MaxPool2d(3, 2, 1))
            parts.append(Inception(width, widths))
            width = widths[0] + widths[2] + widths[4] + widths[5]
        self.body = nn.Sequential(*parts)
        self.head = nn.Linear(width, 1000)

    def forward(self, pixel_values: Tensor) -> Tensor:  # (B, 3, H, W)
        """The classes' logits."""
        found: Tensor = self.head(self.body(pixel_values).mean((2, 3)))
        return found


def _pixels() -> dict[str, Tensor]:
    return {"pixel_values": torch.zeros(BATCH, 3, 224, 224)}


def _ids(length: int) -> Tensor:
    return torch.zeros(BATCH, length, dtype=torch.long)


def _resnet() -> Exported:
    config = transformers.ResNetConfig(
        embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic"
    )
    return exported(transformers.ResNetForImageClassification(config), _pixels())


def _vit() -> Exported:
    config = transformers.ViTConfig(
        hidden_size=384, num_attention_heads=6, intermediate_size=1536, num_hidden_layers=12
    )
    return exported(transformers.ViTForImageClassification(config), _pixels())


def _gpt2() -> Exported:
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(use_cache=False))
    return exported(model, {"input_ids": _ids(128)})


def _t5() -> Exported:
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(use_cache=False))
    return exported(model, {"input_ids": _ids(128), "decoder_input_ids": _ids(32)})


MODELS: Mapping[str, Callable[[], Exported]] = {
    "ResNet-18": _resnet,
    "GoogLeNet": lambda: exported(GoogLeNet(), _pixels()),
    "ViT-S": _vit,
    "GPT-2": _gpt2,
    "T5-small": _t5,
}


def model_graph(name: str) -> Exported:
    """One of `MODELS`, in a few seconds."""
    with torch.device("meta"):
        return MODELS[name]()
