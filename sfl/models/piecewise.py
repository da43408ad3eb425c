"""Activation functions that transformers spells out in several operations, computed in pieces.

GPT-2's `gelu_new` is eight elementwise operations, four of whose results autograd keeps: 50 MB a
block for 1024 tokens of 124M. Here the input alone is kept; a piece that fits the cache runs once
more for its gradient. Elementwise, so values and gradients are the same to the last bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

SPELLED_OUT = ("NewGELUActivation", "FastGELUActivation", "AccurateGELUActivation")
"""Activations of transformers in several operations; torch's own keep only their input anyway.

`quick_gelu` is left out: torch's sigmoid rounds the last values of an array in another way."""
PIECE_VALUES = 1 << 18


class Piecewise(nn.Module):
    """An elementwise activation function that keeps its input only, [...] -> [...]."""

    def __init__(self, function: nn.Module) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """As the function itself, to the last bit."""
        if not (torch.is_grad_enabled() and x.requires_grad):
            return _in_pieces(self.function, x)
        output: Tensor = _Piecewise.apply(x, self.function)  # type: ignore[no-untyped-call]
        return output


class _Piecewise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, function: nn.Module) -> Tensor:
        ctx.save_for_backward(x)
        ctx.function = function
        return _in_pieces(function, x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        result = torch.empty_like(x, memory_format=torch.contiguous_format)
        pieces = zip(_pieces(x), _pieces(gradients[0]), _pieces(result), strict=True)
        for values, gradient, target in pieces:
            own = values.detach().requires_grad_()
            with torch.enable_grad():
                output = ctx.function(own)
            (piece,) = torch.autograd.grad(output, own, gradient)
            target.copy_(piece)
        return result, None


def _in_pieces(function: nn.Module, x: Tensor) -> Tensor:
    result = torch.empty_like(x, memory_format=torch.contiguous_format)
    with torch.no_grad():
        for values, target in zip(_pieces(x), _pieces(result), strict=True):
            target.copy_(function(values))
    return result


def _pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    return torch.split(tensor.reshape(-1), PIECE_VALUES)


def compute_in_pieces(model: nn.Module) -> None:
    """Let every activation function in `model` that is spelled out keep its input only."""
    for owner in list(model.modules()):
        for name, child in list(owner.named_children()):
            if type(child).__name__ in SPELLED_OUT and not isinstance(owner, Piecewise):
                setattr(owner, name, Piecewise(child))
