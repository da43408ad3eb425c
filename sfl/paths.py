"""Paths as people give them: `~` where nobody has a home, names that are not UTF-8 or too long."""

from __future__ import annotations

from pathlib import Path

from sfl.errors import ConfigError


def expanded(path: Path | str, field: str) -> Path:
    """The path with `~` as the user's home; `field` is the setting that it came from.

    Raises ConfigError where there is no home (a service's user, a container's number), and where
    the system would not even look whether something lies there.
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
    """Whether something lies there; not where the system does not say."""
    return _out_of_reach(path) is None and path.exists()


def _out_of_reach(path: Path) -> str | None:
    """Why the system does not say whether something lies there: no right, a name too long."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return error.strerror or str(error)
    except ValueError as error:  # a NUL byte
        return str(error)
    return None


def is_utf8(text: str) -> bool:
    """Whether a file's name or an argument was UTF-8; else Python holds its bytes as surrogates."""
    return not any("\udc80" <= letter <= "\udcff" for letter in text)


def require_utf8(text: str, field: str) -> None:
    """Raise ConfigError unless `text`, the value of `field`, can be written into a file."""
    if not is_utf8(text):
        raise ConfigError(
            field,
            text,
            "not UTF-8, as the settings, reports and messages that name it are",
            "Rename it, or reach it by a link with another name.",
        )
