"""What a coordinator hears (events), what it wants done (commands), and what records tell of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from sfl.config import Extent
from sfl.plan import Holder
from sfl.planners.decision import Choice, Memory
from sfl.rounds.values import (
    BEGINNING,
    DeviceFacts,
    Length,
    Point,
    RoundReport,
    RoundTrips,
    Steps,
)

Cause = Literal["link", "silence", "offence", "adapter", "left", "stuck"]
"""Why a device was lost: its link broke or its process ended; it was silent or late; it broke the
contract; it cannot compute with the round's adapter; it left for good."""


@dataclass(frozen=True, slots=True)
class EdgeReady:
    """An edge has its base model: of so many blocks, and in all of one digest, `model`.

    `credits` are the micro-batches of one device that may be in flight; 0: `network.credits`. It
    `keeps` updates of these devices and rounds, which it is to add up. Devices dial it at
    `address`. Edges of one `store` share their snapshots.
    """

    edge: str
    num_layers: int
    model: str = ""
    credits: int = 0
    keeps: Mapping[str, int] = field(default_factory=dict)
    address: str = ""
    store: str = ""


@dataclass(frozen=True, slots=True)
class EdgeLost:
    """An edge's stream broke, or it said that it can't go on.

    `final`: no other edge is connected, and what ended this one will not go away by itself.
    `returns`: it may come back, and so may its devices. `elsewhere`: they may, at another edge.
    """

    edge: str
    reason: str
    final: bool = False
    returns: bool = True
    elsewhere: bool = False


@dataclass(frozen=True, slots=True)
class DeviceJoined:
    """A device asks to take part; `round_trips` are those that it has measured."""

    device: str
    edge: str
    round_trips: RoundTrips = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TextForm:
    """How a device's rows become text; no template (a digest) where none is applied."""

    layout: str
    chat_template: str = ""

    def unlike(self, runs: TextForm) -> str:
        """Why examples made so are not the run's."""
        if self.layout != runs.layout:
            return (
                f"its rows are laid out as {self.layout!r}, the run's as {runs.layout!r} "
                "(data.layout): give all devices the same fields"
            )
        return "its tokenizer has another chat template than the run's (data.chat_template)"


@dataclass(frozen=True, slots=True)
class DeviceReady:
    """A device has its span and its data; `form` where those can have one of several."""

    device: str
    num_examples: int
    form: TextForm | None = None
    facts: DeviceFacts | None = None
    points: tuple[Point, ...] = ()
    """What both it and its edge have snapshots of."""
    begun: Point = BEGINNING
    """Of the round that its edge has begun for it and keeps, if it does: before its first step."""


@dataclass(frozen=True, slots=True)
class DeviceLost:
    """A device's stream broke, or it broke the contract."""

    device: str
    reason: str
    cause: Cause = "link"


@dataclass(frozen=True, slots=True)
class UpdateReceived:
    """One side's part of a device's update is in the spool, or at its edge, which adds it up.

    `length` is that of the whole update, where its edge has measured it.
    """

    device: str
    side: Holder
    round: int
    final_step: int
    length: Length | None = None


@dataclass(frozen=True, slots=True)
class SumReceived:
    """An edge's answer to the order of that number is in the spool."""

    edge: str
    round: int
    number: int


@dataclass(frozen=True, slots=True)
class DeviceOffended:
    """What a device sent is nothing that it may send."""

    device: str
    reason: str


@dataclass(frozen=True, slots=True)
class UpdatesRefused:
    """What is to be merged was looked at: what these devices sent does not count, and why."""

    round: int
    reasons: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ReportReceived:
    """A device tells how its round went."""

    device: str
    round: int
    report: RoundReport | None = None


@dataclass(frozen=True, slots=True)
class DeviceMoved:
    """So many frames has its edge seen of a device, or written to it, heartbeats apart.

    `resting`: the device says that it rests.
    """

    device: str
    count: int
    resting: bool = False


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """A device has timed steps: seconds a step, for each number of micro-batches.

    `value_bits` is what it expects an activation to take a value with the codec it tried. `report`
    is all that it said, where a planner looks at it.
    """

    device: str
    seconds: tuple[float, ...]
    value_bits: float | None = None
    report: RoundReport | None = None


