"""The edge process: one frozen base for all its devices, between them and the cloud."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import assert_never

import numpy as np

from sfl.adapters.lora import LoraBank, build_manifest, given_values
from sfl.adapters.manifest import AdapterManifest
from sfl.adapters.names import belongs_to
from sfl.adapters.rank import truncated
from sfl.config import EdgeConfig, RunSettings
from sfl.errors import LinkLost, ModelError, NameInUse, ProtocolError, Refused, RunFailed, SflError
from sfl.metrics.prometheus import NodeCollector, serve_as_set
from sfl.metrics.snapshot import NodeSnapshot
from sfl.metrics.stats import NodeStats
from sfl.models.classes import check_class_order
from sfl.models.folder import ModelFolder, check_length, open_model
from sfl.models.memory.batching import check_batching
from sfl.models.memory.edge_budget import EdgeChoice, fit_edge
from sfl.models.span import SpanModel, build_span
from sfl.models.vocabulary import check_files
from sfl.node.causes import cause_of
from sfl.node.certificates.own import OwnCertificate
from sfl.node.files import writable_folder, write_atomic
from sfl.node.logs import describe_node
from sfl.plan import Plan, Span
from sfl.rounds.messages import DeviceLost, Evict, FinishRun
from sfl.rounds.values import (
    Admission,
    Challenge,
    DeviceFacts,
    DeviceWelcome,
    EdgeFacts,
    EdgeOrders,
    EdgeWelcome,
    Proof,
    RoundReport,
    UpdateHeader,
)
from sfl.stage.base import lay_over_devices, settle
from sfl.stage.computation import COMPUTATIONS
from sfl.stage.engine import Engine
from sfl.stage.orders import ORDERS
from sfl.stage.resting import Residence
from sfl.stage.training import SESSIONS, TrainingSession
from sfl.transport.bulk.files import FileEntry, SpanFiles
from sfl.transport.cloud.blame import blamed
from sfl.transport.cloud.link import CloudLink
from sfl.transport.cloud.words import (
    Beat,
    CloudWord,
    DeviceIsReady,
    DeviceJoin,
    EdgeFailed,
    GlobalPart,
)
from sfl.transport.device.decode_slots import DecodeSlots
from sfl.transport.device.service import EdgeService
from sfl.transport.device.stream_codecs import check_codecs, remembers_samples
from sfl.transport.frames import contract
from sfl.transport.frames.chunks import (
    Buffer,
    adapter_bytes,
    decode_adapter,
)
from sfl.transport.security.credentials import bind, new_server
from sfl.transport.security.door import Door

log = logging.getLogger("sfl.edge")

JOINING = 1.0, 600
"""Twice in so many seconds a device may join in the long run, and so often at once. All names that
the run does not know count as one."""


class EdgeServer:
    """Relays between the cloud and its devices, and computes the blocks in between."""

    def __init__(
        self,
        config: EdgeConfig,
        threads: int,
        insecure: bool,
        own: OwnCertificate | None = None,
    ) -> None:
        self.config = config
        self.own = own
        self.insecure = insecure
        self.stats = NodeStats(config.name, "edge")
        self.stats.certificate_expiry = None if own is None else own.not_after
        self.threads = threads
        self.engine = Engine(
            threads, ORDERS[config.order], together=config.batch_devices, phases=self.stats.phases
        )
        self.slots: DecodeSlots
        self.cloud = CloudLink(config.cloud, config.name, self.stats, insecure, own, config.proxy)
        self.service = EdgeService(self, config.cache_dir)
        self.settings: RunSettings
        self.run_id = ""
        self.folder: ModelFolder
        self.model: SpanModel
        self.bank: LoraBank
        self._choice: EdgeChoice
        self._residence: Residence | None = None
        if config.resident_adapters is not None:
            where = None
            if config.rest_in == "disk":
                where = writable_folder(config.rest_dir, "edge.rest_dir")
            self._residence = Residence(config.resident_adapters, where, self.stats)
        self._sessions: dict[str, TrainingSession] = {}
        self._files: dict[tuple[Span, ...], SpanFiles] = {}
        self._admissions: dict[str, asyncio.Future[Admission]] = {}
        self._devices: dict[str, NodeSnapshot] = {}
        self.adapter_limit = 0
        self._orders: EdgeOrders | None = None
        self._stacks = 0  # rounds whose sums are in the base
        self._folded: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._joins: dict[str, contract.Pace] = {}
        describe_node(self._log_fields)

    # -- life -----------------------------------------------------------------------------------

    async def run(self, connect_timeout: float, address_file: Path | None) -> None:
        """Serve one run to its end. Raises SflError where it ends badly."""
        door = Door()
        server = new_server(self.own, door)
        server.add_generic_rpc_handlers((self.service.handler(),))
        # The port is open before the model is loaded, so that devices need not wait to dial.
        address = bind(server, "edge.listen", self.config.listen, self.insecure, self.own)
        await server.start()
        if address_file is not None:
            write_atomic(address_file, address)
        log.info("edge %s listens on %s", self.config.name, address)
        try:
            with door.watched(address), self._metrics():
                await self._follow_cloud(connect_timeout, address)
        finally:
            await server.stop(grace=1.0)
            await self.service.drain()
            self.service.close()
            self.engine.close()
            if self._residence is not None:
                self._residence.close()
            await self.cloud.close()

    def _metrics(self) -> contextlib.AbstractContextManager[object]:
        metrics = self.config.metrics
        if not metrics.enabled:
            return contextlib.nullcontext()
        collector = NodeCollector(self.stats, lambda: list(self._devices.values()))
        return serve_as_set(metrics, collector)

    def _log_fields(self) -> dict[str, object]:
        stats = self.stats
        return {"kind": stats.kind, "node": stats.name, "run": self.run_id, "round": stats.round}

    async def _follow_cloud(self, connect_timeout: float, address: str) -> None:
        """Do what the cloud says until it says that the run is over."""
        words = self.cloud.join(connect_timeout)
        first = await anext(words, None)
        if first is None:
            raise LinkLost("the cloud closed the stream without a message")
        if not isinstance(first, EdgeWelcome):
            raise ProtocolError("the cloud begins with the run's settings")
        self.run_id, self.settings = first.run_id, first.settings
        if first.challenge:
            self.service.challenge = Challenge(self.run_id, self.config.name, first.challenge)
        network = self.settings.network
        beat = asyncio.create_task(self._heartbeats(network.heartbeat_interval))
        watch = asyncio.create_task(
            self.cloud.watch(network.heartbeat_interval, network.idle_timeout)
        )
        follow = asyncio.create_task(self._follow(words, address))
        try:
            await asyncio.wait({follow, watch, beat}, return_when=asyncio.FIRST_COMPLETED)
            for task in (follow, watch, beat):
                if task.done():
                    task.result()
        except asyncio.CancelledError:
            await self._dismiss_all(follow)
            raise
        except Exception as error:  # noqa: BLE001 - devices are told first, then it is raised
            cause = cause_of(error)
            await self._dismiss(False, str(cause))
            raise cause from None
        finally:
            for task in (follow, watch, beat):
                task.cancel()
            await asyncio.gather(follow, watch, beat, return_exceptions=True)

    async def _follow(self, words: AsyncIterator[CloudWord], address: str) -> None:
        loading = asyncio.create_task(self._load(address))
        try:
            async for word in words:
                if isinstance(word, FinishRun):
                    await self._dismiss(word.ok, word.reason)
                    if not word.ok:
                        raise RunFailed(word.reason)
                    return
                await self._hear(word)
                if loading.done():
                    loading.result()
        finally:
            loading.cancel()
        raise LinkLost("the cloud closed the stream before the run was over")

    async def _dismiss(self, ok: bool, reason: str) -> None:
        """Tell every device that the run is over, and give them a moment to say goodbye."""
        self.service.finish(Refused("the run is over") if ok else RunFailed(reason))
        for stream in list(self.service.streams.values()):
            stream.finish(ok, reason)
        for _ in range(100):
            if not self.service.streams:
                return
            await asyncio.sleep(0.05)

    @property
    def _stopped(self) -> str:
        return f"edge {self.config.name} was stopped"

    async def _dismiss_all(self, follow: asyncio.Task[None]) -> None:
        """Tell cloud and devices that this edge is stopped; whoever does that waits a moment."""
        self.cloud.post(EdgeFailed("it was stopped"))
        await self._dismiss(False, self._stopped)
        await asyncio.wait({follow}, timeout=1.0)  # the cloud's answer: it has heard

    async def _load(self, address: str) -> None:
        """Load the base and tell the cloud what an adapter of it consists of."""
        try:
            manifest, given = await self.engine.run(self._load_base)
            shapes = [parameter.shape for parameter in manifest.parameters]
            self.adapter_limit = contract.adapter_limit(shapes)
            # What folds is a sum: as many ranks as there are devices.
            self.cloud.expect(contract.adapter_limit(shapes, len(self.settings.devices)))
            self.slots = DecodeSlots(self._choice.in_flight, ORDERS[self.config.order])
        except Exception as error:  # noqa: BLE001 - whatever it is, the cloud is to know
            self.cloud.post(EdgeFailed(str(cause_of(error))))
            return
        # Ahead of being ready, so that the cloud knows what changes arithmetic here.
        self._beat()
        self.cloud.post(EdgeFacts(manifest.to_json(), address, given))
        self._ready.set()

    def _warn_of_tokenizer(self) -> None:
        """Devices without a folder of their own get the tokenizer from here, and look at it."""
        try:
            check_files(self.folder.path, self.folder.config)
        except ModelError as error:
            log.warning("devices without a model folder of their own will be refused: %s", error)

    def _load_base(self) -> tuple[AdapterManifest, bytes]:
        """On the compute thread: blocks from the smallest cut on.

        Returns what an adapter consists of, and the values of it that the checkpoint gives.
        """
        settings = self.settings
        check_codecs(settings)
        if remembers_samples(settings):
            writable_folder(self.config.cache_dir, "edge.cache_dir")
        self.folder = open_model(self.config.model or settings.model.path)
        check_length(settings.model.max_length, self.folder.context_length)
        self._warn_of_tokenizer()
        check_class_order(self.folder, settings.model.labels)
        check_batching(self.folder, settings, self.config)
        form = settle(self.config, settings.model, self.threads, settings.aggregation.traits.folds)
        own = self.config.model_copy(update={"quantised": form.quantised})
        self._choice = fit_edge(self.folder, settings, own)
        self.stats.dtype, self.stats.quantised = form.dtype, form.quantised
        num_labels = len(settings.model.labels)
        manifest = build_manifest(self.folder, settings.model.task, num_labels, settings.lora)
        plans = [self._plan(entry.name) for entry in settings.devices]
        span = Span(
            min(plan.middle.first for plan in plans),
            max(plan.middle.last for plan in plans),
            embedding=False,
            head=any(plan.middle.head for plan in plans),
        )
        self.model = build_span(
            self.folder,
            span,
            task=settings.model.task,
            num_labels=num_labels,
            dtype=form.weights,
            packed=COMPUTATIONS[settings.computation].packed,
            autocast=form.autocast,
            quantised=form.quantised,
        )
        lay_over_devices(self.model, self.config)
        self.bank = LoraBank(self.model, settings.lora, settings.lora.target_modules)
        log.info("base loaded: blocks %d to %d of %s", span.first, span.last - 1, self.folder.path)
        log.info("%s", self._choice)
        return manifest, adapter_bytes(given_values(self.folder, manifest))

    def _plan(self, device: str) -> Plan:
        return self.settings.plan(device, self.folder.num_layers)

    async def _heartbeats(self, interval: float) -> None:
        while True:
            self._beat([self._as_seen(one).to_json() for one in self._devices.values()])
            await asyncio.sleep(interval)

    def _as_seen(self, snapshot: NodeSnapshot) -> NodeSnapshot:
        """A device's statistics, with what this edge itself has seen of it."""
        stream = self.service.streams.get(snapshot.name)
        return replace(snapshot, moved=0 if stream is None else stream.moved)

    def _beat(self, devices: Sequence[str] = ()) -> None:
        """Tell the cloud what this edge has counted, and what its devices have said."""
        self.cloud.post(Beat(self.stats.snapshot().to_json(), devices))

    # -- what the cloud says -------------------------------------------------------------------

    async def _hear(self, word: EdgeWelcome | Admission | EdgeOrders | GlobalPart | Evict) -> None:
        match word:
            case EdgeWelcome():
                raise ProtocolError("settings from the cloud was not expected")
            case Admission():
                self._on_admission(word)
            case EdgeOrders():
                self._orders = word
                self.stats.start_round(word.round, 0)
            case GlobalPart():
                await self._on_adapter(word)
            case Evict():
                self._on_evict(word)
            case unknown:
                assert_never(unknown)

    def _on_admission(self, admission: Admission) -> None:
        future = self._admissions.pop(admission.device, None)
        if future is not None and not future.done():
            future.set_result(admission)

    async def _on_adapter(self, part: GlobalPart) -> None:
        if part.stack:
            self._pass_on(part.round, await asyncio.to_thread(decode_adapter, part.payload))
        elif self._orders is not None:
            await self._begin_round(self._orders, part.payload)

    def _pass_on(self, round_: int, stack: dict[str, np.ndarray]) -> None:
        """What a round gave goes into the base once, for all devices, and on to those without."""
        if round_ == self._stacks + 1:
            self._stacks = round_
            self._folded = asyncio.create_task(self._fold(stack))
        assert self._folded is not None, "the cloud begins with the first"
        for device, stream in self.service.streams.items():
            if not stream.is_ready:
                continue  # the cloud sends all of them again with its first round
            spans = self._plan(device).device_spans
            theirs = {
                name: array
                for name, array in stack.items()
                if any(belongs_to(name, span) for span in spans)
            }
            stream.fold(round_, theirs, self._folded)

    async def _fold(self, stack: dict[str, np.ndarray]) -> None:
        try:
            await self.engine.run(self.bank.fold, stack)
        except Exception as error:
            self.cloud.post(EdgeFailed(str(cause_of(error))))
            raise

    async def _begin_round(self, orders: EdgeOrders, payload: Buffer) -> None:
        streams = dict(self.service.streams)
        names = [device for device in orders.devices if device in streams]
        shares = await asyncio.to_thread(self._shares, payload, names)
        for device, start in orders.devices.items():
            stream = self.service.streams.get(device)
            # Who came meanwhile is in no round yet.
            if stream is not None and stream is streams.get(device):
                assert stream.stacks == self._stacks, "the cloud sends what is lacking first"
                stream.begin_round(start, *shares[device])

    def _shares(
        self, payload: Buffer, devices: Sequence[str]
    ) -> dict[str, tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
        """Each device's parts of the global adapter; a large one's ranks take a while."""
        values = decode_adapter(payload)
        return {device: self._shared_out(device, values) for device in devices}

    def _shared_out(
        self, device: str, values: dict[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The global adapter, at the device's rank, as the edge's part and the device's."""
        middle = self._plan(device).middle
        values = truncated(values, self.settings.rank(device))
        mine = {name: array for name, array in values.items() if belongs_to(name, middle)}
        return mine, {name: array for name, array in values.items() if name not in mine}

    def _on_evict(self, evict: Evict) -> None:
        if evict.final:
            self.service.turn_away(evict.device, Refused(evict.reason))
        else:  # it may join again with the next round
            self.service.evict(evict.device, LinkLost(evict.reason))

    # -- what devices' streams ask for (transport.edge_service.Host) -------------------------------

    async def loaded(self) -> None:
        """Wait until there is a base."""
        await self._ready.wait()

    async def admit(self, device: str, proof: Proof) -> tuple[DeviceWelcome, TrainingSession]:
        """Ask the cloud, make a session. Raises Refused where the cloud says no."""
        self._take_pace(device)
        answer: asyncio.Future[Admission] = asyncio.get_running_loop().create_future()
        self._admissions[device] = answer
        self.cloud.post(DeviceJoin(device, proof))
        try:
            admission = await answer
        finally:
            self._admissions.pop(device, None)
        if admission.refusal:
            raise (NameInUse if admission.in_use else Refused)(admission.refusal)
        session = await self.engine.run(self._open_session, device)
        log.info("device %s joined", device, extra={"device": device})
        layers, allowed = self.folder.num_layers, self._choice.credits
        return DeviceWelcome(self.settings, self.run_id, layers, allowed), session

    def _take_pace(self, device: str) -> None:
        """Have a device that joins without end wait: each time costs cloud and edge work and lines.

        Raises NameInUse.
        """
        known = any(entry.name == device for entry in self.settings.devices)
        pace = self._joins.setdefault(device if known else "", contract.Pace(*JOINING))
        try:
            pace.take("join", time.monotonic())
        except ProtocolError as error:
            raise NameInUse(f"device {device!r}: {error}; try again in a moment") from None

    def _open_session(self, device: str) -> TrainingSession:
        kind = SESSIONS[self.settings.run.topology]
        plan = self._plan(device)
        session = self._sessions[device] = kind(
            device,
            plan,
            self.model,
            self.bank,
            self.settings,
            self.stats,
            recompute=device in self._choice.recompute,
            residence=self._residence,
        )
        return session

    def _close_session(self, device: str) -> None:
        session = self._sessions.pop(device, None)
        if session is not None:  # None: it could not be made
            session.close()

    def ready(self, device: str, facts: DeviceFacts) -> None:
        """The device has its span and its data."""
        self.cloud.post(DeviceIsReady(device, facts))

    async def left(self, device: str, reason: SflError) -> None:
        """The device was admitted, and is gone; its session is given back, where it has one."""
        # Cut: it may repeat the device's own words, and a message to the cloud has a bound.
        why = contract.reason(str(reason))
        log.info("device %s left: %s", device, why, extra={"device": device})
        self.cloud.post(DeviceLost(device, why, blamed(reason)))
        await self.engine.run(self._close_session, device)

    async def relay_adapter(self, header: UpdateHeader, payload: Buffer) -> None:
        """Pass a part on to the cloud."""
        await self.cloud.send_update(header, payload)

    def relay_report(self, report: RoundReport) -> None:
        """Pass a report on to the cloud, and what this edge has counted by then.

        A summary would else have it as of the last heartbeat, and a short run's as next to nothing.
        """
        self._beat()
        self.cloud.post(report)

    def heard(self, device: str, snapshot: NodeSnapshot) -> None:
        """Keep a device's latest statistics."""
        self._devices[device] = snapshot.seen(device, time.time())

    async def files(self, device: str) -> Sequence[FileEntry]:
        """The files of a device's span. Raises Refused."""
        files = await asyncio.to_thread(self._span_files, device)
        return await asyncio.to_thread(files.listing)

    async def read_file(self, device: str, name: str, offset: int) -> AsyncIterator[bytes]:
        """One of them from `offset` on, in chunks. Raises Refused."""
        files = await asyncio.to_thread(self._span_files, device)
        for piece in files.pieces(name, offset):
            yield await asyncio.to_thread(piece)

    def _span_files(self, device: str) -> SpanFiles:
        if device not in self.service.streams:
            raise Refused(f"device {device!r} has not joined")
        spans = tuple(self._plan(device).device_spans)
        if spans not in self._files:
            self._files[spans] = SpanFiles(self.folder, spans, self.settings.model.task)
        return self._files[spans]
