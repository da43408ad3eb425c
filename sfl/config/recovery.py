"""What is kept so that a node that died goes on."""

from __future__ import annotations

from pydantic import NonNegativeInt

from sfl.config.base import Section


class RecoverySettings(Section):
    """What is kept so that a node that died goes on. None of it changes a bit of an undisturbed
    run's result."""

    snapshots: bool = True
    """Device and edge write a snapshot to their disks at the end of each round. false: nothing is
    written. If a device or an edge then loses its memory, moments start afresh, and the result is
    another one."""
    snapshot_steps: NonNegativeInt = 0
    """Device and edge also keep a snapshot after every so many steps of a round. A part that is
    begun again then starts there. 0: only at the ends of rounds."""

    def due(self, step: int) -> bool:
        """Whether there is a snapshot of the point with so many steps of a round behind it."""
        every = self.snapshot_steps if self.snapshots else 0
        return every > 0 and step > 0 and step % every == 0
