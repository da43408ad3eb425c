"""What takes a layer's place over a frozen base: a slot for each adapter, LoRA or a whole module.

Computes what PEFT's LoRA layer computes, in its order of operations, to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from sfl.adapters.stacked import Choice, Rows, Stacked


class Active:
    """Which adapter the next forward uses; shared by all slots of a bank.

    Where `parts` are given, runs of so many rows of a packed batch use an adapter each; where
    `rows` are, each row does.
    """

    def __init__(self) -> None:
        self.adapter: str | None = None
        self.parts: tuple[tuple[str, int], ...] = ()
        self.rows: Rows | None = None


class Pair(NamedTuple):
    """One adapter's A and B over one layer, and its own alpha / rank."""

    a: nn.Parameter
    b: nn.Parameter
    scaling: float


class LoraLinear(nn.Module):
    """A frozen linear layer plus the active adapter's B(A(dropout(x))) * alpha / rank.

    `fused` sums in another order than PEFT, for speed.
    """

    def __init__(self, base: nn.Module, active: Active, dropout: float, fused: bool) -> None:
        super().__init__()
        self.base_layer = base
        self._fused = fused
        self.pairs: dict[str, Pair] = {}
        self._stacked: Stacked | None = None
        self._choice: Choice | None = None  # of the rows before
        self._active = active
        self._dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out] in the base's dtype; A and B compute in theirs."""
        result: Tensor = self.base_layer(x)
        if self._active.parts:
            return self._add_parts(x, result)
        if self._active.rows is not None:
            return self._add_rows(x, result, self._active.rows)
        pair = self.pairs.get(self._active.adapter or "")
        if pair is None:
            return result
        return self._add(x, result, pair)

    def _add_parts(self, x: Tensor, result: Tensor) -> Tensor:
        """[1, n, in]: each run of rows with its own adapter; without one nothing is added."""
        counts = [count for _, count in self._active.parts]
        pairs = [self.pairs.get(name) for name, _ in self._active.parts]
        runs = zip(torch.split(x, counts, 1), torch.split(result, counts, 1), pairs, strict=True)
        return torch.cat(
            [own if pair is None else self._add(rows, own, pair) for rows, own, pair in runs], 1
        )

    def stack(self, names: Sequence[str]) -> None:
        """Keep these adapters as one, as far as they are here, so that rows may use them."""
        kept = [(name, self.pairs[name]) for name in names if name in self.pairs]
        self._stacked = self._choice = None
        if kept:
            self._stacked = Stacked.of([(name, *pair) for name, pair in kept])
            self._stacked.share([(pair.a, pair.b) for _, pair in kept])

    def _add_rows(self, x: Tensor, result: Tensor, rows: Rows) -> Tensor:
        """[1, n, in]: each row with its own adapter; one that is not stacked adds nothing."""
        if self._stacked is None:
            return result
        choice = self._choice
        if choice is None or choice.rows is not rows:
            choice = self._choice = Choice(self._stacked, rows, choice)
        with _own_precision(x):
            return choice.add(x[0], result[0])[None]

    def _add(self, x: Tensor, result: Tensor, pair: Pair) -> Tensor:
        a, b, scaling = pair
        inputs = x if x.dtype == a.dtype else x.to(a.dtype)
        if self.training and self._dropout > 0.0:
            inputs = functional.dropout(inputs, self._dropout, training=True)
        if self._fused and inputs.dtype == result.dtype:
            # Scaled where it is `rank` wide, added within the product: three passes fewer.
            low = (functional.linear(inputs, a) * scaling).flatten(0, -2)
            return torch.addmm(result.flatten(0, -2), low, b.t()).view_as(result)
        with _own_precision(x):
            low = functional.linear(inputs, a)
            if _is_power_of_two(scaling):
                # It changes exponents only: the same bits, multiplied where it is `rank` wide.
                update = functional.linear(low * scaling, b)
            else:
                update = functional.linear(low, b) * scaling
        # In place: a third tensor as wide would be memory that no cache holds yet.
        return update.add_(result).to(result.dtype)


class SavedModule(nn.Module):
    """A head module that each adapter has its own complete, trained copy of."""

    def __init__(self, base: nn.Module, active: Active) -> None:
        super().__init__()
        self.base_layer = base
        self.copies: dict[str, dict[str, Tensor]] = {}
        self._active = active

    def forward(self, x: Tensor) -> Tensor:
        """As the module itself; a copy computes in its own dtype."""
        copy = self.copies.get(self._active.adapter or "")
        if copy is None:
            return self.base_layer(x)  # type: ignore[no-any-return]
        dtype = next(iter(copy.values())).dtype
        with _own_precision(x):
            return torch.func.functional_call(  # type: ignore[no-any-return]
                self.base_layer, copy, (x.to(dtype),)
            )


def _is_power_of_two(value: float) -> bool:
    return abs(math.frexp(value)[0]) == 0.5


def _own_precision(like: Tensor) -> AbstractContextManager[object]:
    """Where the base runs under autocast, what is trained does not."""
    kind = like.device.type
    if torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()