@dataclass(frozen=True, slots=True)
class AdapterReady:
    """The adapter of `round` is there: what its devices trained is averaged; of round 0, the first.

    `adapter` and `strategy` name what is on disk already, in the run's folder: its values, and what
    the strategy remembers (empty where that is nothing). `norms` are the lengths of the updates
    that were looked at, by device; `servers` the statistics of the cloud and the edges, as JSON.
    `staleness` says how many adapters were made since each update began, where one may be late.
    `digests` are those of the files, SHA-256 by name.
    """

    round: int
    adapter: str = ""
    strategy: str = ""
    norms: Mapping[str, float] = field(default_factory=dict)
    servers: tuple[str, ...] = ()
    staleness: Mapping[str, int] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Planned:
    """What a planner has decided for a round; devices that are not named keep what they had.

    `order` names them as their edges best serve them. `memory` is what the planner is told the next
    time. `line` is the decision with all that it was taken from, as JSON (`sfl.planners.plans`).
    `unfit` says of devices why they cannot take part, and `fault` what went wrong with the planner.
    """

    round: int
    choices: Mapping[str, Choice]
    order: tuple[str, ...] = ()
    memory: Memory = field(default_factory=dict)
    line: str = ""
    unfit: Mapping[str, str] = field(default_factory=dict)
    fault: str = ""


@dataclass(frozen=True, slots=True)
class CloudRestarted:
    """The cloud goes on from its journal: nobody is connected yet, and what it was about to do may
    not have been done."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time went by."""


Event = (
    EdgeReady
    | EdgeLost
    | DeviceJoined
    | DeviceReady
    | DeviceLost
    | UpdateReceived
    | SumReceived
    | DeviceOffended
    | UpdatesRefused
    | ReportReceived
    | DeviceMoved
    | Rehearsed
    | AdapterReady
    | Planned
    | CloudRestarted
    | Tick
)


@dataclass(frozen=True, slots=True)
class Welcome:
    """Admit a device."""

    device: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """Turn a device away; where its name is `in_use`, it may ask again in a moment.

    Where it is to go to another edge, that is named in `elsewhere`; of several, to the nearest.
    """

    device: str
    edge: str
    reason: str
    in_use: bool = False
    elsewhere: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HandOver:
    """Have a device go from the edge that it is at to another one."""

    device: str
    edge: str
    to: str
    reason: str


@dataclass(frozen=True, slots=True)
class UseModel:
    """The run's model is the one of that digest."""

    model: str


@dataclass(frozen=True, slots=True)
class UseTextForm:
    """The rows of all devices become text in this way."""

    form: TextForm


@dataclass(frozen=True, slots=True)
class RefuseEdge:
    """Close an edge's stream: its part in the run is over."""

    edge: str
    reason: str


@dataclass(frozen=True, slots=True)
class PlanRound:
    """Have a planner decide what these devices do from this round on.

    `Planned` is the answer, however long it takes. Meanwhile nothing else asks.
    """

    round: int
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StartRound:
    """Send the global adapter of round - 1, evaluate it, and train; zero steps: only evaluate."""

    round: int
    devices: Mapping[str, Steps]
    evaluate: Extent = "all"
    after: Mapping[str, Point] = field(default_factory=dict)
    """What each goes on from; who is not named begins with nothing remembered."""
    lineage: Mapping[str, int] = field(default_factory=dict)
    """Of the points that come of it."""
    choices: Mapping[str, Choice] = field(default_factory=dict)
    """What a planner has chosen for each, where one has."""
    order: tuple[str, ...] = ()
    """As their edges best serve them."""
    together: tuple[str, ...] = ()
    """All of the round, where they share the last stage's adapter."""


