"""Keys and values of many conversations over the blocks of one span, in pages of one pool.

Every block has one tensor, `[2, heads, tokens of all pages, width]`. A conversation's pages are the
same in all blocks. Where they follow each other in it, attention reads them in place; only where
the pool is in pieces they are gathered first. Blocks that look at a window have no pages: what is
before it is dropped (`sfl.models.kv.recent`). Lengths and positions are kept here: transformers'
own caches know those of their first block, which a later span does not have.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from sfl.errors import ProtocolError
from sfl.models.kv.pages import PAGE_TOKENS, NoPages, Pages, pages_for
from sfl.models.kv.recent import Recent
from sfl.models.kv.size import KEEP_ALL, Keeping

_NAME = re.compile(r"block\.(\d+)")
_PLACE = "place"
"""Name of a tensor that says length and beginning, where some blocks have dropped tokens."""


class KvPool:
    """Room for `num_pages` pages; each block's tensor is made as it is first used.

    On a CPU only pages that were written to are resident.
    """

    def __init__(self, num_pages: int, keeping: Keeping = KEEP_ALL) -> None:
        """`num_pages` are pages over all blocks of a span; `keeping` is what those keep."""
        self.keeping = keeping
        self.total = num_pages
        self.used = 0
        """Of `total`, as conversations cost."""
        self.pages = Pages(keeping.placed(num_pages))
        self._blocks: dict[int, Tensor] = {}
        self._recent: set[Recent] = set()

    @property
    def free(self) -> int:
        """Pages over all blocks that nobody has."""
        return self.total - self.used

    @property
    def nbytes(self) -> int:
        """Of what is in use, over all blocks."""
        used = self.pages.total - self.pages.free
        blocks = tuple(self._blocks.values())  # statistics are read on another thread
        paged = used * sum(block.nbytes for block in blocks) // max(1, self.pages.total)
        return paged + sum(own.nbytes for own in tuple(self._recent))

    def note(self, recent: Recent) -> None:
        """A conversation has tokens in windowed blocks."""
        self._recent.add(recent)

    def forget(self, recent: Recent) -> None:
        """It has none any more."""
        self._recent.discard(recent)

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
        self._room = 0  # tokens, in whole pages
        self._pages: list[int] = []
        self._slots: Tensor | None = None  # of tokens; None where they are one run
        self._recent: Recent | None = Recent(pool.keeping) if pool.keeping.windowed else None

    @property
    def num_pages(self) -> int:
        """Pages over all blocks that it costs."""
        return self._pool.keeping.cost(self._room)

    def fits(self, num_tokens: int) -> bool:
        """Whether there is room for so many tokens in all."""
        return self._pool.keeping.cost(num_tokens) - self.num_pages <= self._pool.free

    def reserve(self, num_tokens: int) -> None:
        """Have room for so many tokens in all. Raises NoPages, and is as it was then."""
        room = PAGE_TOKENS * pages_for(num_tokens)
        if room <= self._room:
            return
        pool = self._pool
        more = pool.keeping.cost(room) - self.num_pages
        if more > pool.free:
            raise NoPages(f"{more} pages are wanted, {pool.free} are free")
        if pool.keeping.keep_all:
            last = self._pages[-1] if self._pages else None
            self._pages += pool.pages.take(room // PAGE_TOKENS - len(self._pages), last)
            self._slots = self._scattered()
        pool.used += more
        self._room = room

    def make_room(self, count: int) -> None:
        """For tokens that follow; what no window looks at any more is dropped. Raises NoPages."""
        self.reserve(self.length + count)
        if self._recent is not None:
            self._recent.make_room(self.length, count, self._room)
            self._pool.note(self._recent)

    def truncate(self, length: int) -> None:
        """Forget what comes after `length` tokens; the pages stay, for it goes on.

        Where a window then looks at what was dropped, it forgets all: `length` is 0.
        """
        assert 0 <= length <= self.length
        if self._recent is not None and not self._recent.reaches(length):
            self._recent.forget()
            length = 0
        self.length = length

    def shrink(self) -> None:
        """Give back pages that no token is in."""
        kept, before = pages_for(self.length), self.num_pages
        self._pool.pages.give_back(self._pages[kept:])
        del self._pages[kept:]
        self._slots = self._scattered()
        self._room = min(self._room, kept * PAGE_TOKENS)
        self._pool.used -= before - self.num_pages

    def append(
        self, block: int, key: Tensor, value: Tensor, window: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Write `[1, heads, c, width]` behind what there is; all of it, `[1, heads, n + c, width]`,
        or as much of its end as a `window` looks at, and more.

        `length` stays what it is: `advance` ends a forward of all blocks.
        """
        if self._recent is not None and block in self._pool.keeping.windowed:
            assert window == self._pool.keeping.window, "config.json says another window"
            return self._recent.append(block, self.length, key, value)
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

    def held(self) -> Iterator[tuple[str, Tensor]]:
        """All that it knows, `[2, heads, length, width]` of each block, under a name of its own.

        One by one, so that what leaves the pool is not in memory twice.
        """
        slots = self._all_slots()[: self.length]
        if self._recent is not None:
            yield _PLACE, torch.tensor([self.length, self._recent.begin])
            for index, tail in self._recent.held(self.length).items():
                yield f"block.{index}", tail
        for index, both in sorted(self._pool.blocks.items()):
            yield f"block.{index}", both.index_select(2, slots.to(both.device))

    def let_go(self) -> None:
        """Give all pages back; it knows nothing then."""
        self.length = 0
        if self._recent is not None:
            self._recent.forget()
            self._pool.forget(self._recent)
        self.shrink()

    def take_back(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Know again what `held` had. Raises NoPages; ProtocolError where it does not fit."""
        place: Tensor | None = None
        tails: dict[int, Tensor] = {}
        lengths = set[int]()
        for name, tensor in tensors:
            if name == _PLACE:
                place = tensor
            elif (index := _index(name)) in self._pool.keeping.windowed:
                tails[index] = tensor
            else:
                lengths.add(self._take_block(index, tensor))
        if (place is None) != (self._recent is None):
            raise _unfit()
        length, begin = (max(lengths, default=0), 0) if place is None else map(int, place)
        if not lengths | {begin + tail.shape[2] for tail in tails.values()} <= {length}:
            raise _unfit()
        self.reserve(length)
        if self._recent is not None:
            self._recent.take_back(begin, tails, length, self._room)
            self._pool.note(self._recent)
        self.length = length

    def _take_block(self, index: int, tensor: Tensor) -> int:
        """One block's, at the beginning of its pages; how many tokens they are."""
        if tensor.dim() != 4:
            raise _unfit()
        self.reserve(tensor.shape[2])
        slots = self._all_slots()[: tensor.shape[2]]
        both = self._pool.block(index, tensor[0][None])
        if tensor.shape[:2] != both.shape[:2] or tensor.shape[3] != both.shape[3]:
            raise ProtocolError(
                f"block.{index} is {list(tensor.shape)}, which does not fit the pool"
            )
        both.index_copy_(2, slots.to(both.device), tensor.to(both))
        return tensor.shape[2]

    def _all_slots(self) -> Tensor:
        """Where each token that there is room for is in a block's tensor."""
        starts = torch.tensor(self._pages, dtype=torch.int64)[:, None] * PAGE_TOKENS
        return (starts + torch.arange(PAGE_TOKENS)).flatten()

    def _scattered(self) -> Tensor | None:
        pages = self._pages
        one_run = not pages or (pages[-1] - pages[0] == len(pages) - 1 and pages == sorted(pages))
        return None if one_run else self._all_slots()


def _index(name: str) -> int:
    """Of the block that a tensor is named for. Raises ProtocolError."""
    found = _NAME.fullmatch(name)
    if found is None:
        raise _unfit()
    return int(found[1])


def _unfit() -> ProtocolError:
    return ProtocolError("these are not the keys and values of one conversation")
