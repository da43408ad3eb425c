"""One run that is under way: the process of its cloud, and the nodes on agents."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

from sfl.config import RunConfig
from sfl.errors import ConfigError, DiskError, SflError
from sfl.jobs.placing import out_of_reach
from sfl.jobs.values import Job, JobState, Needs
from sfl.node.causes import in_words
from sfl.node.lock import FolderLock
from sfl.node.restarts import Restarts
from sfl.report.conclusion import conclude, has_finished, is_over
from sfl.report.resume import how_ended
from sfl.report.runs import LOCK, stop_because
from sfl.report.status import RunStatus
from sfl.service.child import Child, Ending, Files
from sfl.service.logs import NodeLogs
from sfl.service.placements import Placements, may_be_asked_again
from sfl.service.roster import Roster

log = logging.getLogger("sfl.service")

PORT_IN_USE = "the port is in use"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run has ended."""

    state: JobState
    reason: str


@dataclass(frozen=True, slots=True)
class Cloud:
    """How clouds of runs are started."""

    listen: str
    """Where a new one listens: a host, and any port."""
    options: tuple[str, ...]


class LiveRun:
    """Looked at now and then by its service; whatever ends it, it says how."""

    returns = True

    def __init__(
        self,
        job: Job,
        config: RunConfig,
        folder: Path,
        cloud: Cloud,
        roster: Roster,
        restarts: int,
        goes_on: bool,
    ) -> None:
        """`goes_on`: its folder may have what a cloud of before has left."""
        self.run = job.run
        self.config = config
        self.folder = folder
        self.address = ""
        """Where its cloud listens, once it does."""
        self.waits = ""
        """For what it waits that its cloud does not know of."""
        self._wanted_address = job.address
        self._port_in_use = False
        self._cloud = cloud
        self._goes_on = goes_on
        self._child: Child | None = None
        self._began = time.monotonic()
        self._restarts = Restarts(restarts, log.warning)
        self._stopping = Ended("stopped", job.reason) if job.state == "stopping" else None
        self._ending: Ending | None = None
        self.needs = Needs.of(config)
        again = Restarts(restarts, log.warning, may_be_asked_again)
        known = NodeLogs.of(folder).size
        self.placements = Placements(job.run, self.needs, roster, again, known)
        for agent in roster:
            self.placements.attached(agent)

    # -- its cloud as a process (Restartable) -----------------------------------------------------

    @property
    def title(self) -> str:
        """For a line."""
        return f"run {self.run}: cloud"

    def exit_code(self) -> int | None:
        """Of its cloud."""
        return None if self._child is None else self._child.exit_code()

    def failure(self) -> str:
        """Why its cloud has ended."""
        return "" if self._child is None else self._child.failure()

    def start_again(self, line: str) -> None:
        """Have its next look start another process."""
        log.warning("%s", line)
        self._wanted_address, self.address, self._child = self.address, "", None

    # -- what its service asks --------------------------------------------------------------------

    def look(self, now: float) -> Ended | None:
        """Do what is due; how it has ended, once it has."""
        if self._child is None:
            if self._goes_on and (end := self._noted_end()) is not None:
                return end
            if self._stopping is not None:
                return self._concluded(self._stopping)
            self._start()
            return None
        if (code := self._child.exit_code()) is not None:
            return self._after(code, now)
        self.address = self.address or self._child.address()
        if self._ending is not None:
            self._ending.look(now)
            return None
        self.placements.look(self.address, now)
        if why := out_of_reach(self.needs, self.placements.given_up):
            self._end(Ended("failed", why))
        return None

    def stop(self, reason: str) -> None:
        """End it for this reason."""
        self._end(Ended("stopped", reason))

    def leave(self) -> None:
        """Let its cloud stop for now: the run goes on with the next service."""
        if self._child is not None:
            self._child.terminate()

    def left(self) -> bool:
        """Whether its cloud has ended."""
        return self._child is None or self._child.exit_code() is not None

    def kill(self) -> None:
        """End its cloud at once."""
        if self._child is not None:
            self._child.kill()

    # -- inside -----------------------------------------------------------------------------------

    def _start(self) -> None:
        """Start its cloud, once no process of before is at work on it."""
        try:
            FolderLock(self.folder / LOCK).release()
            nodes = self.folder / "nodes"
            files = Files(
                self.folder / "logs" / "cloud.log", nodes / "cloud.error", nodes / "cloud.address"
            )
            self._child = Child("cloud_aggregator", self._arguments(), files)
        except (DiskError, OSError) as error:
            self.waits = f"its folder: {in_words(error)}"
            return
        self.waits = ""
        self._goes_on = True
        log.info("run %s: its cloud is process %d", self.run, self._child.pid)

    def _arguments(self) -> list[str]:
        listen = self._wanted_address or self._cloud.listen
        options = ["--set", f"cloud.listen={listen!r}", *self._cloud.options]
        if self._goes_on:
            return ["--resume", str(self.folder), *options]
        parent = json.dumps(str(self.folder.parent), ensure_ascii=False)
        named = ["--set", f"run.id={self.run!r}", "--set", f"run.output_dir={parent}"]
        return [str(self.folder / "config.toml"), *named, *options]

    def _after(self, code: int, now: float) -> Ended | None:
        """Its cloud has ended: so has the run, or another process goes on with it."""
        if code == 0:
            status = RunStatus.last(self.folder / "status.json")
            return Ended("finished", "" if status is None else status.message)
        if (end := self._noted_end()) is not None:
            return end
        if self._stopping is not None:
            return self._concluded(self._stopping)
        reason = self.failure()
        if code == ConfigError.exit_code and PORT_IN_USE in reason and self._wanted_address:
            log.warning("run %s: %s", self.run, reason)
            # At first it may be the cloud of before that is about to leave.
            self._wanted_address = "" if self._port_in_use else self._wanted_address
            self._port_in_use, self._child = True, None
            return None
        if self._restarts.will_return(self) and not self._over():
            self._restarts.look([self], now)
            return None
        return self._concluded(Ended("failed", reason))

    def _noted_end(self) -> Ended | None:
        """How the run has ended by its own folder: whoever died after that changes nothing.

        A reason to be stopped goes before a failure, which may come of that.
        """
        status = RunStatus.last(self.folder / "status.json")
        if status is not None and has_finished(self.folder, status):
            return Ended("finished", status.message)
        if status is None or self._stopping is not None or not is_over(self.folder, status):
            return None
        with contextlib.suppress(SflError):
            if (reason := how_ended(self.folder, self.config)) is not None:
                return self._concluded(Ended("failed", reason))
        return None

    def _over(self) -> bool:
        return is_over(self.folder, RunStatus.last(self.folder / "status.json"))

    def _end(self, end: Ended) -> None:
        """Tell its cloud to end it; the first reason stays."""
        if self._stopping is not None:
            return
        self._stopping = end
        if self._child is None:
            return
        try:
            stop_because(self.folder, end.reason)
        except DiskError as error:
            log.warning("%s", error)
        self._ending = Ending(self._child, time.monotonic(), leave=0.0)

    def _concluded(self, end: Ended) -> Ended:
        """With all that a cloud leaves at its end, where it could not."""
        try:
            conclude(self.folder, self.config, end.reason, time.monotonic() - self._began)
        except SflError as error:
            log.warning("run %s: %s", self.run, error)
        return end
