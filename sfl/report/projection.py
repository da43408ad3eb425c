"""What a run's records say, told by its journal alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatchmethod

from sfl.config import RunSettings
from sfl.data.example import DataNotes
from sfl.metrics.snapshot import NodeSnapshot
from sfl.metrics.timeline import spans_from_json, watched_step
from sfl.planners.plans import Plan
from sfl.report.awaited import LastWords
from sfl.report.records import NodeRecord, Record, RoundRecord, SampleScore
from sfl.report.scores import Scores
from sfl.report.statistics import Statistics
from sfl.report.step import StepTimeline, ordered, since
from sfl.report.summary import Fault, RunSummary, build_summary
from sfl.rounds import (
    AdapterReady,
    CloudRestarted,
    DeviceJoined,
    DeviceLost,
    DeviceReady,
    EdgeLost,
    Event,
    Fact,
    Planned,
    Rehearse,
    Report,
    ReportReceived,
    RoundBegan,
    RunEnded,
    Settle,
)
from sfl.rounds import Fault as Told
from sfl.rounds.journal import Entry
from sfl.rounds.messages import NodeHeard
from sfl.rounds.values import DeviceFacts, RoundReport

MOST_FAULTS = 100
"""Of one node that status and summary tell: one that comes and goes all day fills neither."""


@dataclass(frozen=True, slots=True)
class Trained:
    """The training half of a device's round; its evaluation comes with the next round."""

    loss: float
    steps: int
    tokens: int
    seconds: float


NOT_TRAINED = Trained(0.0, 0, 0, 0.0)


class DeviceRounds:
    """What devices did in their rounds."""

    def __init__(self) -> None:
        self.facts: dict[str, DeviceFacts] = {}
        self.steps: dict[str, StepTimeline] = {}
        """The latest step that was watched of each device."""
        self._trained: dict[tuple[str, int], Trained] = {}
        self._reported: dict[str, int] = {}
        """The last round of each: who is back after a break tells again what it told."""
        self._scores = Scores()

    def take(self, event: Event) -> list[RoundRecord]:
        """A device's round as far as the event tells of one."""
        if isinstance(event, DeviceReady) and event.facts is not None:
            self.facts[event.device] = event.facts
        if not isinstance(event, ReportReceived) or event.report is None:
            return []
        return self._told(event.report) if event.device in self.facts else []

    def _told(self, report: RoundReport) -> list[RoundRecord]:
        """Join a report's evaluation with the training of the round before.

        What comes again is no second score; what a round that was begun again came to counts.
        """
        if report.num_steps:
            self._trained[report.device, report.round] = Trained(
                report.train_loss, report.num_steps, report.num_tokens, report.train_seconds
            )
            self.steps[report.device] = _watched(report)
        if report.round <= self._reported.get(report.device, 0):
            return []
        self._reported[report.device] = report.round
        record = self._evaluation(report)
        self._scores.take(record)
        return [*self._passed_over(report, record), record]

    def _passed_over(self, report: RoundReport, record: RoundRecord) -> Iterator[RoundRecord]:
        """Rounds that a device trained whose adapter it will not evaluate: it is further."""
        for device, round_ in sorted(self._trained):
            if device == report.device and round_ < record.round:
                trained = self._trained.pop((device, round_))
                yield self._unevaluated(device, round_, trained, record.snapshot)

    def _evaluation(self, report: RoundReport) -> RoundRecord:
        evaluated = report.round - 1
        trained = self._trained.pop((report.device, evaluated), None)
        did = NOT_TRAINED if trained is None else trained
        facts, score = self.facts[report.device], report.evaluation
        plain_text = facts.example_kind == "text"
        return RoundRecord(
            round=evaluated,
            device=report.device,
            train_loss=None if trained is None else trained.loss,
            eval_loss_sum=score.loss_sum,
            eval_targets=score.num_targets,
            eval_correct=None if plain_text else score.num_correct,
            eval_examples=score.num_examples,
            num_examples=facts.num_examples,
            steps=did.steps,
            tokens=did.tokens,
            seconds=did.seconds,
            snapshot=NodeSnapshot.from_json(report.snapshot),
            sample=_sample(report, plain_text),
        )

    def unevaluated(self, snapshots: Mapping[str, NodeSnapshot]) -> list[RoundRecord]:
        """Rounds that were trained and not evaluated."""
        return [
            self._unevaluated(device, round_, trained, snapshots[device])
            for (device, round_), trained in sorted(self._trained.items())
        ]

    def _unevaluated(
        self, device: str, round_: int, trained: Trained, snapshot: NodeSnapshot
    ) -> RoundRecord:
        return RoundRecord(
            round=round_,
            device=device,
            train_loss=trained.loss,
            eval_loss_sum=0.0,
            eval_targets=0,
            eval_correct=None,
            eval_examples=0,
            num_examples=self.facts[device].num_examples,
            steps=trained.steps,
            tokens=trained.tokens,
            seconds=trained.seconds,
            snapshot=snapshot,
        )

    def best_round(self) -> int | None:
        """The round whose adapter has the least held-out loss, among those evaluated so far."""
        return self._scores.best()

    def timelines(self, round_: int) -> list[StepTimeline]:
        """The steps that were watched in a round."""
        return [step for step in ordered(self.steps) if step.round == round_]

    @property
    def notes(self) -> dict[str, DataNotes]:
        """What is to be known of each device's data."""
        return {device: data_notes(facts) for device, facts in self.facts.items()}


