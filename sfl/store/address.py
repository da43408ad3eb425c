"""Where a database is: a URL with its secrets in the environment, so that no file has them."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from sfl.errors import ConfigError, NoAnswer

_NAMED = re.compile(r"\$\{(\w+)\}")
NO_ANSWER = "it does not answer"
"""How the problem of a server begins that is not there, or not yet."""


def wrong(setting: str, value: str, problem: str, fix: str) -> ConfigError:
    """What is wrong with a place that a setting names."""
    kind = NoAnswer if problem.startswith(NO_ANSWER) else ConfigError
    return kind(setting, value, problem, fix)


@dataclass(frozen=True, slots=True)
class Address:
    """A database server by the setting that names it; as text it has no secret."""

    setting: str
    text: str

    def __str__(self) -> str:
        return f"{self.setting} = {self.text!r}"

    def url(self) -> URL:
        """With what the environment says in the place of each `${NAME}`. Raises ConfigError."""
        try:
            url = make_url(self.text)
        except (ArgumentError, ValueError) as error:
            raise self.wrong(f"is no URL of a database ({error})", _FORM) from None
        parts: dict[str, Any] = {
            part: self._filled(value)
            for part in ("username", "password", "host", "database")
            if isinstance(value := getattr(url, part), str)
        }
        return url.set(drivername="postgresql+psycopg", **parts)

    def wrong(self, problem: str, fix: str) -> ConfigError:
        """What is wrong with it, as an error of the setting."""
        return wrong(self.setting, self.text, problem, fix)

    def _filled(self, text: str) -> str:
        def value(named: re.Match[str]) -> str:
            if (found := os.environ.get(named[1])) is None:
                problem = f"the environment has no {named[1]}"
                raise self.wrong(problem, f"Set {named[1]}, or write something else there.")
            return found

        return _NAMED.sub(value, text)


_FORM = "Write it as postgresql+psycopg://USER:${PASSWORD}@HOST/DATABASE."
