"""What one side of a device's stream goes on from: its own memory, a snapshot, or nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from sfl.adapters.names import block_of
from sfl.errors import SnapshotMissing
from sfl.node.watched import beside
from sfl.plan import Moves
from sfl.rounds.values import BEGINNING, Point
from sfl.stage.snapshots import Snapshot, Snapshots

log = logging.getLogger("sfl.recovery")

DISK_SECONDS = 60.0
"""That a snapshot may take; after them its owner goes on without it."""

Moments = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class GoOn:
    """What a round goes on from.

    `moments` are the optimizer's, None where it has them. After `step` steps of the same round also
    `values`, those of the whole adapter on this side, and `facts`, what a device has to report.
    """

    moments: Moments | None = None
    step: int = 0
    values: Mapping[str, np.ndarray] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    moves: Moves = ()
    """Blocks that change sides with the round, since the cut is another one than at the point."""

    def of_blocks(self, blocks: Collection[int], held: Moments) -> dict[str, torch.Tensor]:
        """The moments of these blocks at the point; an optimizer has them in `held` if memory is
        of it."""
        moments = held if self.moments is None else self.moments
        return {name: tensor for name, tensor in moments.items() if block_of(name) in blocks}


IN_MEMORY = GoOn()


@dataclass(frozen=True, slots=True)
class Within:
    """What one side has after some steps of a round, in memory of its own."""

    point: Point
    moments: Moments
    values: Mapping[str, np.ndarray]
    facts: Mapping[str, Any] = field(default_factory=dict)


def nobody(within: Within) -> None:
    """Who keeps nothing within rounds."""


class Remembered:
    """Knows of which point a stream's memory is, and finds the snapshot of another one.

    Snapshots are written one after the other, each on a thread of its own while its owner goes on.
    Without `snapshots` nothing is written, and no other point is known. A disk that does not answer
    for DISK_SECONDS counts as one that is full.
    """

    def __init__(self, snapshots: Snapshots | None = None) -> None:
        self._snapshots = snapshots
        self._writing: Future[None] | None = None
        self._given_up = False
        self._at: Point | None = None
        self.points = () if snapshots is None else snapshots.points()
        """What there were snapshots of when the stream began."""

    @property
    def at(self) -> Point:
        """Of which point memory is; the beginning where it is of none."""
        return self._at or BEGINNING

    def go_on_from(self, after: Point, trains: bool) -> Snapshot | None:
        """What is to be taken back for work that begins after a point; None where memory has it.

        An empty snapshot is of the beginning: all is to be forgotten. Where nothing is trained,
        memory stays of that point. Raises SnapshotMissing.
        """
        self.written()
        at, self._at = self._at, None if trains else after
        if after == BEGINNING:
            if self._snapshots is not None:
                self._snapshots.clear()
            return Snapshot(BEGINNING)
        if self._snapshots is not None:
            self._snapshots.go_back_to(after)
        if at == after:
            return None
        found = None if self._snapshots is None else self._snapshots.read(after)
        if found is None:
            raise SnapshotMissing(
                f"step {after.step} of round {after.round} is to be gone on from, and no snapshot "
                "of that is here"
            )
        return found

    def leave(self) -> None:
        """Memory is of no point any more."""
        self._at = None

    def reached(
        self, point: Point, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]
    ) -> None:
        """Memory is of this point now: a round's end. It is written, if there is room.

        The arrays stay as they are until it is `written`.
        """
        self._write(Snapshot(point, arrays, facts), last=True)
        self._at = point

    def passed(
        self, point: Point, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]
    ) -> None:
        """This point within a round is behind; what was there then is written.

        Nobody changes the arrays any more.
        """
        self._write(Snapshot(point, arrays, facts), last=False)

    def written(self) -> None:
        """Wait until what is being written is on the disk, or has failed to be.

        For a disk that hangs nobody waits twice.
        """
        if self._writing is None or self._snapshots is None:
            return
        began = time.perf_counter()
        try:
            self._writing.result(0.0 if self._given_up else DISK_SECONDS)
        except TimeoutError:
            if not self._given_up:
                log.warning("no snapshot: its disk has not answered for %g s", DISK_SECONDS)
            self._given_up = True
        else:
            self._writing, self._given_up = None, False
        finally:
            self._snapshots.count.wait(time.perf_counter() - began)

    def _write(self, snapshot: Snapshot, last: bool) -> None:
        if self._snapshots is None:
            return
        self.written()
        if self._writing is None:
            self._writing = beside("snapshot", partial(self._snapshots.write, snapshot, last))


def as_arrays(moments: Moments) -> dict[str, np.ndarray]:
    """An optimizer's moments to be written; they may share its memory."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in moments.items()}


def as_moments(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The same read back."""
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
