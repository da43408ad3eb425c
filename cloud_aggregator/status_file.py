"""`status.json`: where the run is, for the live view, and how it ended."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import assert_never

from cloud_aggregator.effective import EffectiveConfig
from cloud_aggregator.snapshots import Snapshots
from sfl.metrics.snapshot import NodeSnapshot
from sfl.report.projection import DeviceRounds
from sfl.report.status import LEFT_OUT, DeviceStatus, RunPhase, RunStatus, ServerStatus
from sfl.report.summary import Fault
from sfl.rounds import Coordinator, FinishRun, Phase


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


class StatusFile:
    """Writes the status, each time with a number one higher."""

    def __init__(
        self, config: EffectiveConfig, folder: Path, snapshots: Snapshots, rounds: DeviceRounds
    ) -> None:
        self._config = config
        self._folder = folder
        self._snapshots = snapshots
        self._rounds = rounds
        self._sequence = 0

    def show(
        self,
        coordinator: Coordinator,
        cloud: NodeSnapshot,
        message: str,
        faults: Sequence[Fault],
    ) -> None:
        """The status while the run goes on. Raises DiskError."""
        devices, phase = self._devices(coordinator), shown_phase(coordinator.phase)
        self._write(phase, coordinator.round, devices, cloud, message, faults)

    def last_word(
        self,
        end: FinishRun,
        coordinator: Coordinator,
        cloud: NodeSnapshot,
        faults: Sequence[Fault],
    ) -> None:
        """The status that stays: nobody trains any more. Raises DiskError."""
        devices = [device.at_end(end.ok) for device in self._devices(coordinator)]
        phase: RunPhase = "finished" if end.ok else "failed"
        self._write(phase, coordinator.round, devices, cloud, end.reason, faults)

    def _write(
        self,
        phase: RunPhase,
        round_: int,
        devices: Sequence[DeviceStatus],
        cloud: NodeSnapshot,
        message: str,
        faults: Sequence[Fault],
    ) -> None:
        config = self._config.current
        servers = self._snapshots.servers()
        self._sequence += 1
        RunStatus(
            run_id=self._folder.name,
            phase=phase,
            round=min(round_, config.run.rounds),
            rounds=config.run.rounds,
            task=config.model.task,
            message=message,
            devices=tuple(devices),
            edges=tuple(ServerStatus.from_snapshot(s) for s in servers if s.kind == "edge"),
            cloud=ServerStatus.from_snapshot(cloud),
            faults=tuple(str(fault) for fault in faults),
            updated_at=time.time(),
            sequence=self._sequence,
            pid=os.getpid(),
            host=socket.gethostname(),
        ).write(self._folder / "status.json")

    def _devices(self, coordinator: Coordinator) -> list[DeviceStatus]:
        return [
            DeviceStatus.from_snapshot(
                self._snapshots.of("device", entry.name),
                self._device_state(entry.name, coordinator),
            )
            for entry in self._config.current.devices
        ]

    def _device_state(self, device: str, coordinator: Coordinator) -> str:
        known = coordinator.devices.get(device)
        if device in coordinator.strikes.out:
            return LEFT_OUT
        if known is None:
            return "lost" if device in self._rounds.facts else "not here yet"
        if (progress := coordinator.progress.get(device)) is None:
            return "ready" if known.ready else "loading"
        if progress.reported:
            return "done"
        snapshot = self._snapshots.of("device", device)
        if snapshot.paused:
            return f"paused: {snapshot.paused}"
        return "training" if snapshot.step else "evaluating"
