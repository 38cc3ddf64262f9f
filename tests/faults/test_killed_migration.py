"""kill -9 at every statement of a migration leaves the old ledger whole, and the next to open it migrates it."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

import newer
from ledgers import as_stored, contents, make_ledger
from ttasks.log.event_log import EventLog
from ttasks.log.reading import Readers
from ttasks.log.verify import verify

CAMPAIGN = os.environ.get("TTASKS_CAMPAIGN") == "full"
TESTS = Path(__file__).parents[1]

PROGRAM = """
import os, sys
from pathlib import Path
import newer
from ttasks.log import files
from ttasks.log.event_log import EventLog

ledger, migrations, kill_at = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
if migrations.exists():
    newer.upgrade_ttasks(migrations)
upgrade, statements = files.upgrade, []

def heard(statement):
    statements.append(statement)
    if len(statements) == kill_at:
        os.kill(os.getpid(), 9)

def watched(connection):
    connection.set_trace_callback(heard)
    upgrade(connection)
    if kill_at == 0:
        os.kill(os.getpid(), 9)
    connection.set_trace_callback(None)

files.upgrade = watched
EventLog.open(ledger).close()
print("\\n".join(" ".join(statement.split()) for statement in statements))
"""
AFTER_THE_COMMIT = 0
NEVER = -1


def migrate(ledger: Path, migrations: Path, kill_at: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(ledger), str(migrations), str(kill_at)],
        env={**os.environ, "PYTHONPATH": str(TESTS)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("old") / "ledger.db"
    make_ledger(made)
    with closing(sqlite3.connect(made)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return made


def schema_of(path: Path) -> tuple[int, list[tuple[str, str]]]:
    with closing(sqlite3.connect(path)) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        return version, connection.execute("SELECT name, sql FROM sqlite_schema ORDER BY name").fetchall()


@pytest.mark.campaign
def test_a_migration_that_is_killed_at_any_statement_was_not_begun(old: Path, tmp_path: Path) -> None:
    migrations = newer.write_migrations(tmp_path / "migrations")
    whole = Path(shutil.copy(old, tmp_path / "whole.db"))
    statements = migrate(whole, migrations, NEVER).stdout.splitlines()
    assert statements[0].startswith("BEGIN") and statements[-1] == "COMMIT"
    assert any("CREATE TABLE labels" in statement for statement in statements)
    before, schema, migrated = contents(old), schema_of(old), schema_of(whole)

    every = range(1, len(statements) + 1)
    for number in every if CAMPAIGN else [*every[::4], every[-1]]:
        ledger = Path(shutil.copy(old, tmp_path / f"{number}.db"))

        assert migrate(ledger, migrations, number).returncode == -signal.SIGKILL

        assert schema_of(ledger) == schema, statements[number - 1]
        assert contents(ledger) == before
        assert verify(Readers.open(ledger)).problems == []
        EventLog.open(ledger).close()  # the old ttasks goes on
        assert migrate(ledger, migrations, NEVER).returncode == 0
        assert schema_of(ledger) == migrated
        assert contents(ledger) == before


@pytest.mark.campaign
def test_of_a_ledger_of_schema_1_a_migration_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    old, none = TESTS / "golden" / "schema-1" / "ledger.db", tmp_path / "none but today's"
    whole = Path(shutil.copyfile(old, tmp_path / "whole.db"))
    statements = migrate(whole, none, NEVER).stdout.splitlines()
    assert any("CREATE TABLE tool_calls" in statement for statement in statements)
    before, schema, migrated = as_stored(old), schema_of(old), contents(whole)

    every = range(1, len(statements) + 1)
    for number in every if CAMPAIGN else [*every[::6], every[-1]]:
        ledger = Path(shutil.copyfile(old, tmp_path / f"{number}.db"))

        assert migrate(ledger, none, number).returncode == -signal.SIGKILL

        assert schema_of(ledger) == schema, statements[number - 1]
        assert as_stored(ledger) == before
        assert migrate(ledger, none, NEVER).returncode == 0
        assert schema_of(ledger) == schema_of(whole)
        assert contents(ledger) == migrated


def test_a_migration_that_is_killed_after_its_commit_is_done(old: Path, tmp_path: Path) -> None:
    migrations = newer.write_migrations(tmp_path / "migrations")
    ledger = Path(shutil.copy(old, tmp_path / "ledger.db"))

    assert migrate(ledger, migrations, AFTER_THE_COMMIT).returncode == -signal.SIGKILL

    done = schema_of(ledger)
    assert done[0] == newer.VERSION
    assert migrate(ledger, migrations, NEVER).stdout == "\n"  # nothing was left to do
    assert schema_of(ledger) == done
    assert contents(ledger) == contents(old)
