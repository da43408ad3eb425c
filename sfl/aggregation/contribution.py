"""One device's part in a round: a complete adapter, spooled to disk in one or more files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsBytes

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from sfl.errors import ProtocolError

Array = npt.NDArray[Any]
Shapes = Mapping[str, tuple[int, ...]]
Payload = bytes | bytearray | memoryview | SupportsBytes


@dataclass(frozen=True, slots=True)
class Shortened:
    """A change that counts for `factor` of itself: `w_0 + factor (w - w_0)`, w_0 being `start`."""

    start: Mapping[str, Array]
    factor: float

    def apply(self, name: str, values: Array) -> Array:
        """The values of one tensor that count, float32."""
        start = self.start[name].astype(np.float64)
        return (start + self.factor * (values - start)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Stale:
    """A change from an older adapter, carried over to the latest: `onto + weight (w - start)`.

    FedBuff's (2106.06639): so its weight counts for each strategy, and in an average of one.
    """

    start: Mapping[str, Array]
    onto: Mapping[str, Array]
    weight: float

    def apply(self, name: str, values: Array) -> Array:
        """The values of one tensor that count, float32."""
        change = values - self.start[name].astype(np.float64)
        return (self.onto[name] + self.weight * change).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Contribution:
    """The files of one device's adapter: its own part, its edge's part, together complete.

    `rank` is the device's own (None: the global adapter's), `scaling` what its B A are multiplied
    by. `edge` is the one at which it trained, where that counts.
    """

    device: str
    num_examples: int
    files: tuple[Path, ...] = ()
    rank: int | None = None
    scaling: float = 1.0
    shortened: Shortened | None = None
    """What is made of its values before they count; by default nothing."""
    stale: Stale | None = None
    """What is made of them before that; nothing where they began from the latest adapter."""
    payloads: tuple[Payload, ...] = ()
    """Further files, which are in memory."""
    edge: str = ""

    @property
    def weight(self) -> int:
        """How many examples it stands for."""
        return self.num_examples

    def terms(self, shapes: Shapes) -> Iterator[tuple[str, Array]]:
        """`n_k w_k` of every tensor in float64, as `tensors` has them."""
        for name, values in self.tensors(shapes):
            term = values.astype(np.float64)
            term *= self.num_examples
            yield name, term

    def tensors(self, shapes: Shapes) -> Iterator[tuple[str, Array]]:
        """Every tensor of `shapes`, sorted by name, one in memory at a time.

        Raises ProtocolError, naming the device, unless the files together hold exactly these names,
        in these shapes and float32, all values finite.
        """
        if self.num_examples < 1:
            raise self._error(f"num_examples is {self.num_examples}")
        try:
            with ExitStack() as opened:
                holders = self._holders(opened)
                self._check(holders, shapes)
                for name in sorted(shapes):
                    # In no variable: it would live on while others are read in step.
                    yield name, self._counted(name, holders[name].get_tensor(name))
        except SafetensorError as error:
            raise self._error(f"not a valid safetensors file: {error}") from None

    def _holders(self, opened: ExitStack) -> dict[str, Any]:
        """Which open file holds which tensor."""
        holders: dict[str, Any] = {}
        files = [opened.enter_context(safe_open(path, framework="numpy")) for path in self.files]
        for file in (*files, *map(_InMemory, self.payloads)):
            for name in file.keys():  # noqa: SIM118 - not a mapping
                if name in holders:
                    raise self._error(f"{name} comes twice")
                holders[name] = file
        return holders

    def _check(self, holders: Mapping[str, Any], shapes: Shapes) -> None:
        """Names, shapes and types, from the files' headers."""
        for problem, names in (
            ("is missing", shapes.keys() - holders.keys()),
            ("is unknown", holders.keys() - shapes.keys()),
        ):
            if names:
                first, count = min(names), len(names) - 1
                raise self._error(f"{first} {problem}" + (f", and {count} more" if count else ""))
        for name, expected in shapes.items():
            entry = holders[name].get_slice(name)
            shape = tuple(entry.get_shape())
            if shape != expected:
                raise self._error(f"{name} is {list(shape)}, not {list(expected)}")
            if entry.get_dtype() != "F32":
                raise self._error(f"{name} is {entry.get_dtype()}, not F32")

    def _counted(self, name: str, values: Array) -> Array:
        values = self._finite(name, values)
        if self.stale is not None:
            values = self._finite(name, self.stale.apply(name, values))
        return values if self.shortened is None else self.shortened.apply(name, values)

    def _finite(self, name: str, values: Array) -> Array:
        if not np.isfinite(values).all():
            raise self._error(f"{name} holds NaN or infinite values")
        return values

    def _error(self, problem: str) -> ProtocolError:
        return ProtocolError(f"adapter of device {self.device}: {problem}")


class _InMemory:
    """A safetensors file in memory, as `safe_open` shows one on disk."""

    def __init__(self, payload: Payload) -> None:
        """Raises SafetensorError."""
        try:
            self._values: dict[str, Array] = safetensors.numpy.load(bytes(payload))
        except (KeyError, ValueError) as error:  # a type, or a shape, that numpy does not take
            raise SafetensorError(str(error)) from None

    def keys(self) -> list[str]:
        """Names of what is in it."""
        return list(self._values)

    def get_tensor(self, name: str) -> Array:
        """One of them."""
        return self._values[name]

    def get_slice(self, name: str) -> _Header:
        """What a file's header says of it."""
        return _Header(self._values[name])


@dataclass(frozen=True, slots=True)
class _Header:
    values: Array

    def get_shape(self) -> list[int]:
        return list(self.values.shape)

    def get_dtype(self) -> str:
        return "F32" if self.values.dtype == np.float32 else str(self.values.dtype)


def ordered(contributions: Sequence[Contribution]) -> list[Contribution]:
    """By device name, so that sums do not depend on the order of arrival."""
    result = sorted(contributions, key=lambda contribution: contribution.device)
    names = [contribution.device for contribution in result]
    assert names and len(set(names)) == len(names), f"one contribution a device: {names}"
    return result


def in_step(
    contributions: Sequence[Contribution], shapes: Sequence[Shapes]
) -> Iterator[tuple[str, list[Array]]]:
    """Each tensor by name, as every device has it: one tensor of each in memory at a time."""
    streams = [one.tensors(own) for one, own in zip(contributions, shapes, strict=True)]
    for row in zip(*streams, strict=True):
        yield row[0][0], [values for _, values in row]


def verify(contribution: Contribution, shapes: Shapes) -> None:
    """Raise ProtocolError unless the contribution is complete and finite; for when it arrives."""
    for _ in contribution.tensors(shapes):
        pass
