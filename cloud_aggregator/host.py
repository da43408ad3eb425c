"""What edges' streams tell the cloud, as events for the coordinator (`CloudService`'s host)."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloud_aggregator.averaging import Averaging, GlobalAdapter
from cloud_aggregator.challenges import Challenges
from cloud_aggregator.driver import Driver
from cloud_aggregator.edge_names import EdgeNames
from cloud_aggregator.effective import EffectiveConfig
from cloud_aggregator.models_said import ModelsSaid
from cloud_aggregator.records import RunRecords
from cloud_aggregator.text_form import text_form, unlike, with_text_form
from sfl.config import RunSettings
from sfl.config.planner import OFF
from sfl.errors import ProtocolError, SflError
from sfl.metrics.snapshot import NodeSnapshot
from sfl.metrics.stats import NodeStats
from sfl.node.logs import Sparing
from sfl.plan import MOST_STAGES
from sfl.rounds import (
    Coordinator,
    DeviceJoined,
    DeviceLost,
    DeviceMoved,
    DeviceOffended,
    DeviceReady,
    EdgeLost,
    EdgeReady,
    Evict,
    Refuse,
    RefuseEdge,
    Rehearsed,
    ReportReceived,
    SumReceived,
    UpdateReceived,
)
from sfl.rounds.values import (
    BEGINNING,
    NO_TRIPS,
    DeviceFacts,
    EdgeFacts,
    EdgeWelcome,
    HeldUpdate,
    Point,
    RoundReport,
    RoundTrips,
    UpdateHeader,
)
from sfl.transport.frames import contract
from sfl.transport.group import aside, watched

if TYPE_CHECKING:
    from sfl.transport.security.signed import SignatureCheck

sparing = Sparing(logging.getLogger(__name__))


class EdgeHost:
    """Hears edges: what they say of themselves, and of their devices."""

    def __init__(
        self,
        config: EffectiveConfig,
        coordinator: Coordinator,
        driver: Driver,
        records: RunRecords,
        stats: NodeStats,
        *,
        run_id: str,
        run_key: str,
        models: ModelsSaid,
        adapter: GlobalAdapter,
        averaging: Averaging,
        edges: EdgeNames,
        challenges: Challenges,
    ) -> None:
        self.stats = stats
        self.spool = averaging.spool
        self.edges = edges.all
        network = config.current.network
        self.idle_timeout = network.idle_timeout
        self.heartbeat_interval = network.heartbeat_interval
        self._config = config
        self._coordinator = coordinator
        self._driver = driver
        self._records = records
        self._run_id = run_id
        self._run_key = run_key
        self._models = models
        self._adapter = adapter
        self._averaging = averaging
        self._names = edges
        self._challenges = challenges
        self._keeping: set[asyncio.Task[None]] = set()
        self._stages: dict[str, set[str]] = {}
        """Names of stages that each edge has told of: it cannot make up ever more."""

    # -- what streams ask -------------------------------------------------------------------------

    def welcome(self) -> EdgeWelcome:
        """What an edge is told first: no path or address that is local to another node."""
        settings = self._config.current.settings
        devices = tuple(entry.shared for entry in settings.devices)
        data = settings.data.model_copy(update={"train": None, "eval": None})
        shared = settings.model_copy(update={"devices": devices, "data": data})
        return EdgeWelcome(shared, self._run_id, run_key=self._run_key)

    @property
    def run_settings(self) -> RunSettings:
        """What every node knows of the run."""
        return self._config.current.settings

    @property
    def adapter_limit(self) -> int:
        """Most bytes of one part of an update."""
        return self._adapter.limit

    def signatures(self, edge: str) -> SignatureCheck:
        """What checks the signatures of an edge's devices, over all of its streams."""
        return self._challenges.of(edge)

    # -- edges ------------------------------------------------------------------------------------

    def edge_ready(self, edge: str, facts: EdgeFacts) -> None:
        """An edge says what an adapter consists of; the coordinator knows whose word stands."""
        digest, num_layers = self._models.hear(edge, facts)
        if edge == self._config.current.edge.name or self._adapter.manifest is None:
            said = self._records.told.statistics.of("edge", edge)
            self._config.edge_said(said, self._driver.keep)
        self._names.here(edge)
        self._adapter.base_updates.joined(("edge", edge))
        ready = EdgeReady(
            edge,
            num_layers,
            digest,
            facts.credits,
            facts.keeps,
            facts.address,
            facts.store,
        )
        self._driver.happened(ready)

    def edge_lost(self, edge: str, reason: str) -> None:
        """An edge's stream is closed."""
        if self._names.closed(edge):
            return  # which was told when it said so
        last = self._names.lost(edge)
        had = bool(self._coordinator.state.roster.at(edge))
        self._driver.happened(EdgeLost(edge, reason, final=had and last))

    def edge_failed(self, edge: str, reason: str) -> None:
        """An edge can't go on; the run does, as long as enough devices have another one, or this
        one again: it may be started anew, as where its model was not copied yet."""
        if self._names.is_failed(edge):
            return
        last = self._names.failed(edge)
        self._driver.do(RefuseEdge(edge, reason))
        self._driver.happened(EdgeLost(edge, reason, final=last, returns=False, elsewhere=not last))

    def failed(self, error: SflError) -> None:
        """The cloud itself can't go on."""
        self._driver.failed(error)

    def heard(self, snapshot: NodeSnapshot) -> None:
        """Statistics of an edge or of one of its devices."""
        self._driver.heard(snapshot)
        if snapshot.kind == "device":
            moved = DeviceMoved(snapshot.name, snapshot.moved, bool(snapshot.paused))
            self._driver.happened(moved)

    def stage_heard(self, edge: str, snapshot: NodeSnapshot) -> None:
        """Statistics of a stage behind an edge; of more than plans have nothing is kept."""
        known = self._stages.setdefault(edge, set())
        if len(known) < MOST_STAGES:
            known.add(snapshot.name)
        if snapshot.name in known:
            self._driver.heard(snapshot)
        else:
            sparing.warning(edge, "edge %s: too many stages; no word of %s", edge, snapshot.name)

    # -- devices ----------------------------------------------------------------------------------

    def device_joined(self, edge: str, device: str, round_trips: RoundTrips = NO_TRIPS) -> None:
        """A device asks to take part; `round_trips` are those that it has measured."""
        if self._names.is_failed(edge):
            return
        self._adapter.base_updates.joined(("device", device))
        self._driver.happened(DeviceJoined(device, edge, round_trips))

    def not_joined(self, edge: str, device: str, reason: str) -> None:
        """An edge says that a device joins, and the device did not say so: it is not let in."""
        self._driver.do(Refuse(device, edge, f"edge {edge}: {reason}"))

    def device_ready(
        self,
        device: str,
        facts: DeviceFacts,
        points: tuple[Point, ...] = (),
        begun: Point = BEGINNING,
    ) -> None:
        """A device has its span and its data; `points` are those that its edge has as well.

        The edge has `begun` that round for it, if any.
        """
        snapshot = NodeSnapshot.from_json(facts.snapshot).seen(device, time.time())
        self._driver.heard(snapshot)
        self._config.device_said(snapshot, self._driver.keep)
        # What the settings leave open the coordinator settles, by what most devices say.
        form = text_form(facts)
        if reason := unlike(with_text_form(self._config.current, form), form):
            # Started again with other data it may join.
            self._out(Evict(device, reason, final=True))
            return
        ready = DeviceReady(device, facts.num_examples, form, facts, points, begun)
        self._driver.happened(ready)

    def device_left(self, lost: DeviceLost) -> None:
        """A device's stream is closed."""
        self._driver.happened(lost)

    def device_broke(self, device: str, reason: str) -> None:
        """A device broke the contract, and is left out."""
        # Cut: it may repeat what the device sent, as a tensor's name does.
        self._driver.happened(DeviceOffended(device, contract.reason(reason)))

    def not_signed(self, edge: str, device: str, reason: str) -> None:
        """An edge says something of a device that the device did not say: the round goes on
        without that device."""
        self._out(Evict(device, contract.reason(f"edge {edge}: {reason}")))

    def _out(self, evict: Evict) -> None:
        self._driver.say(evict)
        self._driver.happened(DeviceLost(evict.device, evict.reason))

    # -- rounds -----------------------------------------------------------------------------------

    def update_received(self, header: UpdateHeader) -> None:
        """One side's part of an update is in the spool."""
        if not self._is_sound(header):
            return
        path = self.spool.path(header.round, header.device, header.side)
        self._received(_received(header), path)

    def update_held(self, held: HeldUpdate) -> None:
        """A device's update is whole, and stays at its edge."""
        if not self._may_stay(held):
            return
        if all(map(self._is_sound, held.parts)):
            for header in held.parts:
                self._driver.happened(replace(_received(header), length=held.length))

    def _may_stay(self, held: HeldUpdate) -> bool:
        """Leave a device out whose edge keeps what the run wants here, or has not measured it."""
        options = self._config.current.aggregation
        problem = ""
        if options.sums != "at_edges":
            problem = "an update stays at its edge, and the run wants it here"
        elif held.length is None and options.max_update_norm != "off":
            problem = "an update came without its length"
        if problem:
            self.device_broke(held.device, problem)
        return not problem

    def sum_received(self, edge: str, round_: int, number: int) -> None:
        """An edge's sum is in the spool; one that sends another than it was asked for is out."""
        try:
            self._averaging.sums.check(edge, round_, number)
        except ProtocolError as error:
            self.edge_failed(edge, str(error))
            return
        path = self.spool.sum_path(round_, edge, number)
        self._received(SumReceived(edge, round_, number), path)

    def _received(self, event: UpdateReceived | SumReceived, path: Path) -> None:
        """A file is in the spool, of which an event tells."""
        if self._averaging.is_kept_twice:
            task = watched(self._keep(event, path), self._driver.failed)
            self._keeping.add(task)
            task.add_done_callback(self._keeping.discard)
        else:
            self._driver.happened(event)

    async def _keep(self, event: UpdateReceived | SumReceived, path: Path) -> None:
        """Only what is in both places has been received; that takes as long as the store does."""
        await aside(self._averaging.keep_file, path)
        self._driver.happened(event)

    def _is_sound(self, header: UpdateHeader) -> bool:
        """Leave a device out whose parts together are no adapter of this run."""
        progress = self._coordinator.part_of(header.device)
        if progress is None:
            return True
        try:
            self._averaging.check(header, progress)
        except ProtocolError as error:
            self.device_broke(header.device, str(error))
            return False
        return True

    def reported(self, report: RoundReport) -> None:
        """A device tells how its round, or its rehearsal, went."""
        if report.rehearsal:
            bits = NodeSnapshot.from_json(report.snapshot).value_bits
            told = report if self._config.current.planner.policy != OFF else None
            self._driver.happened(Rehearsed(report.device, report.rehearsal, bits, told))
            return
        self._driver.happened(ReportReceived(report.device, report.round, report))


def _received(header: UpdateHeader) -> UpdateReceived:
    side: Any = header.side
    return UpdateReceived(header.device, side, header.round, header.final_step)
