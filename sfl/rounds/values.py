"""What devices, edges and the cloud tell each other of a run, as values.

The wire's own form of each is the transport's business (`sfl.transport.frames.words`). Texts in
JSON stay as they were said, because a device signs them. No torch and no numpy here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sfl.config import Extent, RunSettings
from sfl.config.codec import RoleCodecs
from sfl.plan import Plan
from sfl.planners.told import Cut


@dataclass(frozen=True, slots=True)
class Score:
    """Sums over examples; means are taken where they are reported.

    `loss_sum` over `num_targets` scored targets, in nats. `num_correct` of `num_examples`: every
    target of the example is the argmax (causal), or the class is.
    """

    loss_sum: float
    num_targets: int
    num_correct: int
    num_examples: int

    def __add__(self, other: Score) -> Score:
        return Score(
            self.loss_sum + other.loss_sum,
            self.num_targets + other.num_targets,
            self.num_correct + other.num_correct,
            self.num_examples + other.num_examples,
        )


NO_SCORE = Score(0.0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Steps:
    """What one device does in a round: `count` steps, `first` of them counted over the run."""

    count: int
    first: int
    total: int


NO_STEPS = Steps(0, 0, 0)


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """So far a device and its edge have come together: `step` steps of `round` are taken.

    What both remember of a device is of such a point: moments, error feedback, codecs' tables. The
    cloud gives another `lineage` whenever a device may have gone back to an earlier point: what two
    nodes remember of the same step is of the same past only in the same lineage.
    """

    round: int
    step: int = 0
    lineage: int = 0


BEGINNING = Point(0)
"""Nothing is remembered yet."""


RoundTrips = Mapping[str, float]
"""Seconds from a device to edges and back, by the edges' names."""
NO_TRIPS: RoundTrips = {}


@dataclass(frozen=True, slots=True)
class EdgeBase:
    """What an edge that has joined can compute: blocks of its model, and micro-batches in flight.

    `credits` are of one device; 0: as many as the settings allow. Devices dial it at `address`,
    empty where only they may know it. Edges with the same `store` find each other's snapshots.
    """

    num_layers: int
    credits: int = 0
    address: str = ""
    store: str = ""


@dataclass(frozen=True, slots=True)
class Assignment:
    """One device's part in one round. Without steps: only evaluate, or load what joining asks for.

    `rank` is the adapter's, `scaling` what its B A are multiplied by. `credits` micro-batches may
    be in flight. `rehearse` asks for steps of so many micro-batches each, timed and then forgotten.
    """

    round: int
    plan: Plan
    rank: int
    scaling: float
    codecs: RoleCodecs
    credits: int
    steps: Steps = NO_STEPS
    micro_batches: int = 1
    evaluate: Extent = "none"
    rehearse: tuple[int, ...] = ()
    after: Point = BEGINNING
    """What device and edge go on from: what they remember of that point, and nothing later. One of
    this same round has its first steps behind it."""
    lineage: int = 0
    """Of the points that come of it."""
    share: float = 1.0
    """Of its link's limits, both ways."""
    together: tuple[str, ...] = ()
    """The devices of the round, where they share the last stage's adapter."""

    def point(self, step: int) -> Point:
        """Where device and edge are after so many steps of it."""
        return Point(self.round, step, self.lineage)

    def same_adapter(self, other: Assignment) -> bool:
        """Whether both ask for the same parameters, on the same side of the cut."""
        return (self.plan, self.rank) == (other.plan, other.rank)


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a device signs before it is let in: the cloud made it for this edge of this run."""

    run_id: str
    edge: str
    nonce: bytes


@dataclass(frozen=True, slots=True)
class Proof:
    """A device's answer to a challenge; empty without TLS. `certificate` in DER."""

    certificate: bytes = b""
    nonce: bytes = b""
    signature: bytes = b""


