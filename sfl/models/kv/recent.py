"""Keys and values of blocks that look at a window: the last tokens only, in memory of their own.

What is before the window is dropped, in steps: tokens are written behind each other until there is
no room, and then the last ones go to the front. So attention reads them in place, and a token is
moved once in `at_once` of them, about.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfl.models.kv.pages import PAGE_TOKENS, pages_for
from sfl.models.kv.size import SPARE_TOKENS, Keeping


class Recent:
    """One conversation's tokens from `begin` on, in each windowed block `[2, heads, n, width]`."""

    def __init__(self, keeping: Keeping) -> None:
        self.begin = 0
        self._keeping = keeping
        self._capacity = 0
        self._blocks: dict[int, Tensor] = {}

    @property
    def nbytes(self) -> int:
        """Of all blocks."""
        return sum(tensor.nbytes for tensor in tuple(self._blocks.values()))

    def make_room(self, length: int, count: int, room: int) -> None:
        """For `count` tokens behind `length`, of a conversation that may have `room`."""
        held = length - self.begin
        if held + count <= self._capacity:
            return
        most, kept = min(room, self._keeping.recent), held
        if held + count > most:
            kept = min(held, self._keeping.window - 1 + SPARE_TOKENS)
        self._capacity = max(self._capacity, most, PAGE_TOKENS * pages_for(kept + count))
        for block, tensor in self._blocks.items():
            tail = tensor[:, :, held - kept : held]
            if tensor.shape[2] == self._capacity:
                tensor[:, :, :kept] = tail.clone()  # it may overlap
            else:
                self._blocks[block] = self._like(tensor)
                self._blocks[block][:, :, :kept] = tail
        self.begin = length - kept

    def append(self, block: int, length: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write `[1, heads, c, width]` behind `length` tokens; all that is held, and those."""
        if block not in self._blocks:
            self._blocks[block] = self._like(torch.stack((key[0], value[0])))
        first = length - self.begin
        own = self._blocks[block][:, :, : first + key.shape[2]]
        own[0, :, first:], own[1, :, first:] = key[0], value[0]
        return own[0][None], own[1][None]

    def reaches(self, length: int) -> bool:
        """Whether all is there that a token behind `length` looks at."""
        return self.begin <= max(0, length - self._keeping.window + 1)

    def forget(self) -> None:
        """It knows nothing; its memory goes."""
        self.begin = self._capacity = 0
        self._blocks.clear()

    def held(self, length: int) -> dict[int, Tensor]:
        """What it knows, by block."""
        return {
            block: tensor[:, :, : length - self.begin].clone()
            for block, tensor in sorted(self._blocks.items())
        }

    def take_back(self, begin: int, tensors: dict[int, Tensor], length: int, room: int) -> None:
        """Know again what `held` had."""
        self.forget()
        self.begin = length
        self.make_room(length, length - begin, room)
        for block, tensor in tensors.items():
            self._blocks[block] = self._like(tensor)
            self._blocks[block][:, :, : length - begin] = tensor
        self.begin = begin

    def _like(self, tensor: Tensor) -> Tensor:
        return tensor.new_empty((2, tensor.shape[1], self._capacity, tensor.shape[3]))
