"""What an edge of a run opens for a device: a session that trains, over the edge's base."""

from __future__ import annotations

from edge_server.base import Base
from sfl.metrics.stats import NodeStats
from sfl.rounds.values import Assignment
from sfl.stage.swapping import Residence
from sfl.stage.training import SESSIONS, TrainingSession


def new_session(
    base: Base, stats: NodeStats, residence: Residence | None, device: str, assignment: Assignment
) -> TrainingSession:
    """One of the run's topology. Raises ProtocolError.

    `residence` decides which adapters are in memory, where not all of them may be.
    """
    return SESSIONS[base.settings.run.topology](
        device,
        assignment,
        base.model,
        base.bank,
        base.settings,
        stats,
        recompute=device in base.choice.recompute,
        residence=residence,
    )
