"""Migrating a ledger of an older version, once no process of an older ttasks works with it any more."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from ttasks.errors import DamagedLedgerError, LedgerUnwritableError
from ttasks.log import files, migrate, schema
from ttasks.log.liveness import living_runners


def bring_up_to_date(connection: sqlite3.Connection, path: Path, version: int) -> None:
    """Migrate a ledger to this version, in one transaction. The caller holds the writer's lock.

    Raises:
        LedgerUnwritableError: a process of an older ttasks works with it: what that runs could not be recorded any
            more. Nothing was written.
        DamagedLedgerError: it does not say which migrations were applied. Nothing was written.
        sqlite3.Error: the disk refused. Nothing was written.
    """
    living = living_runners(path)
    if living:
        names = "; ".join(_name(connection, runner_id) for runner_id in living)
        raise LedgerUnwritableError(
            f"{path} has schema_version {version}, and an older ttasks works with it: {names}. This ttasks would "
            f"migrate it to schema_version {migrate.SCHEMA_VERSION}, and what that runs could not be recorded any "
            "more. Nothing was written: try again when that process has ended, or use its ttasks"
        )
    try:
        files.upgrade(connection)
    except sqlite3.OperationalError as error:
        notes = [each for each in schema.differences(connection, version) if each.kind == "notes"]
        if not notes or not files.is_damage(error):
            raise
        text = f"{path}: {notes[0].text}; nothing was written. `ttasks verify` says more"
        raise DamagedLedgerError(text) from error


def _name(connection: sqlite3.Connection, runner_id: str) -> str:
    query = "SELECT pid, user, host, ttasks_version, started_at FROM runners WHERE id = ?"
    found = connection.execute(query, (runner_id,)).fetchone()
    if found is None:  # it has not recorded who it is
        return f"runner {runner_id}"
    pid, user, host, version, started_at = found
    return f"process {pid} of {user}@{host}, ttasks {version}, since {started_at}"
