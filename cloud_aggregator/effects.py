"""What the coordinator wants done, all but what ends in an event of its own."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import singledispatchmethod

from cloud_aggregator.averaging import GlobalAdapter
from cloud_aggregator.dispatch import Dispatch
from cloud_aggregator.edge_names import EdgeNames
from cloud_aggregator.effective import EffectiveConfig
from cloud_aggregator.models_said import ModelsSaid
from sfl.errors import ConfigError, Elsewhere
from sfl.metrics.stats import NodeStats
from sfl.node.logs import Sparing
from sfl.report.projection import words_of
from sfl.rounds import (
    Command,
    Coordinator,
    DeviceAway,
    DeviceBack,
    Evict,
    Fault,
    FinishRun,
    HandOver,
    Refuse,
    RefuseEdge,
    Rehearse,
    ReplayRound,
    Report,
    Settle,
    StartRound,
    UseModel,
    UseTextForm,
    Welcome,
)
from sfl.rounds.assignment import assign
from sfl.rounds.placing import addresses
from sfl.rounds.values import Admission, SumOrder
from sfl.transport.cloud.service import CloudService
from sfl.transport.cloud.words import GoElsewhere

log = logging.getLogger("sfl.cloud")
sparing = Sparing(log)


class Effects:
    """Does commands: words to edges, lines of the log, records, settings."""

    def __init__(
        self,
        config: EffectiveConfig,
        coordinator: Coordinator,
        service: CloudService,
        stats: NodeStats,
        *,
        models: ModelsSaid,
        adapter: GlobalAdapter,
        dispatch: Dispatch,
        edges: EdgeNames,
    ) -> None:
        self._config = config
        self._coordinator = coordinator
        self._service = service
        self._said = ""  # last of what the run waits for
        self._stats = stats
        self._models = models
        self._adapter = adapter
        self._dispatch = dispatch
        self._edges = edges

    def ask_for_sums(self, orders: Mapping[str, SumOrder]) -> None:
        """Have edges add up what was found sound."""
        for edge, order in orders.items():
            self._service.post(edge, order)

    @singledispatchmethod
    def do(self, command: Command) -> None:
        """Do one command. Raises what keeps it from being done."""
        raise TypeError(command)

    @do.register
    def _(self, command: Welcome) -> None:
        device = command.device
        edge, base = self._coordinator.devices[device].edge, self._coordinator.base_of(device)
        choice = self._coordinator.state.choices.get(device)
        try:
            own = assign(self._config.current, base, device, choice=choice)
            edges = addresses(self._coordinator.state)
            admission = Admission(device, assignment=own, edges=edges)
        except ConfigError as error:  # of an edge that has another model than the settings fit
            admission = Admission(device, str(error))
        self._service.post(edge, admission)

    @do.register
    def _(self, command: Refuse) -> None:
        about = {"device": command.device}
        if command.elsewhere:
            log.info("device %s, at edge %s: %s", command.device, command.edge, command.reason)
            self._answer(command)
            return
        refused = "device %s refused: %s"
        # Names that the run does not know are one kind: whoever asks may invent any number.
        kind = command.device if self._config.current.knows(command.device) else ""
        sparing.warning(kind, refused, command.device, command.reason, extra=about)
        self._answer(command)

    def _answer(self, command: Refuse) -> None:
        there = addresses(self._coordinator.state, command.elsewhere)
        admission = Admission(command.device, command.reason, command.in_use, edges=there)
        self._service.post(command.edge, admission)

    @do.register
    def _(self, command: HandOver) -> None:
        about = {"device": command.device}
        log.info("device %s: %s", command.device, command.reason, extra=about)
        to = Elsewhere(command.reason, addresses(self._coordinator.state, (command.to,)))
        self._service.post(command.edge, GoElsewhere(command.device, to))

    @do.register
    def _(self, command: UseModel) -> None:
        self._adapter.begin(*self._models.use(command.model, self._config.current.run.seed))

    @do.register
    def _(self, command: UseTextForm) -> None:
        self._config.use_text_form(command.form)

    @do.register
    def _(self, command: RefuseEdge) -> None:
        others = self._edges.refused(command.edge)
        self._service.post(command.edge, FinishRun(False, command.reason, others))

    @do.register
    def _(self, command: Rehearse) -> None:
        self._say(*words_of(command))
        self._dispatch.start(command)

    @do.register
    def _(self, command: Settle) -> None:
        self._config.settle(command)
        self._say(*words_of(command))

    @do.register
    def _(self, command: StartRound) -> None:
        self._said = ""
        self._stats.start_round(command.round, 0)
        rounds, devices = self._config.current.run.rounds, ", ".join(command.devices)
        if command.round > rounds:
            log.info("evaluating the last adapter: %s", devices)
        else:
            log.info("round %d of %d: %s", command.round, rounds, devices)
        self._dispatch.start(command)

    @do.register
    def _(self, command: ReplayRound) -> None:
        self._dispatch.start(command)

    @do.register
    def _(self, command: DeviceAway) -> None:
        away, about = "device %s is away: %s; waiting %g s for it", {"device": command.device}
        sparing.warning(
            command.device, away, command.device, command.reason, command.seconds, extra=about
        )

    @do.register
    def _(self, command: DeviceBack) -> None:
        point, about = command.after, {"device": command.device}
        back = "device %s is back; it goes on after step %d of round %d"
        log.info(back, command.device, point.step, point.round, extra=about)

    @do.register
    def _(self, command: Evict) -> None:
        for edge in self._service.streams:
            self._service.post(edge, command)

    @do.register
    def _(self, command: Fault) -> None:
        place, about = command.device or "edge", {"round": command.round, "device": command.device}
        fault = "round %d, %s: %s"
        sparing.warning(place, fault, command.round, place, command.reason, extra=about)
        self._stats.faults += 1

    @do.register
    def _(self, command: Report) -> None:
        self._say(command.text)

    def _say(self, *words: str) -> None:
        """In the log, where it was not said just before."""
        for text in words:
            if text != self._said:
                log.info("%s", text)
            self._said = text
