"""Snapshots of a run's devices in a store that all of its edges share."""

from __future__ import annotations

import hashlib
import json
import logging
import struct
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import safetensors.numpy

from sfl.errors import DiskError
from sfl.store.place import Place, Stored

log = logging.getLogger("sfl.recovery")

SETTING = "edge.snapshots"
ALIVE = "alive-"


@dataclass(frozen=True, slots=True)
class StoredRun:
    """What is kept of a run: how much of how many devices, and when anything of it was written
    last, in Unix seconds."""

    key: str
    devices: int
    num_files: int
    num_bytes: int
    written: float

    def given_up(self, now: float, seconds: float) -> bool:
        """Whether nothing was written for so long."""
        return now - self.written > seconds


class SharedSnapshots:
    """`URL/recovery/RUN/DEVICE`: whichever edge a device is at finds what the one before wrote.

    `URL/recovery/RUN/alive-EDGE` is written again and again as long as an edge has the run.
    """

    def __init__(self, url: str, setting: str = SETTING) -> None:
        """`setting` names `url`. Raises ConfigError."""
        self._place = Place(setting, url, "recovery")
        self._url = url
        self._over: set[str] = set()
        self._lock = threading.Lock()

    @property
    def label(self) -> str:
        """The same for edges that share one store, and tells nothing of where it is."""
        return hashlib.sha256(self._url.encode()).hexdigest()[:16]

    def check(self) -> None:
        """That files can be written there. Raises ConfigError."""
        self._place.check()

    def of(self, run_key: str, device: str) -> DeviceShelf:
        """One device's."""
        return DeviceShelf(self._place, f"{_plain(run_key)}/{device}", self._url)

    def forget_run(self, run_key: str) -> None:
        """Remove all of a run that is over, for every edge; it is not said to be alive again."""
        with self._lock:
            self._over.add(run_key)
            try:
                self._place.drop(_plain(run_key))
            except DiskError as error:
                log.warning("snapshots of a run that is over are still there: %s", error)

    def say_alive(self, run_key: str, edge: str) -> None:
        """That an edge has the run: whoever looks for runs that were given up leaves it."""
        with self._lock:
            if run_key in self._over:
                return
            try:
                self._place.write(f"{_plain(run_key)}/{ALIVE}{edge}", b"")
            except DiskError as error:
                log.warning("that a run is alive is not said: %s", error)

    def runs(self) -> list[StoredRun]:
        """All of which something is kept, the one first to which nothing was written for longest.

        Raises DiskError.
        """
        of: dict[str, list[Stored]] = {}
        for file in self._place.files():
            run, inside, _ = file.name.partition("/")
            if inside:
                of.setdefault(run, []).append(file)
        found = [_stored_run(key, files) for key, files in of.items()]
        return sorted(found, key=lambda own: (own.written, own.key))

    def forget_given_up(self, now: float, seconds: float) -> list[StoredRun]:
        """Remove all of runs to which nothing was written for so many seconds by `now`; which.

        Each is looked at again before it is removed. Raises DiskError.
        """
        if not any(own.given_up(now, seconds) for own in self.runs()):
            return []
        gone = [own for own in self.runs() if own.given_up(now, seconds)]
        for own in gone:
            self._place.drop(own.key)
        return gone


class DeviceShelf:
    """A folder of the store. Every method raises DiskError."""

    def __init__(self, place: Place, folder: str, url: str) -> None:
        self._place, self._folder, self._url = place, folder, url

    def __str__(self) -> str:
        return self._url

    def names(self) -> list[str]:
        """Those of its files."""
        return sorted(self._place.names(self._folder))

    def write(self, name: str, pieces: Sequence[bytes | memoryview]) -> None:
        """Keep a file, whole or not at all."""
        self._place.write(self._at(name), b"".join(pieces))

    def read(self, name: str) -> tuple[dict[str, str], dict[str, np.ndarray]]:
        """Header and arrays of one. Raises ValueError, SafetensorError where it is none."""
        data = self._place.read(self._at(name))
        return _header(data), safetensors.numpy.load(data)

    def remove(self, names: Iterable[str]) -> None:
        """Drop files, those of them that are there."""
        self._place.remove(map(self._at, names))

    def _at(self, name: str) -> str:
        return f"{self._folder}/{name}"


def _stored_run(key: str, files: Sequence[Stored]) -> StoredRun:
    devices = {file.name.split("/")[1] for file in files if file.name.count("/") > 1}
    size, last = sum(file.num_bytes for file in files), max(file.written for file in files)
    return StoredRun(key, len(devices), len(files), size, last)


def _header(data: bytes) -> dict[str, str]:
    """What a safetensors file says of itself; the library reads it from files only."""
    try:
        (size,) = struct.unpack_from("<Q", data)
        told = json.loads(data[8 : 8 + size])
        return dict(told.get("__metadata__", {}))
    except (struct.error, AttributeError, TypeError) as error:
        raise ValueError(f"it has no header ({error})") from None


def _plain(run_key: str) -> str:
    """A key as a name of a folder, whatever is in it."""
    return run_key if run_key.isalnum() else hashlib.sha256(run_key.encode()).hexdigest()
