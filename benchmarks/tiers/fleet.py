"""A cloud, edges and a stage as processes, and light devices that may take turns at their edge."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.light import LightDevice, LightRound, Nodes, Shape
from sfl.report.summary import RunSummary
from sfl.rounds.values import Assignment
from sfl.stage.messages import Key, Purpose
from sfl.transport.device.link import DeviceLink


class Fleet(Nodes):
    """A cloud, several edges, and a stage behind them where `stage` is given."""

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        edges: Sequence[str],
        edge: Mapping[str, Any],
        stage: Mapping[str, Any] | None,
    ) -> None:
        super().__init__(folder, settings, edge)
        self._edges, self._stage = edges, stage
        self.by_name: dict[str, str] = {}

    def _open(self, cloud: str) -> None:
        own = {**self._edge, "cloud": cloud}
        if self._stage is not None:
            own["next"] = self._start("stage", {"stage": dict(self._stage)})
        for name in self._edges:
            self.by_name[name] = self._start("edge", {"edge": {**own, "name": name}}, name)


class Turns(LightDevice):
    """A device whose first step is of a single sequence, which makes gradients and moments.

    Later steps are of `later`. Where `turn` is a lock that devices share, one of them trains at a
    time.
    """

    def __init__(self, name: str, later: Shape, turn: threading.Lock | None) -> None:
        super().__init__(name, later)
        self._turn: AbstractContextManager[Any] = turn or nullcontext()

    def _steps(self, link: DeviceLink, start: Assignment, own: LightRound) -> None:
        with self._turn:
            for step in range(start.steps.count):
                shape = self._shape if step else replace(self._shape, batch=1)
                link.send(shape.message(Key(Purpose.TRAINING, start.round, step, 0)))
                link.receive()


def play(fleet: Fleet, devices: Sequence[tuple[LightDevice, str]]) -> RunSummary:
    """One run to its end, of devices and the names of their edges."""
    with fleet, ThreadPoolExecutor(len(devices)) as pool:
        futures = [pool.submit(device.run, fleet.by_name[edge]) for device, edge in devices]
        for future in futures:
            future.result()
        return fleet.summary()
