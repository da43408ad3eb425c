"""Sequences one behind the other instead of padded: `[1, num_tokens, H]` through the same blocks.

Linear layers, norms and LoRA then see real tokens only. Attention alone needs to know where a
sequence ends: it is handed queries, keys and values in the padded form, by the hook transformers
has for attention functions, and its output is packed again. Right padding is never looked at by a
causal query, so causal attention needs no mask there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Attention = Callable[..., tuple[Tensor, Tensor | None]]
PREFIX = "sfl_packed_"


@dataclass(frozen=True, slots=True)
class Packing:
    """Where tokens lie in the padded form: at `index[i]` of `[B * width]`, None for everywhere."""

    num_sequences: int
    width: int
    index: Tensor | None

    def to_padded(self, packed: Tensor) -> Tensor:
        """[1, heads, n, d] -> [B, heads, width, d], zeros where nothing lies."""
        rows = packed[0].transpose(0, 1)
        if self.index is not None:
            padded = rows.new_zeros(self.num_sequences * self.width, *rows.shape[1:])
            rows = padded.index_copy(0, self.index, rows)
        return rows.reshape(self.num_sequences, self.width, *rows.shape[1:]).transpose(1, 2)

    def to_packed(self, padded: Tensor) -> Tensor:
        """[B, width, heads, d] -> [1, n, heads, d]."""
        rows = padded.reshape(self.num_sequences * self.width, *padded.shape[2:])
        if self.index is not None:
            rows = rows.index_select(0, self.index)
        return rows[None]


@dataclass(frozen=True, slots=True)
class PackedMask:
    """Takes the place of an attention mask on its way through a block: the padded form's own."""

    mask: Tensor | None
    packing: Packing


def packing_of(lengths: Tensor) -> Packing:
    """The packing of sequences `[B]` long."""
    width = int(lengths.max())
    if int(lengths.min()) == width:
        return Packing(len(lengths), width, None)
    real = torch.arange(width, device=lengths.device)[None] < lengths[:, None]
    return Packing(len(lengths), width, real.flatten().nonzero()[:, 0])


def packed_positions(lengths: Tensor) -> Tensor:
    """[1, n]: each token's place within its sequence."""
    starts = lengths.cumsum(0) - lengths
    total = int(lengths.sum())
    place = torch.arange(total, device=lengths.device)
    return (place - starts.repeat_interleave(lengths, output_size=total))[None]


def accept_packed(model: nn.Module) -> None:
    """Let the model's attention take `PackedMask` for a mask; anything else goes on as before."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    config: Any = model.config
    base: str = config._attn_implementation
    if base.startswith(PREFIX):
        return
    name = PREFIX + base
    ALL_ATTENTION_FUNCTIONS.register(name, _attention(base))
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base])
    config._attn_implementation = name


def _attention(base: str) -> Attention:
    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | PackedMask | None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        function = _function(base, module)
        if not isinstance(attention_mask, PackedMask):
            return function(module, query, key, value, attention_mask, **options)
        packing = attention_mask.packing
        padded = [packing.to_padded(packed) for packed in (query, key, value)]
        output, _ = function(module, *padded, attention_mask.mask, **options)
        return packing.to_packed(output), None

    return attend


def _function(base: str, module: nn.Module) -> Attention:
    if base == "eager":  # each modeling file has its own
        eager: Attention = sys.modules[type(module).__module__].eager_attention_forward
        return eager
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    function: Attention = ALL_ATTENTION_FUNCTIONS[base]
    return function
