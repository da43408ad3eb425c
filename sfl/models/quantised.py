"""Frozen linear layers held in 4 or 8 bits, by the kernels of bitsandbytes (the extra `quantised`).

Weights only: a layer's values are restored for one product at a time, in forward and in backward,
and activations keep their precision; so loss and gradients are those of the model with the
restored weights. NF4 is QLoRA's (Dettmers et al., 2305.14314), in blocks of 64 along a row of
inputs; int8 has one scale an output (Dettmers et al., 2208.07339, without its outlier columns).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from sfl.config.node import Quantised
from sfl.errors import ConfigError
from sfl.models.folder import TensorEntry
from sfl.models.weights import read_tensor
from sfl.node.extras import require_bitsandbytes

BLOCK = 64
"""Weights that share a scale in NF4: 4.5 bits each, the scale counted in."""
PIECE_VALUES = 1 << 18
"""Weights quantised at once, at most: bitsandbytes needs some times their size on the way."""


class QuantisedLinear(nn.Module):
    """A frozen linear layer, [..., in] -> [..., out] in the dtype of its input.

    Under autocast it computes in autocast's dtype. `packed` and `scales` are as bitsandbytes has
    them; they move between CPU and CUDA, where both restore the same values.
    """

    def __init__(self, num_inputs: int, num_outputs: int, quantised: Quantised) -> None:
        super().__init__()
        self.in_features = num_inputs
        self.out_features = num_outputs
        self.quantised = quantised
        values = num_inputs * num_outputs
        if quantised == "nf4":
            packed = torch.empty(-(-values // 2), 1, dtype=torch.uint8)
            scales = torch.empty(-(-values // BLOCK), dtype=torch.float32)
        else:
            packed = torch.empty(num_outputs, num_inputs, dtype=torch.int8)
            scales = torch.empty(num_outputs, dtype=torch.float32)
        self.packed: Tensor
        self.scales: Tensor
        self.register_buffer("packed", packed)
        self.register_buffer("scales", scales)
        self.bias: nn.Parameter | None
        self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        output: Tensor = _FrozenLinear.apply(x, self)  # type: ignore[no-untyped-call]
        return output

    def quantise(self, weight: Tensor) -> None:
        """Take the values of `weight`, float32 [out, in] in any layout, a few rows at a time."""
        from bitsandbytes import functional as kernels

        for rows in _pieces(self.out_features, self.in_features):
            piece = weight[rows].contiguous()
            if self.quantised == "nf4":
                packed, state = kernels.quantize_4bit(piece, blocksize=BLOCK, quant_type="nf4")
                first = rows.start * self.in_features
                self.packed[first // 2 :][: len(packed)] = packed
                self.scales[first // BLOCK :][: len(state.absmax)] = state.absmax
            else:
                self.packed[rows], self.scales[rows], _ = kernels.int8_vectorwise_quant(piece)

    def restored(self, dtype: torch.dtype) -> Tensor:
        """The weights as they count, [out, in]."""
        if self.quantised == "int8":
            return self.packed.to(dtype).mul_((self.scales / 127.0).to(dtype)[:, None])
        from bitsandbytes import functional as kernels

        state = kernels.QuantState(
            absmax=self.scales,
            shape=torch.Size((self.out_features, self.in_features)),
            blocksize=BLOCK,
            quant_type="nf4",
            dtype=dtype,
        )
        values: Tensor = kernels.dequantize_4bit(self.packed, state)
        return values


class _FrozenLinear(torch.autograd.Function):
    """Keeps no activation: a frozen layer needs only its weights to pass a gradient on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantisedLinear) -> Tensor:
        ctx.layer = layer
        bias = None if layer.bias is None else layer.bias.to(x.dtype)
        return functional.linear(x, layer.restored(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient @ ctx.layer.restored(gradient.dtype), None


def is_linear(module: nn.Module) -> bool:
    """Whether this is a layer that can be held quantised."""
    return isinstance(module, nn.Linear | Conv1D)


def read_quantised(module: nn.Module, entry: TensorEntry, quantised: Quantised) -> QuantisedLinear:
    """What takes the place of `module`, its weights read from `entry`, without its bias.

    Beside the result one layer is held in float32. GPT-2 stores [in, out]; the result does not.
    """
    transposed = isinstance(module, Conv1D)
    num_outputs, num_inputs = reversed(entry.shape) if transposed else entry.shape
    # Made first, so that what stays is not behind what goes.
    layer = QuantisedLinear(num_inputs, num_outputs, quantised)
    weight = read_tensor(entry, torch.float32)
    layer.quantise(weight.t() if transposed else weight)
    return layer


def check_quantised(
    field: str, quantised: Quantised, dtype: torch.dtype, device: str = "cpu"
) -> None:
    """Run one layer forward and backward on `device`.

    Raises ConfigError for `field` where bitsandbytes is missing or its kernels do not run here:
    what was asked for may be all that fits, so nothing else takes its place.
    """
    if quantised == "none":
        return
    require_bitsandbytes(field, quantised)
    try:
        problem = _probe(quantised, dtype, device)
    except (RuntimeError, ImportError, OSError, AttributeError, NotImplementedError) as error:
        problem = " ".join(str(error).split())[:200] or type(error).__name__
    if problem:
        raise ConfigError(
            field,
            quantised,
            f"bitsandbytes does not run on this {device} ({problem})",
            f"Try {'int8' if quantised == 'nf4' else 'nf4'}, or remove the setting.",
        )


def first_that_runs(dtype: torch.dtype, device: str = "cpu") -> tuple[Quantised, str]:
    """The first of NF4 and int8 that runs on `device`, else `none`; and why not those before it."""
    problems: list[str] = []
    choices: tuple[Quantised, ...] = ("nf4", "int8")
    for quantised in choices:
        try:
            check_quantised("quantised", quantised, dtype, device)
        except ConfigError as error:
            problems.append(f"{quantised}: {error.problem}")
        else:
            return quantised, "; ".join(problems)
    return "none", "; ".join(problems)


def _probe(quantised: Quantised, dtype: torch.dtype, device: str) -> str:
    """What is wrong with the kernels here; empty: nothing."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 128, generator=draw)
    layer = QuantisedLinear(128, 48, quantised)
    layer.quantise(weight)
    layer.to(device)
    x = torch.randn(4, 128, generator=draw).to(device, dtype).requires_grad_()
    output = layer(x)
    output.sum().backward()
    assert x.grad is not None
    error = (layer.restored(torch.float32).cpu() - weight).abs().max() / weight.abs().max()
    if not error < 0.2:  # NF4's widest gap is 0.3 of a block's largest value
        return f"restored weights are off by {error:.0%}"
    expected = weight.to(device, dtype).sum(0).expand_as(x.grad)
    off = (x.grad - expected).float().norm() / expected.float().norm()
    return "" if off < 0.2 else f"gradients are off by {off:.0%}"


def _pieces(num_rows: int, num_columns: int) -> Iterator[slice]:
    """Rows to quantise at once; no block of NF4 is in two pieces."""
    whole = BLOCK // math.gcd(BLOCK, num_columns)
    size = max(1, PIECE_VALUES // (num_columns * whole)) * whole
    for first in range(0, num_rows, size):
        yield slice(first, min(first + size, num_rows))
