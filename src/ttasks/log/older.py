"""Reading a ledger of an older version as if it were of this one, while nothing of it is changed."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from contextlib import closing

from ttasks.log import migrate
from ttasks.log.projection import TABLES


def stored_columns(connection: sqlite3.Connection, table: str) -> Collection[str]:
    """Return the columns that a table of the ledger itself has, in their order; none where it is missing."""
    return [row[1] for row in connection.execute(f"PRAGMA main.table_info({table})")]


def complete(connection: sqlite3.Connection) -> None:
    """Let a connection to an older ledger find each table and column of this version; nothing is written to the file.

    What the ledger lacks has the value that a migration gives to rows that are there: the column's default. A table
    that it lacks is empty. They are views in the connection's own memory, whose names SQLite looks up first.
    """
    connection.execute("PRAGMA temp_store = MEMORY")
    with closing(sqlite3.connect(":memory:")) as today:
        migrate.make_schema(today, migrate.SCHEMA_VERSION)
        for table in TABLES:
            stored = stored_columns(connection, table)
            wanted = [(row[1], row[4] or "NULL") for row in today.execute(f"PRAGMA table_info({table})")]
            columns = ", ".join(name if name in stored else f"{default} AS {name}" for name, default in wanted)
            source = f"FROM main.{table}" if stored else "WHERE 0"
            connection.execute(f"CREATE TEMP VIEW {table} AS SELECT {columns} {source}")
