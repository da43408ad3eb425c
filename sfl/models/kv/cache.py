"""Keys and values of many conversations over the blocks of one span, in pages of one pool.

Every block has one tensor, `[2, heads, tokens of all pages, width]`. A conversation's pages are the
same in all blocks. Where they follow each other in it, attention reads them in place; only where
the pool is in pieces they are gathered first. Lengths and positions are kept here: transformers'
own caches know those of their first block, which a later span does not have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from sfl.errors import ProtocolError
from sfl.models.kv.pages import PAGE_TOKENS, Pages, pages_for

_NAME = re.compile(r"block\.(\d+)")


class KvPool:
    """Room for `num_pages` pages; each block's tensor is made as it is first used.

    On a CPU only pages that were written to are resident.
    """

    def __init__(self, num_pages: int) -> None:
        self.pages = Pages(num_pages)
        self._blocks: dict[int, Tensor] = {}

    @property
    def nbytes(self) -> int:
        """Of the pages that are in use, over all blocks."""
        used = self.pages.total - self.pages.free
        blocks = tuple(self._blocks.values())  # statistics are read on another thread
        return used * sum(block.nbytes for block in blocks) // self.pages.total

    def block(self, index: int, like: Tensor) -> Tensor:
        """[2, heads, tokens, width] of a block; `like` is [1, heads, n, width]."""
        found = self._blocks.get(index)
        if found is None:
            size = (2, like.shape[1], self.pages.total * PAGE_TOKENS, like.shape[3])
            found = self._blocks[index] = like.new_empty(size)
        return found

    @property
    def blocks(self) -> Mapping[int, Tensor]:
        """The tensors there are, by block."""
        return self._blocks


class KvCache:
    """One conversation's keys and values: `length` tokens, in pages of the pool."""

    def __init__(self, pool: KvPool) -> None:
        self.length = 0
        self._pool = pool
        self._pages: list[int] = []
        self._slots: Tensor | None = None  # of tokens; None where they are one run

    @property
    def num_pages(self) -> int:
        """Pages it has."""
        return len(self._pages)

    def reserve(self, num_tokens: int) -> None:
        """Have room for so many tokens in all. Raises NoPages, and is as it was then."""
        more = pages_for(num_tokens) - len(self._pages)
        if more > 0:
            last = self._pages[-1] if self._pages else None
            self._pages += self._pool.pages.take(more, last)
            self._slots = self._scattered()

    def truncate(self, length: int) -> None:
        """Forget what comes after `length` tokens; the pages stay, for it goes on."""
        assert 0 <= length <= self.length
        self.length = length

    def shrink(self) -> None:
        """Give back pages that no token is in."""
        kept = pages_for(self.length)
        self._pool.pages.give_back(self._pages[kept:])
        del self._pages[kept:]
        self._slots = self._scattered()

    def append(self, block: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write `[1, heads, c, width]` behind what there is; all of it, `[1, heads, n + c, width]`.

        `length` stays what it is: `advance` ends a forward of all blocks.
        """
        begin, end = self.length, self.length + key.shape[2]
        assert end <= len(self._pages) * PAGE_TOKENS, "room is reserved before a forward"
        both = self._pool.block(block, key)
        if self._slots is None:
            first = self._pages[0] * PAGE_TOKENS
            own = both[:, :, first : first + end]
            own[0, :, begin:end], own[1, :, begin:end] = key[0], value[0]
            return own[0][None], own[1][None]
        slots = self._slots.to(both.device)
        both.index_copy_(2, slots[begin:end], torch.stack((key[0], value[0])))
        whole = both.index_select(2, slots[:end])
        return whole[0][None], whole[1][None]

    def advance(self, count: int) -> None:
        """So many tokens are in every block now."""
        self.length += count

    # -- out of the pool, and back ----------------------------------------------------------------

    def held(self) -> dict[str, Tensor]:
        """All that it knows, `[2, heads, length, width]` of each block, by a name of its own."""
        slots = self._all_slots()[: self.length]
        return {
            f"block.{index}": both.index_select(2, slots.to(both.device))
            for index, both in sorted(self._pool.blocks.items())
        }

    def let_go(self) -> None:
        """Give all pages back; it knows nothing then."""
        self.length = 0
        self.shrink()

    def take_back(self, tensors: Mapping[str, Tensor]) -> None:
        """Know again what `held` had. Raises NoPages; ProtocolError where it does not fit."""
        lengths = {tensor.shape[2] for tensor in tensors.values() if tensor.dim() == 4}
        if len(lengths) > 1 or not all(_NAME.fullmatch(name) for name in tensors):
            raise ProtocolError("these are not the keys and values of one conversation")
        length = lengths.pop() if lengths else 0
        self.reserve(length)
        slots = self._all_slots()[:length]
        for name, tensor in tensors.items():
            both = self._pool.block(int(name.rpartition(".")[2]), tensor[0][None])
            if tensor.shape[:2] != both.shape[:2] or tensor.shape[3] != both.shape[3]:
                raise ProtocolError(f"{name} is {list(tensor.shape)}, which does not fit the pool")
            both.index_copy_(2, slots.to(both.device), tensor.to(both))
        self.length = length

    def _all_slots(self) -> Tensor:
        """Where each token that there is room for is in a block's tensor."""
        starts = torch.tensor(self._pages, dtype=torch.int64)[:, None] * PAGE_TOKENS
        return (starts + torch.arange(PAGE_TOKENS)).flatten()

    def _scattered(self) -> Tensor | None:
        pages = self._pages
        one_run = not pages or (pages[-1] - pages[0] == len(pages) - 1 and pages == sorted(pages))
        return None if one_run else self._all_slots()
