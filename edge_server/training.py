"""What an edge of a run opens for a device: a session that trains, over the edge's base."""

from __future__ import annotations

from edge_server.base import Base
from sfl.metrics.stats import NodeStats
from sfl.rounds.values import Assignment
from sfl.stage.distil.lessons import School
from sfl.stage.swapping import Residence
from sfl.stage.training import SharedSession, Team, TrainingSession, session_of


def new_session(
    base: Base,
    stats: NodeStats,
    residence: Residence | None,
    device: str,
    assignment: Assignment,
    team: Team | None = None,
    school: School | None = None,
) -> TrainingSession:
    """One for the span that this server has of the device's plan. Raises ProtocolError.

    `residence` decides which adapters are in memory, where not all of them may be. With a `team`
    the adapter is not the device's own.
    """
    again, holder = device in base.choice.recompute, base.holder
    if team is not None:
        common = base.model, base.bank, base.settings, stats, team
        return SharedSession(device, assignment, *common, recompute=again, holder=holder)
    return session_of(assignment.plan.span_of(base.holder))(
        device,
        assignment,
        base.model,
        base.bank,
        base.settings,
        stats,
        recompute=again,
        residence=residence,
        holder=holder,
        school=school,
    )
