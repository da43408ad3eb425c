"""What an edge of a run opens for a device: a session that trains, over the edge's base."""

from __future__ import annotations

from edge_server.base import Base
from sfl.metrics.stats import NodeStats
from sfl.rounds.values import Assignment
from sfl.stage.swapping import Residence
from sfl.stage.training import TrainingSession, session_of


def new_session(
    base: Base, stats: NodeStats, residence: Residence | None, device: str, assignment: Assignment
) -> TrainingSession:
    """One for the span that this server has of the device's plan. Raises ProtocolError.

    `residence` decides which adapters are in memory, where not all of them may be.
    """
    return session_of(assignment.plan.span_of(base.holder))(
        device,
        assignment,
        base.model,
        base.bank,
        base.settings,
        stats,
        recompute=device in base.choice.recompute,
        residence=residence,
        holder=base.holder,
    )
