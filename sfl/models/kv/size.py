"""What keys and values take, and which models' cannot be kept, by config.json alone. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sfl.errors import ConfigError
from sfl.models.families.family import Family, Windowed
from sfl.models.folder import ModelFolder
from sfl.models.kv.pages import PAGE_TOKENS, pages_for
from sfl.plan import Span

CHANGING = ("dynamic", "longrope")
"""Rotary embeddings whose frequencies follow the longest text that is computed."""


SPARE_TOKENS = 2 * PAGE_TOKENS
"""Before a window, that are kept: a conversation may go back by so many and need no computing."""
AT_ONCE = 256
"""Tokens that follow at once, as a rule."""
ENDLESS = 1 << 20
"""Tokens of a conversation of which no block keeps all."""


@dataclass(frozen=True, slots=True)
class Keeping:
    """What `num_blocks` keep of a conversation: all of it, or those that are `windowed` what their
    window looks at.

    Up to `at_once` tokens follow at once. `lazy`: memory is taken as it is written, as on a CPU.
    """

    num_blocks: int = 1
    window: int = 0
    windowed: frozenset[int] = frozenset()
    at_once: int = AT_ONCE
    lazy: bool = True

    @property
    def recent(self) -> int:
        """Tokens that a windowed block keeps at most, in whole pages."""
        return PAGE_TOKENS * pages_for(self.window - 1 + SPARE_TOKENS + self.at_once)

    @property
    def keep_all(self) -> int:
        """Blocks that keep all."""
        return self.num_blocks - len(self.windowed)

    def cost(self, num_tokens: int) -> int:
        """Of a conversation of so many tokens, in pages over all blocks, rounded up."""
        pages = pages_for(num_tokens)
        if not self.windowed or not self.lazy:
            return pages
        windowed = len(self.windowed) * min(pages, pages_for(self.recent))
        return -(-(self.keep_all * pages + windowed) // self.num_blocks)

    def placed(self, pages: int) -> int:
        """Pages of a block that keeps all, where conversations have so many over all blocks."""
        if not self.windowed or not self.lazy:
            return pages
        return pages * self.num_blocks // self.keep_all if self.keep_all else 0

    def longest(self, pages: int) -> int:
        """Tokens of the longest conversation that fits into so many pages."""
        left = pages * self.num_blocks - len(self.windowed) * pages_for(self.recent)
        if not self.windowed or not self.lazy or left < 0:
            return pages * PAGE_TOKENS
        if not self.keep_all:
            return ENDLESS
        return max(pages, left // self.keep_all) * PAGE_TOKENS


KEEP_ALL = Keeping()


def keeping_of(
    folder: ModelFolder, span: Span, at_once: int = AT_ONCE, lazy: bool = True
) -> Keeping:
    """What a span's blocks keep."""
    family = folder.family
    if not isinstance(family, Windowed):
        return Keeping(span.num_blocks)
    window, blocks = family.windows(folder.config)
    own = frozenset(blocks & set(range(span.first, span.last)))
    return Keeping(span.num_blocks, window if own else 0, own, at_once, lazy)


def kv_width(config: Mapping[str, Any]) -> int:
    """Numbers that one token keeps in one block: keys and values of all their heads."""
    heads = config.get("num_attention_heads") or config["n_head"]
    hidden = config.get("hidden_size") or config["n_embd"]
    width = config.get("head_dim") or hidden // heads
    return int(2 * (config.get("num_key_value_heads") or heads) * width)


def page_bytes(config: Mapping[str, Any], num_blocks: int, itemsize: int) -> int:
    """Bytes of a page over so many blocks, in a dtype of `itemsize` bytes."""
    return PAGE_TOKENS * num_blocks * kv_width(config) * itemsize


def cannot_keep(family: Family, config: Mapping[str, Any]) -> str | None:
    """Why conversations with this model cannot be kept, or None."""
    if not family.causal:
        return "its tokens look at later ones"
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kinds = {rope.get("rope_type", rope.get("type"))}
    kinds |= {inner.get("rope_type") for inner in rope.values() if isinstance(inner, dict)}
    if kinds & set(CHANGING):
        return "its rotary positions depend on the longest text in a batch"
    return None


def check_kept(key: str, folder: ModelFolder) -> None:
    """Raises ConfigError, which names the setting, where no conversation with the model is kept."""
    if (problem := cannot_keep(folder.family, folder.config)) is not None:
        raise ConfigError(key, folder.name, problem, "Serve another model.")
