"""Swapping: adapters of devices that have nothing to do for a while leave the edge's memory.

Parameters stay the objects they are, without values; what they held, AdamW's moments and FedProx's
anchors go to a file and come back bit for bit. All of this runs on the compute thread.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from sfl.errors import DiskError, SflError
from sfl.metrics.stats import NodeStats
from sfl.node.causes import disk_error

log = logging.getLogger("sfl.edge")


class Swappable(Protocol):
    """What a session offers to be swapped out."""

    device: str

    @property
    def idle(self) -> bool:
        """Whether nothing of a step is under way, so that nobody looks at its tensors."""

    def held(self) -> Mapping[str, Tensor]:
        """Every tensor that must come back, by a name of its own."""

    def let_go(self) -> None:
        """Give up the memory of those tensors."""

    def take_back(self, tensors: Mapping[str, Tensor]) -> None:
        """Have them again, with what `held` had."""


def surplus(
    residents: Sequence[str], idle: Collection[str], needed: Collection[str], limit: int
) -> list[str]:
    """Who is swapped out so that, with all `needed`, at most `limit` devices are in memory.

    `residents` are in memory now, those used longest ago first. Who is busy stays, so more than
    `limit` may remain.
    """
    count = len(set(residents) | set(needed)) - limit
    movable = [name for name in residents if name in idle and name not in needed]
    return movable[: max(0, count)]


class Residence:
    """Which sessions have their tensors in memory: at most `limit`, the last used, and the busy.

    The others are swapped to files without a name, one for each, on the disk of the folder `where`.
    One is written to its end before its tensors are given up, and gone once they are back; all are
    gone with the process, however that ends. Without `where` they go to this machine's memory,
    which helps where the blocks are on an accelerator.
    """

    def __init__(self, limit: int, where: Path | None, stats: NodeStats) -> None:
        self._limit: int | None = limit
        self._where = where
        self._stats = stats
        self._resident: dict[str, Swappable] = {}  # the last used last
        self._swapped: dict[str, Swapped] = {}

    def enter(self, *sessions: Swappable) -> dict[str, SflError]:
        """Have these in memory, others swapped out; by device, those that cannot be read back."""
        needed = {session.device: session for session in sessions}
        if self._limit is not None:
            idle = {name for name, session in self._resident.items() if session.idle}
            for name in surplus(list(self._resident), idle, needed.keys(), self._limit):
                self._swap_out(self._resident[name])
        lost = {}
        for device, session in needed.items():
            try:
                if device in self._swapped:
                    self._swap_in(session)
            except SflError as error:
                lost[device] = error
            else:
                self._resident.pop(device, None)
                self._resident[device] = session
        return lost

    def leave(self, device: str) -> None:
        """Forget a device, and what was swapped out of it."""
        self._resident.pop(device, None)
        if (swapped := self._swapped.pop(device, None)) is not None:
            swapped.close()
        self._count()

    def close(self) -> None:
        """Forget all that is swapped out."""
        for swapped in self._swapped.values():
            swapped.close()
        self._swapped.clear()

    def _swap_out(self, session: Swappable) -> None:
        tensors = dict(session.held())
        swapped: Swapped
        if self._where is None:
            swapped = InMemory(tensors)
        else:
            try:
                swapped = OnDisk(tensors.items(), self._where.expanduser())
            except OSError as error:
                # Somebody else's job must not fail for it, and nothing is lost.
                cause = disk_error(self._where, error, "edge.swap_dir")
                log.warning("adapters stay in memory: %s", cause)
                self._limit = None
                return
        del tensors
        del self._resident[session.device]
        self._swapped[session.device] = swapped
        session.let_go()
        self._count()

    def _swap_in(self, session: Swappable) -> None:
        swapped = self._swapped[session.device]
        try:
            tensors = swapped.read()
        except OSError as error:
            cause = disk_error(self._where or "memory", error, "edge.swap_dir")
            raise DiskError(
                f"the swapped adapter of device {session.device} cannot be read back: {cause}"
            ) from None
        session.take_back(tensors)
        self._swapped.pop(session.device).close()
        self._stats.adapters_woken += 1
        self._count()

    def _count(self) -> None:
        self._stats.adapters_resting = len(self._swapped)


class Swapped(Protocol):
    """Tensors that were swapped out."""

    def read(self) -> dict[str, Tensor]:
        """All of them, each where it was. Raises OSError."""

    def close(self) -> None:
        """Forget them."""


class InMemory:
    """Copies in this machine's memory."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._homes = {name: tensor.device for name, tensor in tensors.items()}
        self._copies = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}

    def read(self) -> dict[str, Tensor]:
        """All of them, each where it was."""
        return {name: self._copies[name].to(home) for name, home in self._homes.items()}

    def close(self) -> None:
        """Forget them."""
        self._copies.clear()


@dataclass(frozen=True, slots=True)
class Form:
    """What a tensor's bytes do not tell."""

    shape: torch.Size
    dtype: torch.dtype
    home: torch.device


class OnDisk:
    """Their bytes, one tensor behind the other, in a file without a name.

    Only this process can reach it, and it goes with it. Of tensors that are made one by one no more
    than that one is in memory. Raises OSError.
    """

    def __init__(self, tensors: Iterable[tuple[str, Tensor]], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._forms: dict[str, Form] = {}
        # Without a buffer nothing is left to be written when a file is closed on a full disk.
        self._file: FileIO = tempfile.TemporaryFile(  # noqa: SIM115 - open while swapped out
            buffering=0, prefix="sfl-edge-", dir=folder
        )
        try:
            for name, tensor in tensors:
                self._forms[name] = Form(tensor.shape, tensor.dtype, tensor.device)
                self._write(_bytes_of(tensor))
        except BaseException:
            self._file.close()
            raise

    @property
    def nbytes(self) -> int:
        """Of its file."""
        return sum(form.shape.numel() * form.dtype.itemsize for form in self._forms.values())

    def read(self) -> dict[str, Tensor]:
        """All of them, each where it was, in memory of torch's own. Raises OSError."""
        return dict(self.each())

    def each(self) -> Iterator[tuple[str, Tensor]]:
        """The same one by one. Raises OSError."""
        self._file.seek(0)
        for name, form in self._forms.items():
            tensor = torch.empty(form.shape, dtype=form.dtype)
            self._read(_bytes_of(tensor))
            yield name, tensor.to(form.home)

    def close(self) -> None:
        """Forget them; the disk has its room back."""
        self._file.close()

    def _write(self, data: memoryview) -> None:
        while data:  # one call moves 2 GB at most
            data = data[self._file.write(data) :]

    def _read(self, data: memoryview) -> None:
        while data:
            if not (count := self._file.readinto(data)):
                raise OSError(f"its file ends {len(data)} bytes too early")
            data = data[count:]


def _bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's bytes; its own where it is whole in this machine's memory."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data
