"""Version 2: each row names its run, so that a server can have many."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "2"
down_revision = "1"


def upgrade() -> None:
    """What a file has is of run 1."""
    many = op.get_bind().dialect.name != "sqlite"
    op.drop_index("subjects", "events")
    for name in ("events", "marks", "clock"):
        op.rename_table(name, f"old_{name}")
    op.create_table(
        "runs",
        sa.Column("run", sa.Integer, primary_key=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("writer", sa.Text),
    )
    op.create_table(
        "events",
        sa.Column("run", sa.Integer, primary_key=many, autoincrement=False, nullable=False),
        sa.Column(
            "number",
            sa.BigInteger() if many else sa.Integer(),
            primary_key=True,
            autoincrement=False,
        ),
        sa.Column("now", sa.Double, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("subject", sa.Text),
        sa.Column("event", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "marks",
        _run(),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("state", sa.LargeBinary, nullable=False),
    )
    op.create_table("clock", _run(), sa.Column("now", sa.Double, nullable=False))
    op.execute(
        "INSERT INTO events(run, number, now, kind, subject, event) "
        "SELECT 1, number, now, kind, subject, event FROM old_events"
    )
    op.execute("INSERT INTO marks(run, number, state) SELECT 1, number, state FROM old_marks")
    op.execute("INSERT INTO clock(run, now) SELECT 1, now FROM old_clock")
    op.execute("INSERT INTO runs(run, id, key) SELECT 1, '', key FROM run")
    subject = sa.text("subject IS NOT NULL")
    op.create_index(
        "subjects",
        "events",
        ["run", "subject"],
        unique=True,
        sqlite_where=subject,
        postgresql_where=subject,
    )
    for name in ("old_events", "old_marks", "old_clock", "run"):
        op.drop_table(name)


def _run() -> sa.Column[int]:
    return sa.Column("run", sa.Integer, primary_key=True, autoincrement=False)
