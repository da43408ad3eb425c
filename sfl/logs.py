"""Logs as lines for people, or as one JSON object a line for programs."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Literal

LogFormat = Literal["text", "json"]
Fields = Callable[[], Mapping[str, object]]

ENVIRONMENT = "SFL_LOG_FORMAT"
"""Where a process finds its format, and leaves it to those that it starts."""

OWN = ("run", "round", "step", "device")
"""What a call may say of its own line, as `extra`; it goes before what the node says."""


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
            "message": record.getMessage(),
            **self.about(),
        }
        values.update((name, getattr(record, name)) for name in OWN if hasattr(record, name))
        if record.exc_info:
            values["exception"] = self.formatException(record.exc_info)
        known = {name: value for name, value in values.items() if value}
        return json.dumps(known, ensure_ascii=False, default=str)


def start_logging(log_format: LogFormat = "text", level: str = "INFO") -> None:
    """Log to stderr, one line an event; a disk that takes no more lines stops nothing."""
    logging.raiseExceptions = False
    handler = logging.StreamHandler(sys.stderr)
    if log_format == "json":
        handler.setFormatter(JsonLines())
        logging.captureWarnings(True)  # they too are to be JSON
    else:
        text = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
        handler.setFormatter(logging.Formatter(text))
    logging.basicConfig(level=level, handlers=[handler])


def describe_node(fields: Fields) -> None:
    """From now on every JSON line also has what `fields` gives; text lines stay as they are."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, JsonLines):
            handler.formatter.about = fields
