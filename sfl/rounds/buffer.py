"""Updates that wait for an average, and parts of rounds that nobody waits for."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from sfl.plan import Holder
from sfl.rounds.changed import changed
from sfl.rounds.open_round import Progress
from sfl.rounds.ordered import Ordered
from sfl.rounds.values import Length, Steps


@dataclass(frozen=True, slots=True)
class Update:
    """A device's update of a round, whole and in the spool. It began from the adapter before."""

    device: str
    round: int
    num_examples: int
    steps: Steps
    parts: tuple[Holder, ...]
    edge: str = ""
    length: Length | None = None

    @classmethod
    def of(cls, device: str, progress: Progress) -> Update:
        """Of a participant that has delivered everything."""
        own = progress
        return cls(device, own.round, own.num_examples, own.steps, own.parts, own.edge, own.length)

    def staleness(self, round_: int) -> int:
        """How many adapters were made since it began, where it counts in the average of a round."""
        return round_ - self.round


@dataclass(frozen=True)  # without slots: see `changed`
class Buffer:
    """What is not of the open round alone. An average takes one update of a device at most."""

    unawaited: Ordered[str, Progress] = field(default_factory=Ordered)
    """Parts in rounds of devices that work at their own pace, or are late."""
    waiting: Ordered[str, tuple[Update, ...]] = field(default_factory=Ordered)
    """Whole updates of each device, in the order in which devices delivered."""
    merging: Ordered[str, Update] = field(default_factory=Ordered)
    """What is averaged now."""
    delivered: Ordered[str, int] = field(default_factory=Ordered)
    """The last round of which each device's update was taken."""
    look_at: float = math.inf
    """Nobody can have taken too long before."""

    def put_part(self, device: str, progress: Progress) -> Buffer:
        """How far a device is that nobody waits for."""
        return changed(self, unawaited=self.unawaited.put(device, progress))

    def put_update(self, update: Update) -> Buffer:
        """An update is whole."""
        device = update.device
        return changed(
            self,
            unawaited=self.unawaited.without(device),
            waiting=self.waiting.put(device, (*self.waiting.get(device, ()), update)),
            delivered=self.delivered.put(device, update.round),
        )

    def take(self, devices: list[str]) -> Buffer:
        """Have the first update of each of these averaged."""
        merging, waiting = self.merging, self.waiting
        for device in devices:
            first, *more = waiting[device]
            merging, waiting = merging.put(device, first), waiting.without(device)
            if more:
                waiting = waiting.put(device, tuple(more))
        return changed(self, merging=merging, waiting=waiting)

    def refuse(self, devices: Iterable[str]) -> Buffer:
        """What these sent is not averaged."""
        merging = self.merging
        for device in devices:
            merging = merging.without(device)
        return changed(self, merging=merging)

    def give_back(self) -> Buffer:
        """Nothing is averaged yet: what was to be comes before all that waits."""
        first = [(name, (update,)) for name, update in self.merging.items()]
        more = [(name, updates) for name, updates in self.waiting.items()]
        waiting = Ordered[str, tuple[Update, ...]].of(first)
        for name, updates in more:
            waiting = waiting.put(name, (*waiting.get(name, ()), *updates))
        return changed(self, merging=Ordered(), waiting=waiting)

    def too_old(self, round_: int, most: int | None) -> list[Update]:
        """What waits and was begun more than `most` adapters before the average of a round."""
        if most is None:
            return []
        waits = (update for own in self.waiting.values() for update in own)
        return [update for update in waits if update.staleness(round_) > most]

    def drop(self, updates: list[Update]) -> Buffer:
        """These do not count."""
        waiting = self.waiting
        for update in updates:
            left = tuple(own for own in waiting[update.device] if own != update)
            device = update.device
            waiting = waiting.put(device, left) if left else waiting.without(device)
        return changed(self, waiting=waiting)

    def without_part(self, device: str) -> Buffer:
        """Nothing more is expected of what a device works on."""
        return changed(self, unawaited=self.unawaited.without(device))

    def without(self, device: str) -> Buffer:
        """A device is left out, whatever it delivered; what is averaged now is not changed."""
        return changed(
            self,
            unawaited=self.unawaited.without(device),
            waiting=self.waiting.without(device),
        )

    @property
    def rounds(self) -> set[int]:
        """Rounds of which something is still to come, or to be averaged."""
        waits = (update.round for own in self.waiting.values() for update in own)
        merged = (update.round for update in self.merging.values())
        return {own.round for own in self.unawaited.values()} | {*waits, *merged}
