"""Attention of new tokens to all that a conversation has: what takes a mask's place on its way.

Queries stand at the end of what their conversation knows, so masks are cut at the lower right. A
window is told by the attention module itself, as transformers tells its flash kernels, and what is
before it is not read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sfl.models.kv.cache import KvCache

Function = Callable[..., tuple[Tensor, Tensor | None]]


@dataclass(frozen=True, slots=True)
class Extension:
    """`count` tokens that follow what a conversation has."""

    cache: KvCache
    count: int


@dataclass(frozen=True, slots=True)
class CachedMask:
    """Takes the place of an attention mask: tokens of several conversations, one behind the other.

    Masks are made once for all blocks of a forward.
    """

    extensions: tuple[Extension, ...]
    _masks: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)

    @property
    def counts(self) -> list[int]:
        """New tokens of each conversation."""
        return [extension.count for extension in self.extensions]

    @property
    def positions(self) -> Tensor:
        """[1, n]: each new token's place within its conversation."""
        places = [
            torch.arange(extension.cache.length, extension.cache.length + extension.count)
            for extension in self.extensions
        ]
        return torch.cat(places)[None]

    def attend(
        self,
        function: Function,
        base: str,
        module: Any,
        new: tuple[Tensor, Tensor, Tensor],
        options: dict[str, Any],
    ) -> Tensor:
        """Queries, keys and values `[1, heads, n, width]` to `[1, n, heads, width]`."""
        window: int | None = options.get("sliding_window")
        outputs = []
        parts = zip(*(tensor.split_with_sizes(self.counts, 2) for tensor in new), strict=True)
        for extension, (query, key, value) in zip(self.extensions, parts, strict=True):
            keys, values = extension.cache.append(module.layer_idx, key, value, window)
            seen = keys.shape[2]
            if window is not None:
                seen = min(seen, window - 1 + extension.count)
            keys, values = keys[:, :, -seen:], values[:, :, -seen:]
            mask = self._mask(base, query, seen, window)
            outputs.append(function(module, query, keys, values, mask, **options)[0])
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)

    def _mask(self, base: str, query: Tensor, seen: int, window: int | None) -> Tensor | None:
        """[1, 1, count, seen], or None where a query may see all that it is handed."""
        count = query.shape[2]
        if count == 1:
            return None
        if base == "sdpa" and seen == count and (window is None or count <= window):
            return None  # which sdpa takes for causal
        key = (count, seen, window, query.dtype, query.device)
        if key not in self._masks:
            allowed = _lower_right(count, seen, window).to(query.device)
            self._masks[key] = allowed if base == "sdpa" else _added(allowed, query.dtype)
        return self._masks[key]


def _lower_right(count: int, seen: int, window: int | None) -> Tensor:
    """What the last `count` of `seen` tokens look at: themselves, and so many before them."""
    queries = torch.arange(seen - count, seen)[:, None]
    keys = torch.arange(seen)[None]
    allowed = keys <= queries
    if window is not None:
        allowed &= keys > queries - window
    return allowed[None, None]


def _added(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """As `eager` wants it: 0 where a query looks, the least number elsewhere."""
    least = torch.finfo(dtype).min
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(
        ~allowed, least
    )


def make_room(extensions: Sequence[Extension]) -> None:
    """Room for what is to come. Raises NoPages."""
    for extension in extensions:
        extension.cache.make_room(extension.count)
