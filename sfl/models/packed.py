"""Sequences one behind the other instead of padded: `[1, num_tokens, H]` through the same blocks.

Linear layers, norms and LoRA then see real tokens only. Attention alone needs to know where a
sequence ends, which it learns by the hook transformers has for attention functions. On a CPU it is
called for each sequence by itself: no padding is computed, nothing is copied, and no mask is
needed but a sliding window's. An accelerator would have too little to do in each call: there it is
handed queries, keys and values in the padded form, and its output is packed again. Right padding is
never looked at by a causal query, so causal attention needs no mask there either.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sfl.models.kv.attention import CachedMask

Attention = Callable[..., tuple[Tensor, Tensor | None]]
PREFIX = "sfl_packed_"


@dataclass(frozen=True, slots=True)
class Packing:
    """How long sequences are, and where their tokens are in the padded form, if that is made.

    Token i is at `index[i]` of `[B * width]`; without an index sequences are all of one length, or
    attention takes them one by one.
    """

    lengths: tuple[int, ...]
    index: Tensor | None = None

    @property
    def num_sequences(self) -> int:
        """B."""
        return len(self.lengths)

    @property
    def width(self) -> int:
        """The longest length."""
        return max(self.lengths)

    @property
    def one_by_one(self) -> bool:
        """Whether attention is called for each sequence by itself."""
        return self.index is None and min(self.lengths) < self.width

    def to_padded(self, packed: Tensor) -> Tensor:
        """[1, heads, n, d] -> [B, heads, width, d], zeros where nothing is."""
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
    """Takes the place of an attention mask on its way through a block.

    `mask` is the padded form's own; one for all sequences where attention takes them one by one.
    """

    mask: Tensor | None
    packing: Packing


def packing_of(lengths: Tensor, device: torch.device) -> Packing:
    """The packing of sequences `[B]` long, which are computed on `device`."""
    # Counted where lengths are, on the CPU: an accelerator would have to be waited for.
    known = tuple(lengths.tolist())
    if device.type == "cpu" or min(known) == max(known):
        return Packing(known)
    real = torch.arange(max(known))[None] < lengths[:, None]
    return Packing(known, real.flatten().nonzero()[:, 0].to(device))


def packed_positions(lengths: Tensor) -> Tensor:
    """[1, n]: each token's place within its sequence."""
    starts = lengths.cumsum(0) - lengths
    total = int(lengths.sum())
    place = torch.arange(total, device=lengths.device)
    return (place - starts.repeat_interleave(lengths, output_size=total))[None]


def accept_packed(model: nn.Module) -> None:
    """Let the model's attention take `PackedMask` or `CachedMask` for a mask, or one of its own."""
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
        attention_mask: Tensor | PackedMask | CachedMask | None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None]:
        function = _function(base, module)
        if isinstance(attention_mask, CachedMask):
            return attention_mask.attend(function, base, module, (query, key, value), options), None
        if not isinstance(attention_mask, PackedMask):
            return function(module, query, key, value, attention_mask, **options)
        packing, mask = attention_mask.packing, attention_mask.mask
        if packing.one_by_one:
            each = (t.split_with_sizes(packing.lengths, 2) for t in (query, key, value))
            outputs = [
                function(module, *parts, _corner(mask, parts[0]), **options)[0]
                for parts in zip(*each, strict=True)
            ]
            return torch.cat(outputs, 1), None
        padded = [packing.to_padded(packed) for packed in (query, key, value)]
        output, _ = function(module, *padded, mask, **options)
        return packing.to_packed(output), None

    return attend


def _corner(mask: Tensor | None, query: Tensor) -> Tensor | None:
    """What of the longest sequence's mask is a shorter one's."""
    size = query.shape[2]
    return None if mask is None else mask[..., :size, :size]


def _function(base: str, module: nn.Module) -> Attention:
    if base == "eager":  # each modeling file has its own
        eager: Attention = sys.modules[type(module).__module__].eager_attention_forward
        return eager
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    function: Attention = ALL_ATTENTION_FUNCTIONS[base]
    return function
