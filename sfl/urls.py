"""URLs that may have a password, which nothing prints and no setting has."""

from __future__ import annotations

import re
from urllib.parse import unquote_plus

_PASSWORD = re.compile(r"(?<=://)(?P<user>[^:/@]*):(?P<password>.*)@", re.DOTALL)
"""Up to the last `@`, since a password may have any character."""
_NAMED = re.compile(r"\$\{\w+\}")
_SECRET_KEY = re.compile(r"pass(?!file)|pwd|secret|token|credential|scram_\w+_key")
"""Within the name of what a server or a driver takes as a secret."""
_SEPARATOR = re.compile(r"([?&;])")


def has_password(url: str) -> bool:
    """Whether it has a password in words; `${NAME}` in the place of one is a variable's name."""
    user = _PASSWORD.search(url)
    if user is not None and _NAMED.fullmatch(user["password"]) is None:
        return True
    return any(map(_is_secret, _SEPARATOR.split(url)[2::2]))


def hidden(text: str) -> str:
    """A text, with `***` in the place of each password in a URL."""
    if "://" not in text:
        return text
    first, *rest = _SEPARATOR.split(_PASSWORD.sub(_without_password, text))
    return first + "".join(
        f"{part.partition('=')[0]}=***" if _is_secret(part) else part for part in rest
    )


def _without_password(found: re.Match[str]) -> str:
    named = _NAMED.fullmatch(found["password"])
    return f"{found['user']}:{found['password'] if named else '***'}@"


def _is_secret(part: str) -> bool:
    key, equals, _ = part.partition("=")
    return bool(equals) and _SECRET_KEY.search(unquote_plus(key).lower()) is not None
