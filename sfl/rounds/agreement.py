"""What a whole run has one of, where peers say it: what most of them say stands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from sfl.rounds.ordered import Ordered

T = TypeVar("T")
_NOBODY: Ordered[str, bool] = Ordered()


@dataclass(frozen=True, slots=True)
class Agreement(Generic[T]):
    """What each peer says, until one of it is `chosen`; then that stands for the rest of the run.

    More than half of all peers choose at once: those that are to come cannot outvote them. Else
    `settle` does, when the run cannot wait any longer. `num_peers` is how many there are.
    """

    num_peers: int
    chosen: T | None = None
    said: Ordered[str, T] = field(default_factory=Ordered)
    sayers: Ordered[T, Ordered[str, bool]] = field(default_factory=Ordered)
    """Who says each of what is said."""

    def say(self, peer: str, what: T) -> Agreement[T]:
        """A peer says it, the last time counts."""
        others = self._without(peer)
        same = others.get(what, _NOBODY).put(peer, True)
        chosen = self.chosen
        if chosen is None and 2 * len(same) > self.num_peers:
            chosen = what
        return Agreement(self.num_peers, chosen, self.said.put(peer, what), others.put(what, same))

    def forget(self, peer: str) -> Agreement[T]:
        """It is gone, and with it what it said."""
        if peer not in self.said:
            return self
        return replace(self, said=self.said.without(peer), sayers=self._without(peer))

    def _without(self, peer: str) -> Ordered[T, Ordered[str, bool]]:
        if peer not in self.said:
            return self.sayers
        what = self.said[peer]
        left = self.sayers[what].without(peer)
        return self.sayers.put(what, left) if left else self.sayers.without(what)

    def settle(self, weights: Collection[str] = ()) -> Agreement[T]:
        """Choose what most of those that are here say. Of equals, what most of `weights` name
        (one entry for each that a peer stands for), then what was said first."""
        if self.chosen is not None or not self.said:
            return self
        peers, stood_for = Counter(self.said.values()), Counter[T]()
        for peer in weights:
            if peer in self.said:
                stood_for[self.said[peer]] += 1
        chosen = max(peers, key=lambda what: (peers[what], stood_for[what]))
        return replace(self, chosen=chosen)

    @property
    def others(self) -> list[str]:
        """Peers that say something else than what was chosen, by name."""
        if self.chosen is None:
            return []
        odd = (peers for what, peers in self.sayers.items() if what != self.chosen)
        return sorted(peer for peers in odd for peer in peers)
