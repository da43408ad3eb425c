"""What a run's journal has when its cloud starts: of a run that begins, nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sfl.config import RunConfig
from sfl.config.planner import OFF
from sfl.report.kept import KeptAdapters, KeptRounds
from sfl.report.projection import RunProjection
from sfl.rounds import AdapterReady, RunState, Settle, TextForm
from sfl.rounds.journal import Journal

if TYPE_CHECKING:
    from sfl.report.observing import Observing


def _kept_rounds(config: RunConfig) -> KeptRounds:
    return KeptRounds(config.run.keep_round_adapters, not config.is_asynchronous)


def _observing(config: RunConfig) -> Observing | None:
    if config.planner.policy == OFF:
        return None
    from sfl.report.observing import Observing  # only where somebody asks

    return Observing()


@dataclass(frozen=True, slots=True)
class Before:
    """Where a run was when its cloud was last heard of, and all that was told of it."""

    state: RunState
    told: RunProjection
    kept: KeptRounds
    settled: tuple[Settle, ...]
    observing: Observing | None
    """What nodes have shown of their costs, where a planner asks."""
    digests: Mapping[str, str]
    """Of the files that rounds left, by name."""
    goes_on: bool

    @property
    def form(self) -> TextForm | None:
        """How rows become text, if that is fixed."""
        return self.state.forms.chosen if self.state.form_used else None

    @classmethod
    def of(cls, journal: Journal, config: RunConfig) -> Before:
        """Raises DiskError."""
        told, kept = RunProjection(), _kept_rounds(config)
        observing = _observing(config)
        settled: list[Settle] = []
        digests: dict[str, str] = {}
        goes_on = False
        for entry in journal.entries():
            goes_on = True
            told.take(entry)
            kept.take(entry.event, told)
            if observing is not None:
                observing.take(entry)
            if isinstance(entry.event, Settle):
                settled.append(entry.event)
            elif isinstance(entry.event, AdapterReady):
                digests |= entry.event.digests
        if goes_on:
            told.go_on()  # before anything is written of an end that was none
        state = journal.latest().state(config.settings)
        return cls(state, told, kept, tuple(settled), observing, digests, goes_on)

    def keep_adapters(self, folder: Path, every_round: bool) -> KeptAdapters:
        """Finish what the cloud was stopped amid. Raises DiskError."""
        kept = KeptAdapters(folder, every_round, self.kept.best)
        if self.goes_on:
            kept.forget_after(self.told.closed)
        if self.kept.latest is not None:
            kept.replace("adapter", self.kept.latest)
        if self.kept.best is not None:
            kept.replace("adapter_best", self.kept.best)
        return kept
