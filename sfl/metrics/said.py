"""What devices that answer have said last of themselves."""

from __future__ import annotations

import time

from sfl.metrics.snapshot import NodeSnapshot

MOST = 4096
"""Devices whose statistics are kept; of more those that were heard last."""


class DevicesSaid:
    """The latest statistics of each, until it says goodbye: one that fell silent is still shown."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._of: dict[str, NodeSnapshot] = {}

    def heard(self, device: str, snapshot: NodeSnapshot) -> None:
        """A device's statistics take the place of those before."""
        self._of.pop(device, None)
        self._of[device] = snapshot.seen(device, time.time())
        while len(self._of) > self._most:
            del self._of[next(iter(self._of))]

    def left(self, device: str) -> None:
        """A device has said goodbye."""
        self._of.pop(device, None)

    def latest(self) -> list[NodeSnapshot]:
        """Of all of them; from any thread."""
        return list(self._of.values())
