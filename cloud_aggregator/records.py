"""What a run writes down while it runs, and leaves behind: one folder, one writer."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import assert_never

from sfl.config import RunConfig
from sfl.data.example import DataNotes
from sfl.errors import SflError
from sfl.metrics.snapshot import NodeKind, NodeSnapshot
from sfl.metrics.timeline import spans_from_json, watched_step
from sfl.node.causes import cause_of
from sfl.node.files import Reserve, on_disk
from sfl.report.conclusion import RESERVE, write_conclusion
from sfl.report.records import NodeRecord, Record, RecordFile, RoundRecord, SampleScore
from sfl.report.status import LEFT_OUT, DeviceStatus, RunPhase, RunStatus, ServerStatus
from sfl.report.step import StepTimeline, ordered, since
from sfl.report.summary import Fault, RunSummary, best_round, build_summary
from sfl.rounds import Coordinator, FinishRun, Phase, StartRound
from sfl.rounds import Fault as FaultCommand
from sfl.rounds.values import DeviceFacts, RoundReport

log = logging.getLogger("sfl.cloud")

MOST_FAULTS = 100
"""Of one node that status and summary tell: one that comes and goes all day fills neither."""

NodeName = tuple[str, str]  # kind and name


@dataclass(frozen=True, slots=True)
class Trained:
    """The training half of a device's round; its evaluation comes with the next round."""

    loss: float
    steps: int
    tokens: int
    seconds: float


def _sample(report: RoundReport, plain_text: bool) -> SampleScore | None:
    """The part of a report's score that rounds are compared by, where that is not all of it."""
    own = report.sample
    if not own.num_examples or own.num_examples == report.evaluation.num_examples:
        return None
    correct = None if plain_text else own.num_correct
    return SampleScore(own.loss_sum, own.num_targets, correct, own.num_examples)


def shown_phase(phase: Phase) -> RunPhase:
    """A coordinator's phase as the status calls it."""
    match phase:
        case Phase.WAITING:
            return "waiting for devices"
        case Phase.REHEARSAL:
            return "timing steps"
        case Phase.ROUND:
            return "training"
        case Phase.FINAL:
            return "evaluating"
        case Phase.AGGREGATING:
            return "aggregating"
        case Phase.OVER:
            return "finished"
        case unknown:
            assert_never(unknown)


