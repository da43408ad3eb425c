"""Costs that a real run has shown, for a fleet that is like its devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sfl.cost.values import DeviceCost, EdgeCost, LinkCost, NodeCost


@dataclass(frozen=True, slots=True)
class Fitted:
    """Devices by name, the slowest of the edges, real tokens of a step; nothing of what is not
    known. `stages` are those behind the edges, the first one first, and `hops` lead to them. `load`
    and `averaging` are seconds, `examples` those of one device."""

    devices: Mapping[str, DeviceCost] = field(default_factory=dict)
    edge: EdgeCost | None = None
    tokens: float | None = None
    load: float | None = None
    averaging: float | None = None
    examples: tuple[int, int] | None = None
    stages: tuple[NodeCost, ...] = ()
    hops: tuple[LinkCost, ...] = ()

    def of(self, name: str, share: float) -> DeviceCost | None:
        """A device's own, or those of any other, each as likely; `share` is drawn for it."""
        if name in self.devices or not self.devices:
            return self.devices.get(name)
        names = sorted(self.devices)
        return self.devices[names[int(share * len(names))]]


NOTHING_FITTED = Fitted()
