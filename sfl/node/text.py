"""Text of others, made fit for a line of a log, a terminal or a report."""

from __future__ import annotations

LONGEST_REASON = 500
"""Characters of a peer's words that are kept."""


def plain(text: str, most: int = LONGEST_REASON) -> str:
    """`text` on one line: what is not printable as its escape, what is too long cut and counted.

    Line ends, terminal escapes, marks that turn the direction of writing and halves of surrogate
    pairs are not printable.
    """
    shown, rest = text[:most], len(text) - most
    if not shown.isprintable():
        shown = "".join(map(_shown, shown))
    return shown if rest <= 0 else f"{shown}... (and {rest} more characters)"


def _shown(letter: str) -> str:
    return letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
