"""The cloud process: it owns the run's settings, keeps its rounds and averages its adapters.

    EffectiveConfig  the settings in effect
    GlobalAdapter    the adapter's values on disk; Averaging merges what came
    Dispatch         rounds on their way out
    RunRecords       what the run leaves in its folder
    Effects          does what the coordinator says
    Driver           feeds the coordinator, and has its commands done
    EdgeHost         what edges' streams tell, as events

None of them knows CloudAggregator, which opens the port, wires them together and takes them down.
It imports neither torch nor transformers: numpy is enough to average.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from cloud_aggregator.averaging import Averaging, GlobalAdapter
from cloud_aggregator.before import Before
from cloud_aggregator.beside import complete_adapters
from cloud_aggregator.challenges import Challenges
from cloud_aggregator.clock import RunClock
from cloud_aggregator.dispatch import Dispatch
from cloud_aggregator.driver import Driver
from cloud_aggregator.edge_names import EdgeNames
from cloud_aggregator.effective import EffectiveConfig
from cloud_aggregator.effects import Effects
from cloud_aggregator.host import EdgeHost
from cloud_aggregator.mirror import SETTINGS, mirror_of, published
from cloud_aggregator.models_said import ModelsSaid
from cloud_aggregator.records import RunRecords
from cloud_aggregator.sealed import Sealed
from sfl.config import RunConfig
from sfl.errors import DiskError, RunFailed, SflError
from sfl.metrics.prometheus import NodeCollector, serve_as_set
from sfl.metrics.stats import NodeStats
from sfl.metrics.waits import MOST, Wait, silences
from sfl.node.causes import another_may_help, cause_of
from sfl.node.certificates.own import OwnCertificate
from sfl.node.extras import require_cryptography, require_opentelemetry
from sfl.node.files import write_atomic
from sfl.node.logs import describe_node
from sfl.node.process import SIGTERM
from sfl.report.asked import asked
from sfl.report.conclusion import (
    can_go_on,
    drop_rounds,
    drop_working_files,
    drop_working_folders,
    what_stays,
)
from sfl.report.journal import open_journal
from sfl.report.runs import forget_stop, stop_reason, was_stopped
from sfl.report.standing import waits_of
from sfl.report.status import Wait as Due
from sfl.rounds import CloudRestarted, Coordinator, FinishRun, Phase, RunEnded, Tick
from sfl.rounds.journal import Entry
from sfl.transport.cloud.service import CloudService
from sfl.transport.group import watched
from sfl.transport.security.credentials import bind, new_server
from sfl.transport.security.door import Door

if TYPE_CHECKING:
    from cloud_aggregator.planning import Planning
    from sfl.node.certificates.signing import Trust
    from sfl.report.observing import Observing
    from sfl.report.traces import StepTraces

log = logging.getLogger("sfl.cloud")

GOODBYE = 10.0  # seconds that edges have to take the run's end
TICK = 0.5  # seconds between two looks at deadlines, and between two writes of the status


class CloudAggregator:
    """One run of the cloud, from its port to what stays in its folder."""

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        own: OwnCertificate | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises ConfigError. For a running event loop.

        All deadlines of the run go by `clock`, in seconds.
        """
        trust = _trust(own)
        self.own = own
        self.folder = folder
        self.run_id = folder.name
        # Before any record: what it refuses leaves none.
        self.journal = open_journal(config, folder)
        before = Before.of(self.journal, config)
        self._goes_on = before.goes_on
        self.config = EffectiveConfig(config, folder, before.settled, before.form)
        self.stats = stats = NodeStats("cloud", "cloud")
        stats.certificate_expiry = None if own is None else own.not_after
        self._traces = _step_traces(config, self.run_id)
        state = before.state
        begun = state.round > 0
        sealed = Sealed(folder, before.digests)
        ref = state.adapter_ref if begun else ""
        self.adapter = GlobalAdapter(self.config, folder, ref, sealed)
        # At the end that is gone, and nothing more is averaged.
        remembered = state.strategy_ref if begun and state.end is None else ""
        self.mirror = mirror_of(config, folder, self.journal)
        self.averaging = Averaging(
            self.config, folder, self.adapter, stats, remembered, self.mirror
        )
        self.records = records = RunRecords(self.config, folder, before)
        observing = before.observing
        self.coordinator = coordinator = Coordinator(
            config.settings, journal=self.journal, hear=_hears(records, observing), state=state
        )
        self.service = CloudService(stats)
        edges = EdgeNames(config.edges, returns=config.network.rejoin_timeout > 0)
        models = ModelsSaid(config, chosen=begun)
        base_updates = self.adapter.base_updates
        effects = Effects(
            self.config,
            coordinator,
            self.service,
            stats,
            models=models,
            adapter=self.adapter,
            dispatch=Dispatch(self.config, coordinator, self.averaging, base_updates, self.service),
            edges=edges,
        )
        now = RunClock(clock, begins_at=state.now)
        planning = _planning(self.config, records, self.adapter, models, observing)
        self.driver = Driver(
            coordinator, effects, self.averaging, planning, records, stats, self._traces, now
        )
        self.host = EdgeHost(
            self.config,
            coordinator,
            self.driver,
            records,
            stats,
            run_id=self.run_id,
            run_key=self.journal.run_key,
            models=models,
            adapter=self.adapter,
            averaging=self.averaging,
            edges=edges,
            challenges=Challenges(folder, trust),
        )
        self.mirror.put(*SETTINGS)
        describe_node(self._log_fields)

    async def run(self, address_file: Path | None) -> None:
        """Serve one run on a port, to its end. Raises RunFailed where it ends badly."""
        async with self._port(address_file):
            await self.to_its_end()

    @contextlib.asynccontextmanager
    async def _port(self, address_file: Path | None) -> AsyncIterator[None]:
        """Where edges dial. Raises ConfigError."""
        door = Door()
        server = new_server(self.own, door)
        server.add_generic_rpc_handlers((self.service.handler(self.host),))
        config = self.config.current
        insecure = config.network.insecure
        address = bind(server, "cloud.listen", config.cloud.listen, insecure, self.own)
        await server.start()
        if address_file is not None:
            write_atomic(address_file, address)
        log.info("cloud of run %s listens on %s", self.run_id, address)
        try:
            with door.watched(address):
                yield
        finally:
            await server.stop(grace=1.0)

    async def to_its_end(self) -> None:
        """Keep the run going while its service is served. Raises RunFailed."""
        if self._goes_on:
            forget_stop(self.folder)
            self.service.expect_back(self.coordinator.state.bases)
            self._go_on()
        else:
            self.driver.tell(asked(self.config.current))
        ticking = watched(self._tick(), self.driver.failed)
        end = FinishRun(False, "")
        try:
            with self._metrics():
                end = await self.driver.over
                await self._dismiss(end)
        except asyncio.CancelledError as stopped:
            end = FinishRun(False, stop_reason(self.folder))
            if SIGTERM in stopped.args and self._may_be_back():
                await self.service.hang_up("the cloud was stopped, and may be back")
            else:
                await self.service.dismiss(end, 3.0)  # who stops a process does not wait for long
            raise
        except Exception as error:  # noqa: BLE001 - edges are told first, then it is raised
            cause = cause_of(error)
            end = FinishRun(False, str(cause))
            if another_may_help(cause):
                await self._leave(end)
            raise cause from None
        finally:
            ticking.cancel()
            self.driver.close()
            end = self._finish_records(end)
            self._say_the_end(end)
            if self._traces is not None:
                await asyncio.to_thread(self._traces.close)
        if not end.ok:
            raise RunFailed(end.reason)

    def _go_on(self) -> None:
        """Where the cloud was stopped; where it was decided how the run ends, at that end."""
        if (end := self.coordinator.state.end) is None:
            self.driver.happened(CloudRestarted())
        else:
            self.driver.do(FinishRun(end.ok, end.reason))

    async def _leave(self, end: FinishRun) -> None:
        """Edges wait for the next process, as for one that was killed; or nobody waits."""
        if self.config.current.network.rejoin_timeout > 0:
            await self.service.hang_up(f"the cloud failed, and may be back: {end.reason}")
        else:
            await self.service.dismiss(end, 3.0)

    def _may_be_back(self) -> bool:
        """Whether edges are to wait for the next process, as under a service manager.

        Not where the run has ended, where whoever stops it has said that it is over, or where
        nobody is waited for.
        """
        waits = self.config.current.network.rejoin_timeout > 0
        return waits and self.driver.over.cancelled() and not was_stopped(self.folder)

    def _metrics(self) -> contextlib.AbstractContextManager[object]:
        metrics = self.config.current.cloud.metrics
        if not metrics.enabled:
            return contextlib.nullcontext()
        return serve_as_set(metrics, NodeCollector(self.stats))

    def _log_fields(self) -> dict[str, object]:
        stats = self.stats
        return {"kind": stats.kind, "node": stats.name, "run": self.run_id, "round": stats.round}

    async def _tick(self) -> None:
        while True:
            self._show_waits()
            self.driver.heard(self.stats.snapshot())
            self.driver.happened(Tick())
            self.records.show(self.coordinator.state)
            await asyncio.sleep(TICK)

    def _show_waits(self) -> None:
        """In /metrics and in the log; `status.json` has those of the run's state by itself."""
        now, waits = time.time(), self.stats.waits
        settings = self.config.current.settings
        due = islice(waits_of(self.coordinator.state, settings), MOST)
        heard = ((f"edge {edge}", at) for edge, at in self.service.last_heard())
        silent = silences(heard, settings.network.idle_timeout, time.monotonic(), now)
        waits.derive([*silent, *(_in_unix_seconds(own, now) for own in due)])
        waits.say()

    async def _dismiss(self, end: FinishRun) -> None:
        """Tell everybody; who was lost and may be back at any moment is waited for, too."""
        self.stats.waits.derive(())
        with self.stats.waits.on("edges", "goodbye", "to take the run's end", GOODBYE):
            away = self.config.current.network.rejoin_timeout
            await self.service.dismiss(end, GOODBYE, away)

    def _say_the_end(self, end: FinishRun) -> None:
        how = "finished" if end.ok else "failed"
        log.info("run %s %s: %s", self.run_id, how, end.reason)
        for name, what in what_stays(self.folder):
            log.info("%s: %s", what, self.folder / name)
        if can_go_on(self.folder):
            log.info("to go on: sfl cloud --resume %s", self.folder)

    def _finish_records(self, end: FinishRun) -> FinishRun:
        """Leave the run's folder as it stays; a run that cannot be told of has not ended well."""
        config = self.config.current
        over = self.coordinator.phase is Phase.OVER
        if over:
            drop_working_folders(self.folder)
        self.records.make_room()
        problem = self._last_words(end)
        if problem is not None and end.ok:
            end = FinishRun(False, str(problem))
            self._last_words(end)
        if self.records.summary is not None:
            base = self.adapter.base_model()
            complete_adapters(self.folder, config, base, self.records.summary)
        # Last, so that a cloud that is killed meanwhile is started again for the rest.
        if over and published(self.mirror):
            drop_working_files(self.folder)
            drop_rounds(self.folder, config.run.keep_round_adapters)
        with contextlib.suppress(DiskError):  # what could not be kept has ended the run before
            self.journal.close()
        return end

    def _last_words(self, end: FinishRun) -> SflError | None:
        """Tell the end, and write what stays; returns what kept any of that from being done."""
        self.driver.heard(self.stats.snapshot())
        problems: list[SflError] = []
        try:
            self.driver.tell(RunEnded(end.ok, end.reason))
            self.journal.commit()
        except Exception as error:  # noqa: BLE001 - the records may still be written
            problems.append(cause_of(error))
        problems += self.records.close(self.coordinator.state)
        for problem in problems:
            log.error("%s", problem)
        return problems[0] if problems else None


