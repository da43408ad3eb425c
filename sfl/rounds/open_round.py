"""What the devices of a round have delivered so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sfl.config.network import NetworkSettings
from sfl.plan import TWO_TIERS, Holder
from sfl.planners.decision import Choice
from sfl.rounds.changed import changed
from sfl.rounds.ordered import Ordered
from sfl.rounds.stragglers import Stragglers
from sfl.rounds.values import Length, Steps


@dataclass(frozen=True)  # without slots: see `changed`
class Progress:
    """What a participant has delivered in the open round."""

    steps: Steps
    num_examples: int
    parts: tuple[Holder, ...] = TWO_TIERS
    """Whose parts its update has: all holders of its plan."""
    final_steps: Mapping[Holder, int] = field(default_factory=dict)
    reported: bool = False
    round: int = 0
    """The one that it takes part in."""
    began: float = 0.0
    choice: Choice | None = None
    """What a planner has chosen for it, where one has."""
    edge: str = ""
    """Where it trains, and where its update stays that edges add up."""
    length: Length | None = None
    """Of that update, where its edge has measured it."""

    @property
    def trained(self) -> bool:
        """Every holder's part is in, and all carry the same final step."""
        whole = self.final_steps.keys() == set(self.parts)
        return whole and set(self.final_steps.values()) == {self.steps.count}

    @property
    def done(self) -> bool:
        """Nothing more is to come in this round."""
        return self.reported and (self.steps.count == 0 or self.trained)

    def with_part(self, side: Holder, final_step: int) -> Progress:
        """One holder's part is there."""
        return changed(self, final_steps={**self.final_steps, side: final_step})

    def measured(self, length: Length | None) -> Progress:
        """Its edge keeps its update, which is so long."""
        return changed(self, length=length)

    def with_report(self) -> Progress:
        """Its report is there."""
        return changed(self, reported=True)

    def afresh(self, now: float, edge: str) -> Progress:
        """It begins anew, or tells again, at this edge; what it delivers then counts."""
        return self.undone(began=now, edge=edge)

    def undone(self, **fields: Any) -> Progress:
        """What it delivered does not count."""
        return changed(self, final_steps={}, reported=False, length=None, **fields)


@dataclass(frozen=True)  # without slots: see `changed`
class Reduction:
    """Edges add up a round's updates: the order's number, whose updates each edge adds, and whose
    sums are in the spool."""

    number: int = 0
    edges: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    there: tuple[str, ...] = ()

    @property
    def devices(self) -> set[str]:
        """All of them, at whatever edge."""
        return {name for names in self.edges.values() for name in names}

    @property
    def missing(self) -> list[str]:
        """Edges whose sum is still to come."""
        return [edge for edge in self.edges if edge not in self.there]

    @property
    def complete(self) -> bool:
        """Whether every sum is there."""
        return bool(self.edges) and not self.missing


@dataclass(frozen=True)  # without slots: see `changed`
class OpenRound:
    """Everybody in it, and how far each is."""

    progress: Ordered[str, Progress] = field(default_factory=Ordered)
    stragglers: Stragglers = field(default_factory=Stragglers)
    cannot_compute: Ordered[str, str] = field(default_factory=Ordered)
    """Who left since it can't compute with the round's adapter, and why."""
    chosen: int | None = None
    """How many a planner has chosen to take part; None where it chose all."""
    reduction: Reduction = field(default_factory=Reduction)
    """The last one, where edges add up updates."""

    @property
    def num_done(self) -> int:
        """How many have delivered everything."""
        return len(self.stragglers.took)

    @property
    def all_done(self) -> bool:
        """Whether nothing more is to come."""
        return self.num_done == len(self.progress)

    @property
    def rest(self) -> list[str]:
        """Those of which something is still to come, by name."""
        return sorted(name for name, progress in self.progress.items() if not progress.done)

    def again(self, device: str, now: float, edge: str) -> OpenRound:
        """A participant that is back, at this edge, begins anew, or tells again."""
        stragglers = self.stragglers.moved_now(device, now)
        progress = self.progress.put(device, self.progress[device].afresh(now, edge))
        return changed(self, progress=progress, stragglers=stragglers)

    def undone(self, device: str, network: NetworkSettings) -> OpenRound:
        """What a participant delivered is lost."""
        before, stragglers = self.progress[device], self.stragglers
        if before.done:
            stragglers = stragglers.without(device, network)
        progress = self.progress.put(device, before.undone())
        return changed(self, progress=progress, stragglers=stragglers)

    def put(self, device: str, after: Progress, now: float) -> OpenRound:
        """How far a participant is."""
        stragglers = self.stragglers
        if after.done and not self.progress[device].done:
            stragglers = stragglers.done(device, now)
        return changed(self, progress=self.progress.put(device, after), stragglers=stragglers)

    def without(self, device: str, network: NetworkSettings) -> OpenRound:
        """A device is left out, whatever it delivered."""
        if device not in self.progress:
            return self
        stragglers = self.stragglers
        if self.progress[device].done:
            stragglers = stragglers.without(device, network)
        return changed(self, progress=self.progress.without(device), stragglers=stragglers)
