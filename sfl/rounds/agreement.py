"""What a whole run has one of, where peers say it: what most of them say stands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class Agreement(Generic[T]):
    """What each peer says, until one of it is `chosen`; then that stands for the rest of the run.

    More than half of all peers choose at once: those that are to come cannot outvote them. Else
    `settle` does, when the run cannot wait any longer. `num_peers` is how many there are.
    """

    num_peers: int
    chosen: T | None = None
    _said: dict[str, T] = field(default_factory=dict)

    def say(self, peer: str, what: T) -> None:
        """A peer says it, the last time counts."""
        self._said[peer] = what
        if self.chosen is None:
            (most, count), *_ = Counter(self._said.values()).most_common(1)
            self.chosen = most if 2 * count > self.num_peers else None

    def said(self, peer: str) -> T:
        """What a peer says that is here."""
        return self._said[peer]

    def forget(self, peer: str) -> None:
        """It is gone, and with it what it said."""
        self._said.pop(peer, None)

    def settle(self, weights: Collection[str] = ()) -> None:
        """Choose what most of those that are here say. Of equals, what most of `weights` name
        (one entry for each that a peer stands for), then what was said first."""
        if self.chosen is not None or not self._said:
            return
        peers, stood_for = Counter(self._said.values()), Counter[T]()
        for peer in weights:
            if peer in self._said:
                stood_for[self._said[peer]] += 1
        self.chosen = max(peers, key=lambda what: (peers[what], stood_for[what]))

    @property
    def others(self) -> list[str]:
        """Peers that say something else than what was chosen, by name."""
        if self.chosen is None:
            return []
        return sorted(peer for peer, what in self._said.items() if what != self.chosen)