class Faults:
    """What went wrong, in order; of one node not more than the first so many."""

    def __init__(self) -> None:
        self.kept: list[Fault] = []
        self._number_of: Counter[str] = Counter()

    def has(self, fault: Told) -> bool:
        """Whether the very same was told."""
        return Fault(fault.round, fault.device or "edge", fault.reason) in self.kept

    def add(self, fault: Told) -> None:
        """Keep a fault, as long as its node does not have too many."""
        node = fault.device or "edge"
        self._number_of[node] += 1
        more = self._number_of[node] - MOST_FAULTS
        if more <= 0:
            self.kept.append(Fault(fault.round, node, fault.reason))
        elif more == 1:
            self.kept.append(Fault(fault.round, node, "its further faults are in the log only"))


class RunProjection:
    """All that a run's records say, of its journal's entries alone: live, or at any time later.

    An entry costs the same however many devices there are, but for a round's end.
    """

    def __init__(self) -> None:
        self.rounds = DeviceRounds()
        self.statistics = Statistics()
        self.words = LastWords()
        self.records: list[Record] = []
        """The lines of `metrics.jsonl`, in their order; a cloud takes out those it has written."""
        self.plans: list[str] = []
        """The lines of `plans.jsonl`; as for the records."""
        self.planned: Plan | None = None
        """The latest decision, without its state."""
        self.faults = Faults()
        self.message = ""
        """What the run waits for, in words, or why it ended."""
        self.end: RunEnded | None = None
        self.closed = 0
        """The last round that has an adapter."""
        self._at_end = self._began = 0
        self.staleness: dict[str, Counter[int]] = {}
        """By device, how often an update of it that was averaged was how old; empty where none may
        be late."""
        self.train_seconds = self.wall_seconds = self._round_began = 0.0

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> RunProjection:
        """Of a whole journal, or of its first entries."""
        told = cls()
        for entry in entries:
            told.take(entry)
        return told

    def take(self, entry: Entry) -> list[Record]:
        """What comes next; returns the records that it adds."""
        before = len(self.records)
        self._take(entry.event, entry.now)
        return self.records[before:]

    @singledispatchmethod
    def _take(self, event: Event | Fact, now: float) -> None:
        """Most events are told of by nobody."""

    @_take.register
    def _(self, event: NodeHeard, now: float) -> None:
        snapshot = NodeSnapshot.from_json(event.snapshot)
        self.statistics.heard(snapshot, event.life)
        self.words.heard(snapshot, now)

    @_take.register
    def _(self, event: EdgeLost, now: float) -> None:
        self.words.forget("edge", event.edge)

    @_take.register
    def _(self, event: DeviceJoined, now: float) -> None:
        self.words.joined(event.device, now)

    @_take.register
    def _(self, event: DeviceLost, now: float) -> None:
        self.words.forget("device", event.device)

    @_take.register(DeviceReady | ReportReceived)
    def _(self, event: DeviceReady | ReportReceived, now: float) -> None:
        for record in self.rounds.take(event):
            self.statistics.heard(record.snapshot)
            self.records.append(record)

    @_take.register
    def _(self, event: Told, now: float) -> None:
        self.faults.add(event)

    @_take.register
    def _(self, event: Planned, now: float) -> None:
        if event.line:
            self.plans.append(event.line)
            self.planned = Plan.from_json(event.line, with_state=False)

    @_take.register
    def _(self, event: Report, now: float) -> None:
        self.message = event.text

    @_take.register(Rehearse | Settle)
    def _(self, event: Rehearse | Settle, now: float) -> None:
        self.message = words_of(event)[-1]

    @_take.register
    def _(self, event: RoundBegan, now: float) -> None:
        self.message = ""
        if event.round != self._began:  # in an asynchronous run devices begin it one by one
            self._began, self._round_began = event.round, now

    @_take.register
    def _(self, event: AdapterReady, now: float) -> None:
        if event.round:
            self.closed = event.round
            seconds = now - self._round_began
            self.train_seconds += seconds
            servers = map(NodeSnapshot.from_json, event.servers)
            self.records += [_at_end_of(event, seconds, server) for server in servers]
            for device, staleness in event.staleness.items():
                self.staleness.setdefault(device, Counter())[staleness] += 1

    @_take.register
    def _(self, event: RunEnded, now: float) -> None:
        if self.end is not None:  # told by its cloud, and in that one's place as well
            self.go_on()
        # Rounds that were trained and never evaluated still get their line.
        self._at_end = len(self.records)
        self.records += self.rounds.unevaluated(self.statistics.devices())
        self.end, self.message, self.wall_seconds = event, event.reason, now

    @_take.register
    def _(self, event: CloudRestarted, now: float) -> None:
        self.words.forget_all()
        self.go_on()

    def go_on(self) -> None:
        """An end that was told was none: what was still to be evaluated will be."""
        if self.end is not None:
            del self.records[self._at_end :]
            self.end, self.message = None, ""

    def summary(
        self,
        run_id: str,
        settings: RunSettings,
        adapter: str | None,
        written: Sequence[Record] = (),
        plans: Sequence[Plan] = (),
    ) -> RunSummary:
        """What the run came to; `adapter` is the folder as a user would write it.

        `written` are records, and `plans` are decisions, that were taken out.
        """
        end = self.end
        return build_summary(
            settings,
            run_id,
            [*written, *self.records],
            self.statistics.all(),
            train_seconds=self.train_seconds,
            wall_seconds=self.wall_seconds,
            faults=self.faults.kept,
            failure=None if end is not None and end.ok else self.message,
            adapter=adapter,
            # Where other devices evaluate each adapter, none can be called the best.
            best_round=None if settings.is_asynchronous else self.rounds.best_round(),
            data=self.rounds.notes,
            staleness=self.staleness,
            plans=[*plans, *(Plan.from_json(line, with_state=False) for line in self.plans)],
        )


