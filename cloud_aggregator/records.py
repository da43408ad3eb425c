"""What a run writes down while it runs, and leaves behind: one folder, one writer."""

from __future__ import annotations

import logging
import time
from collections import Counter
from functools import partial
from pathlib import Path

from cloud_aggregator.effective import EffectiveConfig
from cloud_aggregator.kept import KeptAdapters
from cloud_aggregator.snapshots import Snapshots
from cloud_aggregator.status_file import StatusFile
from sfl.errors import SflError
from sfl.metrics.snapshot import NodeKind, NodeSnapshot
from sfl.node.causes import cause_of
from sfl.node.files import Reserve
from sfl.report.conclusion import RESERVE, write_conclusion
from sfl.report.projection import DeviceRounds, data_notes
from sfl.report.records import NodeRecord, Record, RecordFile
from sfl.report.summary import Fault, RunSummary, build_summary
from sfl.rounds import Coordinator, DeviceReady, Event, FinishRun
from sfl.rounds import Fault as FaultCommand
from sfl.rounds.values import DeviceFacts

log = logging.getLogger("sfl.cloud")

MOST_FAULTS = 100
"""Of one node that status and summary tell: one that comes and goes all day fills neither."""


class RunRecords:
    """`metrics.jsonl`, `status.json`, `summary.json`, `report.html` and the kept adapters."""

    def __init__(self, config: EffectiveConfig, folder: Path) -> None:
        self.message = ""
        """What the run waits for, in words."""
        self.summary: RunSummary | None = None
        self._config = config
        self._folder = folder
        self._reserve = Reserve(folder / RESERVE)
        self._file = RecordFile(folder / "metrics.jsonl")
        self._records: list[Record] = []
        self.rounds = DeviceRounds()
        self._snapshots = Snapshots()
        self._kept = KeptAdapters(config, folder)
        self._status = StatusFile(config, folder, self._snapshots, self.rounds)
        self._faults: list[Fault] = []
        self._faults_of: Counter[str] = Counter()
        self._round_began = self._began = time.monotonic()
        self._training_seconds = 0.0

    # -- while it runs ----------------------------------------------------------------------------

    def heard(self, snapshot: NodeSnapshot) -> None:
        """Keep a node's latest statistics."""
        self._snapshots.heard(snapshot)

    def snapshot(self, kind: NodeKind, name: str) -> NodeSnapshot:
        """A node's latest statistics."""
        return self._snapshots.of(kind, name)

    def take(self, event: Event) -> None:
        """Write down what an event tells of a device. Raises DiskError."""
        if (record := self.rounds.take(event)) is not None:
            self.heard(record.snapshot)
            self._write(record)
        elif isinstance(event, DeviceReady) and event.facts is not None:
            self._warn_of_data(event.device, event.facts)

    def _warn_of_data(self, device: str, facts: DeviceFacts) -> None:
        max_length = self._config.current.model.max_length
        for line in data_notes(facts).warnings(max_length, facts.example_kind):
            log.warning("device %s: %s", device, line, extra={"device": device})

    def begin_round(self) -> None:
        """A round begins."""
        self._round_began = time.monotonic()
        self.message = ""

    def end_round(self, round_: int, cloud: NodeSnapshot) -> None:
        """A round's adapter is there: keep it, and a line for each server."""
        seconds = time.monotonic() - self._round_began
        self._training_seconds += seconds
        self.heard(cloud)
        for snapshot in self._snapshots.servers():
            self._write(NodeRecord(round_, seconds, snapshot))
        self._kept.replace("adapter", round_)
        self._kept.choose_best(self.rounds.best_round())

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
        self._status.show(coordinator, cloud, self.message, self._faults)

    # -- at the end -----------------------------------------------------------------------------

    def close(
        self, end: FinishRun, coordinator: Coordinator, cloud: NodeSnapshot
    ) -> SflError | None:
        """Write the summary, the report and the last status, as far as that can be done.

        Returns what kept any of it from being written.
        """
        self.heard(cloud)
        self.message = end.reason
        self._reserve.give_back()
        problems: list[SflError] = []
        for step in (
            self._write_pending,
            lambda: self._kept.choose_best(self.rounds.best_round()),
            self._kept.drop_rounds,
            partial(self._status.last_word, end, coordinator, cloud, self._faults),
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

    def _summarise(self, end: FinishRun) -> None:
        config, adapter = self._config.current, self._folder / "adapter"
        summary = build_summary(
            config.settings,
            self._folder.name,
            self._records,
            self._snapshots.all(),
            train_seconds=self._training_seconds,
            wall_seconds=time.monotonic() - self._began,
            faults=self._faults,
            failure=None if end.ok else end.reason,
            adapter=str(adapter) if adapter.is_dir() else None,
            best_round=self._kept.best_round,
            data=self.rounds.notes,
        )
        self.summary = summary
        write_conclusion(self._folder, summary, self._records, config, self.rounds.steps)

    def _write_pending(self) -> None:
        """Rounds that were trained and never evaluated still get their line."""
        for record in self.rounds.unevaluated(self._snapshots.devices()):
            self._write(record)

    def _write(self, record: Record) -> None:
        self._records.append(record)
        self._file.append(record)
