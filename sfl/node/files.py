"""Folders that can be written to, and files that are either whole or not there."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

from sfl.errors import ConfigError
from sfl.node.causes import disk_error
from sfl.node.paths import expanded


@contextlib.contextmanager
def on_disk(folder: Path, setting: str = "") -> Iterator[None]:
    """Work on files in `folder`; what the system says of them is raised as one of ours.

    The one place where that is done; `setting` is where the folder was named. Raises DiskError,
    OutOfMemory.
    """
    try:
        yield
    except OSError as error:
        raise disk_error(folder, error, setting) from None


def writable_folder(path: Path, field: str, *, private: bool = False) -> Path:
    """The folder `path`, made where it is missing and tried; `field` is the setting it came from.

    With `private` a new one is its owner's alone. Raises ConfigError where nothing can be written.
    """
    folder = expanded(path, field)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700 if private else 0o777)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise ConfigError(
            field,
            str(path),
            f"nothing can be written there ({error.strerror})",
            "Name a folder that you can write to, on a disk with space.",
        ) from None


def write_atomic(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Replace `path` by `content` in one step; a reader sees the old file or the new one.

    Makes missing folders. Text is written as UTF-8, what cannot be is escaped. With `durable` the
    data are on the disk when this returns; without (a live view's file) a power cut may lose them,
    never tear them.
    One process writes a given path. Raises DiskError, and leaves no temporary file behind.
    """
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    write_pieces(path, [data], durable=durable)


def write_pieces(path: Path, pieces: Sequence[bytes | memoryview], *, durable: bool = True) -> None:
    """As `write_atomic`, of what is in memory in pieces; none of them is copied."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with on_disk(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with aside.open("wb") as file:
                file.writelines(pieces)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            aside.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                aside.unlink(missing_ok=True)
            raise
        if durable:
            sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Put a rename on the disk: it lives in the folder, not in the file."""
    if os.name != "posix":
        return  # other systems cannot open a folder
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Reserve:
    """Room on a disk that is held back, so that how a run ended can still be told on a full one."""

    def __init__(self, path: Path, size: int = 1 << 18) -> None:
        """Take `size` bytes. Raises DiskError."""
        self._path = path
        with on_disk(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(os.urandom(size))  # which no file system can compress

    def give_back(self) -> None:
        """Leave the room to whoever writes next."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


class Room:
    """A mapped file's room on its disk, taken before it is touched.

    Where a disk has none left, a page of a file with holes ends the process by a signal (SIGBUS);
    taken beforehand, it is an error like any other.
    """

    STEP = 1 << 22

    def __init__(self, file: int, folder: Path, setting: str = "") -> None:
        """Of an open file, by its descriptor, that is in `folder`."""
        self._file = os.dup(file)
        weakref.finalize(self, os.close, self._file)
        self._folder, self._setting = folder, setting
        self._taken = 0

    def grow(self, end: int) -> None:
        """Have all room up to `end`, in bytes. Raises DiskError."""
        if end > self._taken:
            size = os.fstat(self._file).st_size
            upto = min(size, -(-end // self.STEP) * self.STEP)
            self.take(self._taken, upto - self._taken)
            self._taken = upto

    def take(self, start: int, count: int) -> None:
        """Have room for `count` bytes from `start` on. Raises DiskError."""
        if not hasattr(os, "posix_fallocate"):
            return  # macOS
        with on_disk(self._folder, self._setting):
            try:
                os.posix_fallocate(self._file, start, count)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
