"""Stages that change values before they are quantised, and undo that where they arrive.

A sender passes a `Signal` from stage to stage, each of which may write sections of its own. The
receiver asks the same stages, in the same order, what their sections say; once the values are
there, it goes back through them in reverse. A new one is a `Transform` with its two ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch import Tensor

from sfl.codec.sections import Reader, Writer

Longs = npt.NDArray[np.int64]
Shape = tuple[int, int]
Back = Callable[[Tensor], Tensor]
"""From the values behind a stage, flat and in float32, to those before it; the ones it is given
are its own to change."""


@dataclass(frozen=True, slots=True)
class RowContext:
    """What a sender knows of its rows: token, the one before, example and position. Never sent."""

    tokens: Longs
    previous: Longs
    examples: Longs
    positions: Longs

    def of(self, rows: npt.NDArray[np.bool_]) -> RowContext:
        """Of some rows."""
        return RowContext(
            self.tokens[rows], self.previous[rows], self.examples[rows], self.positions[rows]
        )


@dataclass(frozen=True, slots=True)
class Signal:
    """Values `[rows, columns]` between two stages of a sender.

    `scale_of` are the values that a quantiser measures its step on, `groups` the rows of each
    sequence. `mask` has a bit for each value of the tensor, 0 where a stage has left it out.
    """

    values: Tensor
    scale_of: Tensor
    groups: Sequence[int]
    context: RowContext | None = None
    mask: npt.NDArray[np.uint8] | None = None


class Sender(Protocol):
    """A stage's sending end of one stream."""

    def encode(self, signal: Signal, write: Writer) -> tuple[Signal, Back]:
        """What goes on, and the way back of what arrives of it. Raises ProtocolError.

        The way back is taken where the codec `echoes`, once for each packet.
        """


class Receiver(Protocol):
    """A stage's receiving end of one stream."""

    def decode(self, shape: Shape, read: Reader) -> tuple[Shape, Back]:
        """Where `shape` is due before the stage: what is due behind it, and the way back.

        Raises ProtocolError, also on the way back.
        """


@runtime_checkable
class Remembering(Protocol):
    """An end of a stage whose memory can be saved, and taken back by a new one of the same."""

    def held(self) -> dict[str, np.ndarray]:
        """All that it remembers, by names of its own; nothing where that is not to be kept."""

    def take_back(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Remember what another one held; this one has seen nothing yet."""


class Transform:
    """A stage as it is written; its ends belong to a stream."""

    name: str
    """As written in a specification, with its arguments."""
    exact = False
    """Whether every bit comes back."""
    needs_context = False
    """Whether its sender has to be told what its rows are: only a device knows, of activations."""
    keeps_rows = True
    """Whether rows are still rows behind it; else no further transform may follow."""
    on_cpu = False
    """Whether its sender takes values that are in the CPU's memory alone."""
    echoes = False
    """Whether its sender has to see what arrives."""
    on_disk = False
    """Whether its ends keep rows in a file."""

    def sender(self, hidden: int, folder: Path | None, setting: str) -> Sender:
        """A sending end for rows of so many values.

        It may keep files in `folder`, which errors call by its `setting`.
        """
        raise NotImplementedError

    def receiver(self, hidden: int, folder: Path | None, setting: str) -> Receiver:
        """A receiving end."""
        raise NotImplementedError
