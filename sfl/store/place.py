"""Files under a URL, in a bucket or a folder; what goes wrong there is told in one line."""

from __future__ import annotations

import contextlib
import errno
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from math import inf
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from sfl.config.node import PLACE
from sfl.errors import ConfigError, DiskError, SflError
from sfl.node.extras import require_s3
from sfl.node.files import write_atomic
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


@dataclass(frozen=True, slots=True)
class Stored:
    """A file: its name below the place's folder, its bytes, when it was written in Unix seconds."""

    name: str
    num_bytes: int
    written: float


class Place:
    """A folder below a URL. A file is there whole or not at all."""

    def __init__(self, setting: str, url: str, folder: str) -> None:
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
        self._root = f"{str(root).rstrip('/')}/{folder}"
        self._failures: tuple[type[Exception], ...] = (OSError, *_foreign(scheme))

    def check(self) -> None:
        """That files can be written there. Raises ConfigError."""
        try:
            self.write("check", b"")
            self.remove(["check"])
        except DiskError as error:
            problem, _, fix = str(error).partition(": ")[2].rpartition(". ")
            raise wrong(self._setting, self._url, problem, fix) from None

    def write(self, name: str, data: bytes) -> None:
        """All of it or nothing. Raises DiskError."""
        with self._in_words():
            if isinstance(self._files, LocalFileSystem):
                write_atomic(Path(self._at(name)), data)
            else:
                self._files.pipe_file(self._at(name), data)

    def read(
        self,
        name: str,
        missing: str = "it is not there",
        fix: str = "Make the bucket, or name another.",
    ) -> bytes:
        """All of a file; where it is `missing` that is said, and what then is the `fix`.

        Raises DiskError.
        """
        with self._in_words(missing, fix):
            data: bytes = self._files.cat_file(self._at(name))
            return data

    def remove(self, names: Iterable[str]) -> None:
        """Drop files, those of them that are there. Raises DiskError."""
        with self._in_words():
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    self._files.rm_file(self._at(name))

    def names(self, folder: str) -> set[str]:
        """The last parts of the names of all files below a folder. Raises DiskError."""
        with self._in_words():
            found = self._files.find(self._at(folder))
        return {str(path).rpartition("/")[2] for path in found}

    def files(self) -> list[Stored]:
        """All that there are. Raises DiskError."""
        with self._in_words():
            found = self._files.find(self._root, detail=True)
        start = len(self._root) + 1
        return [
            Stored(str(path)[start:], int(told.get("size") or 0), _written(told))
            for path, told in found.items()
        ]

    def drop(self, folder: str) -> None:
        """Remove a folder with all that is in it, if it is there. Raises DiskError."""
        with self._in_words(), contextlib.suppress(FileNotFoundError):
            self._files.rm(self._at(folder), recursive=True)

    def told(self, problem: str, fix: str) -> DiskError:
        """What is wrong there, as an error."""
        return DiskError(f"{self._setting} = {self._url!r}: {problem}. {fix}")

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextlib.contextmanager
    def _in_words(
        self, missing: str = "it is not there", fix: str = "Make the bucket, or name another."
    ) -> Iterator[None]:
        """What the store or the network says is raised as DiskError."""
        try:
            yield
        except SflError as error:
            raise self.told(str(error).rstrip("."), "Name another folder.") from None
        except FileNotFoundError as error:
            raise self.told(f"{missing} ({_in_a_line(error)})", fix) from None
        except self._failures as error:
            raise self.told(*_problem(error)) from error


def _written(told: Mapping[str, Any]) -> float:
    """When a store says that a file was written; one that does not say counts as new for ever."""
    at = told.get("mtime", told.get("LastModified", inf))
    return at.timestamp() if isinstance(at, datetime) else float(at)


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
