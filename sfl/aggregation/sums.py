"""Weighted sums of adapters: of all devices at once, or of each edge's devices and then the edges.

A sum of sums is another order of additions, and so equals the flat one to rounding. Who adds them
changes no bit: edges and cloud use the same function, in the same order of names, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from sfl.aggregation.contribution import Array, Contribution, Shapes, ordered
from sfl.errors import ProtocolError


class Term(Protocol):
    """A part of a weighted sum."""

    @property
    def weight(self) -> int:
        """How many examples it stands for."""

    def terms(self, shapes: Shapes) -> Iterator[tuple[str, Array]]:
        """`sum n_k w_k` of it, float64, sorted by name, each array the caller's own."""


@dataclass(frozen=True, slots=True)
class Total:
    """A sum in memory: `sum_k n_k w_k` by name in float64, and `weight`, which is `sum_k n_k`."""

    values: dict[str, Array]
    weight: int

    def terms(self, shapes: Shapes) -> Iterator[tuple[str, Array]]:
        """Its values, which it gives away."""
        yield from self.values.items()

    def mean(self) -> dict[str, Array]:
        """Divided once, in float64; the sum is gone then."""
        for name in sorted(self.values):
            self.values[name] /= self.weight
        return self.values


def total(parts: Iterable[Term], shapes: Shapes) -> Total:
    """Added in the order in which parts come; of each, one tensor at a time is in memory.

    Raises ProtocolError where one of them is not complete.
    """
    sums: dict[str, Array] = {}
    weight = 0
    for part in parts:
        weight += part.weight
        for name, term in part.terms(shapes):
            if name in sums:
                sums[name] += term
            else:
                sums[name] = term  # not 0 + term: that loses the sign of -0.0
    return Total(sums, weight)


def flat(devices: Sequence[Contribution], shapes: Shapes) -> Total:
    """The sum over all devices, by name. Memory: two adapters, whatever the devices."""
    return total(ordered(devices), shapes)


def by_edge(devices: Sequence[Contribution], shapes: Shapes) -> Total:
    """The sum over edges, by name, of what is the flat sum of each one's own devices.

    Memory: four adapters, whatever devices and edges.
    """
    return total((flat(own, shapes) for own in groups(devices).values()), shapes)


def groups(devices: Iterable[Contribution]) -> dict[str, list[Contribution]]:
    """The devices of each edge; edges by name."""
    found: dict[str, list[Contribution]] = {}
    for one in devices:
        found.setdefault(one.edge, []).append(one)
    return dict(sorted(found.items()))


def sum_bytes(devices: Sequence[Contribution], shapes: Shapes) -> bytes:
    """An edge's sum as a safetensors file: float64, 8 bytes a value.

    Of one device it has the adapter itself in float32, which times its weight is the same to the
    bit. Raises ProtocolError where a contribution is not complete.
    """
    alone = len(devices) == 1
    values = dict(devices[0].tensors(shapes)) if alone else flat(devices, shapes).values
    payload: bytes = safetensors.numpy.save(values)
    return payload


@dataclass(frozen=True, slots=True)
class EdgeSum:
    """What `sum_bytes` of an edge gave, in a file; `weight` is that of its devices."""

    edge: str
    weight: int
    file: Path

    def terms(self, shapes: Shapes) -> Iterator[tuple[str, Array]]:
        """As a Term. Raises ProtocolError, naming the edge, where it is no sum of these shapes."""
        try:
            with safe_open(self.file, framework="numpy") as file:
                self._check({name: file.get_slice(name) for name in file.keys()}, shapes)  # noqa: SIM118
                for name in sorted(shapes):
                    yield name, self._term(name, file.get_tensor(name))
        except SafetensorError as error:
            raise self._error(f"not a valid safetensors file: {error}") from None

    def change(self, start: Mapping[str, Array]) -> float:
        """How far its mean is from `start`, Euclidean, in float64; one tensor in memory at a time.

        Raises ProtocolError where it is no whole sum of those shapes, or not finite.
        """
        squared = 0.0
        for name, term in self.terms({name: array.shape for name, array in start.items()}):
            term /= self.weight
            term -= start[name]
            squared += float(np.square(term).sum())
        return math.sqrt(squared)

    def _check(self, found: Mapping[str, Any], shapes: Shapes) -> None:
        if odd := sorted(found.keys() ^ shapes.keys()):
            raise self._error(f"{odd[0]} is {'unknown' if odd[0] in found else 'missing'}")
        for name, entry in found.items():
            if (shape := list(entry.get_shape())) != list(shapes[name]):
                raise self._error(f"{name} is {shape}, not {list(shapes[name])}")
            if (dtype := entry.get_dtype()) not in ("F32", "F64"):
                raise self._error(f"{name} is {dtype}, not F32 or F64")

    def _term(self, name: str, values: Array) -> Array:
        if not np.isfinite(values).all():
            raise self._error(f"{name} holds NaN or infinite values")
        if values.dtype == np.float64:
            return values
        term = values.astype(np.float64)
        term *= self.weight
        return term

    def _error(self, problem: str) -> ProtocolError:
        return ProtocolError(f"sum of edge {self.edge}: {problem}")
