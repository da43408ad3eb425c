"""Rows of runs and agents <-> the wire's messages."""

from __future__ import annotations

import time

from sfl.jobs.rows import AgentRow, RunRow, Standing
from sfl.v1 import jobs_pb2


def to_run_row(row: RunRow) -> jobs_pb2.RunRow:
    """A row as the wire has it."""
    return jobs_pb2.RunRow(
        run=row.run,
        state=row.state,
        round=row.round,
        rounds=row.rounds,
        submitted_at=row.submitted_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        waits=row.waits,
        waits_since=row.waits_since,
        waits_until=row.waits_until,
        reason=row.reason,
    )


def from_run_row(said: jobs_pb2.RunRow) -> RunRow:
    """A row from the wire."""
    return RunRow(
        said.run,
        said.state,
        said.round,
        said.rounds,
        said.submitted_at,
        said.started_at,
        said.ended_at,
        said.waits,
        said.waits_since,
        said.waits_until,
        said.reason,
    )


def to_standing(standing: Standing) -> jobs_pb2.Standing:
    """Where a service stands, as the wire has it, and what its clock shows."""
    return jobs_pb2.Standing(
        now=time.time(),
        runs=[to_run_row(row) for row in standing.runs],
        agents=[
            jobs_pb2.AgentRow(
                role=row.role,
                name=row.name,
                via=row.via,
                max_runs=row.max_runs,
                runs=row.runs,
                attached_at=row.attached_at,
            )
            for row in standing.agents
        ],
        max_runs=standing.max_runs,
        status=standing.status,
    )


def from_standing(said: jobs_pb2.Standing) -> Standing:
    """Where a service stands, from the wire."""
    agents = tuple(
        AgentRow(row.role, row.name, row.via, row.max_runs, tuple(row.runs), row.attached_at)
        for row in said.agents
    )
    runs = tuple(from_run_row(row) for row in said.runs)
    return Standing(runs, agents, said.max_runs, said.status)
