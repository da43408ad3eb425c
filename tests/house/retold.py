"""A run's records made anew from its journal, and held against those that it wrote."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from sfl.config import RunSettings, load_run
from sfl.report.conclusion import write_conclusion
from sfl.report.journal import read_journal
from sfl.report.projection import RunProjection
from sfl.report.records import RecordFile
from sfl.report.standing import standing
from sfl.rounds import RunState
from sfl.rounds.journal import Journal

WRITTEN = ("updated_at", "sequence", "pid", "host")
"""Of a status: by whom, when and how often it was written. No journal has that."""


def assert_retold(folder: Path, aside: Path) -> None:
    """Make `metrics.jsonl`, `status.json`, `summary.json` and the report from the journal.

    All but what `WRITTEN` names is the same, byte for byte.
    """
    config = load_run(folder / "config.toml", [])
    journal = read_journal(config, folder)
    assert journal is not None
    told = RunProjection.of(journal.entries())
    state = journal.latest().state(config.settings)
    journal.close()
    aside.mkdir(exist_ok=True)
    with RecordFile(aside / "metrics.jsonl") as lines:
        for record in told.records:
            lines.append(record)
    status = json.loads((folder / "status.json").read_text())
    written = {name: status[name] for name in WRITTEN}
    standing(folder.name, config.settings, told, state, **written).write(aside / "status.json")
    made = str(folder / "adapter") if (folder / "adapter").is_dir() else None
    summary = told.summary(folder.name, config.settings, made)
    write_conclusion(aside, summary, told.records, config, told.rounds.steps)
    for name in ("metrics.jsonl", "status.json", "summary.json", "timeline.json"):
        assert (aside / name).read_bytes() == (folder / name).read_bytes(), name


def assert_told_again(
    live: RunProjection, journal: Journal, state: RunState, settings: RunSettings
) -> None:
    """What was told while it happened is what the same journal tells later."""
    later = RunProjection.of(journal.entries())
    rebuilt = replace(journal.latest().state(settings), now=state.now)
    assert later.records == live.records
    assert standing("t", settings, later, rebuilt) == standing("t", settings, live, state)
    assert later.summary("t", settings, None) == live.summary("t", settings, None)
