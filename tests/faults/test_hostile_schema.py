"""A schema made to mislead: what swallows events is found and refused, what has no end holds nobody up."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from ledgers import make_ledger
from ttasks import DamagedLedgerError, SQLiteStore, Task
from ttasks.cli.app import command as cli
from ttasks.log import files, migrate, schema
from ttasks.log.event_log import EventLog
from ttasks.log.projection import TABLES
from ttasks.log.reading import Readers
from ttasks.log.verify import verify

SCRIPT = Path(__file__).parents[2] / "docs" / "verify_ledger.py"
TIMEOUT_S = 60
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original") / "ledger.db"
    make_ledger(path)
    return path


@pytest.fixture
def ledger(original: Path, tmp_path: Path) -> Path:
    """A copy of its own of one ledger with some of everything."""
    return Path(shutil.copy(original, tmp_path / "ledger.db"))


def change(path: Path, statements: str) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(f"PRAGMA legacy_alter_table = ON; {statements}; PRAGMA wal_checkpoint(TRUNCATE)")


def problems(path: Path) -> list[str]:
    with contextlib.closing(Readers.open(path)) as readers:
        return [problem.text for problem in verify(readers).problems]


def columns(path: Path, table: str) -> str:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return ", ".join(f"i AS {row[1]}" for row in connection.execute(f"PRAGMA table_xinfo({table})"))


# --- what is written is not what was recorded -----------------------------------------------------------------------

SWALLOWS = "BEFORE INSERT ON {} BEGIN SELECT RAISE(IGNORE); END"
TRIGGERS = {
    "as it is": ("CREATE TRIGGER sly " + SWALLOWS.format("events"), "the trigger sly on events"),
    "in capitals": ("CREATE TRIGGER sly " + SWALLOWS.format("EVENTS"), "the trigger sly on EVENTS"),
    "in both": ("create trigger SLY " + SWALLOWS.format("eVents"), "the trigger SLY on eVents"),
    "in quotes": ("CREATE TRIGGER sly " + SWALLOWS.format('"Events"'), "the trigger sly on Events"),
    "in brackets": ("CREATE TRIGGER sly " + SWALLOWS.format("[EVENTS]"), "the trigger sly on EVENTS"),
    "in backquotes": ("CREATE TRIGGER sly " + SWALLOWS.format("`Tasks`"), "the trigger sly on Tasks"),
    "with its database": ("CREATE TRIGGER main.sly " + SWALLOWS.format("EVENTS"), "the trigger sly on EVENTS"),
    "of a table of rows": ("CREATE TRIGGER sly " + SWALLOWS.format("TASKS"), "the trigger sly on TASKS"),
    "of the view": (
        "CREATE TRIGGER sly INSTEAD OF INSERT ON TASK_OUTPUT BEGIN SELECT 1; END",
        "the trigger sly on TASK_OUTPUT",
    ),
    "of the notes": (
        "CREATE TRIGGER sly AFTER INSERT ON _SQLITE_migrations BEGIN DELETE FROM tasks; END",
        "the trigger sly on _SQLITE_migrations",
    ),
    "with the name of a guard": (
        "DROP TRIGGER events_are_never_changed; CREATE TRIGGER Events_Are_Never_Changed " + SWALLOWS.format("Events"),
        "the trigger events_are_never_changed is not as ttasks made it",
    ),
    "without an end": (
        f"CREATE TRIGGER sly AFTER INSERT ON events BEGIN SELECT (SELECT count(*) FROM ({ENDLESS} i FROM n)); END",
        "the trigger sly on events",
    ),
}


@pytest.mark.parametrize("way", TRIGGERS)
def test_a_trigger_is_found_and_refused_however_its_table_is_spelled(ledger: Path, way: str) -> None:
    statement, text = TRIGGERS[way]
    change(ledger, statement)

    (found,) = problems(ledger)
    assert found.startswith(text)
    with pytest.raises(DamagedLedgerError, match=f"{text}.*nothing was written"):
        SQLiteStore(ledger)


@pytest.mark.parametrize("way", TRIGGERS)
def test_a_trigger_that_comes_while_a_ledger_is_in_use_stops_the_next_append(ledger: Path, way: str) -> None:
    statement, text = TRIGGERS[way]
    with SQLiteStore(ledger) as store:
        store.tasks.save(Task.bash("true"))
        count = store._readers.head_position()
        change(ledger, statement)

        with pytest.raises(DamagedLedgerError, match=text):
            store.tasks.save(Task.bash("true"))

        assert store._readers.head_position() == count


@pytest.mark.parametrize(
    ("change_to", "text"),
    [
        ("CREATE UNIQUE INDEX sly ON EVENTS (hash)", "the index sly on events is none"),
        ("CREATE INDEX Sly ON [Tasks] (title)", "the index Sly on tasks is none"),
        ("DROP VIEW Task_Output; CREATE TABLE TASK_OUTPUT (a)", "the view task_output is missing"),
        ("ALTER TABLE runs RENAME TO other; ALTER TABLE other RENAME TO RUNS", "the table runs is not as ttasks made"),
        ("DROP INDEX TOOL_CALLS_OF_ATTEMPTS", "the index tool_calls_of_attempts is missing"),
    ],
)
def test_what_else_differs_is_found_whatever_its_case(ledger: Path, change_to: str, text: str) -> None:
    with contextlib.suppress(sqlite3.OperationalError):  # what was made before may not allow the same of each
        change(ledger, change_to)

    assert any(found.startswith(text) for found in problems(ledger)), problems(ledger)


def test_a_table_that_ignores_conflicts_is_not_written_to(ledger: Path) -> None:
    with contextlib.closing(sqlite3.connect(ledger, isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(
            "UPDATE sqlite_schema SET sql = replace(sql, 'type TEXT NOT NULL', 'type TEXT NOT NULL ON CONFLICT IGNORE')"
            " WHERE name = 'events'"
        )

    with pytest.raises(DamagedLedgerError, match="the table events is not as ttasks made it"):
        EventLog.open(ledger)


def test_an_index_of_others_and_a_guard_that_is_missing_keep_nobody_from_recording(ledger: Path) -> None:
    change(ledger, "CREATE INDEX quick ON events (type); DROP TRIGGER events_are_never_changed")

    with SQLiteStore(ledger) as store:
        store.tasks.save(Task.bash("true"))


NOTES = {
    "emptied": ("DELETE FROM _sqlite_migrations", "has nothing, and should have 0001_ledger"),
    "one less": ("DELETE FROM _sqlite_migrations WHERE name LIKE '0001%'", "and should have 0001_ledger"),
    "one more": (
        "INSERT INTO _sqlite_migrations (migration_set, name) VALUES ('ttasks', '9999_other')",
        "9999_other, and should have",
    ),
    "dropped": ("DROP TABLE _sqlite_migrations", "is missing: migrations would be applied again"),
    "a view instead": (
        f"DROP TABLE _sqlite_migrations; CREATE VIEW notes AS {ENDLESS} i AS name FROM n",
        "is missing: migrations would be applied again",
    ),
    "without its columns": (
        "DROP TABLE _sqlite_migrations; CREATE TABLE _sqlite_migrations (id)",
        "is not as sqlite-utils made it: no such column",
    ),
}


@pytest.mark.parametrize("way", NOTES)
def test_notes_of_migrations_that_are_not_as_they_were_are_a_problem(ledger: Path, way: str) -> None:
    statement, text = NOTES[way]
    change(ledger, statement)

    (found,) = problems(ledger)
    assert found.startswith("the table _sqlite_migrations ")
    assert text in found


def test_notes_of_other_programs_are_no_problem(ledger: Path) -> None:
    change(ledger, "INSERT INTO _sqlite_migrations (migration_set, name) VALUES ('mine', '0001_other')")

    assert problems(ledger) == []


def test_the_quick_look_knows_the_current_schema(ledger: Path) -> None:
    with contextlib.closing(sqlite3.connect(ledger)) as connection:
        assert schema.AS_MADE[migrate.SCHEMA_VERSION] == schema.digest(connection)


# --- what has no end ------------------------------------------------------------------------------------------------


def endless_view(path: Path, table: str, name: str) -> str:
    return f"DROP TABLE {table}; CREATE VIEW {name} AS {ENDLESS} {columns(path, table)} FROM n"


@pytest.mark.parametrize("table", ["events", *TABLES, schema.NOTES])
def test_a_view_without_end_in_place_of_a_table_is_neither_read_nor_written(ledger: Path, table: str) -> None:
    change(ledger, endless_view(ledger, table, table.upper()))

    for opens in (Readers.open, EventLog.open):
        with pytest.raises(DamagedLedgerError, match=f"{table.upper()} is a view, not a table of ttasks"):
            opens(ledger)


def test_a_virtual_table_in_place_of_a_table_is_not_read(ledger: Path) -> None:
    change(ledger, "DROP TABLE tasks; CREATE VIRTUAL TABLE tasks USING fts4(id, title)")

    with pytest.raises(DamagedLedgerError, match="tasks is a virtual table"):
        Readers.open(ledger)


COMMANDS = ("verify", "ls", "show", "show x", "events", "rebuild", "resume", "resume --list", "cancel x", "retry x")


@pytest.mark.parametrize(("table", "commands"), [("events", COMMANDS), ("tasks", ("ls",))])
def test_no_command_hangs_or_breaks_at_a_view_without_end(ledger: Path, table: str, commands: tuple[str, ...]) -> None:
    change(ledger, endless_view(ledger, table, table))
    workflow = ledger.with_name("w.yaml")
    workflow.write_text("tasks: {a: {bash: 'true'}}")
    before = ledger.read_bytes()

    for command in (*commands, f"run {workflow}"):
        done = CliRunner().invoke(cli, [*command.split(), "--ledger", str(ledger)])

        assert done.exit_code == 1, command
        assert isinstance(done.exception, SystemExit), command
        assert f"{table} is a view, not a table of ttasks" in " ".join(done.output.split()), command

    assert ledger.read_bytes() == before


def test_a_question_that_goes_on_for_ever_is_given_up(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "STEPS_MAX", 3_000_000)
    monkeypatch.setattr(files, "STEPS_OF_BYTE", 1)
    with contextlib.closing(Readers.open(ledger)) as readers:
        with pytest.raises(DamagedLedgerError, match="reading it goes on for ever, so it was given up"):
            readers.ask(lambda connection: connection.execute(f"{ENDLESS} count(*) FROM n").fetchall())
        assert readers.head_position() > 0


def test_each_question_may_take_as_much_as_the_one_before(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "STEPS_MAX", 3_000_000)
    monkeypatch.setattr(files, "STEPS_OF_BYTE", 0)
    long = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 100000) SELECT count(*) FROM n"
    with contextlib.closing(Readers.open(ledger)) as readers:
        for _ in range(5):
            assert readers.ask(lambda connection: connection.execute(long).fetchone()) == (100_000,)


def test_the_verifier_of_one_page_does_not_read_a_view_without_end(ledger: Path) -> None:
    change(ledger, endless_view(ledger, "events", "Events"))

    done = subprocess.run(
        [sys.executable, SCRIPT, ledger], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )

    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "NOT clean"
    assert "events is not a table" in done.stdout


def test_the_verifier_of_one_page_follows_a_link_to_a_ledger_with_a_wal(ledger: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link.db").symlink_to(ledger)
    with SQLiteStore(ledger) as store:
        store.tasks.save(Task.bash("true"))
        head = store._readers.head()[1].hex()

        done = subprocess.run(
            [sys.executable, SCRIPT, tmp_path / "elsewhere" / "link.db", head], capture_output=True, check=False
        )

    assert done.returncode == 0
