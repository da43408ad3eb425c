"""A codec stage: each column's mean is sent in full, and the rest as what differs from it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sfl.codec.packet import from_bytes, is_finite, to_bytes
from sfl.codec.sections import Reader, Writer
from sfl.codec.spec import Argument, at_most
from sfl.codec.transform import Back, Shape, Signal, Transform
from sfl.errors import ProtocolError


@dataclass(frozen=True)
class Centre(Transform):
    """Remembers nothing from packet to packet, so that it is both of its ends itself."""

    name: str = "centre"

    def sender(self, hidden: int, folder: Path | None, setting: str) -> Centre:
        """Itself."""
        return self

    def receiver(self, hidden: int, folder: Path | None, setting: str) -> Centre:
        """Itself."""
        return self

    def encode(self, signal: Signal, write: Writer) -> tuple[Signal, Back]:
        """Rows less the mean row, [n, H]; the mean is written as a section."""
        mean = signal.values.mean(0)
        write.add(to_bytes(mean))
        left = signal.values - mean
        return replace(signal, values=left, scale_of=left), partial(_moved, by=mean.cpu())

    def decode(self, shape: Shape, read: Reader) -> tuple[Shape, Back]:
        """The same mean. Raises ProtocolError."""
        mean = from_bytes(read.view(4 * shape[1]), (shape[1],), torch.float32)
        return shape, partial(_moved, by=mean)


def _moved(values: Tensor, *, by: Tensor) -> Tensor:
    """[n * H] -> [n, H], each row moved; what a peer sends may be any number."""
    whole = values.view(-1, len(by)) + by
    if not is_finite(whole):
        raise ProtocolError("codec centre: a value is NaN or infinite")
    return whole


def make_centre(arguments: tuple[Argument, ...]) -> Centre:
    """`centre`."""
    at_most(arguments, 0)
    return Centre()