@dataclass(frozen=True, slots=True)
class ReplayRound:
    """Have these devices, which are back, go on with the open round, or do it again.

    As for StartRound. Where their edge has `begun` it with them, it keeps that so, and tells again
    what came of it.
    """

    round: int
    devices: Mapping[str, Steps]
    evaluate: Extent
    after: Mapping[str, Point]
    begun: bool = False
    lineage: Mapping[str, int] = field(default_factory=dict)
    choices: Mapping[str, Choice] = field(default_factory=dict)
    together: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DeviceAway:
    """A device is lost, and waited for: so many seconds."""

    device: str
    reason: str
    seconds: float


@dataclass(frozen=True, slots=True)
class DeviceBack:
    """A device that was waited for is here again; `after` is what it goes on from."""

    device: str
    after: Point


@dataclass(frozen=True, slots=True)
class Rehearse:
    """Have these devices time steps of so many micro-batches each, and forget them.

    `codec` is what stands where the codec, too, has yet to be chosen, else empty. `choices` are of
    devices that do not have the cut of the settings.
    """

    devices: tuple[str, ...]
    counts: tuple[int, ...]
    codec: str = ""
    choices: Mapping[str, Choice] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Settle:
    """Fix what was `auto` for the whole run.

    `seconds` a step of the slowest device for each number of micro-batches tried; `codecs` of each
    device, empty where they were given.
    """

    micro_batches: int
    seconds: Mapping[int, float]
    codecs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reduce:
    """Have each of these edges add up the updates of its devices; `contributions` are as those of
    Aggregate, over all edges of the round."""

    round: int
    number: int
    edges: Mapping[str, tuple[str, ...]]
    contributions: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Merge these devices' updates; `contributions` maps a device to its `num_examples`.

    `number` is that of the order by which edges have added them up, if they have.
    """

    round: int
    contributions: Mapping[str, int]
    number: int = 0


@dataclass(frozen=True, slots=True)
class Evict:
    """Close a device's stream; `final`: and do not have it dial again."""

    device: str
    reason: str
    final: bool = False


@dataclass(frozen=True, slots=True)
class Fault:
    """Something went wrong that the run survives; shown, logged and kept in the summary."""

    round: int
    device: str
    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    """What the run waits for, in words."""

    text: str


@dataclass(frozen=True, slots=True)
class FinishRun:
    """The run is over; or it `goes_on`, and one edge's part in it is over."""

    ok: bool
    reason: str
    goes_on: bool = False


Command = (
    Welcome
    | Refuse
    | HandOver
    | UseModel
    | UseTextForm
    | RefuseEdge
    | Rehearse
    | Settle
    | PlanRound
    | StartRound
    | ReplayRound
    | DeviceAway
    | DeviceBack
    | Reduce
    | Aggregate
    | Evict
    | Fault
    | Report
    | FinishRun
)


@dataclass(frozen=True, slots=True)
class NodeHeard:
    """A node's statistics, as JSON; a later one of the same life takes the place of one before.

    `life` counts how often its process was seen to begin anew.
    """

    kind: str
    name: str
    snapshot: str
    life: int = 0


@dataclass(frozen=True, slots=True)
class RunAsked:
    """The run begins, with these settings (TOML)."""

    settings: str


@dataclass(frozen=True, slots=True)
class RoundBegan:
    """A round's orders go out."""

    round: int


@dataclass(frozen=True, slots=True)
class RunEnded:
    """The cloud stops; `reason` is why."""

    ok: bool
    reason: str


Fact = (
    NodeHeard
    | RunAsked
    | RoundBegan
    | RunEnded
    | Rehearse
    | Settle
    | Evict
    | Fault
    | Report
    | DeviceAway
    | DeviceBack
)
"""What happened that decides nothing more: it is kept for whoever tells of the run."""


_TOLD = (Rehearse, Settle, Evict, Fault, Report, DeviceAway, DeviceBack)
"""Commands that are facts as well."""


def facts_of(commands: Iterable[Command]) -> list[Fact]:
    """What is to be told of what was decided."""
    facts: list[Fact] = []
    for command in commands:
        if isinstance(command, StartRound):
            facts.append(RoundBegan(command.round))
        elif isinstance(command, _TOLD):
            facts.append(command)
    return facts
