"""Many adapters over one layer as two products: each row of a batch with an adapter of its own.

Their A are one matrix and their B another (Punica's and S-LoRA's case, 2310.18547, 2311.03285). A
row goes through all of them, and keeps what its own gives. In a decode step that is quicker on a
CPU than one product for each row, and it copies no adapter (`benchmarks/row_lora.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Rows:
    """Which adapter each row of the next packed forwards uses.

    `owners` has each row's place among `names`, which are sorted. A name that a layer does not know
    adds nothing there.
    """

    names: tuple[str, ...]
    owners: tuple[int, ...]
    _masks: dict[tuple[object, ...], Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, names: Sequence[str]) -> Rows:
        """Of each row's name, in order."""
        known = tuple(sorted(set(names)))
        places = {name: place for place, name in enumerate(known)}
        return cls(known, tuple(places[name] for name in names))

    @property
    def each(self) -> tuple[str, ...]:
        """Each row's name, in order."""
        return tuple(self.names[owner] for owner in self.owners)

    def foreign(self, stacked: Stacked) -> Tensor:
        """[n, R]: where a row would go through an adapter that is not its own.

        Made once for all layers whose adapters have the same ranks.
        """
        key = (stacked.names, stacked.ends, stacked.a.device)
        if key not in self._masks:
            places = [
                self.names.index(name) if name in self.names else -1 for name in stacked.names
            ]
            ranks = [end - first for first, end in pairwise(stacked.ends)]
            columns = torch.repeat_interleave(torch.tensor(places), torch.tensor(ranks))
            mask = columns[None] != torch.tensor(self.owners)[:, None]
            self._masks[key] = mask.to(stacked.a.device)
        return self._masks[key]


@dataclass(frozen=True, slots=True)
class Stacked:
    """Adapters over one layer: A `[R, in]`, B transposed `[R, out]`, `scaling` `[R]`.

    Adapter i has the ranks `ends[i]` to `ends[i + 1]` of R.
    """

    names: tuple[str, ...]
    ends: tuple[int, ...]
    a: Tensor
    b: Tensor
    scaling: Tensor

    @classmethod
    def of(cls, pairs: Sequence[tuple[str, Tensor, Tensor, float]]) -> Stacked:
        """Of `(name, A [r, in], B [out, r], scaling)`."""
        ends = [0]
        for _, a, _, _ in pairs:
            ends.append(ends[-1] + len(a))
        scaling = [pair[3] for pair in pairs for _ in range(len(pair[1]))]
        first = pairs[0][1]
        return cls(
            tuple(pair[0] for pair in pairs),
            tuple(ends),
            torch.cat([pair[1].detach() for pair in pairs]),
            torch.cat([pair[2].detach().t() for pair in pairs]),
            torch.tensor(scaling, dtype=first.dtype, device=first.device),
        )

    def share(self, parameters: Sequence[tuple[nn.Parameter, nn.Parameter]]) -> None:
        """Let these A and B have their values here, so that there is one copy of them."""
        for (first, end), (a, b) in zip(pairwise(self.ends), parameters, strict=True):
            a.data, b.data = self.a[first:end], self.b[first:end].t()

    def only(self, names: Sequence[str]) -> Stacked:
        """A copy of some of them; itself where that is at least half."""
        kept = [place for place, name in enumerate(self.names) if name in names]
        if not kept or 2 * len(kept) >= len(self.names):
            return self
        ends, columns = [0], list[int]()
        for place in kept:
            columns += range(self.ends[place], self.ends[place + 1])
            ends.append(len(columns))
        index = torch.tensor(columns, device=self.a.device)
        some = (tensor.index_select(0, index) for tensor in (self.a, self.b, self.scaling))
        return Stacked(tuple(self.names[place] for place in kept), tuple(ends), *some)

    @property
    def common_scaling(self) -> float | None:
        """Where all have the same: it then costs no product of its own."""
        first = float(self.scaling[0])
        return first if bool((self.scaling == first).all()) else None


class Choice:
    """Adapters over one layer, and which of them each row of a batch uses: made once for both."""

    def __init__(self, stacked: Stacked, rows: Rows, before: Choice | None) -> None:
        """`before` is the layer's last: its copy of the same adapters is taken over."""
        again = before is not None and before.rows.names == rows.names
        some = before._some if before is not None and again else stacked.only(rows.names)
        self.rows: Rows = rows
        self._some: Stacked = some
        self._foreign = rows.foreign(some)
        self._common = some.common_scaling

    def add(self, x: Tensor, result: Tensor) -> Tensor:
        """[n, in] and the base's [n, out] to [n, out]: each row with what its own adapter adds."""
        some, common = self._some, self._common
        low = functional.linear(x.to(some.a.dtype), some.a)
        if common is None:
            low *= some.scaling
        low.masked_fill_(self._foreign, 0.0)
        alpha = 1.0 if common is None else common
        if result.dtype == low.dtype:
            return torch.addmm(result, low, some.b, alpha=alpha)
        return (low @ some.b).mul_(alpha).add_(result).to(result.dtype)
