"""A run whose machine is gone: found in its database, and its files fetched from their store."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from sfl.config import RunConfig, load_run
from sfl.config.node import without_secret
from sfl.errors import ConfigError
from sfl.node.extras import require_postgres
from sfl.node.lock import FolderLock
from sfl.report.asked import require_same_run, settings_of
from sfl.report.conclusion import SECRET
from sfl.report.journal import check_journal, patience
from sfl.report.runs import JOURNAL, LOCK
from sfl.store.address import Address
from sfl.store.artifacts import ArtifactStore, restore, same

if TYPE_CHECKING:
    from sfl.report.served import PostgresReader

SETTING = "cloud.artifacts"
CONFIG = "config.toml"
UNFINISHED = (".tmp", ".new")
"""What a file is called until it is whole."""
PATIENCE = 30.0
JOURNAL_OPTION, ARTIFACTS_OPTION = "--journal", "--artifacts"


def fetched(run: str, journal: str, artifacts: str, output_dir: Path) -> Path:
    """The folder of a run, with what its journal names; `run` may be the beginning of its id.

    Raises ConfigError, DiskError.
    """
    for option, url in ((JOURNAL_OPTION, journal), (ARTIFACTS_OPTION, artifacts)):
        _require_no_secret(option, url)
    require_postgres(JOURNAL_OPTION, journal)
    address = Address(JOURNAL_OPTION, journal)
    from sfl.report.served import PostgresReader, run_ids  # an extra, only where it is asked for

    run_id = _one_of(run_ids(address, PATIENCE), run)
    store = ArtifactStore(ARTIFACTS_OPTION, artifacts, run_id)
    folder = (output_dir / run_id).resolve()
    FolderLock(folder / LOCK).release()
    with contextlib.closing(PostgresReader(address, run_id, PATIENCE)) as reader:
        kept = reader.kept()
        if _holds_another(folder, journal, reader):
            problem = "this folder has something else than that run"
            fix = "Move it away, or name another --output-dir."
            raise ConfigError("--output-dir", str(folder), problem, fix)
    if not kept:
        fix = "Go on with it where its folder is."
        raise ConfigError("--resume", run_id, "none of its files were kept in a store", fix)
    # Its settings first: by them the folder is known, if this is done again.
    for name, digest in sorted(kept.items(), key=lambda file: (file[0] != CONFIG, *file)):
        if not same(folder / name, digest):
            restore(folder / name, store.get(digest), private=name == SECRET)
    return folder


def _holds_another(folder: Path, journal: str, reader: PostgresReader) -> bool:
    """Whether it has files, and not of the run that `reader` reads at `journal`.

    In one database a run's name is its own: what is of that name and that database is that run.
    """
    files = (path for path in folder.rglob("*") if path.is_file())
    if not any(path.name != LOCK and path.suffix not in UNFINISHED for path in files):
        return False
    try:
        config = load_run(folder / CONFIG)
        require_same_run(reader, config)
    except ConfigError:
        return True
    asked_for = settings_of(reader.entries()) or {}
    databases = {journal, asked_for.get("cloud", {}).get("journal", journal)}
    return (folder / JOURNAL).exists() or config.cloud.journal not in databases


def _require_no_secret(option: str, url: str) -> None:
    """Others on this machine can read a command line. Raises ConfigError."""
    try:
        without_secret(url)
    except ValueError:
        problem = "has a password, which everybody on this machine could read"
        fix = "Write ${NAME} in its place, and set NAME in the environment."
        raise ConfigError(option, "...", problem, fix) from None


def check_storage(config: RunConfig) -> None:
    """That a new run can be kept where its settings say. Raises ConfigError, DiskError."""
    cloud = config.cloud
    check_places(cloud.journal, cloud.artifacts, config.run.id, patience(config))


def check_places(journal: str, artifacts: str, run_id: str = "", seconds: float = PATIENCE) -> None:
    """That a new run can be kept there. Raises ConfigError, DiskError."""
    check_journal(journal, run_id, seconds)
    if artifacts:
        ArtifactStore(SETTING, artifacts, run_id or "new").check()


def store_of(config: RunConfig, run_id: str) -> ArtifactStore:
    """Where a run's files are kept a second time. Raises ConfigError."""
    return ArtifactStore(SETTING, config.cloud.artifacts, run_id)


def _one_of(ids: list[str], run: str) -> str:
    """The run that is meant. Raises ConfigError."""
    found = [name for name in ids if name.startswith(run)]
    if run in found or len(found) == 1:
        return run if run in found else found[0]
    problem = "no such run" if not found else f"{len(found)} runs begin like this"
    known = ", ".join(ids[-5:]) or "none"
    raise ConfigError("--resume", run, problem, f"Latest in that database: {known}.")
