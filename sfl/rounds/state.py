"""All that a run's decisions go by, as one value."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from operator import is_

from sfl.config import RunSettings
from sfl.planners.decision import Choice, Memory
from sfl.rounds.agreement import Agreement
from sfl.rounds.buffer import Buffer
from sfl.rounds.messages import TextForm
from sfl.rounds.open_round import OpenRound, Progress
from sfl.rounds.ordered import Ordered
from sfl.rounds.rehearsal import Rehearsal
from sfl.rounds.roster import Roster
from sfl.rounds.strikes import Strikes
from sfl.rounds.tally import Tally
from sfl.rounds.values import EdgeBase, Point, RoundTrips


class Phase(StrEnum):
    """Where a run is."""

    WAITING = "waiting for devices"
    REHEARSAL = "timing steps"
    PLANNING = "planning"
    ROUND = "training"
    FINAL = "evaluating"
    AGGREGATING = "aggregating"
    OVER = "over"


@dataclass(frozen=True, slots=True)
class Away:
    """Why a device was lost, since when, and until when it is waited for.

    One that has joined again and loads is away until it is ready.
    """

    reason: str
    since: float
    until: float


@dataclass(frozen=True, slots=True)
class Place:
    """Where a device is: at the `edge` where it was ready last.

    It came to be at another one `handovers` times. One that joined was `sent` on so often, and is
    on its way `to` an edge `since` then. It `asks_for` one from the next round on, and has measured
    `trips`.
    """

    edge: str = ""
    handovers: int = 0
    sent: int = 0
    to: str = ""
    since: float = 0.0
    asks_for: str = ""
    trips: RoundTrips = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class End:
    """How a run ended."""

    ok: bool
    reason: str


@dataclass(frozen=True)  # without slots: see `changed`
class RunState:
    """Where a run is. Times are seconds on the run's own clock, which counts while the cloud runs
    and stands still while it is away: what is left until a deadline outlives a restart."""

    now: float
    deadline: float
    roster: Roster
    models: Agreement[tuple[int, str]]
    """What edges say that the model is: blocks and digest."""
    forms: Agreement[TextForm]
    strikes: Strikes
    phase: Phase = Phase.WAITING
    phase_began: float = 0.0
    """When it came to this phase, or to average in an asynchronous run."""
    round: int = 0
    """The one that is open. Asynchronous: the one that the next average closes."""
    open: OpenRound = field(default_factory=OpenRound)
    buffer: Buffer = field(default_factory=Buffer)
    rehearsal: Rehearsal | None = None
    grace_ends: float | None = None
    """For those who are not there when enough are."""
    bases: Ordered[str, EdgeBase] = field(default_factory=Ordered)
    """What each edge that was ready can compute."""
    num_layers: int | None = None
    form_used: bool = False
    losses: Ordered[str, str] = field(default_factory=Ordered)
    """Why who is not there now was lost."""
    away: Ordered[str, Away] = field(default_factory=Ordered)
    """Who was lost and is waited for; what is still open of its part in a round stays open."""
    sums_away: Ordered[str, Away] = field(default_factory=Ordered)
    """Edges that were lost and keep updates that they are to add up."""
    reached: Ordered[str, Point] = field(default_factory=Ordered)
    """How far each device has come: what it goes on from."""
    furthest: Ordered[str, Point] = field(default_factory=Ordered)
    """The latest point that each device, once lost, had ever come to."""
    lineage: int = 0
    """The last one that was given."""
    lineages: Ordered[str, int] = field(default_factory=Ordered)
    """In which each device goes on."""
    vain: Ordered[str, int] = field(default_factory=Ordered)
    """How often each was lost since it last delivered a part; one that its edge keeps counts as
    delivered once it is averaged."""
    no_edge: bool = False
    """No device can come any more."""
    end: End | None = None
    """How it was decided to end, once it is over."""
    choices: Ordered[str, Choice] = field(default_factory=Ordered)
    """What a planner has last chosen for each device."""
    order: tuple[str, ...] = ()
    """As edges best serve devices, by the last decision."""
    memory: Memory = field(default_factory=dict, hash=False)
    """What the planner is told the next time."""
    planned: int = 0
    """The last round that a planner has decided on, or has failed to."""
    places: Ordered[str, Place] = field(default_factory=Ordered)
    """At which edge each device is, was last, or is to be."""
    tallies: Ordered[str, Tally] = field(default_factory=Ordered)
    """How devices did in their rounds; empty where no planner asks."""
    adapter_ref: str = ""
    """The latest global adapter, and what the strategy remembers beside it: names of what is on
    disk, in the run's folder. Empty while there is none."""
    strategy_ref: str = ""

    @classmethod
    def begin(cls, settings: RunSettings, now: float = 0.0) -> RunState:
        """Of a run that begins now."""
        return cls(
            now,
            now + settings.network.join_timeout,
            Roster.of(entry.name for entry in settings.devices),
            Agreement(max(1, len(settings.run.edges))),
            Agreement(len(settings.devices)),
            Strikes(settings.aggregation.strikes),
            phase_began=now,
        )

    def point_of(self, device: str, round_: int, step: int) -> Point:
        """Where a device is after so many steps of a round."""
        return Point(round_, step, self.lineages.get(device, 0))

    @property
    def edges_missing(self) -> dict[str, str]:
        """Why edges that were lost are not here, where no edge is: one of them is waited for."""
        if self.models.said:
            return {}
        return {who: why for who, why in self.losses.items() if who.startswith("edge ")}

    @property
    def time_left(self) -> float:
        """Seconds until the nearest deadline; none are left after it."""
        ends = self.deadline if self.grace_ends is None else min(self.deadline, self.grace_ends)
        away = (*self.away.values(), *self.sums_away.values())
        ends = min(ends, *(own.until for own in away), ends)
        return max(0.0, ends - self.now)

    @property
    def needed_adapter(self) -> int | None:
        """The round of the oldest adapter that a device is at work from; None: none but the
        latest."""
        return min(self.buffer.rounds) - 1 if self.buffer.rounds else None

    def part_of(self, device: str) -> Progress | None:
        """How far a device is in the round that it takes part in, if it is in one."""
        awaited = self.open.progress.get(device)
        return self.buffer.unawaited.get(device) if awaited is None else awaited

    def differs_in_time_only(self, other: RunState) -> bool:
        """Whether nothing has happened between two states of one run. Looks at no device."""
        (_, *own), (_, *others) = self.__dict__.values(), other.__dict__.values()
        return all(map(is_, own, others))  # the time is the first field
