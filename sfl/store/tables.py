"""The tables of a run's journal, and what is said to them, for each dialect of SQL.

A file has one run. A server has many: each row names its run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Dialect,
    Double,
    Executable,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    bindparam,
    delete,
    func,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

VERSION = 3
"""Of the tables: the newest of `sfl/store/migrations`."""


def _events(many: bool, tables: MetaData) -> Table:
    """Numbers are the writer's: they only grow, and of a subject only the latest event stays.

    In a file a number is the key of its row, which costs no index; among many runs it is not.
    """
    number = BigInteger() if many else Integer()
    events = Table(
        "events",
        tables,
        Column("run", Integer, primary_key=many, autoincrement=False, nullable=False),
        Column("number", number, primary_key=True, autoincrement=False),
        Column("now", Double, nullable=False),
        Column("kind", Text, nullable=False),
        Column("subject", Text),
        Column("event", LargeBinary, nullable=False),
    )
    where = events.c.subject.is_not(None)
    about = (events.c.run, events.c.subject)
    Index("subjects", *about, unique=True, sqlite_where=where, postgresql_where=where)
    return events


def _of_run() -> Column[int]:
    return Column("run", Integer, primary_key=True, autoincrement=False)


class Tables:
    """Those of a file, or of a server, which has `many` runs."""

    def __init__(self, many: bool) -> None:
        self.all = tables = MetaData()
        self.runs = Table(
            "runs",
            tables,
            Column("run", Integer, primary_key=True),
            Column("id", Text, nullable=False, unique=True),
            Column("key", Text, nullable=False),
            Column("writer", Text),
        )
        self.events = _events(many, tables)
        self.marks = Table(
            "marks",
            tables,
            _of_run(),
            Column("number", BigInteger, nullable=False),
            Column("state", LargeBinary, nullable=False),
        )
        self.artifacts = Table(
            "artifacts",
            tables,
            _of_run(),
            Column("name", Text, primary_key=True),
            Column("digest", Text, nullable=False),
        )
        self.clock = Table("clock", tables, _of_run(), Column("now", Double, nullable=False))


OF_FILE, OF_SERVER = Tables(many=False), Tables(many=True)

Values = tuple[object, ...]

_INSERT: dict[str, Callable[[Table], Any]] = {
    "sqlite": sqlite.insert,
    "postgresql": postgresql.insert,
}
"""Their own, since standard SQL has no insert that replaces."""


class Said:
    """A statement as a driver takes it: text, and its values in their order."""

    def __init__(self, statement: Executable, dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect)  # type: ignore[attr-defined]
        self.text = str(compiled)
        self._order: list[str] = list(compiled.positiontup or ())
        self._own: dict[str, object] = dict(compiled.params)
        """Values that are the statement's own, such as a limit."""

    def values(self, **values: object) -> Values:
        """By name, as the statement's order has them."""
        known = {**self._own, **values}
        return tuple(known[name] for name in self._order)


class Statements:
    """All that is said of one run, compiled once; `passing` are kinds that a mark forgets."""

    def __init__(self, tables: Tables, dialect: Dialect, passing: Iterable[str]) -> None:
        """`dialect` takes its values by position."""
        insert = _INSERT[dialect.name]
        events, marks, clock, runs = tables.events, tables.marks, tables.clock, tables.runs
        run = bindparam("run", type_=Integer)
        number = bindparam("number", type_=BigInteger)
        of_run = events.c.run == run

        def said(statement: Executable) -> Said:
            return Said(statement, dialect)

        row = insert(events)
        self.append = said(
            row.on_conflict_do_update(
                index_elements=[events.c.run, events.c.subject],
                index_where=events.c.subject.is_not(None),
                set_={name: row.excluded[name] for name in ("number", "now", "kind", "event")},
            )
        )
        """Its values are those of a row of `events`."""
        time = insert(clock)
        self.tell_time = said(
            time.on_conflict_do_update(index_elements=["run"], set_={"now": time.excluded.now})
        )
        newest = select(events.c.number).where(of_run).order_by(events.c.number.desc())
        highest = newest.limit(1).scalar_subquery()
        last = select(func.coalesce(highest, literal_column("0")))
        mark = insert(marks).values(
            run=run, number=last.scalar_subquery(), state=bindparam("state", type_=LargeBinary)
        )
        of_mark = {"number": mark.excluded.number, "state": mark.excluded.state}
        self.mark = said(mark.on_conflict_do_update(index_elements=["run"], set_=of_mark))
        """The state is that after the last event that is there then."""
        kinds = or_(*(events.c.kind == literal_column(f"'{kind}'") for kind in passing))
        after = (of_run, events.c.number > number)
        self.forget = said(delete(events).where(*after, kinds))
        self.drop_after = said(delete(events).where(*after))
        found = select(events.c.now, events.c.event)
        self.after = said(found.where(*after).order_by(events.c.number))
        self.marked = said(select(marks.c.number, marks.c.state).where(marks.c.run == run))
        self.told = said(select(clock.c.now).where(clock.c.run == run))
        self.last = said(last)
        self._of_runs(said, insert(runs), runs, run)
        self._of_files(said, insert(tables.artifacts), tables.artifacts, run)

    def _of_files(self, said: Callable[[Any], Said], new: Any, files: Table, run: Any) -> None:
        """What is kept in a store."""
        self.keep = said(
            new.on_conflict_do_update(
                index_elements=["run", "name"], set_={"digest": new.excluded.digest}
            )
        )
        of_run = files.c.run == run
        named = files.c.name == bindparam("name", type_=Text)
        self.drop = said(delete(files).where(of_run, named))
        self.kept = said(select(files.c.name, files.c.digest).where(of_run))

    def _of_runs(self, said: Callable[[Any], Said], new: Any, runs: Table, run: Any) -> None:
        """What tells one run from another."""
        named = bindparam("id", type_=Text)
        named_so = new.values(id=named, key=bindparam("key", type_=Text))
        self.name_run = said(named_so.on_conflict_do_nothing(index_elements=["id"]))
        self.named = said(select(runs.c.run, runs.c.key).where(runs.c.id == named))
        self.ids = said(select(runs.c.id).order_by(runs.c.run))
        of_run = runs.c.run == run
        self.take_over = said(
            update(runs).where(of_run).values(writer=bindparam("writer", type_=Text))
        )
        self.writer = said(select(runs.c.writer).where(of_run))
