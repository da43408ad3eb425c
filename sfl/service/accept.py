"""A run that is submitted: looked at, named, and put into the queue before anybody is told."""

from __future__ import annotations

import time
from pathlib import Path

from sfl.config import CloudNode, RunConfig, dump_toml
from sfl.config.load import read_run
from sfl.errors import ConfigError
from sfl.jobs.values import Job
from sfl.report.runs import new_run_id
from sfl.service.queue import JobQueue, Taken

TRIES = 5


def accept(queue: JobQueue, output_dir: Path, settings: str, key: str, by: str) -> Job:
    """Queue a run; the one that is there already, where its key is.

    Raises ConfigError, which names the setting, and DiskError.
    """
    if not key:
        raise ConfigError("key", key, "is missing", "Submit with `sfl submit`.")
    if (there := queue.by_key(key)) is not None:
        return there
    config = read_run(settings)
    _require_nothing_to_dial(config.cloud)
    for _ in range(TRIES):
        run = config.run.id or new_run_id()
        if not (output_dir / run).exists():
            try:
                return queue.add(_job(run, key, config, output_dir, by))
            except Taken:
                pass
        if config.run.id:
            break
    fix = "Choose another, or none."
    raise ConfigError("run.id", config.run.id, "a run of that name exists", fix)


def _require_nothing_to_dial(asked: CloudNode) -> None:
    """Whoever submits would have the service dial where he likes. Raises ConfigError."""
    if endpoint := asked.tracing.endpoint:
        field = "tracing.endpoint"
        fix = f"Leave it out, and start the service with --set service.{field}=URL."
        raise ConfigError(f"cloud.{field}", endpoint, "is the service's to choose", fix)
    for name in ("journal", "artifacts"):
        if value := getattr(asked, name):
            fix = f"Leave it out, and start the service with --{name} URL."
            raise ConfigError(f"cloud.{name}", value, "is the service's to choose", fix)


def _job(run: str, key: str, config: RunConfig, output_dir: Path, by: str) -> Job:
    """As it will be run here: the service has its own addresses, keys and folders."""
    placed = config.run.model_copy(update={"id": run, "output_dir": output_dir})
    own = config.model_copy(update={"run": placed, "cloud": CloudNode()})
    return Job(run, key, dump_toml(own), submitted_at=time.time(), submitted_by=by)
