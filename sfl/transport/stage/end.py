"""A server's end of its stream to the stage behind it, without I/O."""

from __future__ import annotations

from pathlib import Path

from sfl.config import RunSettings
from sfl.metrics.stats import PhaseTimes
from sfl.plan import Holder
from sfl.rounds.values import Assignment, Point
from sfl.stage.remembered import Within
from sfl.stage.snapshots import Snapshots
from sfl.transport.device.end import End


class NextEnd(End):
    """What the server sends and takes for one device. It remembers only what its codecs do."""

    def __init__(
        self,
        holder: Holder,
        device: str,
        joined: Assignment,
        settings: RunSettings,
        phases: PhaseTimes,
        peer_compiled: bool,
        folder: Path | None = None,
        snapshots: Snapshots | None = None,
    ) -> None:
        """`holder` is the server, `joined` what the device was told to load."""
        peer = joined.plan.next_of(holder)
        assert peer is not None, "no stage is behind the last one"
        super().__init__(
            holder, device, joined, settings, phases, peer_compiled, folder, snapshots, peer
        )

    def begin_round(self, told: Assignment) -> None:
        """Take the round's codecs, with what they remember. Raises SnapshotMissing."""
        self.go_on(told)

    def round_over(self, point: Point) -> None:
        """Every step of a round is taken: write what codecs remember."""
        self.reached(point, {})

    def step_over(self, point: Point) -> None:
        """The same after some steps of it."""
        self.passed(Within(point, {}, {}))
