"""Runs and agents as tables for people, or as JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from sfl.jobs.rows import AgentRow, RunRow, Standing
from sfl.report import text
from sfl.report.live import status_picture
from sfl.report.status import RunStatus

_STYLES = {"finished": "green", "failed": "red", "running": "cyan", "stopped": "yellow"}


def say_json(value: object) -> None:
    """One JSON value, a line."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def runs_as_json(rows: Sequence[RunRow]) -> list[dict[str, object]]:
    """For programs."""
    return [dataclasses.asdict(row) for row in rows]


def runs_table(rows: Sequence[RunRow], now: float) -> RenderableType:
    """A row for each run."""
    if not rows:
        return Text("no runs")
    table = _table("run", "state", "round", "submitted", "took", "what")
    for row in rows:
        table.add_row(
            Text(row.run, style="bold"),
            Text(row.state, style=_STYLES.get(row.state, "")),
            Text(f"{row.round}/{row.rounds}" if row.rounds else "–"),
            Text(time.strftime("%m-%d %H:%M:%S", time.localtime(row.submitted_at))),
            Text(_took(row, now)),
            Text(text.printable(_what(row, now))),
        )
    return table


def agents_table(agents: Sequence[AgentRow], now: float) -> RenderableType:
    """A row for each agent."""
    if not agents:
        return Text("no agents are attached")
    table = _table("agent", "through", "places", "attached", "runs")
    for agent in agents:
        table.add_row(
            Text(f"{agent.role} {agent.name}", style="bold"),
            Text(f"edge {agent.via}" if agent.via else "–"),
            Text(f"{len(agent.runs)} of {agent.max_runs}"),
            Text(text.duration(max(0.0, now - agent.attached_at))),
            Text(", ".join(agent.runs) or "–"),
        )
    return table


def standing_picture(
    standing: Standing, whole: bool, now: float, width: int = 100
) -> RenderableType:
    """Where a service stands, or (`whole` is false) one run with its nodes; `width` in letters."""
    parts: list[RenderableType] = [runs_table(standing.runs, now)]
    if whole and standing.max_runs:
        parts.append(Text(f"at most {standing.max_runs} runs at once"))
        parts.append(agents_table(standing.agents, now))
    if standing.status:
        row = standing.runs[0]
        seconds = (row.ended_at or now) - (row.started_at or row.submitted_at)
        parts.append(_of_run(standing, max(0.0, seconds), width))
    return Group(*parts)


def _of_run(standing: Standing, seconds: float, width: int) -> RenderableType:
    return status_picture(status_of(standing), seconds, width, all_waits=True)


def status_of(standing: Standing) -> RunStatus:
    """The run's status."""
    return RunStatus.from_dict(json.loads(standing.status))


def show(console: Console, picture: RenderableType) -> None:
    """Print it."""
    console.print(picture, soft_wrap=not console.is_terminal)


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for heading in headings:
        table.add_column(heading, no_wrap=heading in ("run", "state"), overflow="fold")
    return table


def _took(row: RunRow, now: float) -> str:
    if not row.started_at:
        return "–"
    return text.duration(max(0.0, (row.ended_at or now) - row.started_at))


def _what(row: RunRow, now: float) -> str:
    """What it waits for, for how long and how long still; how it ended."""
    if row.waits:
        so_far = text.duration(max(0.0, now - row.waits_since))
        left = f" so far, {text.duration(max(0.0, row.waits_until - now))} left"
        return f"waits for {row.waits}, {so_far}{left if row.waits_until else ''}"
    return row.reason
