"""Paths as people give them: `~` where nobody has a home, names that are not UTF-8 or too long, and
what is there instead of a file."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Literal

from sfl.errors import ConfigError

_KINDS = (
    (stat.S_ISREG, "a file"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe (FIFO)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)


def expanded(path: Path | str, field: str) -> Path:
    """The path with `~` as the user's home; `field` is the setting that it came from.

    Raises ConfigError where there is no home (a service's user, a container's number), and where
    the system would not even look whether something is there.
    """
    try:
        found = Path(path).expanduser()
    except RuntimeError:
        raise ConfigError(
            field,
            str(path),
            "this user has no home directory for ~ to stand for",
            "Give a path that begins with /, or set HOME.",
        ) from None
    if (why := _out_of_reach(found)) is not None:
        raise ConfigError(field, str(path), f"cannot be reached ({why})", "Check the path.")
    return found


def is_there(path: Path) -> bool:
    """Whether something is there; not where the system does not say."""
    return _out_of_reach(path) is None and path.exists()


def _out_of_reach(path: Path) -> str | None:
    """Why the system does not say whether something is there: no right, a name too long."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return error.strerror or str(error)
    except ValueError as error:  # a NUL byte
        return str(error)
    return None


def amiss(path: Path, wanted: Literal["file", "folder"]) -> str:
    """What is wrong with `path` where a `wanted` should be, to be put behind its name.

    E.g. `no such file`, `is a socket, not a file`; empty where one is there. Opens nothing: a
    pipe would keep whoever does.
    """
    if (why := _out_of_reach(path)) is not None:
        return f"cannot be reached ({why})"
    try:
        mode = path.stat().st_mode
    except OSError:
        if path.is_symlink():
            return f"is a link to {str(path.readlink())!r}, which does not exist"
        return f"no such {wanted}"
    found = next((words for is_one, words in _KINDS if is_one(mode)), "something else")
    return "" if found == f"a {wanted}" else f"is {found}, not a {wanted}"


def nothing_there(path: Path) -> bool:
    """Whether nothing at all is at `path`, not even a link."""
    return amiss(path, "file") == "no such file"


def is_utf8(text: str) -> bool:
    """Whether a file's name or an argument was UTF-8; else Python holds its bytes as surrogates."""
    return not any("\udc80" <= letter <= "\udcff" for letter in text)


def require_utf8(text: str, field: str) -> None:
    """Raise ConfigError unless `text`, the value of `field`, can be written into a file."""
    if not is_utf8(text):
        raise ConfigError(
            field,
            text,
            "not UTF-8; settings, reports and messages that name it must be",
            "Rename it, or reach it by a link with another name.",
        )
