"""Building markup in which every string from elsewhere is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable

_VOID = frozenset({"meta", "br", "rect", "line", "path", "circle"})


class Markup(str):
    """Text that is markup already; any other string is escaped when it becomes a child."""

    __slots__ = ()


def element(name: str, /, *children: str, **attributes: str | float) -> Markup:
    """An element of HTML or SVG, well-formed as XML too; `class_` is `class`, `_` becomes `-`."""
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_escape(_attribute(value))}"'
        for key, value in attributes.items()
    )
    if name in _VOID and not children:
        return Markup(f"<{name}{shown}/>")
    return Markup(f"<{name}{shown}>{join(children)}</{name}>")


def join(children: Iterable[str]) -> Markup:
    """Children one after the other, each escaped if it is plain text."""
    return Markup(
        "".join(child if isinstance(child, Markup) else _escape(child) for child in children)
    )


def _attribute(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"


def _escape(text: str) -> str:
    """Escaped, and without the control characters that no document may hold."""
    kept = "".join(
        letter if letter >= " " or letter in "\n\t" else " "
        for letter in text
        if not "\ud800" <= letter <= "\udfff" and letter not in "\x7f\ufffe\uffff"
    )
    return html.escape(kept)
