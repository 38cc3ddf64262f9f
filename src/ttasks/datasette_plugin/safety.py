"""Ledgers are only read in Datasette, whoever asks, and whatever its configuration lets them do elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from ttasks.datasette_plugin.ledgers import is_ledger_of_any_version, ledger_names, may_see
from ttasks.datasette_plugin.queries import QUERIES
from ttasks.datasette_plugin.tables import TABLES

WRITES: Final = frozenset(
    {
        "insert-row",
        "update-row",
        "delete-row",
        "create-table",
        "alter-table",
        "drop-table",
        "create-view",
        "drop-view",
        "execute-write-sql",
    }
)
"""What Datasette 1.0 calls what would change a file."""


def protect(datasette: Any) -> None:
    """Have Datasette 1.0 open ledgers for nothing but reading, also where it would write. 0.65 has no such mode."""
    for database in datasette.databases.values():
        # A file that is declared immutable (-i) is read without locks, and is not written to anyway.
        if hasattr(database, "mode") and database.is_mutable and is_ledger_of_any_version(database):
            database.mode = "ro"


def refuse_writes(datasette: Any, database: str, connection: Any) -> None:
    """Have a connection to a ledger refuse to write, as for a query that a configuration calls one that writes."""
    found = datasette.databases.get(database)
    if found is not None and is_ledger_of_any_version(found):
        connection.execute("PRAGMA query_only = ON")


def refused(datasette: Any, action: str) -> Any:
    """Return what Datasette 1.0 is to refuse everybody: each action that writes, on each ledger and each table of it.

    Datasette follows the rule of a table before that of its database, so that only naming the tables as well is sure.
    """
    if action not in WRITES:
        return None
    names = [name for name, database in datasette.databases.items() if is_ledger_of_any_version(database)]
    return _refusal([(name, child) for name in names for child in (None, *TABLES)], "ledgers are only read here")


async def refused_queries(datasette: Any, actor: Any) -> Any:
    """Return which queries Datasette 1.0 is to refuse `actor`: ours, of ledgers that they may not see all of.

    Whoever may see a query may run it, whatever tables it reads.
    """
    refused_on: list[tuple[str, str | None]] = []
    for name in ledger_names(datasette):
        if not await may_see(datasette, actor, name):
            own = ((datasette.config or {}).get("databases", {}).get(name) or {}).get("queries") or {}
            refused_on += [(name, query) for query in QUERIES if query not in own]
    return _refusal(refused_on, "this reads tables of a ledger that may not be seen")


def _refusal(refused_on: Sequence[tuple[str, str | None]], why: str) -> Any:
    if not refused_on:
        return None
    from datasette.permissions import PermissionSQL  # type: ignore[import-not-found,unused-ignore]

    sql = (
        "SELECT json_extract(value, '$[0]') AS parent, json_extract(value, '$[1]') AS child,"
        " 0 AS allow, :ttasks_why AS reason FROM json_each(:ttasks_refused)"
    )
    return PermissionSQL(sql=sql, params={"ttasks_refused": json.dumps(refused_on), "ttasks_why": why})


def print_no_variables() -> None:
    """Keep Datasette from printing each 403 and 404 with all local variables, as it does where rich is installed.

    It is beside ttasks. An address that no route matches would even be answered with 500, because there is no exception
    that could be printed.
    """
    from datasette import handle_exception  # whoever imports it earlier meets Datasette in the middle of its plugins

    handle_exception.rich = None
