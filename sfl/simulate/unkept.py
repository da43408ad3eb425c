"""A journal that keeps nothing: a simulated run is not gone on with, it is simulated again."""

from __future__ import annotations

from collections.abc import Iterator

from sfl.rounds.journal import Entry, Latest
from sfl.rounds.state import RunState


class Unkept:
    """Whoever listens hears each entry once."""

    def append(self, entry: Entry) -> None:
        """Nothing is kept."""

    def tell_time(self, now: float) -> None:
        """Nothing is kept."""

    def mark(self, state: RunState) -> None:
        """Nothing is kept."""

    def commit(self, *, durable: bool = False) -> None:
        """Nothing is kept."""

    def entries(self) -> Iterator[Entry]:
        """None."""
        return iter(())

    def latest(self) -> Latest:
        """Nothing has happened."""
        return Latest(None, (), 0.0)

    def close(self) -> None:
        """Nothing was open."""
