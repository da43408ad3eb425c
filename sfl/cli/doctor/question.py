"""What a doctor is asked; nothing heavy, so that it can be read before torch is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Question:
    """What to look at. `room` is memory in bytes to fit a device into; default: what is free.

    `batch_size`, `length` and `rank` win over the file's. `cuts` are those of the devices of an
    edge, whose own file knows none.
    """

    file: Path | None = None
    overrides: tuple[str, ...] = ()
    model: str | None = None
    edge: str | None = None
    insecure: bool = False
    certs: Path | None = None
    """Folder with a certificate to test the link with, where it is not the file's."""
    room: int | None = None
    batch_size: int | None = None
    length: int | None = None
    rank: int | None = None
    cuts: tuple[int, ...] = ()
