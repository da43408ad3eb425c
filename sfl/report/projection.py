"""What devices did in their rounds, told by a run's events alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain

from sfl.data.example import DataNotes
from sfl.metrics.snapshot import NodeSnapshot
from sfl.metrics.timeline import spans_from_json, watched_step
from sfl.report.records import RoundRecord, SampleScore
from sfl.report.step import StepTimeline, ordered, since
from sfl.report.summary import best_round
from sfl.rounds import DeviceReady, Event, ReportReceived
from sfl.rounds.values import DeviceFacts, RoundReport


@dataclass(frozen=True, slots=True)
class Trained:
    """The training half of a device's round; its evaluation comes with the next round."""

    loss: float
    steps: int
    tokens: int
    seconds: float


NOT_TRAINED = Trained(0.0, 0, 0, 0.0)


class DeviceRounds:
    """A projection of a run's journal: the same events give the same records, live or later."""

    def __init__(self) -> None:
        self.facts: dict[str, DeviceFacts] = {}
        self.steps: dict[str, StepTimeline] = {}
        """The latest step that was watched of each device."""
        self._trained: dict[tuple[str, int], Trained] = {}
        self._evaluated: dict[int, list[RoundRecord]] = {}

    def take(self, event: Event) -> RoundRecord | None:
        """A device's round as far as the event tells of one."""
        if isinstance(event, DeviceReady) and event.facts is not None:
            self.facts[event.device] = event.facts
        if not isinstance(event, ReportReceived) or event.report is None:
            return None
        return self._reported(event.report) if event.device in self.facts else None

    def _reported(self, report: RoundReport) -> RoundRecord:
        """Join a report's evaluation with the training of the round before."""
        if report.num_steps:
            self._trained[report.device, report.round] = Trained(
                report.train_loss, report.num_steps, report.num_tokens, report.train_seconds
            )
            self.steps[report.device] = _watched(report)
        record = self._evaluation(report)
        self._evaluated.setdefault(record.round, []).append(record)
        return record

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
        """Rounds that were trained and not evaluated, and never will be; told once."""
        pending = sorted(self._trained.items())
        self._trained.clear()
        return [
            RoundRecord(
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
                snapshot=snapshots[device],
            )
            for (device, round_), trained in pending
        ]

    def best_round(self) -> int | None:
        """The round whose adapter has the least held-out loss, among those evaluated so far."""
        return best_round(chain.from_iterable(self._evaluated.values()))

    def timelines(self, round_: int) -> list[StepTimeline]:
        """The steps that were watched in a round."""
        return [step for step in ordered(self.steps) if step.round == round_]

    @property
    def notes(self) -> dict[str, DataNotes]:
        """What is to be known of each device's data."""
        return {device: data_notes(facts) for device, facts in self.facts.items()}


def told(events: Iterable[Event]) -> list[RoundRecord]:
    """The records of a run's rounds, of its journal's events."""
    rounds = DeviceRounds()
    records = (rounds.take(event) for event in events)
    return [record for record in records if record is not None]


def data_notes(facts: DeviceFacts) -> DataNotes:
    """What is to be known of a device's data."""
    return DataNotes(
        facts.num_truncated,
        facts.num_dropped,
        facts.num_repeated,
        facts.num_tokens,
        min(facts.num_tokens_kept, facts.num_tokens),
    )


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
