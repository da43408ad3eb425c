"""The cloud process: it owns the run's settings, keeps its rounds and averages its adapters.

It imports neither torch nor transformers: numpy is enough to average.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import singledispatchmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from cloud_aggregator.beside import complete_adapters, resolvable_base
from cloud_aggregator.clock import RunClock
from cloud_aggregator.models_said import ModelsSaid
from cloud_aggregator.records import RunRecords
from cloud_aggregator.stacks import Node, Stacks
from cloud_aggregator.text_form import text_form, unlike, with_text_form
from sfl.adapters.artifact import save_adapter
from sfl.adapters.manifest import AdapterManifest
from sfl.aggregation.contribution import Array, Contribution, verify
from sfl.aggregation.examine import Examined, examine, not_finite
from sfl.aggregation.shares import bounded
from sfl.aggregation.strategy import make_strategy
from sfl.config import DeviceEntry, EdgeConfig, LocalDevice, RunConfig, RunSettings
from sfl.config.node import Dtype, Quantised
from sfl.errors import DiskError, ProtocolError, RunFailed, SflError
from sfl.metrics.prometheus import NodeCollector, serve_as_set
from sfl.metrics.snapshot import NodeKind, NodeSnapshot
from sfl.metrics.stats import NodeStats
from sfl.node.causes import cause_of
from sfl.node.certificates.own import OwnCertificate
from sfl.node.extras import require_cryptography, require_opentelemetry
from sfl.node.files import on_disk, write_atomic
from sfl.node.logs import Sparing, describe_node
from sfl.report.conclusion import what_stays
from sfl.report.journal import SqliteJournal
from sfl.report.runs import stop_reason, write_effective
from sfl.rounds import (
    AdapterReady,
    Aggregate,
    Command,
    Coordinator,
    DeviceJoined,
    DeviceLost,
    DeviceMoved,
    DeviceOffended,
    DeviceReady,
    EdgeLost,
    EdgeReady,
    Event,
    Evict,
    Fault,
    FinishRun,
    Refuse,
    RefuseEdge,
    Rehearse,
    Rehearsed,
    Report,
    ReportReceived,
    Settle,
    StartRound,
    Steps,
    Tick,
    UpdateReceived,
    UpdatesRefused,
    UseModel,
    UseTextForm,
    Welcome,
)
from sfl.rounds.values import (
    Admission,
    DeviceFacts,
    EdgeFacts,
    EdgeOrders,
    EdgeWelcome,
    RoundReport,
    RoundStart,
    UpdateHeader,
)
from sfl.transport.cloud.service import CloudService
from sfl.transport.cloud.spool import Spool
from sfl.transport.cloud.words import GlobalPart
from sfl.transport.frames import contract
from sfl.transport.frames.chunks import adapter_bytes
from sfl.transport.frames.contract import adapter_limit
from sfl.transport.group import aside, watched
from sfl.transport.security.credentials import bind, new_server
from sfl.transport.security.door import Door
from sfl.transport.security.signed import SignatureCheck

if TYPE_CHECKING:
    from sfl.node.certificates.signing import Trust
    from sfl.report.card import Base
    from sfl.report.traces import StepTraces

log = logging.getLogger("sfl.cloud")
sparing = Sparing(log)

HEAVY = 0.9  # share of an average that a user is told of

TICK = 0.5  # seconds between two looks at deadlines, and between two writes of the status


class CloudAggregator:
    """Feeds the coordinator with what happens, and does what it says."""

    def __init__(self, config: RunConfig, folder: Path, own: OwnCertificate | None = None) -> None:
        self.config = config
        self.own = own
        self.run_id = folder.name
        self.folder = folder
        self.idle_timeout = config.network.idle_timeout
        self.heartbeat_interval = config.network.heartbeat_interval
        self.edges = config.edges
        self._trust = _trust(own)
        self.stats = NodeStats("cloud", "cloud")
        self.stats.certificate_expiry = None if own is None else own.not_after
        self.spool = Spool(folder / "spool")
        self.service = CloudService(self)
        self.records = RunRecords(config, folder)
        self.journal = SqliteJournal(folder)
        self.coordinator = Coordinator(config.settings, journal=self.journal)
        self._clock = RunClock()
        self._heavy: set[str] = set()  # devices that were warned of
        self.strategy = make_strategy(config.aggregation, config.lora)
        self.models = ModelsSaid(config)
        self.manifest: AdapterManifest | None = None
        self.adapter: dict[str, Array] = {}
        self.stacks = Stacks(folder / "stacks")
        self._traces = self._step_traces()
        self._over: asyncio.Future[FinishRun] = asyncio.get_running_loop().create_future()
        self._aggregation: asyncio.Task[None] | None = None
        self._failed_edges: set[str] = set()  # those whose stream is still to be closed
        self._gone_edges: set[str] = set()
        describe_node(self._log_fields)

    # -- life -------------------------------------------------------------------------------------

    async def run(self, address_file: Path | None) -> None:
        """Serve one run to its end. Raises RunFailed where it ends badly."""
        door = Door()
        server = new_server(self.own, door)
        server.add_generic_rpc_handlers((self.service.handler(),))
        insecure = self.config.network.insecure
        address = bind(server, "cloud.listen", self.config.cloud.listen, insecure, self.own)
        await server.start()
        if address_file is not None:
            write_atomic(address_file, address)
        log.info("cloud of run %s listens on %s", self.run_id, address)
        ticking = watched(self._tick(), self.failed)
        end = FinishRun(False, "")
        try:
            with door.watched(address), self._metrics():
                end = await self._over
                await self._dismiss(end)
        except asyncio.CancelledError:
            end = FinishRun(False, stop_reason(self.folder))
            await self._dismiss(end, 3.0)  # whoever stops a process does not wait for long
            raise
        except Exception as error:
            end = FinishRun(False, str(cause_of(error)))
            raise
        finally:
            ticking.cancel()
            end = self._finish_records(end)
            self._say_the_end(end)
            if self._traces is not None:
                await asyncio.to_thread(self._traces.close)
            await server.stop(grace=1.0)
        if not end.ok:
            raise RunFailed(end.reason)

    def _metrics(self) -> contextlib.AbstractContextManager[object]:
        metrics = self.config.cloud.metrics
        if not metrics.enabled:
            return contextlib.nullcontext()
        return serve_as_set(metrics, NodeCollector(self.stats))

    def _log_fields(self) -> dict[str, object]:
        stats = self.stats
        return {"kind": stats.kind, "node": stats.name, "run": self.run_id, "round": stats.round}

    def _step_traces(self) -> StepTraces | None:
        """Where steps go as traces, if anywhere. Raises ConfigError."""
        endpoint = self.config.cloud.tracing.endpoint
        if not endpoint:
            return None
        require_opentelemetry("cloud.tracing.endpoint", endpoint)
        from sfl.report.traces import StepTraces  # an extra, only where it is asked for

        return StepTraces.to(endpoint, self.run_id, self.config.edge.name)

    async def _tick(self) -> None:
        while True:
            self._happened(Tick())
            self._show()
            await asyncio.sleep(TICK)

    async def _dismiss(self, end: FinishRun, seconds: float = 10.0) -> None:
        for edge in list(self.service.streams):
            self.service.post(edge, end)
        await self.service.drain(seconds)

    def _say_the_end(self, end: FinishRun) -> None:
        how = "finished" if end.ok else "failed"
        log.info("run %s %s: %s", self.run_id, how, end.reason)
        for name, what in what_stays(self.folder):
            log.info("%s: %s", what, self.folder / name)

    def _finish_records(self, end: FinishRun) -> FinishRun:
        """Leave the run's folder as it stays; a run that cannot be told of has not ended well."""
        self.spool.drop_all()
        if not self.config.run.keep_round_adapters:
            self.stacks.drop()
        problem = self.records.close(end, self.coordinator, self.stats.snapshot())
        if problem is not None and end.ok:
            end = FinishRun(False, str(problem))
            self.records.close(end, self.coordinator, self.stats.snapshot())
        with contextlib.suppress(DiskError):  # what could not be kept has ended the run before
            self.journal.close()
        if self.records.summary is not None:
            base = self._base_model()
            complete_adapters(self.folder, self.config, base, self.records.summary)
        return end

    def _show(self) -> None:
        self.records.show(self.coordinator, self.stats.snapshot())

    # -- the coordinator --------------------------------------------------------------------------

    def _happened(self, event: Event) -> None:
        """Tell the coordinator, and do what it says; what cannot be done ends the run."""
        if self._over.done():
            return
        try:
            commands = self.coordinator.handle(event, self._clock.now())
            self.records.take(event)
            for command in commands:
                self._do(command)
        except Exception as error:  # noqa: BLE001 - no peer's fault, and half done
            self.failed(cause_of(error))

    def failed(self, error: SflError) -> None:
        """What this process cannot get over ends the run."""
        self._do(FinishRun(False, str(error)))

    @singledispatchmethod
    def _do(self, command: Command) -> None:
        raise TypeError(command)

    @_do.register
    def _(self, command: Welcome) -> None:
        edge = self.coordinator.devices[command.device].edge
        self.service.post(edge, Admission(command.device))

    @_do.register
    def _(self, command: Refuse) -> None:
        about = {"device": command.device}
        refused = "device %s refused: %s"
        # Names that the run does not know are one kind: whoever asks may invent any number.
        known = any(entry.name == command.device for entry in self.config.devices)
        kind = command.device if known else ""
        sparing.warning(kind, refused, command.device, command.reason, extra=about)
        admission = Admission(command.device, command.reason, command.in_use)
        self.service.post(command.edge, admission)

    @_do.register
    def _(self, command: UseModel) -> None:
        self.manifest, self.adapter = self.models.use(command.model, self.config.run.seed)
        self._save("adapters/round-0000")

    @_do.register
    def _(self, command: UseTextForm) -> None:
        self._take_effect(with_text_form(self.config, command.form))

    @_do.register
    def _(self, command: RefuseEdge) -> None:
        self._failed_edges.add(command.edge)
        self._gone_edges.add(command.edge)
        self.service.post(command.edge, FinishRun(False, command.reason))

    @_do.register
    def _(self, command: Rehearse) -> None:
        tried = ", ".join(map(str, command.counts))
        coded = f", codec {command.codec}" if command.codec else ""
        self._do(Report(f"timing steps of {tried} micro-batches{coded}"))
        start = RoundStart(0, "none", 0, 0, 0, 0, command.counts)
        self._send_round(dict.fromkeys(command.devices, start), command.codec)

    @_do.register
    def _(self, command: Settle) -> None:
        self.config = self.records.config = self.config.settled(
            command.micro_batches, command.codecs
        )
        write_effective(self.config, self.folder)
        times = ", ".join(f"{n}: {1000 * s:.0f} ms" for n, s in command.seconds.items())
        self._do(Report(f"micro-batches a step: {command.micro_batches} (tried {times})"))
        if command.codecs:
            chosen = ", ".join(f"{name}: {codec}" for name, codec in command.codecs.items())
            self._do(Report(f"codec: {chosen}"))

    @_do.register
    def _(self, command: StartRound) -> None:
        self.records.begin_round()
        self.stats.start_round(command.round, 0)
        rounds, devices = self.config.run.rounds, ", ".join(command.devices)
        if command.round > rounds:
            log.info("evaluating the last adapter: %s", devices)
        else:
            log.info("round %d of %d: %s", command.round, rounds, devices)
        micro_batches = self.config.training.micro_batches
        assert micro_batches != "auto"
        self._send_round(
            {
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
        )

    def _send_round(self, starts: Mapping[str, RoundStart], codec: str = "") -> None:
        """Tell each edge what its own devices are to do, and with which adapter.

        `codec` is what a rehearsal tries where none is chosen yet.
        """
        edges: dict[str, dict[str, RoundStart]] = {}
        for device, start in starts.items():
            codecs = self.config.codecs(device, max(1, start.round), codec)
            edge = self.coordinator.devices[device].edge
            edges.setdefault(edge, {})[device] = replace(start, codecs=codecs)
        folded = self.strategy.folded(self.adapter)
        payload = adapter_bytes({n: a for n, a in self.adapter.items() if n not in folded})
        for edge, own in edges.items():
            (round_,) = {start.round for start in own.values()}
            self._send_stacks(edge, own)
            self.service.post(edge, EdgeOrders(round_, own))
            self.service.post(edge, GlobalPart(round_, payload))

    def _send_stacks(self, edge: str, devices: Iterable[str]) -> None:
        """What an edge or one of these devices lacks for its base, oldest first."""
        nodes: list[Node] = [("edge", edge), *(("device", device) for device in devices)]
        for number, payload in self.stacks.lacking(nodes):
            self.service.post(edge, GlobalPart(number, payload, stack=True))

    @_do.register
    def _(self, command: Aggregate) -> None:
        # Looked up now: whoever offends while a round is averaged is forgotten meanwhile.
        progress = self.coordinator.progress
        steps = {device: progress[device].steps for device in command.contributions}
        self._aggregation = watched(self._aggregate(command, steps), self.failed)

    @_do.register
    def _(self, command: Evict) -> None:
        for edge in self.service.streams:
            self.service.post(edge, command)

    @_do.register
    def _(self, command: Fault) -> None:
        place, about = command.device or "edge", {"round": command.round, "device": command.device}
        fault = "round %d, %s: %s"
        sparing.warning(place, fault, command.round, place, command.reason, extra=about)
        self.stats.faults += 1
        self.records.add_fault(command)

    @_do.register
    def _(self, command: Report) -> None:
        if self.records.message != command.text:
            log.info("%s", command.text)
        self.records.message = command.text

    @_do.register
    def _(self, command: FinishRun) -> None:
        if not self._over.done():
            self._over.set_result(command)

    async def _aggregate(self, command: Aggregate, steps: Mapping[str, Steps]) -> None:
        """Average what lies in the spool, off the loop, and keep the result."""
        began = time.time()
        try:
            examined = await aside(self._examine, command, steps)
            if (nearest := examined.verdict.nearest) is not None:
                longest = "round %d: the longest update, of device %s, is %.3f of its bound"
                log.info(longest, command.round, *nearest)
            if refused := examined.verdict.refused:
                self._happened(UpdatesRefused(command.round, refused))
                return
            for device, note in examined.verdict.notes.items():
                self._do(Fault(command.round, device, note))
            await aside(self._average, command.round, examined)
        except Exception as error:  # noqa: BLE001 - ends the run, with its reason
            reason = f"round {command.round} could not be averaged: {cause_of(error)}"
            self._do(FinishRun(False, reason))
            return
        self.records.end_round(command.round, self.stats.snapshot())
        if self._traces is not None:
            self._traces.add(self.records.rounds.timelines(command.round), began)
        self._happened(AdapterReady(command.round))

    def _examine(self, command: Aggregate, steps: Mapping[str, Steps]) -> Examined:
        """Look at a round's updates, each with the weight that it has."""
        most = self.config.aggregation.max_weight_share
        contributions = [
            self._contribution(command.round, device, num_examples)
            for device, num_examples in bounded(command.contributions, most).items()
        ]
        self._warn_of_weights(command.contributions)
        with on_disk(self.folder):
            return examine(
                contributions, steps, self.strategy, self.adapter, self.config, command.round
            )

    def _warn_of_weights(self, examples: Mapping[str, int]) -> None:
        """Say once of a device that it is nearly all of the average, by its own word."""
        device, number = max(examples.items(), key=lambda item: item[1])
        share = number / sum(examples.values())
        bounded_at = self.config.aggregation.max_weight_share
        if len(examples) > 2 and min(share, bounded_at) > HEAVY and device not in self._heavy:
            self._heavy.add(device)
            log.warning(
                "device %s is %.1f%% of the average: it says it has %d training examples; "
                "aggregation.max_weight_share bounds that",
                device,
                100 * share,
                number,
                extra={"device": device},
            )

    def _average(self, round_: int, examined: Examined) -> None:
        with self.stats.phases.measure("step"), on_disk(self.folder):
            merged = self.strategy.aggregate(examined.contributions, self.adapter)
            if (name := not_finite(merged)) is not None:
                raise ProtocolError(f"{name} of the merged adapter holds NaN or infinite values")
            self.adapter = merged
            if folded := self.strategy.folded(self.adapter):
                self.stacks.add(folded)
        self._save(f"adapters/round-{round_:04d}")
        self.spool.drop(round_)

    def _contribution(self, round_: int, device: str, num_examples: int) -> Contribution:
        rank, scaling = self.config.rank(device), self.config.scaling(device)
        files = self.spool.files(round_, device)
        return Contribution(device, num_examples, files, rank, scaling)

    def _base_model(self) -> Base:
        peft = {} if self.manifest is None else self.manifest.peft_config
        return resolvable_base(self.config, str(peft.get("base_model_name_or_path") or ""))

    def _save(self, name: str) -> None:
        """Keep the global adapter: where rounds were folded into the bases, all of them."""
        assert self.manifest is not None
        with on_disk(self.folder):
            folded, rank = self.stacks.as_adapter()
        base = {"base_model_name_or_path": self._base_model().name}
        config = {**self.manifest.peft_config, **rank, **base}
        save_adapter(self.folder / name, self.adapter | folded, config)

    # -- what edges' streams tell (transport.cloud_service.Host) -----------------------------------

    def welcome(self) -> EdgeWelcome:
        """What an edge is told first: no path or address that is local to another node."""
        settings = self.config.settings
        devices = tuple(
            type(entry)(
                name=entry.name,
                cut_layer=entry.cut_layer,
                tail_layers=entry.tail_layers,
                rank=entry.rank,
                codec=entry.codec,
                link=entry.link,
            )
            for entry in settings.devices
        )
        data = settings.data.model_copy(update={"train": None, "eval": None})
        shared = settings.model_copy(update={"devices": devices, "data": data})
        return EdgeWelcome(shared, self.run_id)

    @property
    def run_settings(self) -> RunSettings:
        """What every node knows of the run."""
        return self.config.settings

    @property
    def adapter_limit(self) -> int:
        """Most bytes of one part of an update."""
        manifest = self.manifest
        return 0 if manifest is None else adapter_limit(p.shape for p in manifest.parameters)

    def edge_ready(self, edge: str, facts: EdgeFacts) -> None:
        """An edge says what an adapter consists of; the coordinator knows whose word stands."""
        digest, num_layers = self.models.hear(edge, facts)
        if edge == self.config.edge.name or self.manifest is None:
            own = self.config.edge.model_copy(update=self._base(self.config.edge, "edge", edge))
            self._take_effect(self.config.model_copy(update={"edge": own}))
        self._gone_edges.discard(edge)
        self.stacks.joined(("edge", edge))
        self._happened(EdgeReady(edge, num_layers, digest))

    def _base(self, own: EdgeConfig | LocalDevice, kind: NodeKind, name: str) -> dict[str, str]:
        """What the node `name` does with its base, as far as the settings say something else."""
        snapshot = self.records.snapshot(kind, name)
        said = {"dtype": own.dtype or self.config.model.dtype, "quantised": own.quantised}
        found = {"dtype": snapshot.dtype, "quantised": snapshot.quantised}
        allowed = {"dtype": get_args(Dtype), "quantised": get_args(Quantised)}
        return {
            field: value
            for field, value in found.items()
            if value != said[field] and value in allowed[field]
        }

    def _pieces(self, entry: DeviceEntry) -> dict[str, int]:
        """What a device cuts its batches into, as far as its settings say something else."""
        found = self.records.snapshot("device", entry.name).micro_batches
        most = max(entry.micro_batches, self.config.training.batch_size)
        changed = found != entry.micro_batches and 0 < found <= most
        return {"micro_batches": found} if changed else {}

    def _take_effect(self, config: RunConfig) -> None:
        """Write the effective settings again where a node's report changed them."""
        if config != self.config:
            self.config = self.records.config = config
            write_effective(config, self.folder)

    def signatures(self, edge: str) -> SignatureCheck:
        """What checks the signatures of an edge's devices."""
        return SignatureCheck(self.run_id, edge, self._trust)

    def not_joined(self, edge: str, device: str, reason: str) -> None:
        """An edge says that a device joins, and the device did not say so: it is not let in."""
        self._do(Refuse(device, edge, f"edge {edge}: {reason}"))

    def not_signed(self, edge: str, device: str, reason: str) -> None:
        """An edge says something of a device that the device did not say: the round goes on
        without that device."""
        why = contract.reason(f"edge {edge}: {reason}")
        self._do(Evict(device, why))
        self._happened(DeviceLost(device, why))

    def edge_lost(self, edge: str, reason: str) -> None:
        """An edge's stream is closed."""
        if edge in self._failed_edges:
            self._failed_edges.discard(edge)  # which was told when it said so
            return
        others = self._others(edge)
        had = bool(self.coordinator.state.roster.at(edge))
        self._happened(EdgeLost(edge, reason, final=had and not others))

    def edge_failed(self, edge: str, reason: str) -> None:
        """An edge can't go on; the run does, as long as enough devices have another one."""
        if edge in self._failed_edges:
            return
        self._failed_edges.add(edge)
        self.service.post(edge, FinishRun(False, reason))
        self._happened(EdgeLost(edge, reason, final=not self._others(edge)))

    def _others(self, edge: str) -> set[str]:
        """The run's edges beside this one, which is gone: those that are here or may still come."""
        self._gone_edges.add(edge)
        return set(self.edges) - self._gone_edges

    def device_joined(self, edge: str, device: str) -> None:
        """A device asks to take part."""
        if edge in self._failed_edges:
            return
        self.stacks.joined(("device", device))
        self._happened(DeviceJoined(device, edge))

    def device_ready(self, device: str, facts: DeviceFacts) -> None:
        """A device has its span and its data."""
        self.records.heard(NodeSnapshot.from_json(facts.snapshot).seen(device, time.time()))
        self._note_effective(device)
        # What the settings leave open the coordinator settles, by what most devices say.
        form = text_form(facts)
        if reason := unlike(with_text_form(self.config, form), form):
            # Started again with other data it may join.
            self._do(Evict(device, reason, final=True))
            self._happened(DeviceLost(device, reason))
            return
        self._happened(DeviceReady(device, facts.num_examples, form, facts))

    def _note_effective(self, device: str) -> None:
        """What a device does otherwise than its settings say stands in the effective ones."""
        places = [place for place, own in enumerate(self.config.devices) if own.name == device]
        for place in places:
            entry = self.config.devices[place]
            if found := self._base(entry, "device", device) | self._pieces(entry):
                entries = list(self.config.devices)
                entries[place] = entry.model_copy(update=found)
                self._take_effect(self.config.model_copy(update={"devices": tuple(entries)}))

    def device_broke(self, device: str, reason: str) -> None:
        """A device broke the contract, and is left out."""
        # Cut: it may repeat what the device sent, as a tensor's name does.
        self._happened(DeviceOffended(device, contract.reason(reason)))

    def device_left(self, lost: DeviceLost) -> None:
        """A device's stream is closed."""
        self._happened(lost)

    def update_received(self, header: UpdateHeader) -> None:
        """One side's part of an update lies in the spool."""
        side: Any = header.side
        if self._is_sound(header):
            self._happened(UpdateReceived(header.device, side, header.round, header.final_step))

    def _is_sound(self, header: UpdateHeader) -> bool:
        """Leave a device out whose two parts together are no adapter of this run."""
        device = header.device
        progress = self.coordinator.progress.get(device)
        if progress is None:
            return True
        contribution = self._contribution(header.round, device, progress.num_examples)
        try:
            if header.scaling != contribution.scaling:
                raise ProtocolError(
                    f"adapter of device {device}: scaled by {header.scaling:g}; alpha / rank is "
                    f"{contribution.scaling:g}"
                )
            if all(file.exists() for file in contribution.files):
                verify(contribution, self.strategy.shapes(contribution, self.adapter))
        except ProtocolError as error:
            self.device_broke(device, str(error))
            return False
        return True

    def reported(self, report: RoundReport) -> None:
        """A device tells how its round, or its rehearsal, went."""
        if report.rehearsal:
            bits = NodeSnapshot.from_json(report.snapshot).value_bits
            self._happened(Rehearsed(report.device, tuple(report.rehearsal), bits))
            return
        self._happened(ReportReceived(report.device, report.round, report))

    def heard(self, snapshot: NodeSnapshot) -> None:
        """Statistics of an edge or of one of its devices."""
        self.records.heard(snapshot)
        if snapshot.kind == "device":
            self._happened(DeviceMoved(snapshot.name, snapshot.moved, bool(snapshot.paused)))


def _trust(own: OwnCertificate | None) -> Trust | None:
    """What devices' certificates are held against; None without TLS. Raises ConfigError."""
    if own is None:
        return None
    require_cryptography("cloud.tls")
    from sfl.node.certificates.signing import Trust  # an extra, only where it is needed

    return Trust(own.ca.read_bytes())