@dataclass(frozen=True, slots=True)
class Signature:
    """A device's own, over what its edge passes on; `sequence` counts what it has signed."""

    sequence: int
    value: bytes


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What a device brings: its examples, how its rows become text, its statistics as JSON."""

    num_examples: int
    num_eval_examples: int = 0
    num_truncated: int = 0
    num_dropped: int = 0
    num_repeated: int = 0
    num_tokens: int = 0
    num_tokens_kept: int = 0
    example_kind: str = ""
    layout: str = ""
    chat_template: str = ""
    snapshot: str = ""
    points: tuple[Point, ...] = ()
    """What it has snapshots of, in this run."""
    cuts: tuple[Cut, ...] = ()
    """Those it may have, with the memory that it foretells for each; where a planner asks."""
    memory: int | None = None
    """Its budget in bytes; None without one."""
    signature: Signature | None = None


@dataclass(frozen=True, slots=True)
class EdgeFacts:
    """What an edge brings: its adapter's manifest as JSON, and where devices dial it.

    `given` are the values that its checkpoint holds of an adapter, as a safetensors file. `credits`
    are the micro-batches of one device that may be in flight; 0: `network.credits`. It `keeps`
    updates of these devices and rounds, which it is to add up. `store` tells the stores of edges'
    snapshots apart; empty: it has none.
    """

    manifest: str
    address: str = ""
    given: bytes = b""
    credits: int = 0
    keeps: Mapping[str, int] = field(default_factory=dict)
    store: str = ""


@dataclass(frozen=True, slots=True)
class RoundReport:
    """What one device did in one round, or how long the steps of a rehearsal took it.

    `train_loss` is the mean over the round's steps; seconds are the device's. `snapshot`, `spans`,
    `edge_spans` and `edge_passes` are JSON. `asks_for` is the edge that it wants to be at.
    """

    round: int
    device: str
    num_steps: int = 0
    train_loss: float = 0.0
    num_tokens: int = 0
    train_seconds: float = 0.0
    evaluation: Score = NO_SCORE
    sample: Score = NO_SCORE
    evaluation_seconds: float = 0.0
    snapshot: str = ""
    spans: str = ""
    edge_spans: str = ""
    edge_passes: str = ""
    rehearsal: tuple[float, ...] = ()
    round_trips: RoundTrips = field(default_factory=dict)
    asks_for: str = ""
    signature: Signature | None = None


@dataclass(frozen=True, slots=True)
class UpdateHeader:
    """One side's part of a device's update, all but its values.

    `final_step` are the steps taken in the round when it was read off; its B A are multiplied by
    `scaling`.
    """

    round: int
    device: str
    side: str
    final_step: int = 0
    scaling: float = 0.0
    num_bytes: int = 0
    signature: Signature | None = None


@dataclass(frozen=True, slots=True)
class Length:
    """How long one device's update is, over so many values that began with norm `start`."""

    norm: float
    start: float
    values: int


@dataclass(frozen=True, slots=True)
class HeldUpdate:
    """A device's update is whole, and stays at its edge: what would come before its parts.

    `digest` is that of the device's part, where it has signed it. `length` is measured where the
    run measures lengths.
    """

    device: str
    parts: tuple[UpdateHeader, ...]
    digest: bytes = b""
    length: Length | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """For how many examples an update counts, and how much of its change does."""

    weight: int
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class SumOrder:
    """An edge is to add up the updates of these devices. The same number asks for the same."""

    round: int
    number: int
    shares: Mapping[str, Share]


@dataclass(frozen=True, slots=True)
class Admission:
    """The cloud's answer to a device that joins: what it is to load, or a `refusal`.

    `in_use`: it is refused for its name, which may be free in a moment. `edges` are those of the
    run that are there, as addresses by name; with a refusal those that it is to go to instead.
    """

    device: str
    refusal: str = ""
    in_use: bool = False
    assignment: Assignment | None = None
    edges: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EdgeOrders:
    """A round for an edge: what each of its devices does."""

    round: int
    devices: Mapping[str, Assignment]
    begun: bool = False
    """All have begun it there: what came of it is told again, and no adapter follows."""
    order: tuple[str, ...] = ()
    """Devices as they are best served, the first one first; without, as the edge's settings say."""
    edges: Mapping[str, str] = field(default_factory=dict)
    """Those of the run that are there: addresses by name."""


@dataclass(frozen=True, slots=True)
class EdgeWelcome:
    """What the cloud tells an edge first; `challenge` is empty without TLS."""

    settings: RunSettings
    run_id: str
    challenge: bytes = b""
    run_key: str = ""
    """Tells this run from another one of the same id."""


@dataclass(frozen=True, slots=True)
class DeviceWelcome:
    """What an edge tells a device that it takes in: `assignment` is what it is to load.

    `compiled_codec`: the edge has it.
    """

    settings: RunSettings
    run_id: str
    assignment: Assignment
    compiled_codec: bool = False
    run_key: str = ""
    """Tells this run from another one of the same id."""
    edge: str = ""
    """Who takes it in."""
    edges: Mapping[str, str] = field(default_factory=dict)
    """Those of the run that are there: addresses by name."""
    taught_tokens: int = 0
    """That a teacher's word to a device with the loss is about."""

    @property
    def recovery_key(self) -> str:
        """What snapshots of this run are known by; an older cloud tells its id alone."""
        return self.run_key or self.run_id
