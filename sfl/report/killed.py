"""A run whose cloud was killed, told by its journal alone: all that the cloud did not come to."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sfl.config import RunConfig, RunSettings
from sfl.errors import DiskError, SflError
from sfl.node.causes import cause_of
from sfl.report.journal import open_journal, read_journal
from sfl.report.kept import KeptAdapters, KeptRounds
from sfl.report.projection import RunProjection
from sfl.report.standing import standing
from sfl.report.status import RunStatus
from sfl.report.summary import RunSummary
from sfl.rounds import End, Phase, RunEnded, RunState
from sfl.rounds.journal import Entry

log = logging.getLogger("sfl.report")


@dataclass(frozen=True, slots=True)
class KilledRun:
    """What was told until its end, and with it; `best_before` is the best round before its end."""

    told: RunProjection
    state: RunState
    adapters: KeptRounds
    best_before: int | None

    @classmethod
    def of(
        cls,
        entries: Sequence[Entry],
        end: Entry,
        state: RunState,
        every_round: bool,
        chooses: bool = True,
    ) -> KilledRun:
        """Of a journal's entries, and an end that is none of them."""
        told, adapters = RunProjection(), KeptRounds(every_round, chooses)
        for entry in entries:
            told.take(entry)
            adapters.take(entry.event, told)
        best = adapters.best
        told.take(end)
        adapters.take(end.event, told)
        return cls(told, state, adapters, best)

    @property
    def over(self) -> bool:
        """Whether it can't go on: it was decided how it ends."""
        return self.state.phase is Phase.OVER

    def keep_adapters(self, folder: Path, every_round: bool) -> int | None:
        """Finish what the cloud was killed amid; returns the round of `adapter_best`."""
        kept, adapters, best = KeptAdapters(folder, every_round), self.adapters, self.best_before
        with contextlib.suppress(DiskError):  # then those of before stay
            if adapters.latest is not None:
                kept.replace("adapter", adapters.latest)
            if adapters.best is not None:
                kept.replace("adapter_best", adapters.best)
                best = adapters.best
        return best if (folder / "adapter_best").is_dir() else None

    def summary(
        self, run_id: str, settings: RunSettings, adapter: str | None, best_round: int | None
    ) -> RunSummary:
        """What the run came to; its best round is the one of `adapter_best`, as it is there."""
        summary = self.told.summary(run_id, settings, adapter)
        return replace(summary, best_round=best_round)

    def status(self, run_id: str, settings: RunSettings, last: RunStatus | None) -> RunStatus:
        """How it ended; `last` is what its cloud wrote last."""
        before = RunStatus(run_id, "failed", 0, 0) if last is None else last
        return standing(
            run_id,
            settings,
            self.told,
            self.state,
            updated_at=time.time(),
            sequence=before.sequence + 1,
            pid=before.pid,
            host=before.host,
        )


def killed_run(folder: Path, config: RunConfig, reason: str) -> KilledRun | None:
    """A run as its journal has it, which ends with `reason` from now on.

    None where there is no journal, where it tells nothing, or where it cannot be read.
    """
    try:
        if (journal := read_journal(config, folder)) is None:
            return None
        with contextlib.closing(journal):
            entries = list(journal.entries())
            if not entries:
                return None
            latest = journal.latest()
        state, every_round = latest.state(config.settings), config.run.keep_round_adapters
        own = End(False, reason) if state.end is None else state.end  # it was decided before
        end = Entry(latest.now, RunEnded(own.ok, own.reason))
        killed = KilledRun.of(entries, end, state, every_round, not config.is_asynchronous)
    except Exception as error:  # noqa: BLE001 - how the run ended is told all the same
        log.warning("the run's other files tell of it, not its journal: %s", cause_of(error))
        return None
    # Where the journal cannot be written, the summary alone has the end.
    with contextlib.suppress(SflError), contextlib.closing(open_journal(config, folder)) as writing:
        writing.append(end)
    return killed
