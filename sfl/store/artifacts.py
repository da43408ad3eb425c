"""Files of a run in a bucket or a folder, each by the SHA-256 of what is in it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from sfl.node.files import on_disk, write_atomic
from sfl.store.place import Place


class ArtifactStore:
    """What is there stays as it is: other content has another name."""

    def __init__(self, setting: str, url: str, run_id: str) -> None:
        """`setting` names `url`. Nothing is asked for yet. Raises ConfigError."""
        self._place = Place(setting, url, run_id)
        self._known: set[str] = set()

    def check(self) -> None:
        """That files can be written there. Raises ConfigError."""
        self._place.check()

    def put(self, data: bytes) -> str:
        """Keep it; its name. Raises DiskError."""
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self._known:
            self._place.write(_object(digest), data)
            self._known.add(digest)
        return digest

    def get(self, digest: str) -> bytes:
        """What has that name. Raises DiskError, also where it has changed."""
        missing, fix = f"{digest[:12]}... is not there", "Begin another run."
        data = self._place.read(_object(digest), missing, fix)
        if hashlib.sha256(data).hexdigest() != digest:
            raise self._place.told(f"{digest[:12]}... is damaged", fix)
        return data

    def delete(self, digests: Iterable[str]) -> None:
        """Drop what is not needed any more. Raises DiskError."""
        gone = sorted(digests)
        self._known -= set(gone)
        self._place.remove(map(_object, gone))

    def names(self) -> set[str]:
        """Those of all that is there. Raises DiskError."""
        return self._place.names("objects")

    def publish(self, name: str, data: bytes) -> None:
        """Put a result there, under its own name. Raises DiskError."""
        self._place.write(name, data)


def _object(digest: str) -> str:
    return f"objects/{digest}"


def same(path: Path, digest: str) -> bool:
    """Whether a file has what is called so."""
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == digest


def restore(path: Path, data: bytes, *, private: bool) -> None:
    """Write a file that came from a store, a `private` one for its owner alone.

    Raises DiskError.
    """
    with on_disk(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not private:
            write_atomic(path, data)
            return
        aside = path.with_name(f"{path.name}.new")
        aside.unlink(missing_ok=True)
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
