"""How often a model of a run may lose a device: one time more, and it counts as silent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from sfl.rounds.membership import MOST_VAIN


class Losses:
    """Those of each device since it last delivered; `tests/rounds/test_bounded.py` has the rule."""

    def __init__(self) -> None:
        self._number: Counter[str] = Counter()

    def may(self, names: Iterable[str]) -> list[str]:
        """Who is waited for once more."""
        return [name for name in names if self._number[name] < MOST_VAIN]

    def note(self, *names: str) -> None:
        """They are lost, and nothing that they did is kept."""
        self._number.update(names)

    def delivered(self, name: str) -> None:
        """It has delivered everything."""
        del self._number[name]

    def restarted(self) -> None:
        """The cloud was, which begins to count anew."""
        self._number.clear()
