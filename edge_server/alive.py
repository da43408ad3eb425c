"""Runs in the store that edges share: this edge's own is alive, and others were given up."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from sfl.errors import DiskError
from sfl.stage.snapshots import KEPT_SECONDS

if TYPE_CHECKING:
    from sfl.store.shared import SharedSnapshots

log = logging.getLogger("sfl.recovery")

EVERY = 600.0
"""Seconds between two words that a run is alive."""


async def stay_alive(shared: SharedSnapshots | None, run_key: str, edge: str) -> None:
    """Say again and again that this edge has the run, until that is cancelled."""
    while shared is not None:
        await asyncio.to_thread(shared.say_alive, run_key, edge)
        await asyncio.sleep(EVERY)


def forget_given_up(shared: SharedSnapshots, now: float) -> None:
    """Remove runs to which nothing was written for as long as a node's own disk keeps them.

    A store that does not answer costs a line.
    """
    try:
        gone = shared.forget_given_up(now, KEPT_SECONDS)
    except DiskError as error:
        log.warning("runs that were given up are still there: %s", error)
        return
    if gone:
        total = sum(own.num_bytes for own in gone) / 1e6
        what = "shared snapshots of %d runs that were given up are removed: %.1f MB"
        log.info(what, len(gone), total)
