"""The schema: what version it is at, and the numbered migrations that bring it up to date."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.resources import files
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    from sqlite_utils import Database

APPLICATION_ID: Final = 0x74746B73
"""``ttks``: what `PRAGMA application_id` says of a ledger."""
SCHEMA_VERSION: Final = 3
"""The number of the newest migration, which `PRAGMA user_version` says of a current ledger."""


def statements(script: str) -> Iterator[str]:
    """Yield the SQL statements of a script, triggers whole."""
    lines: list[str] = []
    for line in script.splitlines():
        lines.append(line)
        if sqlite3.complete_statement("\n".join(lines)):
            yield "\n".join(lines)
            lines.clear()
    if any(line.strip() and not line.lstrip().startswith("--") for line in lines):
        raise ValueError(f"a migration ends inside a statement: {lines}")


def migrate(connection: sqlite3.Connection) -> None:
    """Apply the migrations that are missing, in the caller's transaction, and note the schema's version."""
    from sqlite_utils import Database, Migrations

    migrations = Migrations("ttasks")
    scripts = _scripts()
    for script in scripts:
        migrations(name=script.name.removesuffix(".sql"))(_run(script.read_text("utf-8")))
    migrations.apply(Database(connection))
    assert int(scripts[-1].name[:4]) == SCHEMA_VERSION
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _scripts() -> list[Traversable]:
    found = (file for file in files("ttasks.migrations").iterdir() if file.name.endswith(".sql"))
    return sorted(found, key=lambda file: file.name)


SchemaObject = tuple[str, str, str, str | None]
"""Type, name, table and SQL of what the schema holds; an index that SQLite makes itself has no SQL."""


def names(version: int) -> list[str]:
    """Return the names of the migrations that bring a new ledger to schema version `version`, oldest first."""
    return [script.name.removesuffix(".sql") for script in _scripts()[:version]]


def schema_at(version: int) -> set[SchemaObject]:
    """Return what a ledger's schema holds at that version, but for the notes of which migrations were applied."""
    with closing(sqlite3.connect(":memory:")) as connection:
        make_schema(connection, version)
        return schema_of(connection)


def make_schema(connection: sqlite3.Connection, version: int) -> None:
    """Make the tables of a ledger of this version in an empty database."""
    for script in _scripts()[:version]:
        for statement in statements(script.read_text("utf-8")):
            connection.execute(statement)


def schema_of(connection: sqlite3.Connection) -> set[SchemaObject]:
    """Return what the schema of this database holds."""
    return set(connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema"))


def _run(script: str) -> Callable[[Database], None]:
    def migration(database: Database) -> None:
        for statement in statements(script):
            database.conn.execute(statement)

    return migration
