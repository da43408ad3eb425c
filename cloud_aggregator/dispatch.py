"""Rounds on their way out: orders, sums for the bases and the adapter, edge by edge."""

from __future__ import annotations

from collections.abc import Iterable

from cloud_aggregator.averaging import Averaging
from cloud_aggregator.base_updates import BaseUpdates, Node
from cloud_aggregator.effective import EffectiveConfig
from sfl.rounds import Coordinator, Rehearse, ReplayRound, StartRound
from sfl.rounds.assignment import assignments
from sfl.rounds.placing import addresses
from sfl.rounds.values import Assignment, EdgeOrders
from sfl.transport.cloud.service import CloudService
from sfl.transport.cloud.words import GlobalPart


class Dispatch:
    """Tells each edge what its own devices are to do, and with which adapter."""

    def __init__(
        self,
        config: EffectiveConfig,
        coordinator: Coordinator,
        averaging: Averaging,
        base_updates: BaseUpdates,
        service: CloudService,
    ) -> None:
        self._config = config
        self._coordinator = coordinator
        self._averaging = averaging
        self._base_updates = base_updates
        self._service = service

    def start(self, command: StartRound | ReplayRound | Rehearse) -> None:
        """Have devices train and evaluate, or evaluate only, or time steps."""
        round_ = 0 if isinstance(command, Rehearse) else command.round
        bases = {name: self._coordinator.base_of(name) for name in command.devices}
        edges: dict[str, dict[str, Assignment]] = {}
        for device, own in assignments(command, self._config.current, bases).items():
            edge = self._coordinator.devices[device].edge
            edges.setdefault(edge, {})[device] = own
        if isinstance(command, ReplayRound) and command.begun:
            for edge, devices in edges.items():
                self._service.post(edge, EdgeOrders(round_, devices, begun=True))
            return
        payload = self._averaging.payload(max(0, round_ - 1))
        there = addresses(self._coordinator.state)
        for edge, devices in edges.items():
            self._send_base_updates(edge, devices)
            order = _order(command, devices)
            self._service.post(edge, EdgeOrders(round_, devices, order=order, edges=there))
            self._service.post(edge, GlobalPart(round_, payload))

    def _send_base_updates(self, edge: str, devices: Iterable[str]) -> None:
        """What an edge or one of these devices lacks for its base, oldest first."""
        nodes: list[Node] = [("edge", edge), *(("device", device) for device in devices)]
        for number, payload in self._base_updates.lacking(nodes):
            self._service.post(edge, GlobalPart(number, payload, base_update=True))


def _order(command: StartRound | ReplayRound | Rehearse, devices: Iterable[str]) -> tuple[str, ...]:
    """In which an edge best serves these, where a planner has said so."""
    own = set(devices)
    said = command.order if isinstance(command, StartRound) else ()
    return tuple(name for name in said if name in own)
