"""LoRA at another rank: sums of updates as factors, and the best approximation of fewer components.

numpy only, float64 inside. An update of a layer is `scaling * B A` with `scaling = alpha / rank`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sfl.adapters.names import is_lora_a, is_lora_b, lora_b_of

Array = npt.NDArray[Any]

NEGLIGIBLE = float(np.finfo(np.float32).eps)
"""A singular value below this share of the largest is lost in float32 anyway."""


def shapes_at_rank(values: Mapping[str, Array], rank: int) -> dict[str, tuple[int, ...]]:
    """Shapes that `values` would have with LoRA of `rank`: A `[rank, in]`, B `[out, rank]`."""
    return {name: _shape_at_rank(name, array, rank) for name, array in values.items()}


def truncated(values: Mapping[str, Array], rank: int) -> dict[str, Array]:
    """The first `rank` components of every layer, for a device whose scaling is `alpha / rank`.

    Its update is that of those components of `values`, `(alpha / R) B[:, :rank] A[:rank]`: where
    components are sorted by weight, as FlexLoRA leaves them, the best approximation of that rank
    (Eckart and Young, 1936). Factors stay balanced: both take the root of `rank / R`. A component
    whose column of B is still zero keeps its row of A, which is how LoRA of that rank starts.
    """
    result = dict(values)
    for name in filter(is_lora_a, values):
        partner = lora_b_of(name)
        a, b = values[name], values[partner]
        if len(a) == rank:
            continue
        factor = math.sqrt(rank / len(a))
        kept, columns = a[:rank].astype(np.float64), b[:, :rank].astype(np.float64)
        kept[columns.any(axis=0)] *= factor
        result[name] = kept.astype(np.float32)
        result[partner] = np.ascontiguousarray(columns * factor, np.float32)
    return result


class ProductSum:
    """A sum of products `B A` of any ranks, kept as two factors.

    Side by side, `[B_1 B_2 ..] [A_1; A_2; ..]` is the sum exactly (FLoRA, 2409.05976). Factors stay
    below three times the smaller side of the matrix, however many products there are.
    """

    def __init__(self) -> None:
        self._left: list[Array] = []
        self._right: list[Array] = []
        self._width = 0

    def add(self, weight: float | Array, b: Array, a: Array) -> None:
        """Add `weight * b a`; b is `[out, r]`, a `[r, in]`, weight one number or `[r]`."""
        self._left.append(weight * b.astype(np.float64))
        self._right.append(a.astype(np.float64))
        self._width += len(a)
        if self._width > 2 * min(len(b), a.shape[1]):
            self._fold()

    def best(self, rank: int) -> tuple[Array, Array]:
        """Balanced factors `(B [out, q], A [q, in])` of the best approximation, q <= `rank`.

        The QR decompositions of both factors leave a small core, whose SVD is that of the sum; the
        dense matrix is never formed. Components are sorted by weight, negligible ones left out; the
        largest entry of each row of A is positive, so that signs do not depend on the library.
        """
        left, right = np.concatenate(self._left, axis=1), np.concatenate(self._right)
        basis_left, core_left = np.linalg.qr(left)
        basis_right, core_right = np.linalg.qr(right.T)
        u, singular, vt = np.linalg.svd(core_left @ core_right.T)
        count = min(rank, int((singular > NEGLIGIBLE * singular[0]).sum()))
        b, a = basis_left @ u[:, :count], vt[:count] @ basis_right.T
        largest = np.argmax(np.abs(a), axis=1)
        root = np.copysign(np.sqrt(singular[:count]), a[np.arange(count), largest])
        return b * root, a * root[:, None]

    def _fold(self) -> None:
        """The same sum with factors no wider than the smaller side of the matrix."""
        left, right = np.concatenate(self._left, axis=1), np.concatenate(self._right)
        if len(left) <= right.shape[1]:
            basis, core = np.linalg.qr(left)
            left, right = basis, core @ right
        else:
            basis, core = np.linalg.qr(right.T)
            left, right = left @ core.T, basis.T
        self._left, self._right, self._width = [left], [right], len(right)


def _shape_at_rank(name: str, array: Array, rank: int) -> tuple[int, ...]:
    if is_lora_a(name):
        return (rank, array.shape[1])
    return (array.shape[0], rank) if is_lora_b(name) else array.shape
