"""One process at a time: a lock that the system lets go of when its process ends."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from sfl.errors import DiskError
from sfl.node.files import on_disk


class FolderLock:
    """Held from its making until `release`, or until its process ends in any way."""

    def __init__(self, path: Path) -> None:
        """Raises DiskError, also where another process holds it."""
        self._path = path
        with on_disk(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = _taken(path)
        if handle is None:
            raise DiskError(f"{path.parent}: another process is at work on this run")
        self._handle: int | None = handle

    def release(self) -> None:
        """Let others have it; nothing of it stays."""
        if self._handle is not None:
            self._path.unlink(missing_ok=True)  # before others can have it
            os.close(self._handle)
            self._handle = None


def is_held(path: Path) -> bool:
    """Whether a process holds a lock; it is not taken, and nothing is written. Raises DiskError."""
    if sys.platform == "win32":
        return path.exists()
    import fcntl

    with on_disk(path.parent):
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
    return False


def _taken(path: Path) -> int | None:
    """The file's handle, locked; None where another has it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        if not _lock(handle):
            os.close(handle)
            return None
        if path.exists() and os.path.samestat(path.stat(), os.fstat(handle)):
            return handle
        os.close(handle)  # whoever had it removed it meanwhile


def _lock(handle: int) -> bool:
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
