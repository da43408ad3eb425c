"""Snapshots of a run's devices in a store that all of its edges share."""

from __future__ import annotations

import hashlib
import json
import logging
import struct
from collections.abc import Iterable, Sequence

import numpy as np
import safetensors.numpy

from sfl.errors import DiskError
from sfl.store.place import Place

log = logging.getLogger("sfl.recovery")

SETTING = "edge.snapshots"


class SharedSnapshots:
    """`URL/recovery/RUN/DEVICE`: whichever edge a device is at finds what the one before wrote."""

    def __init__(self, url: str) -> None:
        """Raises ConfigError."""
        self._place = Place(SETTING, url, "recovery")
        self._url = url

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
        """Remove all of a run that is over, for every edge."""
        try:
            self._place.drop(_plain(run_key))
        except DiskError as error:
            log.warning("snapshots of a run that is over are still there: %s", error)


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
