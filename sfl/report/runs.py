"""A run's folder, and the settings as they take effect."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from sfl.config import RunConfig, dump_toml, load_run
from sfl.errors import ConfigError, DiskError
from sfl.node.files import on_disk, writable_folder, write_atomic
from sfl.node.paths import is_there, require_utf8

INTERRUPTED = "interrupted"
STOP = Path("nodes") / "cloud.stop"
JOURNAL = "run.sqlite"
LOCK = ".cloud.lock"
"""Held by whoever writes the journal."""
JOURNAL_FILES = (JOURNAL, f"{JOURNAL}-wal", f"{JOURNAL}-shm", LOCK)
"""What happened in a run, and the files that SQLite and its writer keep beside it."""
CONCLUSION = ("summary.json", "report.html", "timeline.json")
"""How a run ended; one that goes on has not."""

EFFECTIVE_HEADER = """\
# The settings of run {run_id} as they took effect, every default and every `auto` filled in.
# `sfl run` on this file repeats the run: on the same CPU it gives the same adapter, bit for bit.
"""


def new_run_id() -> str:
    """Date, time and a short random tail."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def open_run_folder(config: RunConfig) -> Path:
    """Make `output_dir/id` and write the effective settings into it. Raises ConfigError."""
    run_id = config.run.id or new_run_id()
    output_dir = writable_folder(config.run.output_dir, "run.output_dir").resolve()
    require_utf8(str(output_dir), "run.output_dir")
    folder = output_dir / run_id
    if (folder / "metrics.jsonl").exists():
        raise ConfigError("run.id", run_id, "a run of that name exists", "Choose another, or none.")
    _clear(folder)
    if (folder / JOURNAL).exists():  # its run would go into the journal of this one
        problem = f"{folder / JOURNAL} is of a run of that name"
        raise ConfigError("run.id", run_id, problem, "Choose another, or none.")
    new = not folder.exists()
    try:
        write_effective(config, folder)
    except DiskError:
        if new:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def _clear(folder: Path) -> None:
    """Drop what a run of that name left which ended before its cloud was up."""
    if not (folder / "summary.json").exists():
        return
    with on_disk(folder, "run.output_dir"):
        for name in ("logs", "nodes"):
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in (*CONCLUSION, *JOURNAL_FILES):
            (folder / name).unlink(missing_ok=True)


def write_effective(config: RunConfig, folder: Path) -> None:
    """Write the settings as they take effect, without the run's id, so that they run again."""
    decided = {
        "run": config.run.model_copy(update={"id": "", "output_dir": folder.absolute().parent}),
        "training": config.training.model_copy(update={"computation": config.computation}),
    }
    anonymous = config.model_copy(update=decided)
    header = EFFECTIVE_HEADER.format(run_id=folder.name)
    write_atomic(folder / "config.toml", header + dump_toml(anonymous))


def _has_effective(folder: Path) -> bool:
    """Whether a folder has settings that `write_effective` wrote, and not somebody's own file."""
    header, _ = EFFECTIVE_HEADER.split("\n", 1)
    try:
        with (folder / "config.toml").open(encoding="utf-8") as file:
            return file.readline().rstrip() == header.format(run_id=folder.resolve().name)
    except (OSError, ValueError):
        return False


def stop_because(folder: Path, reason: str) -> None:
    """Leave word for a run's cloud, before it is stopped from outside. Raises DiskError."""
    write_atomic(folder / STOP, reason)


def was_stopped(folder: Path) -> bool:
    """Whether somebody has left word that the run is over."""
    return (folder / STOP).exists()


def forget_stop(folder: Path) -> None:
    """Take back the word that stopped a run which now goes on. Raises DiskError."""
    with on_disk(folder):
        (folder / STOP).unlink(missing_ok=True)


def stop_reason(folder: Path) -> str:
    """Why a cloud that is stopped from outside is stopped, by the word of whoever does it."""
    try:
        return (folder / STOP).read_text(encoding="utf-8").strip() or INTERRUPTED
    except OSError:
        return INTERRUPTED


def load_for_cloud(
    path: Path,
    overrides: Iterable[str],
    insecure: bool,
    load: Callable[[Path, Iterable[str]], RunConfig] = load_run,
) -> RunConfig:
    """A run's settings, as the cloud process needs them. Raises ConfigError."""
    config = load(path, overrides)
    if insecure:
        network = config.network.model_copy(update={"insecure": True})
        config = config.model_copy(update={"network": network})
    return config


def find_run(run: str, output_dir: Path = Path("runs"), option: str = "--run") -> Path:
    """The folder of a run, by its path, its id, or the beginning of it. Raises ConfigError."""
    if any(is_there(Path(run) / name) for name in ("summary.json", "status.json", JOURNAL)):
        return Path(run)
    runs = [path for path in sorted(output_dir.glob("*")) if path.name.startswith(run)]
    found = [path for path in runs if (path / "config.toml").is_file()]
    if len(found) == 1 or (found and found[0].name == run):
        return found[0]
    if not found and _has_effective(Path(run)):  # its cloud was never up
        return Path(run)
    known = ", ".join(sorted(p.name for p in output_dir.glob("*") if p.is_dir())[-5:]) or "none"
    problem = "no such run" if not found else f"{len(found)} runs begin like this"
    raise ConfigError(option, run, problem, f"Latest in {output_dir}/: {known}.")
