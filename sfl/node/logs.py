"""Logs as lines for people, or as one JSON object a line for programs."""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Literal

from sfl.node.text import plain

LogFormat = Literal["text", "json"]
Fields = Callable[[], Mapping[str, object]]

ENVIRONMENT = "SFL_LOG_FORMAT"
"""Where a process finds its format, and leaves it to those that it starts."""

OWN = ("run", "round", "step", "device")
"""What a call may say of its own line, as `extra`; it goes before what the node says."""


LONGEST = 8192
"""Characters of a message; what goes beyond is counted."""

_PERHAPS_UNPRINTABLE = re.compile(r"[^ -~]")


class TextLines(logging.Formatter):
    """A record as one line for people, whatever a peer's words in it hold.

    Lines of a traceback stand behind a bar, so that none can pass for a line of the log.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the base class's name
        """The line, its message on one."""
        record.message = plain(record.message, LONGEST)
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:  # noqa: N802 - the base class's name
        """The traceback, each line behind a bar."""
        lines = super().formatException(ei).split("\n")  # type: ignore[arg-type]
        return "\n".join(f"  | {plain(line, LONGEST)}" for line in lines)


class JsonLines(logging.Formatter):
    """A record as one line of JSON: time, level, logger, message, and whatever is known of `OWN`.

    `about` is asked with every record for what the node knows of itself then; what is None, empty
    or 0 is left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.about: Fields = dict

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        time = datetime.fromtimestamp(record.created, UTC)
        values: dict[str, object] = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": _cut(record.getMessage()),
            **self.about(),
        }
        values.update((name, getattr(record, name)) for name in OWN if hasattr(record, name))
        if record.exc_info:
            values["exception"] = self.formatException(record.exc_info)
        known = {name: value for name, value in values.items() if value}
        return _PERHAPS_UNPRINTABLE.sub(
            _escaped, json.dumps(known, ensure_ascii=False, default=str)
        )


def _cut(text: str) -> str:
    rest = len(text) - LONGEST
    return text if rest <= 0 else f"{text[:LONGEST]}... (and {rest} more characters)"


def _escaped(found: re.Match[str]) -> str:
    """A letter as JSON may also write it, where it is not printable."""
    letter = found[0]
    return letter if letter.isprintable() else json.dumps(letter)[1:-1]


def start_logging(log_format: LogFormat = "text", level: str = "INFO") -> None:
    """Log to stderr, one line an event; a disk that takes no more lines stops nothing."""
    logging.raiseExceptions = False
    handler = logging.StreamHandler(sys.stderr)
    if log_format == "json":
        handler.setFormatter(JsonLines())
        logging.captureWarnings(True)  # they too are to be JSON
    else:
        handler.setFormatter(TextLines())
    logging.basicConfig(level=level, handlers=[handler])


def describe_node(fields: Fields) -> None:
    """From now on every JSON line also has what `fields` gives; text lines stay as they are."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, JsonLines):
            handler.formatter.about = fields


class Sparing:
    """Warnings that somebody outside can cause as often as he likes: few of each are written.

    Of those with one `kind` the first `burst` of each `seconds` are; the next that is written says
    how many were not.
    """

    def __init__(self, log: logging.Logger, burst: int = 5, seconds: float = 10.0) -> None:
        self._log = log
        self._burst = burst
        self._seconds = seconds
        self._lock = threading.Lock()
        self._kinds: dict[str, tuple[float, int, int]] = {}

    def warning(
        self, kind: str, text: str, *values: object, extra: Mapping[str, object] | None = None
    ) -> None:
        """Write a line of that kind, unless there were enough; all else is as for a logger."""
        with self._lock:
            untold = self._note(kind, time.monotonic())
        if untold is None:
            return
        if untold:
            text, values = f"{text} (and %d more like it before)", (*values, untold)
        self._log.warning(text, *values, extra=extra)

    def _note(self, kind: str, now: float) -> int | None:
        """How many were left out before this one; None where it is left out too."""
        since, written, untold = self._kinds.get(kind, (now, 0, 0))
        if now - since >= self._seconds:
            since, written = now, 0
        if written >= self._burst:
            self._kinds[kind] = since, written, untold + 1
            return None
        if len(self._kinds) >= _MOST_KINDS and kind not in self._kinds:
            self._kinds.clear()
        self._kinds[kind] = since, written + 1, 0
        return untold


_MOST_KINDS = 256