def _in_unix_seconds(wait: Due, now: float) -> Wait:
    until = None if wait.seconds_left is None else now + wait.seconds_left
    return Wait(wait.whom, wait.kind, now - wait.seconds, until, wait.what)


def _hears(records: RunRecords, observing: Observing | None) -> Callable[[Entry], object]:
    """Who takes what the journal has."""
    if observing is None:
        return records.hear

    def hear(entry: Entry) -> None:
        records.hear(entry)
        observing.take(entry)

    return hear


def _planning(
    config: EffectiveConfig,
    records: RunRecords,
    adapter: GlobalAdapter,
    models: ModelsSaid,
    observing: Observing | None,
) -> Planning | None:
    """Who asks the run's planner, if it has one. Raises ConfigError."""
    if observing is None:
        return None
    from cloud_aggregator.planning import Planning  # only where somebody decides

    return Planning(config, records.told, adapter, models.own, observing)


def _step_traces(config: RunConfig, run_id: str) -> StepTraces | None:
    """Where steps go as traces, if anywhere. Raises ConfigError."""
    endpoint = config.cloud.tracing.endpoint
    if not endpoint:
        return None
    require_opentelemetry("cloud.tracing.endpoint", endpoint)
    from sfl.report.traces import StepTraces  # an extra, only where it is asked for

    return StepTraces.to(endpoint, run_id, config.edge.name)


def _trust(own: OwnCertificate | None) -> Trust | None:
    """What devices' certificates are held against; None without TLS. Raises ConfigError."""
    if own is None:
        return None
    require_cryptography("cloud.tls")
    from sfl.node.certificates.signing import Trust  # an extra, only where it is needed

    return Trust(own.ca.read_bytes())
