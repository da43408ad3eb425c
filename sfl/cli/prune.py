"""`sfl prune`: what edges share of runs that were given up is removed, or shown."""

from __future__ import annotations

import time
from collections.abc import Iterable

import typer

from sfl.report import text
from sfl.report.page import count
from sfl.store.shared import SharedSnapshots, StoredRun

DAY = 86400.0


def prune_and_show(url: str, days: float, dry_run: bool) -> None:
    """Each run that goes, and what that comes to. Raises ConfigError, DiskError."""
    store, now = SharedSnapshots(url, "STORE"), time.time()
    runs, seconds = store.runs(), days * DAY
    gone = [own for own in runs if own.given_up(now, seconds)]
    if not dry_run:
        gone = store.forget_given_up(now, seconds)
    for own in gone:
        typer.echo(_line(own, now))
    typer.echo(_total(gone, len(runs), dry_run))


def _line(own: StoredRun, now: float) -> str:
    kept = f"{count(own.devices, 'device')}, {count(own.num_files, 'file')}"
    age, size = text.duration(now - own.written), text.size(own.num_bytes)
    return f"{own.key}: {kept}, {size}, last written {age} ago"


def _total(gone: Iterable[StoredRun], among: int, dry_run: bool) -> str:
    sizes = [own.num_bytes for own in gone]
    done = "would be removed (--dry-run)" if dry_run else "removed"
    return f"{len(sizes)} of {count(among, 'run')} {done}: {text.size(sum(sizes))}"
