"""Rounds on their way out: orders, sums for the bases and the adapter, edge by edge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from cloud_aggregator.averaging import Averaging
from cloud_aggregator.base_updates import BaseUpdates, Node
from cloud_aggregator.effective import EffectiveConfig
from sfl.rounds import Coordinator, Rehearse, StartRound
from sfl.rounds.values import EdgeOrders, RoundStart
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

    def rehearse(self, command: Rehearse) -> None:
        """Have devices time steps."""
        start = RoundStart(0, "none", 0, 0, 0, 0, command.counts)
        self._send(0, dict.fromkeys(command.devices, start), command.codec)

    def start(self, command: StartRound) -> None:
        """Have devices train and evaluate, or evaluate only."""
        micro_batches = self._config.current.training.micro_batches
        assert micro_batches != "auto"
        starts = {
            device: RoundStart(
                command.round,
                command.evaluate,
                steps.count,
                steps.first,
                steps.total,
                micro_batches,
            )
            for device, steps in command.devices.items()
        }
        self._send(command.round, starts)

    def _send(self, round_: int, starts: Mapping[str, RoundStart], codec: str = "") -> None:
        """`codec` is what a rehearsal tries where none is chosen yet."""
        edges: dict[str, dict[str, RoundStart]] = {}
        for device, start in starts.items():
            codecs = self._config.current.codecs(device, max(1, round_), codec)
            edge = self._coordinator.devices[device].edge
            edges.setdefault(edge, {})[device] = replace(start, codecs=codecs)
        payload = self._averaging.payload()
        for edge, own in edges.items():
            self._send_base_updates(edge, own)
            self._service.post(edge, EdgeOrders(round_, own))
            self._service.post(edge, GlobalPart(round_, payload))

    def _send_base_updates(self, edge: str, devices: Iterable[str]) -> None:
        """What an edge or one of these devices lacks for its base, oldest first."""
        nodes: list[Node] = [("edge", edge), *(("device", device) for device in devices)]
        for number, payload in self._base_updates.lacking(nodes):
            self._service.post(edge, GlobalPart(number, payload, base_update=True))
