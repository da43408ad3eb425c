"""Files of a run in a bucket or a folder, each by the SHA-256 of what is in it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from sfl.config.node import PLACE
from sfl.errors import ConfigError, DiskError, SflError
from sfl.node.extras import require_s3
from sfl.node.files import on_disk, write_atomic
from sfl.store.address import NO_ANSWER, wrong

_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {
        "use_listings_cache": False,
        "skip_instance_cache": True,
        "config_kwargs": {
            "connect_timeout": 5,
            "read_timeout": 30,
            "retries": {"max_attempts": 3},
            # Not every server knows the sums that Amazon's has; each file has its hash anyway.
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        },
    }
}
_FORM = "Use s3://BUCKET/PREFIX or file:///FOLDER."
_FULL = ("no space left", "quota", "insufficientstorage", "storagefull", "disk full")
_CREDENTIALS = (
    "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_ENDPOINT_URL if it is not Amazon's."
)


class ArtifactStore:
    """What is there stays as it is: other content has another name."""

    def __init__(self, setting: str, url: str, run_id: str) -> None:
        """`setting` names `url`. Nothing is asked for yet. Raises ConfigError."""
        self._setting, self._url = setting, url
        if re.fullmatch(PLACE, url) is None:
            raise ConfigError(setting, url, "is no store", _FORM)
        scheme = url.partition("://")[0]
        if scheme == "s3":
            require_s3(setting, url)
            for name in ("aiobotocore", "botocore"):  # they tell of every client that they make
                logging.getLogger(name).setLevel(logging.WARNING)
        try:
            files, root = fsspec.url_to_fs(url, **_OPTIONS.get(scheme, {}))
        except (ImportError, ValueError) as error:
            raise ConfigError(setting, url, f"cannot be opened ({error})", _FORM) from None
        self._files: Any = files
        self._root = f"{str(root).rstrip('/')}/{run_id}"
        self._known: set[str] = set()
        self._failures: tuple[type[Exception], ...] = (OSError, *_foreign(scheme))

    def check(self) -> None:
        """That files can be written there. Raises ConfigError."""
        try:
            self._write(name := f"{self._root}/check", b"")
            with self._in_words():
                self._files.rm_file(name)
        except DiskError as error:
            problem, _, fix = str(error).partition(": ")[2].rpartition(". ")
            raise wrong(self._setting, self._url, problem, fix) from None

    def put(self, data: bytes) -> str:
        """Keep it; its name. Raises DiskError."""
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self._known:
            self._write(self._object(digest), data)
            self._known.add(digest)
        return digest

    def get(self, digest: str) -> bytes:
        """What has that name. Raises DiskError, also where it has changed."""
        with self._in_words(f"{digest[:12]}... is not there", "Begin another run."):
            data: bytes = self._files.cat_file(self._object(digest))
        if hashlib.sha256(data).hexdigest() != digest:
            raise self._told(f"{digest[:12]}... is damaged", "Begin another run.")
        return data

    def delete(self, digests: Iterable[str]) -> None:
        """Drop what is not needed any more. Raises DiskError."""
        gone = sorted(digests)
        self._known -= set(gone)
        with self._in_words():
            for name in gone:
                with contextlib.suppress(FileNotFoundError):
                    self._files.rm_file(self._object(name))

    def names(self) -> set[str]:
        """Those of all that is there. Raises DiskError."""
        with self._in_words():
            found = self._files.find(f"{self._root}/objects")
        return {str(path).rpartition("/")[2] for path in found}

    def publish(self, name: str, data: bytes) -> None:
        """Put a result there, under its own name. Raises DiskError."""
        self._write(f"{self._root}/{name}", data)

    def _object(self, digest: str) -> str:
        return f"{self._root}/objects/{digest}"

    def _write(self, name: str, data: bytes) -> None:
        """All of it or nothing. Raises DiskError."""
        with self._in_words():
            if isinstance(self._files, LocalFileSystem):
                write_atomic(Path(name), data)
            else:
                self._files.pipe_file(name, data)

    @contextlib.contextmanager
    def _in_words(
        self, missing: str = "it is not there", fix: str = "Make the bucket, or name another."
    ) -> Iterator[None]:
        """What the store or the network says is raised as DiskError."""
        try:
            yield
        except SflError as error:
            raise self._told(str(error).rstrip("."), "Name another folder.") from None
        except FileNotFoundError as error:
            raise self._told(f"{missing} ({_in_a_line(error)})", fix) from None
        except self._failures as error:
            raise self._told(*_problem(error)) from error

    def _told(self, problem: str, fix: str) -> DiskError:
        return DiskError(f"{self._setting} = {self._url!r}: {problem}. {fix}")


def _foreign(scheme: str) -> tuple[type[Exception], ...]:
    """What a store raises that is no error of the system's."""
    if scheme != "s3":
        return ()
    from botocore.exceptions import BotoCoreError, ClientError  # of the extra s3

    return BotoCoreError, ClientError


def _problem(error: Exception) -> tuple[str, str]:
    """(what is wrong, what to do)."""
    said = _in_a_line(error)
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    if full or any(word in said.lower() for word in _FULL):
        return f"it is full ({said})", "Make room there."
    if isinstance(error, PermissionError):
        return f"it does not let this process in ({said})", _CREDENTIALS
    if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
        return f"there are no credentials for it ({said})", _CREDENTIALS
    return f"{NO_ANSWER} ({said})", "Start it, or check AWS_ENDPOINT_URL and network."


def _in_a_line(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:300]


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
