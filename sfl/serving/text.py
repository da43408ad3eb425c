"""Tokens to text as they come, up to a stop string; nothing is said that is taken back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]
_UNFINISHED = "\ufffd"
"""What a decoder writes for bytes that are no character yet."""
FEWEST, LONGEST_CHARACTER = 4, 4
"""Tokens of a prompt that an answer is decoded behind, and most tokens of one character."""


class RunningText:
    """The text of an answer: each piece once it can no longer change.

    A piece waits while its last bytes are no character yet, and while its end may be the beginning
    of a stop string. Each new token is decoded behind the piece before it alone: that ends with a
    whole character, and some decoders give up all bytes in a row for one that is broken.
    """

    def __init__(self, decode: Decode, before: Sequence[int], stops: Sequence[str] = ()) -> None:
        """`before` are the prompt's tokens: some decoders join words by what stood before."""
        self.stopped = False
        """Whether a stop string was met; what follows is not said."""
        self._decode = decode
        self._stops = [stop for stop in stops if stop]
        self._ids = _last_whole(decode, before)
        self._known = len(self._ids)  # of the ids, those whose text is out
        self._said = len(decode(self._ids))  # characters of theirs
        self._held = ""

    def add(self, token: int) -> str:
        """What can be said with this token."""
        if self.stopped:
            return ""
        self._ids.append(token)
        text = self._decode(self._ids)
        if len(text) <= self._said or text.endswith(_UNFINISHED):
            return ""
        self._held += text[self._said :]
        self._ids = self._ids[self._known :]
        self._known = len(self._ids)
        self._said = len(self._decode(self._ids))
        return self._safe()

    def end(self) -> str:
        """What was held back, once no token follows; up to a stop string here too."""
        if self.stopped:
            return ""
        self._held += self._decode(self._ids)[self._said :]
        self._ids, self._known, self._said = [], 0, 0
        said = self._safe()
        held, self._held = self._held, ""
        return said + held

    def _safe(self) -> str:
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            said, self._held = self._held[: min(found)], ""
            return said
        kept = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - kept
        said, self._held = self._held[:cut], self._held[cut:]
        return said


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` that `stop` begins with."""
    most = min(len(text), len(stop) - 1)
    return next((n for n in range(most, 0, -1) if text.endswith(stop[:n])), 0)


def _last_whole(decode: Decode, ids: Sequence[int]) -> list[int]:
    """The last few ids, from where a character begins."""
    for count in range(FEWEST, FEWEST + LONGEST_CHARACTER):
        last = list(ids[-count:])
        if not decode(last).startswith(_UNFINISHED):
            return last
    return list(ids[-FEWEST:])
