"""Which devices are here, at which edge, and which are still missing."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field

from sfl.rounds.changed import changed
from sfl.rounds.ordered import Ordered


@dataclass(frozen=True, slots=True)
class Device:
    """What is known of a connected device."""

    edge: str
    num_examples: int = 0
    ready: bool = False
    place: int = 0
    """Where the settings list it, once it is ready."""


_NOBODY: Ordered[str, bool] = Ordered()


@dataclass(frozen=True)  # without slots: see `changed`
class Roster:
    """Every device of the settings is missing, or here and ready, or out for good."""

    devices: Ordered[str, Device]
    missing: Ordered[str, int]
    """Those that are not ready and may still come, with their places in the settings."""
    num_ready: int = 0
    at_edge: Ordered[str, Ordered[str, bool]] = field(default_factory=Ordered)

    @classmethod
    def of(cls, names: Iterable[str]) -> Roster:
        """Nobody is here yet."""
        return cls(Ordered(), Ordered.of((name, place) for place, name in enumerate(names)))

    def knows(self, name: str) -> bool:
        """Whether the settings list a device that is not out for good."""
        return name in self.missing or name in self.devices

    @property
    def ready(self) -> list[str]:
        """Devices that have their span and their data, by name."""
        return sorted(name for name, device in self.devices.items() if device.ready)

    def first_missing(self, most: int) -> list[str]:
        """The first so many that are missing, as the settings list them."""
        return heapq.nsmallest(most, self.missing.entries, key=self.missing.__getitem__)

    def at(self, edge: str) -> list[str]:
        """An edge's devices, by name."""
        return sorted(self.at_edge.get(edge, ()))

    def join(self, name: str, edge: str) -> Roster:
        """A device is here, and loads."""
        there = self.at_edge.get(edge, _NOBODY).put(name, True)
        devices = self.devices.put(name, Device(edge))
        return changed(self, devices=devices, at_edge=self.at_edge.put(edge, there))

    def make_ready(self, name: str, num_examples: int) -> Roster:
        """A device that is here has its span and its data."""
        before = self.devices[name]
        place = before.place if before.ready else self.missing[name]
        after = Device(before.edge, num_examples, True, place)
        return changed(
            self,
            devices=self.devices.put(name, after),
            missing=self.missing.without(name),
            num_ready=self.num_ready + (not before.ready),
        )

    def leave(self, name: str) -> Roster:
        """A device is not here any more, if it was."""
        if (device := self.devices.get(name)) is None:
            return self
        left = self.at_edge[device.edge].without(name)
        at_edge = self.at_edge.put(device.edge, left) if left else self.at_edge.without(device.edge)
        missing = self.missing.put(name, device.place) if device.ready else self.missing
        return Roster(self.devices.without(name), missing, self.num_ready - device.ready, at_edge)

    def put_out(self, name: str) -> Roster:
        """A device that is not here will not come."""
        return changed(self, missing=self.missing.without(name))
