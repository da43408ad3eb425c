"""One device's part in a round: a complete adapter, spooled to disk in one or more files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from sfl.errors import ProtocolError

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Contribution:
    """The files of one device's adapter: its own part, its edge's part, together complete."""

    device: str
    num_examples: int
    files: tuple[Path, ...]

    def tensors(self, current: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
        """Every tensor of `current`, sorted by name, one in memory at a time.

        Raises ProtocolError, naming the device, unless the files together hold exactly the names,
        shapes and types of `current`, all values finite.
        """
        if self.num_examples < 1:
            raise self._error(f"num_examples is {self.num_examples}")
        try:
            with ExitStack() as opened:
                holders = self._holders(opened)
                self._check(holders, current)
                for name in sorted(current):
                    values = holders[name].get_tensor(name)
                    if not np.isfinite(values).all():
                        raise self._error(f"{name} holds NaN or infinite values")
                    yield name, values
        except SafetensorError as error:
            raise self._error(f"not a valid safetensors file: {error}") from None

    def _holders(self, opened: ExitStack) -> dict[str, Any]:
        """Which open file holds which tensor."""
        holders: dict[str, Any] = {}
        for path in self.files:
            file = opened.enter_context(safe_open(path, framework="numpy"))
            for name in file.keys():  # noqa: SIM118 - not a mapping
                if name in holders:
                    raise self._error(f"{name} comes twice")
                holders[name] = file
        return holders

    def _check(self, holders: Mapping[str, Any], current: Mapping[str, Array]) -> None:
        """Names, shapes and types, from the files' headers."""
        for problem, names in (
            ("is missing", current.keys() - holders.keys()),
            ("is unknown", holders.keys() - current.keys()),
        ):
            if names:
                first, count = min(names), len(names) - 1
                raise self._error(f"{first} {problem}" + (f", and {count} more" if count else ""))
        for name, expected in current.items():
            entry = holders[name].get_slice(name)
            shape = tuple(entry.get_shape())
            if shape != expected.shape:
                raise self._error(f"{name} is {list(shape)}, not {list(expected.shape)}")
            if entry.get_dtype() != "F32":
                raise self._error(f"{name} is {entry.get_dtype()}, not F32")

    def _error(self, problem: str) -> ProtocolError:
        return ProtocolError(f"adapter of device {self.device}: {problem}")


class Strategy(Protocol):
    """How the adapters of a round become the next global one."""

    @property
    def name(self) -> str:
        """Name in settings."""

    def aggregate(
        self, contributions: Sequence[Contribution], current: Mapping[str, Array]
    ) -> dict[str, Array]:
        """The next adapter, of the names and shapes of `current`, whatever the order of arrival.

        Raises ProtocolError where a contribution is not complete.
        """


def verify(contribution: Contribution, current: Mapping[str, Array]) -> None:
    """Raise ProtocolError unless the contribution is complete and finite; for when it arrives."""
    for _ in contribution.tensors(current):
        pass