class RunRecords:
    """`metrics.jsonl`, `status.json`, `summary.json`, `report.html` and the kept adapters."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self.config = config
        self.folder = folder
        self.message = ""
        self.best_round: int | None = None
        self.summary: RunSummary | None = None
        self._reserve = Reserve(folder / RESERVE)
        self._file = RecordFile(folder / "metrics.jsonl")
        self._records: list[Record] = []
        self._snapshots: dict[NodeName, NodeSnapshot] = {}
        self._ready: dict[str, DeviceFacts] = {}
        self._notes: dict[str, DataNotes] = {}
        self._trained: dict[tuple[str, int], Trained] = {}
        self._faults: list[Fault] = []
        self._faults_of: Counter[str] = Counter()
        self._timelines: dict[str, StepTimeline] = {}
        self._evaluated: dict[int, list[RoundRecord]] = {}
        self._participants: tuple[str, ...] = ()
        self._reported: set[str] = set()
        self._sequence = 0
        self._round_began = self._began = time.monotonic()
        self._training_seconds = 0.0

    # -- while it runs ----------------------------------------------------------------------------

    def heard(self, snapshot: NodeSnapshot) -> None:
        """Keep a node's latest statistics."""
        self._snapshots[snapshot.kind, snapshot.name] = snapshot

    def snapshot(self, kind: NodeKind, name: str) -> NodeSnapshot:
        """A node's latest statistics."""
        return self._snapshots.get((kind, name), NodeSnapshot(name, kind))

    def device_ready(self, device: str, ready: DeviceFacts) -> None:
        """Note what a device brings."""
        self._ready[device] = ready
        self._notes[device] = DataNotes(
            ready.num_truncated,
            ready.num_dropped,
            ready.num_repeated,
            ready.num_tokens,
            min(ready.num_tokens_kept, ready.num_tokens),
        )
        for line in self._notes[device].warnings(self.config.model.max_length, ready.example_kind):
            log.warning("device %s: %s", device, line, extra={"device": device})

    def begin_round(self, command: StartRound) -> None:
        """A round begins: everybody in it has yet to report."""
        self._participants = tuple(command.devices)
        self._reported = set()
        self._round_began = time.monotonic()
        self.message = ""

    def reported(self, report: RoundReport) -> None:
        """Join a report's evaluation with the training of the round before."""
        snapshot = NodeSnapshot.from_json(report.snapshot)
        self.heard(snapshot)
        self._reported.add(report.device)
        if report.num_steps:
            self._trained[report.device, report.round] = Trained(
                report.train_loss, report.num_steps, report.num_tokens, report.train_seconds
            )
            own = tuple(spans_from_json(report.spans))
            self._timelines[report.device] = StepTimeline(
                report.device,
                report.round,
                own,
                since(spans_from_json(report.edge_spans), own),
                watched_step(report.num_steps),
            )
        self._write(self._evaluation_record(report, snapshot))

    def _evaluation_record(self, report: RoundReport, snapshot: NodeSnapshot) -> RoundRecord:
        evaluated = report.round - 1
        trained = self._trained.pop((report.device, evaluated), None)
        ready, score = self._ready[report.device], report.evaluation
        plain_text = ready.example_kind == "text"
        record = RoundRecord(
            round=evaluated,
            device=report.device,
            train_loss=trained.loss if trained else None,
            eval_loss_sum=score.loss_sum,
            eval_targets=score.num_targets,
            eval_correct=None if plain_text else score.num_correct,
            eval_examples=score.num_examples,
            num_examples=ready.num_examples,
            steps=trained.steps if trained else 0,
            tokens=trained.tokens if trained else 0,
            seconds=trained.seconds if trained else 0.0,
            snapshot=snapshot,
            sample=_sample(report, plain_text),
        )
        self._evaluated.setdefault(evaluated, []).append(record)
        return record

    def timelines(self, round_: int) -> list[StepTimeline]:
        """The steps that were watched in a round."""
        return [step for step in ordered(self._timelines) if step.round == round_]

    def end_round(self, round_: int, cloud: NodeSnapshot) -> None:
        """A round's adapter is there: keep it, and a line for each server."""
        seconds = time.monotonic() - self._round_began
        self._training_seconds += seconds
        self.heard(cloud)
        for (kind, _), snapshot in sorted(self._snapshots.items()):
            if kind != "device":
                self._write(NodeRecord(round_, seconds, snapshot))
        self._replace("adapter", round_)
        self._choose_best()

    def add_fault(self, fault: FaultCommand) -> None:
        """Keep what went wrong; of one node not more than the first so many."""
        node = fault.device or "edge"
        self._faults_of[node] += 1
        more = self._faults_of[node] - MOST_FAULTS
        if more <= 0:
            self._faults.append(Fault(fault.round, node, fault.reason))
        elif more == 1:
            self._faults.append(Fault(fault.round, node, "its further faults are in the log only"))

    def show(self, coordinator: Coordinator, cloud: NodeSnapshot) -> None:
        """Write the status that the live view reads. Raises DiskError."""
        devices = tuple(self._device_status(e.name, coordinator) for e in self.config.devices)
        self._write_status(shown_phase(coordinator.phase), coordinator.round, devices, cloud)

    def _write_status(
        self, phase: RunPhase, round_: int, devices: tuple[DeviceStatus, ...], cloud: NodeSnapshot
    ) -> None:
        rounds = self.config.run.rounds
        self._sequence += 1
        RunStatus(
            run_id=self.folder.name,
            phase=phase,
            round=min(round_, rounds),
            rounds=rounds,
            task=self.config.model.task,
            message=self.message,
            devices=devices,
            edges=tuple(
                ServerStatus.from_snapshot(snapshot)
                for (kind, _), snapshot in sorted(self._snapshots.items())
                if kind == "edge"
            ),
            cloud=ServerStatus.from_snapshot(cloud),
            faults=tuple(str(fault) for fault in self._faults),
            updated_at=time.time(),
            sequence=self._sequence,
            pid=os.getpid(),
            host=socket.gethostname(),
        ).write(self.folder / "status.json")

    def _last_word(self, end: FinishRun, coordinator: Coordinator, cloud: NodeSnapshot) -> None:
        """The status that stays: nobody trains any more."""
        self.message = end.reason
        shown = (self._device_status(entry.name, coordinator) for entry in self.config.devices)
        devices = tuple(device.at_end(end.ok) for device in shown)
        phase: RunPhase = "finished" if end.ok else "failed"
        self._write_status(phase, coordinator.round, devices, cloud)

    def _device_status(self, device: str, coordinator: Coordinator) -> DeviceStatus:
        snapshot = self._snapshots.get(("device", device), NodeSnapshot(device, "device"))
        return DeviceStatus.from_snapshot(snapshot, self._device_state(device, coordinator))

    def _device_state(self, device: str, coordinator: Coordinator) -> str:
        known = coordinator.devices.get(device)
        if device in coordinator.strikes.out:
            return LEFT_OUT
        if known is None:
            return "lost" if device in self._ready else "not here yet"
        if device not in coordinator.progress:
            return "ready" if known.ready else "loading"
        if device in self._reported:
            return "done"
        snapshot = self._snapshots.get(("device", device))
        if snapshot is not None and snapshot.paused:
            return f"paused: {snapshot.paused}"
        return "training" if snapshot is not None and snapshot.step else "evaluating"

    # -- adapters -----------------------------------------------------------------------------

    def _choose_best(self) -> None:
        """The adapter with the least held-out loss, among those already evaluated."""
        records = (record for own in self._evaluated.values() for record in own)
        best = best_round(records)
        if best is not None and best != self.best_round:
            self.best_round = best
            self._replace("adapter_best", best)
        self._prune()

    def _replace(self, name: str, round_: int) -> None:
        """Make `name` a copy of a round's adapter; a reader never sees half of it."""
        source = self.folder / "adapters" / f"round-{round_:04d}"
        if not source.is_dir():
            return
        aside, target = self.folder / f".{name}.new", self.folder / name
        with on_disk(self.folder):
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir()
            for file in source.iterdir():
                shutil.copyfile(file, aside / file.name)
            shutil.rmtree(target, ignore_errors=True)
            aside.rename(target)

    def _prune(self) -> None:
        """Keep only the adapters that may still turn out best, unless all are wanted."""
        if self.config.run.keep_round_adapters:
            return
        for folder in sorted((self.folder / "adapters").glob("round-*"))[:-1]:
            with on_disk(self.folder):
                shutil.rmtree(folder)

    # -- at the end -----------------------------------------------------------------------------

    def close(
        self, end: FinishRun, coordinator: Coordinator, cloud: NodeSnapshot
    ) -> SflError | None:
        """Write the summary, the report and the last status, as far as that can be done.

        Returns what kept any of it from being written.
        """
        self.heard(cloud)
        self._reserve.give_back()
        problems: list[SflError] = []
        for step in (
            self._write_pending,
            self._choose_best,
            self._drop_adapters,
            partial(self._last_word, end, coordinator, cloud),
            partial(self._summarise, end),
            self._file.close,
        ):
            try:
                step()
            except Exception as error:  # noqa: BLE001 - the next may still be written
                problems.append(cause_of(error))
        for problem in problems:
            log.error("%s", problem)
        return problems[0] if problems else None

    def _drop_adapters(self) -> None:
        if not self.config.run.keep_round_adapters:
            shutil.rmtree(self.folder / "adapters", ignore_errors=True)

    def _summarise(self, end: FinishRun) -> None:
        summary = build_summary(
            self.config.settings,
            self.folder.name,
            self._records,
            list(self._snapshots.values()),
            train_seconds=self._training_seconds,
            wall_seconds=time.monotonic() - self._began,
            faults=self._faults,
            failure=None if end.ok else end.reason,
            adapter=str(self.folder / "adapter") if (self.folder / "adapter").is_dir() else None,
            best_round=self.best_round,
            data=self._notes,
        )
        self.summary = summary
        write_conclusion(self.folder, summary, self._records, self.config, self._timelines)

    def _write_pending(self) -> None:
        """Rounds that were trained and never evaluated still get their line."""
        for (device, round_), trained in sorted(self._trained.items()):
            snapshot = self._snapshots["device", device]
            self._write(
                RoundRecord(
                    round_,
                    device,
                    trained.loss,
                    0.0,
                    0,
                    None,
                    0,
                    self._ready[device].num_examples,
                    trained.steps,
                    trained.tokens,
                    trained.seconds,
                    snapshot,
                )
            )
        self._trained.clear()

    def _write(self, record: Record) -> None:
        self._records.append(record)
        self._file.append(record)