def words_of(command: Rehearse | Settle) -> list[str]:
    """What is tried, or what was chosen, in words; the last of it stays as the run's message."""
    if isinstance(command, Rehearse):
        tried = ", ".join(map(str, command.counts))
        coded = f", codec {command.codec}" if command.codec else ""
        return [f"timing steps of {tried} micro-batches{coded}"]
    times = ", ".join(f"{n}: {1000 * s:.0f} ms" for n, s in command.seconds.items())
    words = [f"micro-batches a step: {command.micro_batches} (tried {times})"]
    if command.codecs:
        chosen = ", ".join(f"{name}: {codec}" for name, codec in command.codecs.items())
        words.append(f"codec: {chosen}")
    return words


def data_notes(facts: DeviceFacts) -> DataNotes:
    """What is to be known of a device's data."""
    return DataNotes(
        facts.num_truncated,
        facts.num_dropped,
        facts.num_repeated,
        facts.num_tokens,
        min(facts.num_tokens_kept, facts.num_tokens),
    )


def _at_end_of(round_: AdapterReady, seconds: float, server: NodeSnapshot) -> NodeRecord:
    staleness = round_.staleness if server.kind == "cloud" else {}
    return NodeRecord(round_.round, seconds, server, dict(staleness))


def _watched(report: RoundReport) -> StepTimeline:
    own = tuple(spans_from_json(report.spans))
    edges = since(spans_from_json(report.edge_spans), own)
    return StepTimeline(report.device, report.round, own, edges, watched_step(report.num_steps))


def _sample(report: RoundReport, plain_text: bool) -> SampleScore | None:
    """The part of a report's score that rounds are compared by, where that is not all of it."""
    own = report.sample
    if not own.num_examples or own.num_examples == report.evaluation.num_examples:
        return None
    correct = None if plain_text else own.num_correct
    return SampleScore(own.loss_sum, own.num_targets, correct, own.num_examples)
