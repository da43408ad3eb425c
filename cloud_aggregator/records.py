"""What a run writes down while it runs, and leaves behind: one folder, one writer."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import assert_never

from sfl.config import RunConfig
from sfl.errors import SflError
from sfl.metrics.snapshot import NodeKind, NodeSnapshot
from sfl.node.causes import cause_of
from sfl.node.files import Reserve, on_disk
from sfl.report.conclusion import RESERVE, write_conclusion
from sfl.report.projection import DeviceRounds, data_notes
from sfl.report.records import NodeRecord, Record, RecordFile
from sfl.report.status import LEFT_OUT, DeviceStatus, RunPhase, RunStatus, ServerStatus
from sfl.report.summary import Fault, RunSummary, build_summary
from sfl.rounds import Coordinator, DeviceReady, Event, FinishRun, Phase
from sfl.rounds import Fault as FaultCommand
from sfl.rounds.values import DeviceFacts

log = logging.getLogger("sfl.cloud")

MOST_FAULTS = 100
"""Of one node that status and summary tell: one that comes and goes all day fills neither."""

NodeName = tuple[str, str]  # kind and name


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
        self._faults: list[Fault] = []
        self._faults_of: Counter[str] = Counter()
        self.rounds = DeviceRounds()
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

    def take(self, event: Event) -> None:
        """Write down what an event tells of a device. Raises DiskError."""
        if (record := self.rounds.take(event)) is not None:
            self.heard(record.snapshot)
            self._write(record)
        elif isinstance(event, DeviceReady) and event.facts is not None:
            self._warn_of_data(event.device, event.facts)

    def _warn_of_data(self, device: str, facts: DeviceFacts) -> None:
        max_length = self.config.model.max_length
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
            return "lost" if device in self.rounds.facts else "not here yet"
        if (progress := coordinator.progress.get(device)) is None:
            return "ready" if known.ready else "loading"
        if progress.reported:
            return "done"
        snapshot = self._snapshots.get(("device", device))
        if snapshot is not None and snapshot.paused:
            return f"paused: {snapshot.paused}"
        return "training" if snapshot is not None and snapshot.step else "evaluating"

    # -- adapters -----------------------------------------------------------------------------

    def _choose_best(self) -> None:
        """The adapter with the least held-out loss, among those already evaluated."""
        best = self.rounds.best_round()
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
            data=self.rounds.notes,
        )
        self.summary = summary
        write_conclusion(self.folder, summary, self._records, self.config, self.rounds.steps)

    def _write_pending(self) -> None:
        """Rounds that were trained and never evaluated still get their line."""
        latest = {name: own for (kind, name), own in self._snapshots.items() if kind == "device"}
        for record in self.rounds.unevaluated(latest):
            self._write(record)

    def _write(self, record: Record) -> None:
        self._records.append(record)
        self._file.append(record)
