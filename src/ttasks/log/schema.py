"""Whether the schema of a ledger is what its migrations made, as far as that decides what reading and writing do.

To SQLite names are the same whatever the case of their letters from A to Z; each statement is kept as it was spelled.
"""

from __future__ import annotations

import hashlib
import sqlite3
import string
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from ttasks.errors import DamagedLedgerError
from ttasks.events.codec import to_json
from ttasks.log import migrate
from ttasks.log.migrate import SchemaObject
from ttasks.log.projection import TABLES

NOTES: Final = "_sqlite_migrations"
"""The table in which sqlite-utils notes which migrations were applied."""
AS_MADE: Final = {
    3: "7217fa97ccbc7792c74a1d7401060050205ada601a6ac663d1c5e173d9a00f05",
}
"""For a schema version the digest of what its migrations make, for a quick look. Where it differs, all is compared."""
_TABLES: Final = frozenset({"events", *TABLES, NOTES})
_OURS: Final = _TABLES | {"task_output"}
SHOWN_MAX: Final = 60
_LOWER: Final = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)

Kind = Literal["missing", "changed", "foreign", "notes"]


@dataclass(frozen=True)
class Difference:
    """One way in which a schema is not what its migrations made; `type` is that of the object."""

    kind: Kind
    type: str
    text: str

    @property
    def is_harmful(self) -> bool:
        """True where it may keep out, change, or hold up what is recorded."""
        return self.kind == "changed" or (self.kind == "foreign" and self.type == "trigger")


def differences(connection: sqlite3.Connection, version: int | None = None) -> list[Difference]:
    """Return how the schema differs from what the migrations up to a version make; None: the version that it states.

    Tables and views of others are none of our business.
    """
    version = _version(connection) if version is None else version
    found = {_place(each): each for each in migrate.schema_of(connection)}
    expected = {_place(each): each for each in migrate.schema_at(version)}
    return [*_own(found, expected), *_foreign(found, expected), *_of_notes(connection, found, version)]


def refuse_to_read(connection: sqlite3.Connection) -> None:
    """Refuse a ledger in which something else has the name of a table: a view without end would be read for ever.

    Raises:
        DamagedLedgerError: it is refused. Nothing but the schema was read.
    """
    query = "SELECT type, name FROM sqlite_schema WHERE type IN ('table', 'view') AND coalesce(rootpage, 0) = 0"
    for type_, name in connection.execute(query):
        if _folded(name) in _TABLES:
            what = "a view" if type_ == "view" else "a virtual table"
            raise DamagedLedgerError(f"{_file(connection)}: {name} is {what}, not a table of ttasks; it was not read")


def refuse_to_write(connection: sqlite3.Connection) -> None:
    """Refuse a ledger whose tables and triggers could keep out, change, or hold up what is recorded.

    A guard or an index that is missing does not, nor does an index of others.

    Raises:
        DamagedLedgerError: it is refused. Nothing but the schema was read, and nothing was written.
    """
    refuse_to_read(connection)
    stated = _version(connection)
    if digest(connection) == AS_MADE.get(stated):
        return
    harm = _first_harm(connection, stated)
    # A ledger may be ahead of what its header says, where a copy or a tool set that back: migrating it is harmless.
    ahead = range(stated + 1, migrate.SCHEMA_VERSION + 1)
    if harm is not None and all(_first_harm(connection, version) for version in ahead):
        raise DamagedLedgerError(f"{_file(connection)}: {harm.text}; nothing was written. `ttasks verify` says more")


def _first_harm(connection: sqlite3.Connection, version: int) -> Difference | None:
    return next((each for each in differences(connection, version) if each.is_harmful), None)


def digest(connection: sqlite3.Connection) -> str:
    """Return a digest of all in the schema that belongs to tables and views of ours."""
    ours = sorted(each for each in migrate.schema_of(connection) if _is_ours(each[0], each[2]))
    return hashlib.sha256(repr(ours).encode("utf-8", "surrogateescape")).hexdigest()


def _is_ours(type_: str, table: str) -> bool:
    """True for what belongs to a table or view of ours; the table of notes, and its index, are sqlite-utils' own."""
    table = _folded(table)
    return table in _OURS and (table != NOTES or type_ == "trigger")


def _file(connection: sqlite3.Connection) -> str:
    (main,) = [path for _, name, path in connection.execute("PRAGMA database_list") if name == "main"]
    return main or "the ledger in memory"


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


Places = dict[tuple[str, str], SchemaObject]


def _own(found: Places, expected: Places) -> Iterator[Difference]:
    for place, (type_, name, table, sql) in sorted(expected.items()):
        if place not in found:
            guard = ": the database no longer refuses it" if type_ == "trigger" else ""
            yield Difference("missing", type_, f"the {type_} {name} is missing{guard}")
        elif found[place][1:] != (name, table, sql):
            yield Difference(
                "changed", type_, f"the {type_} {name} is not as ttasks made it: {to_json(found[place][3])[:60]}"
            )


def _foreign(found: Places, expected: Places) -> Iterator[Difference]:
    for place, (type_, name, table, _) in sorted(found.items()):
        if place not in expected and _is_ours(type_, table):
            yield Difference("foreign", type_, f"the {type_} {name} on {table} is none that ttasks made")


def _of_notes(connection: sqlite3.Connection, found: Places, version: int) -> Iterator[Difference]:
    """Compare what is noted of the migrations that were applied: without it they would be applied again."""
    if ("table", NOTES) not in found:
        yield Difference("notes", "table", f"the table {NOTES} is missing: migrations would be applied again")
        return
    query = f"SELECT name FROM {NOTES} WHERE migration_set = 'ttasks' ORDER BY name"  # noqa: S608
    try:
        noted = [name for (name,) in connection.execute(query)]
    except sqlite3.OperationalError as error:
        yield Difference("notes", "table", f"the table {NOTES} is not as sqlite-utils made it: {error}")
        return
    applied = migrate.names(version)
    if noted != applied:
        text = f"the table {NOTES} has {', '.join(map(str, noted)) or 'nothing'}, and should have {', '.join(applied)}"
        yield Difference("notes", "table", text)


def _place(each: SchemaObject) -> tuple[str, str]:
    return each[0], _folded(each[1])


def _folded(name: str) -> str:
    """Return a name as SQLite compares it; a damaged one may be anything."""
    return str(name).translate(_LOWER)
