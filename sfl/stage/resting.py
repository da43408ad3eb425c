"""Adapters at rest: what an edge puts aside of devices that have nothing to do for a while.

Parameters stay the objects they are, without values; what they held, AdamW's moments and FedProx's
anchors go to a file and come back bit for bit. All of this runs on the compute thread.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sfl.errors import ProtocolError
from sfl.metrics.stats import NodeStats

log = logging.getLogger("sfl.edge")


class Sleeper(Protocol):
    """What a session offers to be put aside."""

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
    """Who is put aside so that, with all `needed`, at most `limit` devices are in memory.

    `residents` are in memory now, those used longest ago first. Who is busy stays, so more than
    `limit` may remain.
    """
    count = len(set(residents) | set(needed)) - limit
    movable = [name for name in residents if name in idle and name not in needed]
    return movable[: max(0, count)]


class Residence:
    """Which sessions have their tensors in memory: at most `limit`, the last used, and the busy.

    The others rest in files of a folder made under `where`, readable by this user only. A file is
    whole before its tensors are given up and is removed when they are back. Without `where` they
    rest in this machine's memory, which helps where the blocks lie on an accelerator.
    """

    def __init__(self, limit: int, where: Path | None, stats: NodeStats) -> None:
        self._limit: int | None = limit
        self._copies: dict[str, dict[str, Tensor]] = {}
        self._where = where
        self._folder: Path | None = None
        self._stats = stats
        self._awake: dict[str, Sleeper] = {}  # the last used last
        self._asleep: dict[str, dict[str, torch.device]] = {}  # and where each tensor was

    def enter(self, *sessions: Sleeper) -> None:
        """Have these in memory, others aside. Raises ProtocolError where one cannot be read."""
        needed = {session.device: session for session in sessions}
        if self._limit is not None:
            idle = {name for name, session in self._awake.items() if session.idle}
            for name in surplus(list(self._awake), idle, needed.keys(), self._limit):
                self._put(self._awake[name])
        for session in sessions:
            self._awake.pop(session.device, None)
            if session.device in self._asleep:
                self._fetch(session)
            self._awake[session.device] = session

    def leave(self, device: str) -> None:
        """Forget a device, and its file."""
        self._awake.pop(device, None)
        self._copies.pop(device, None)
        if self._asleep.pop(device, None) is not None and self._where is not None:
            self._path(device).unlink(missing_ok=True)
        self._count()

    def close(self) -> None:
        """Remove every file."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _put(self, session: Sleeper) -> None:
        tensors = dict(session.held())
        if self._where is None:
            self._copies[session.device] = {
                name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()
            }
        else:
            try:
                self._write(session.device, tensors, self._where)
            except (OSError, SafetensorError) as error:
                # Somebody else's job must not fail for it, and nothing is lost.
                log.warning("adapters stay in memory: %s cannot be written: %s", self._where, error)
                self._limit = None
                return
        del self._awake[session.device]
        self._asleep[session.device] = {name: tensor.device for name, tensor in tensors.items()}
        del tensors
        session.let_go()
        self._count()

    def _fetch(self, session: Sleeper) -> None:
        homes = self._asleep[session.device]
        if self._where is None:
            tensors = self._copies.pop(session.device)
        else:
            tensors = self._read(session.device)
        session.take_back({name: tensors[name].to(home) for name, home in homes.items()})
        del self._asleep[session.device]
        self._stats.adapters_woken += 1
        self._count()

    def _write(self, device: str, tensors: dict[str, Tensor], where: Path) -> None:
        if self._folder is None:
            where = where.expanduser()
            where.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix="sfl-edge-", dir=where))  # mode 0700
        path = self._path(device)
        aside = path.with_suffix(".part")
        try:
            save_file(tensors, aside)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)

    def _read(self, device: str) -> dict[str, Tensor]:
        path = self._path(device)
        try:
            with safe_open(path, framework="pt") as file:
                # Copied into memory of torch's own: a mapped file is aligned otherwise.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ProtocolError(
                f"the adapter of device {device} at rest cannot be read back: {error}"
            ) from None
        path.unlink(missing_ok=True)
        return tensors

    def _path(self, device: str) -> Path:
        assert self._folder is not None, "a file is named once there is one"
        return self._folder / f"{device}.safetensors"

    def _count(self) -> None:
        self._stats.adapters_resting = len(self._asleep)
