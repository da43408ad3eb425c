"""The tables of a kind of database: made where there are none, migrated where they are older."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

from sqlalchemy import Column, Connection, MetaData, String, Table, insert, inspect, select

_STAMP = Table("alembic_version", MetaData(), Column("version_num", String(32), primary_key=True))
"""Alembic's own, so that it need not be imported where nothing is to be migrated."""


@dataclass(frozen=True, slots=True)
class Schema:
    """`version` is the newest migration of `scripts`, a package, and what `tables` are."""

    tables: MetaData
    scripts: str
    version: int

    def found(self, connection: Connection) -> int:
        """The version of the tables that are there; 0 where there are none."""
        if not inspect(connection).has_table(_STAMP.name):
            return 0
        number = connection.execute(select(_STAMP.c.version_num)).scalar()
        return int(number or 0)

    def bring_up(self, connection: Connection, found: int, new: bool) -> None:
        """Make or migrate the tables; `new` where there are none. In the caller's transaction."""
        if new:
            self.tables.create_all(connection)
            _STAMP.create(connection)
            connection.execute(insert(_STAMP).values(version_num=str(self.version)))
        elif found < self.version:
            self._migrate(connection)

    def _migrate(self, connection: Connection) -> None:
        from alembic import command  # takes a while, and is seldom needed
        from alembic.config import Config

        config = Config()
        where = str(files(self.scripts)).replace("%", "%%")
        config.set_main_option("script_location", where)
        config.attributes["connection"] = connection
        command.upgrade(config, str(self.version))
