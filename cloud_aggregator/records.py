"""What a run writes down while it runs, and leaves behind: one folder, one writer."""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from cloud_aggregator.before import Before
from cloud_aggregator.effective import EffectiveConfig
from sfl.errors import SflError
from sfl.node.causes import cause_of
from sfl.node.files import Reserve
from sfl.report.conclusion import RESERVE, write_conclusion
from sfl.report.plans import PlanFile, complete_plans, plans_of
from sfl.report.projection import data_notes
from sfl.report.records import RecordFile, complete_records, read_records
from sfl.report.runs import CONCLUSION
from sfl.report.standing import standing
from sfl.report.status import RunStatus
from sfl.report.summary import RunSummary
from sfl.rounds import DeviceReady, RunState
from sfl.rounds.journal import Entry
from sfl.rounds.values import DeviceFacts

log = logging.getLogger("sfl.cloud")


STATUS_SHARE = 0.1
"""Of the loop's time that the status may take. It has a line for every device of the run."""


class Pace:
    """How often something may be done that must not take more than a share of all time."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._due = -math.inf

    def is_due(self, now: float) -> bool:
        """Whether it may be done at `now` seconds."""
        return now >= self._due

    def took(self, seconds: float, now: float) -> None:
        """It was done by `now`, and took that long."""
        self._due = now + seconds / self._share - seconds


class RunRecords:
    """`metrics.jsonl`, `status.json`, `summary.json`, `report.html` and the kept adapters.

    What they say is what the journal told; here is only the writing.
    """

    def __init__(self, config: EffectiveConfig, folder: Path, before: Before) -> None:
        """Raises DiskError."""
        self.told = before.told
        self.summary: RunSummary | None = None
        self._config = config
        self._folder = folder
        self._lines = folder / "metrics.jsonl"
        self._reserve = Reserve(folder / RESERVE)
        if before.goes_on:
            for name in CONCLUSION:
                (folder / name).unlink(missing_ok=True)
            complete_records(self._lines, self.told.records)
            complete_plans(folder, self.told.plans)
            self.told.records.clear()
            self.told.plans.clear()
        self._file = RecordFile(self._lines)
        self._plans = PlanFile(folder)
        self._kept = before.keep_adapters(folder, config.current.run.keep_round_adapters)
        last = RunStatus.last(folder / "status.json")
        self._sequence = 0 if last is None else last.sequence
        self._pace = Pace(STATUS_SHARE)

    def hear(self, entry: Entry) -> None:
        """Write down what the journal has now. Raises DiskError."""
        self.told.take(entry)
        self._write_records()
        if isinstance(entry.event, DeviceReady) and entry.event.facts is not None:
            self._warn_of_data(entry.event.device, entry.event.facts)

    def _write_records(self) -> None:
        """So that memory has none of a long run; what cannot be written stays in it."""
        records, written = self.told.records, 0
        try:
            for record in records:
                self._file.append(record)
                written += 1
        finally:
            del records[:written]
        while self.told.plans:
            self._plans.append(self.told.plans[0])
            del self.told.plans[0]

    def _warn_of_data(self, device: str, facts: DeviceFacts) -> None:
        max_length = self._config.current.model.max_length
        for line in data_notes(facts).warnings(max_length, facts.example_kind):
            log.warning("device %s: %s", device, line, extra={"device": device})

    def keep(self, round_: int, needed: int | None = None) -> None:
        """A round's adapter is there; devices are at work from that of `needed` on.

        Raises DiskError.
        """
        self._kept.replace("adapter", round_)
        self._choose_best(needed)

    def _choose_best(self, needed: int | None) -> None:
        alike = not self._config.current.is_asynchronous  # else by other devices each time
        best = self.told.rounds.best_round() if alike else None
        self._kept.choose_best(best, self.told.closed, needed)

    def show(self, state: RunState) -> None:
        """Write the status that the live view reads, unless it was written only just now.

        Raises DiskError.
        """
        if not self._pace.is_due(time.monotonic()):
            return
        began = time.thread_time()
        self._write_status(state)
        self._pace.took(time.thread_time() - began, time.monotonic())

    def _write_status(self, state: RunState) -> None:
        """Each time with a number one higher."""
        self._sequence += 1
        status = standing(
            self._folder.name,
            self._config.current.settings,
            self.told,
            state,
            updated_at=time.time(),
            sequence=self._sequence,
            pid=os.getpid(),
            host=socket.gethostname(),
        )
        status.write(self._folder / "status.json")

    # -- at the end -----------------------------------------------------------------------------

    def make_room(self) -> None:
        """Give back what was held for the last files."""
        self._reserve.give_back()

    def close(self, state: RunState) -> list[SflError]:
        """Write the summary, the report and the last status, as far as that can be done, once the
        end was told.

        Returns what kept any of it from being written.
        """
        problems: list[SflError] = []
        for step in (
            partial(self._choose_best, state.needed_adapter),
            partial(self._write_status, state),
            self._summarise,
            self._file.close,
            self._plans.close,
        ):
            try:
                step()
            except Exception as error:  # noqa: BLE001 - the next may still be written
                problems.append(cause_of(error))
        return problems

    def _summarise(self) -> None:
        config, adapter = self._config.current, self._folder / "adapter"
        made = str(adapter) if adapter.is_dir() else None
        told = self.told
        written = read_records(self._lines)
        summary = told.summary(
            self._folder.name, config.settings, made, written, plans_of(self._folder)
        )
        self.summary = summary = replace(summary, best_round=self._kept.best_round)
        records = [*written, *told.records]
        write_conclusion(self._folder, summary, records, config, told.rounds.steps)
