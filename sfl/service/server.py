"""The service: its port, its queue, the runs that are under way, and whose turn is next.

    JobQueue   what was submitted, on the disk
    Roster     the agents that are attached
    LiveRun    one run under way: the process of its cloud, and its nodes on agents
    Operators  what operators ask for
    Nodes      what agents tell

It computes nothing, and imports neither torch nor numpy: each run's cloud is a process of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from sfl.config import RunConfig
from sfl.config.load import read_run
from sfl.config.service import ServiceSettings
from sfl.errors import ConfigError, DiskError, SflError
from sfl.jobs.placing import claimed
from sfl.jobs.turns import turns
from sfl.jobs.values import OPEN, OVER, Job, Needs, Waiting
from sfl.metrics.prometheus import serve_as_set
from sfl.metrics.service import ServiceCollector, ServiceFigures
from sfl.node.certificates.own import OwnCertificate
from sfl.node.files import write_atomic
from sfl.node.lock import FolderLock
from sfl.node.logs import Sparing
from sfl.report.runs import open_run_folder
from sfl.service.child import STOP
from sfl.service.nodes import Nodes
from sfl.service.operators import Operators
from sfl.service.queue import LOCK, JobQueue
from sfl.service.roster import Roster
from sfl.service.run import Cloud, Ended, LiveRun
from sfl.transport.jobs.agents import AgentsDoor
from sfl.transport.jobs.operators import OperatorsDoor
from sfl.transport.security.addresses import joined, split_address
from sfl.transport.security.credentials import bind, new_server
from sfl.transport.security.door import Door

log = logging.getLogger("sfl.service")
sparing = Sparing(log, burst=2, seconds=60.0)

TICK = 0.25
"""Seconds between two looks at the queue and at the runs."""
OF_EVERY_CLOUD = ("journal", "artifacts", "tracing")
"""Settings of the service that are those of each run's cloud."""
LOCK_TRIES = 5
"""Whoever looks whether a service is at work touches its lock for a moment."""


