"""Version 1: one run, in a file of its own. Files that are older have no version."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None


def upgrade() -> None:
    """As the first `sfl` with a journal made them; what is there stays."""
    op.create_table(
        "events",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("now", sa.Double, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("subject", sa.Text),
        sa.Column("event", sa.LargeBinary, nullable=False),
        if_not_exists=True,
    )
    subject = sa.text("subject IS NOT NULL")
    op.create_index(
        "subjects",
        "events",
        ["subject"],
        unique=True,
        sqlite_where=subject,
        postgresql_where=subject,
        if_not_exists=True,
    )
    op.create_table(
        "marks",
        _one(),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("state", sa.LargeBinary, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "clock", _one(), sa.Column("now", sa.Double, nullable=False), if_not_exists=True
    )
    op.create_table("run", _one(), sa.Column("key", sa.Text, nullable=False), if_not_exists=True)


def _one() -> sa.Column[int]:
    return sa.Column("one", sa.Integer, primary_key=True)