class Service:
    """Serves until it is stopped; what is under way goes on with the next one."""

    def __init__(
        self,
        settings: ServiceSettings,
        output_dir: Path,
        insecure: bool,
        own: OwnCertificate | None,
    ) -> None:
        """Raises ConfigError, DiskError."""
        self.settings = settings
        self.output_dir = output_dir
        self._insecure = insecure
        self._own = own
        self._host, _ = split_address("service.listen", settings.listen)
        self.queue = JobQueue(output_dir)
        self._lock = _only_one(self.queue.folder)
        self.roster = Roster()
        self.live: dict[str, LiveRun] = {}
        self._configs: dict[str, RunConfig] = {}
        self.figures = ServiceFigures()
        """As of the last look, for other threads."""
        self._ended: Counter[str] = Counter()
        self.nodes = Nodes(output_dir, self.roster, self.live)
        self.operators = Operators(
            self.queue, output_dir, self.roster, self.nodes, settings.max_runs
        )

    async def run(self, address_file: Path | None) -> None:
        """Serve until this is cancelled. Raises SflError where it cannot go on."""
        try:
            async with self._port(address_file):
                with self._metrics():
                    await self._work()
        finally:
            await self._leave_runs()
            self._lock.release()

    async def _work(self) -> None:
        """Look, again and again."""
        self._resume()
        while True:
            self._look()
            await asyncio.sleep(TICK)

    @contextlib.asynccontextmanager
    async def _port(self, address_file: Path | None) -> AsyncIterator[None]:
        """Where operators and agents dial. Raises ConfigError."""
        door = Door()
        server = new_server(self._own, door)
        handlers = (OperatorsDoor(self.operators).handler(), AgentsDoor(self.nodes).handler())
        server.add_generic_rpc_handlers(handlers)
        listen = self.settings.listen
        address = bind(server, "service.listen", listen, self._insecure, self._own)
        await server.start()
        write_atomic(self.queue.folder / "address", address)
        if address_file is not None:
            write_atomic(address_file, address)
        log.info("service of %s listens on %s", self.output_dir, address)
        try:
            with door.watched(address):
                yield
        finally:
            await server.stop(grace=1.0)

    def _metrics(self) -> contextlib.AbstractContextManager[object]:
        if not self.settings.metrics.enabled:
            return contextlib.nullcontext()
        return serve_as_set(self.settings.metrics, ServiceCollector(lambda: self.figures))

    def _resume(self) -> None:
        """Go on with what was under way when the service before ended."""
        for job in self.queue.open():
            if job.state != "queued" and self._can_be_read(job):
                log.info("run %s goes on", job.run)
                self._make_live(job, goes_on=True)

    def _look(self) -> None:
        """All that is due; a disk that is full is waited for."""
        try:
            jobs = [job for job in self.queue.open() if self._can_be_read(job)]
            self._stop_those_asked_for(jobs)
            self._begin([job for job in jobs if job.state == "queued"])
            self._look_at_runs({job.run: job for job in jobs})
            self.figures = self._counted(jobs)
        except DiskError as error:
            sparing.warning("disk", "%s; trying again", error)

    def _counted(self, jobs: Sequence[Job]) -> ServiceFigures:
        runs = Counter[str](job.state for job in jobs)
        agents = Counter[str](agent.role for agent in self.roster)
        return ServiceFigures(
            runs={state: runs[state] for state in OPEN},
            ended={state: self._ended[state] for state in OVER},
            agents={role: agents[role] for role in ("edge", "device")},
            waiting_since={job.run: job.waits_since for job in jobs if job.waits},
        )

    def _stop_those_asked_for(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            if job.state == "stopping" and job.run in self.live:
                self.live[job.run].stop(job.reason)

    def _begin(self, queued: list[Job]) -> None:
        """Whose turn it is, begins; the others are told what they wait for."""
        waiting = [Waiting(job.run, Needs.of(self._config(job))) for job in queued]
        under_way = {run.run: (run.needs, run.placements.done) for run in self.live.values()}
        seats = claimed(self.roster.seats, under_way)
        said = turns(waiting, seats, len(self.live), self.settings.max_runs)
        for job in queued:
            if waits := said[job.run] or self._cannot_begin(job):
                self._note_wait(job, waits)

    def _cannot_begin(self, job: Job) -> str:
        """Begin a run; why that could not be done, if it could not."""
        config = self._config(job)
        try:
            if not (self.output_dir / job.run / "config.toml").exists():
                open_run_folder(config)
            now = time.time()
            quiet: dict[str, Any] = {"waits": "", "waits_since": 0.0}
            begins: dict[str, Any] = {"state": "running", "started_at": now, **quiet}
            if self.queue.change(job.run, only=("queued",), **begins):
                log.info("run %s begins", job.run)
                self._make_live(job, goes_on=False)
        except ConfigError as error:
            self._settle(job.run, Ended("failed", str(error)))
        except DiskError as error:
            return f"its folder: {error}"
        return ""

    def _make_live(self, job: Job, goes_on: bool) -> None:
        options = ["--insecure"] if self._insecure else []
        if self._own is not None:
            own = self._own
            for key, path in (("ca", own.ca), ("cert", own.cert), ("key", own.key)):
                options += ["--set", f"cloud.tls.{key}={json.dumps(str(path.absolute()))}"]
        self.live[job.run] = LiveRun(
            job,
            self._config(job),
            self.output_dir / job.run,
            Cloud(joined(self._host, 0), tuple(options)),
            self.roster,
            self.settings.restarts,
            goes_on,
        )

    def _look_at_runs(self, jobs: dict[str, Job]) -> None:
        for run in [*self.live.values()]:
            end = run.look(time.monotonic())
            if end is not None:
                self._settle(run.run, end)
                continue
            job = jobs.get(run.run)
            if job is None:
                continue
            if run.address and run.address != job.address:
                self.queue.change(run.run, address=run.address)
            self._note_wait(job, run.waits)

    def _note_wait(self, job: Job, waits: str) -> None:
        """What a run waits for, and since when, where that has changed."""
        if waits == job.waits:
            return
        if waits:
            log.info("run %s waits for %s", job.run, waits)
        since = time.time() if waits else 0.0
        self.queue.change(job.run, only=(job.state,), waits=waits, waits_since=since)

    def _settle(self, run: str, end: Ended) -> None:
        """A run has ended: that is noted, then its agents are let go. Raises DiskError."""
        log.info("run %s %s: %s", run, end.state, end.reason)
        changes: dict[str, Any] = {"waits": "", "waits_since": 0.0, "reason": end.reason}
        self.queue.change(run, state=end.state, ended_at=time.time(), **changes)
        self._ended[end.state] += 1
        self.live.pop(run, None)
        self._configs.pop(run, None)
        self.nodes.let_go(run, end.reason)

    def _can_be_read(self, job: Job) -> bool:
        """Whether this sfl takes the run's settings; else the run ends. Raises DiskError."""
        try:
            self._config(job)
        except ConfigError as error:
            self._settle(job.run, Ended("failed", str(error)))
            return False
        return True

    def _config(self, job: Job) -> RunConfig:
        if job.run not in self._configs:
            given = {key: getattr(self.settings, key) for key in OF_EVERY_CLOUD}
            asked = read_run(job.settings)
            own = asked.cloud.model_copy(update=given)
            self._configs[job.run] = asked.model_copy(update={"cloud": own})
        return self._configs[job.run]

    async def _leave_runs(self) -> None:
        """Have the clouds stop for now; their edges wait for the next service."""
        for run in self.live.values():
            run.leave()
        end = time.monotonic() + STOP
        while not all(run.left() for run in self.live.values()) and time.monotonic() < end:
            await asyncio.sleep(0.05)
        for run in self.live.values():
            run.kill()


def _only_one(folder: Path) -> FolderLock:
    """Raises ConfigError where another service is at work on the folder."""
    for _ in range(LOCK_TRIES):
        with contextlib.suppress(SflError):
            return FolderLock(folder / LOCK)
        time.sleep(0.05)
    fix = "Stop it, or name another folder with --output-dir."
    raise ConfigError("--output-dir", str(folder.parent), "has a service", fix)
