"""Making a ledger, knowing one from any other file, and bringing its schema up to date."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import newer as newer_ttasks
from ledgers import as_stored, contents, make_ledger
from strategies import AT, created, graph_created, run_started, started
from ttasks import SQLiteStore, Task, TaskExecutor
from ttasks.errors import LedgerUnwritableError, NotALedgerError
from ttasks.events import facts as f
from ttasks.events.agent_facts import ToolCallStarted
from ttasks.events.status import RunStatus
from ttasks.log import files
from ttasks.log.event_log import EventLog
from ttasks.log.migrate import APPLICATION_ID, SCHEMA_VERSION, migrate, statements
from ttasks.log.reading import Readers
from ttasks.log.transaction import Batch
from ttasks.log.verify import rebuild, verify

pytestmark = pytest.mark.usefixtures("outside_git")
ROOT = Path(__file__).parents[2]

PROGRAM = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from ttasks.events.facts import TaskCreated
from ttasks.events.status import OnInterrupted, TaskType
from ttasks.log.event_log import EventLog
from ttasks.log.transaction import Batch

print("ready", flush=True)
sys.stdin.readline()
log = EventLog.open(Path(sys.argv[1]))
name = sys.argv[2]
fact = TaskCreated(name, name, TaskType.BASH, "", "", datetime.now(UTC), OnInterrupted.RERUN)
log.append(Batch(f"task-{name}", [fact], 0))
print(log.ledger)
log.close()
"""


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a Python process that can import what the tests share."""
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests")},
    )  # fmt: skip


def run_here(program: str, *arguments: object, code: int = 0) -> str:
    """Run such a process to its end, and return what it printed."""
    process = start(program, *arguments)
    said, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (code, "")
    return said


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with nothing in it."""
    made = tmp_path / "ledgers"
    made.mkdir()
    return made


@pytest.fixture
def path(folder: Path) -> Path:
    return folder / "ledger.db"


def make(path: Path, *titles: str) -> None:
    with closing(EventLog.open(path)) as log:
        for title in titles:
            log.append(Batch(f"task-{title}", [created(title)], 0))


def pragma(path: Path, name: str) -> object:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(f"PRAGMA {name}").fetchone()[0]


def everything_in(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


# --- making one -----------------------------------------------------------------------------------------------------


def test_a_new_ledger_is_at_the_current_schema(path: Path) -> None:
    make(path)

    assert pragma(path, "user_version") == SCHEMA_VERSION
    assert pragma(path, "application_id") == APPLICATION_ID
    assert pragma(path, "journal_mode") == "wal"


def test_the_current_schema_is_the_number_of_the_newest_migration() -> None:
    scripts = sorted(file.name for file in (ROOT / "migrations").glob("*.sql"))

    assert [int(name[:4]) for name in scripts] == list(range(1, SCHEMA_VERSION + 1))


def test_a_new_ledger_is_one_file_beside_its_lock(path: Path) -> None:
    make(path, "a")

    assert set(everything_in(path.parent)) == {"ledger.db", "ledger.db-lock"}


def test_the_folders_above_a_new_ledger_are_made(folder: Path) -> None:
    make(folder / "a" / "b" / "ledger.db")

    assert (folder / "a" / "b" / "ledger.db").is_file()


def test_an_empty_file_becomes_a_ledger(path: Path) -> None:
    path.touch()

    make(path, "a")

    assert verify(Readers.open(path)).is_clean


def test_a_ledger_in_memory_has_the_same_schema_as_one_in_a_file(path: Path) -> None:
    make(path)
    schema = "SELECT type, name, sql FROM sqlite_master ORDER BY name"

    with closing(sqlite3.connect(path)) as in_file, closing(files.open_writer(None, durability="full")) as in_memory:
        assert in_file.execute(schema).fetchall() == in_memory.execute(schema).fetchall()


def test_opening_again_changes_no_byte_of_the_schema(path: Path) -> None:
    make(path, "a")
    before = path.read_bytes()

    make(path)

    assert path.read_bytes() == before


def test_a_crash_while_a_ledger_was_made_leaves_nothing_that_harms(path: Path) -> None:
    for name in ("ledger.db-new", "ledger.db-new-journal", "ledger.db-new-wal", "ledger.db-new-shm"):
        path.with_name(name).write_bytes(b"half of something" * 100)

    make(path, "a")

    assert verify(Readers.open(path)).is_clean
    assert not path.with_name("ledger.db-new").exists()


def test_an_unfinished_ledger_is_never_taken_for_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as crashing:
        crashing.setattr(files, "upgrade", crash)
        with pytest.raises(KeyboardInterrupt):
            EventLog.open(path)
    assert not path.exists()

    make(path, "a")
    assert verify(Readers.open(path)).is_clean


def test_a_place_where_no_ledger_can_be_is_said_so(folder: Path) -> None:
    (folder / "file").touch()

    with pytest.raises(LedgerUnwritableError, match="can't be"):
        EventLog.open(folder / "file" / "ledger.db")


# --- what is loaded for it ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("is_there", "loaded"), [(True, "False"), (False, "True")])
def test_sqlite_utils_is_only_imported_where_the_schema_is_not_current(path: Path, is_there: bool, loaded: str) -> None:
    if is_there:
        make(path)

    program = (
        "import sys; from pathlib import Path; from ttasks.log.event_log import EventLog; "
        "EventLog.open(Path(sys.argv[1])); print('sqlite_utils' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)

    assert said.stdout.strip() == loaded


# --- what is no ledger ----------------------------------------------------------------------------------------------


def newer(path: Path) -> None:
    """Make a ledger of a newer ttasks."""
    make(path, "a")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def foreign(path: Path) -> None:
    """Make a SQLite database of another program."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE events (position INTEGER PRIMARY KEY, data TEXT)")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


STRANGERS: dict[str, Callable[[Path], object]] = {
    "a ledger of a newer ttasks": newer,
    "a database of another program": foreign,
    "a text": lambda path: path.write_text("title: a workflow, not a ledger\n"),
    "a long text": lambda path: path.write_text("a workflow, not a ledger\n" * 1000),
    "one byte": lambda path: path.write_bytes(b"\0"),
    "half a header": lambda path: path.write_bytes(b"SQLite format 3\0\x10"),
    "a folder": lambda path: path.mkdir(),
}


@pytest.fixture(params=STRANGERS)
def stranger(request: pytest.FixtureRequest, path: Path) -> Iterator[Path]:
    STRANGERS[request.param](path)
    path.with_name("ledger.db-lock").unlink(missing_ok=True)
    yield path


@pytest.mark.parametrize("opens", [EventLog.open, Readers.open], ids=["to write", "to read"])
def test_a_file_that_is_no_ledger_is_refused_and_left_untouched(
    stranger: Path, opens: Callable[[Path], object]
) -> None:
    before = everything_in(stranger.parent)

    with pytest.raises(NotALedgerError, match="schema_version") as refusal:
        opens(stranger)

    assert isinstance(refusal.value, RuntimeError)
    assert str(stranger) in str(refusal.value)
    assert everything_in(stranger.parent) == before


def test_of_a_newer_ledger_both_versions_are_named(path: Path) -> None:
    newer(path)

    expected = f"has schema_version {SCHEMA_VERSION + 1}, this ttasks knows {SCHEMA_VERSION}: a newer ttasks made it"
    with pytest.raises(NotALedgerError, match=expected):
        EventLog.open(path)


def test_where_there_is_no_ledger_none_is_read_and_none_is_made(path: Path) -> None:
    with pytest.raises(NotALedgerError, match="there is no ledger at"):
        Readers.open(path)

    assert everything_in(path.parent) == {}


# --- migrating ------------------------------------------------------------------------------------------------------


def test_an_older_ledger_is_brought_up_to_date_on_opening_and_loses_nothing(path: Path) -> None:
    make(path, "a")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 0")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    make(path, "b")

    assert pragma(path, "user_version") == SCHEMA_VERSION
    readers = Readers.open(path)
    assert [task.title for task in readers.tasks()] == ["a", "b"]
    assert verify(readers).is_clean


def test_migrating_twice_is_migrating_once() -> None:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        schema = "SELECT type, name, sql FROM sqlite_master ORDER BY name"
        files.upgrade(connection)
        once = connection.execute(schema).fetchall()

        files.upgrade(connection)

        assert connection.execute(schema).fetchall() == once


def test_a_migration_that_fails_leaves_the_schema_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def half(connection: sqlite3.Connection) -> None:
        migrate(connection)
        raise sqlite3.OperationalError("disk full")

    monkeypatch.setattr(files, "migrate", half)
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        with pytest.raises(sqlite3.OperationalError, match="disk full"):
            files.upgrade(connection)

        assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
        assert connection.execute("PRAGMA user_version").fetchone() == (0,)


def test_a_script_is_cut_into_its_statements_and_triggers_stay_whole() -> None:
    script = "-- a; comment\nCREATE TABLE a (b);\nCREATE TRIGGER t BEFORE DELETE ON a\nBEGIN SELECT 1; SELECT 2; END;\n"

    assert [statement.split()[-1] for statement in statements(script)] == ["(b);", "END;"]


def test_a_script_that_ends_inside_a_statement_is_refused() -> None:
    with pytest.raises(ValueError, match="ends inside a statement"):
        list(statements("CREATE TABLE a (b);\nCREATE TABLE c ("))


def test_a_script_may_end_with_a_comment() -> None:
    assert list(statements("CREATE TABLE a (b);\n-- done\n\n")) == ["CREATE TABLE a (b);"]


# --- schema 1 -------------------------------------------------------------------------------------------------------

AGENT_TABLES = {"tool_calls", "permissions", "model_calls"}


@pytest.fixture
def first(path: Path) -> Path:
    """A ledger of the first schema, which somebody has."""
    return Path(shutil.copyfile(ROOT / "tests" / "golden" / "schema-1" / "ledger.db", path))


def test_a_ledger_of_schema_1_keeps_every_row_and_gets_what_it_lacked(first: Path) -> None:
    before = as_stored(first)

    EventLog.open(first).close()

    now = as_stored(first)
    assert pragma(first, "user_version") == SCHEMA_VERSION
    assert set(now) - set(before) == AGENT_TABLES
    assert [now[table] for table in AGENT_TABLES] == [[], [], []]
    for table, rows in before.items():
        assert len(now[table]) == len(rows) + (SCHEMA_VERSION - 1) * (table == "_sqlite_migrations")
        for was, is_ in zip(rows, now[table], strict=False):
            assert {name: is_[name] for name in was} == was
            new = {name: is_[name] for name in is_.keys() - was.keys() if is_[name] is not None}
            assert new == ({"grace": 5.0, "wait_for_output": 1} if table == "tasks" else {})
    assert verify(Readers.open(first)).problems == []


def test_a_ledger_of_schema_1_has_the_schema_of_a_new_one_once_it_is_migrated(first: Path) -> None:
    EventLog.open(first).close()
    new = first.with_name("new.db")
    EventLog.open(new).close()
    schema = "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY name"

    assert query(first, schema) == query(new, schema)


def test_an_agent_can_go_on_in_a_ledger_of_schema_1(first: Path) -> None:
    with closing(EventLog.open(first)) as log:
        log.append(Batch("task-new", [created("new"), started(), ToolCallStarted(1, AT, "c", "bash")], 0))

        assert [call.status for call in log.readers.tool_calls("new")] == ["running"]
        before = contents(first)
        rebuild(log)

    assert contents(first) == before
    assert verify(Readers.open(first)).problems == []


# --- schema 2 -------------------------------------------------------------------------------------------------------


def make_of_schema_2(path: Path) -> None:
    """Make a ledger in which runs of every kind are as an older ttasks left them."""
    histories = {
        "runs": [run_started()],
        "ended": [run_started(), f.GraphRunFinished(1, RunStatus.SUCCEEDED)],
        "interrupted": [run_started(), f.GraphRunInterrupted(1, "SIGTERM")],
        "resumed": [run_started(), f.GraphRunInterrupted(1, "SIGTERM"), f.GraphRunResumed(1, "ann")],
        "again": [run_started(), f.GraphRunInterrupted(1, "SIGTERM"), run_started(2)],
    }
    with closing(EventLog.open(path)) as log:
        for name, facts in histories.items():
            log.append(Batch(f"graph-{name}", [graph_created(), *facts], 0))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for table, column in (("tasks", "grace"), ("tasks", "wait_for_output"), ("runs", "duration")):
            connection.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        connection.execute("DELETE FROM _sqlite_migrations WHERE name LIKE '0003%'")
        connection.execute("PRAGMA user_version = 2")


def test_a_run_that_an_older_ttasks_began_has_a_duration_only_where_all_of_it_is_known(path: Path) -> None:
    make_of_schema_2(path)

    with closing(EventLog.open(path)) as log:
        for name, run in (("runs", 1), ("resumed", 1), ("again", 2)):
            finished = f.GraphRunFinished(run, RunStatus.FAILED, duration=1.5)
            log.append(Batch(f"graph-{name}", [finished], None))

        durations = {name: log.readers.runs(name)[-1].duration for name in ("runs", "resumed", "again", "ended")}
        assert durations == {"runs": 1.5, "resumed": None, "again": 1.5, "ended": None}
        assert log.readers.runs("interrupted")[-1].duration is None
    assert verify(Readers.open(path)).problems == []


def test_an_older_ledger_is_clean_though_it_lacks_what_its_events_would_come_to_now(path: Path) -> None:
    make_of_schema_2(path)

    with closing(Readers.open(path)) as readers:
        assert verify(readers).problems == []
        assert readers.runs("runs")[-1].duration is None


def test_a_reader_refuses_a_ledger_that_became_newer_just_now(path: Path) -> None:
    make(path, "a")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")

    with pytest.raises(NotALedgerError, match="a newer ttasks made it"):
        files.open_reader(path)


# --- a newer schema -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger with some of everything, as today's ttasks makes it."""
    made = tmp_path_factory.mktemp("old") / "ledger.db"
    make_ledger(made)
    with closing(sqlite3.connect(made)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return made


@pytest.fixture
def ledger(old: Path, path: Path) -> Path:
    return Path(shutil.copy(old, path))


@pytest.fixture
def migrations(tmp_path: Path) -> Path:
    return newer_ttasks.write_migrations(tmp_path / "migrations")


@pytest.fixture
def upgraded(migrations: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is one of a newer ttasks."""
    newer_ttasks.upgrade_ttasks(migrations, monkeypatch.setattr)


REFUSED = f"has schema_version {newer_ttasks.VERSION}, this ttasks knows {newer_ttasks.OLDER}: a newer ttasks made it"


def query(path: Path, sql: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql).fetchall()


def check_migrated(path: Path, before: Mapping[str, list[tuple[Any, ...]]]) -> None:
    """Find what was there, what the migration made, and a ledger that verifies; once each."""
    assert pragma(path, "user_version") == newer_ttasks.VERSION
    names = [name for (name,) in query(path, "SELECT name FROM _sqlite_migrations ORDER BY name")]
    assert names == [*sorted(script.stem for script in newer_ttasks.MIGRATIONS.glob("*.sql")), newer_ttasks.NAME]
    now = contents(path)
    events = before["events"]
    assert now["events"][: len(events)] == events
    for table, rows in before.items():
        assert set(rows) <= set(now[table]), table
    assert query(path, "SELECT count(*), count(DISTINCT task_id) FROM labels") == [(len(before["tasks"]),) * 2]
    assert query(path, "SELECT count(*) FROM tasks WHERE priority = length(title)") == [(len(before["tasks"]),)]


@pytest.mark.usefixtures("upgraded")
def test_a_newer_ttasks_migrates_on_opening_and_loses_nothing(ledger: Path) -> None:
    before = contents(ledger)

    EventLog.open(ledger).close()

    assert contents(ledger) == before
    check_migrated(ledger, before)
    assert verify(Readers.open(ledger)).problems == []


@pytest.mark.usefixtures("upgraded")
def test_what_was_migrated_goes_on_as_if_it_had_always_been_so(ledger: Path) -> None:
    with SQLiteStore(ledger) as store, TaskExecutor(store) as executor:
        task = Task.bash("echo on", title="goes on")
        assert executor.execute(task).output == "on\n"
        assert store.tasks[task.id].title == "goes on"

    assert verify(Readers.open(ledger)).problems == []


@pytest.mark.usefixtures("upgraded")
def test_what_was_migrated_has_the_schema_of_what_is_made_new(ledger: Path) -> None:
    EventLog.open(ledger).close()
    new = ledger.with_name("new.db")
    EventLog.open(new).close()
    schema = "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY name"

    assert query(ledger, schema) == query(new, schema)


@pytest.mark.usefixtures("upgraded")
def test_who_only_reads_migrates_nothing(ledger: Path) -> None:
    before = everything_in(ledger.parent)

    with closing(Readers.open(ledger)) as readers:
        assert readers.schema_version == newer_ttasks.OLDER
        assert len(readers.tasks()) > 0

    assert everything_in(ledger.parent) == before


@pytest.mark.parametrize("opens", [EventLog.open, Readers.open], ids=["to write", "to read"])
def test_what_was_migrated_is_refused_by_the_older_ttasks_byte_for_byte(
    ledger: Path, migrations: Path, opens: Callable[[Path], object]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        newer_ttasks.upgrade_ttasks(migrations, patch.setattr)
        EventLog.open(ledger).close()
    before = everything_in(ledger.parent)

    with pytest.raises(NotALedgerError, match=REFUSED):
        opens(ledger)

    assert everything_in(ledger.parent) == before


@pytest.mark.parametrize("opens", [EventLog.open, Readers.open], ids=["to write", "to read"])
def test_what_was_migrated_in_the_wal_alone_is_refused_by_the_older_ttasks(
    ledger: Path, migrations: Path, opens: Callable[[Path], object]
) -> None:
    migrating = (
        "import os, sys; from pathlib import Path; import newer; from ttasks.log.event_log import EventLog; "
        "newer.upgrade_ttasks(Path(sys.argv[2])); EventLog.open(Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    )
    run_here(migrating, ledger, migrations, code=-signal.SIGKILL)
    kept = {name: content for name, content in everything_in(ledger.parent).items() if not name.endswith("-shm")}
    assert int.from_bytes(kept["ledger.db"][60:64]) == newer_ttasks.OLDER  # the header does not know yet

    with pytest.raises(NotALedgerError, match=REFUSED):
        opens(ledger)

    left = everything_in(ledger.parent)
    assert {name: content for name, content in left.items() if not name.endswith("-shm")} == kept


def test_a_process_that_has_it_open_while_a_newer_ttasks_migrates_it_writes_no_more(
    ledger: Path, migrations: Path
) -> None:
    with closing(EventLog.open(ledger)) as log:  # which has recorded nothing yet, and so is no runner
        before = contents(ledger)
        migrating = (
            "import sys; from pathlib import Path; import newer; from ttasks.log.event_log import EventLog; "
            "newer.upgrade_ttasks(Path(sys.argv[2])); EventLog.open(Path(sys.argv[1])).close()"
        )
        run_here(migrating, ledger, migrations)

        for write in (lambda: log.append(Batch("task-after", [created("after")], 0)), lambda: rebuild(log)):
            with pytest.raises(
                LedgerUnwritableError,
                match=f"was migrated to schema_version {newer_ttasks.VERSION} while it was in use here",
            ):
                write()

    assert contents(ledger) == before


BAD_MIGRATIONS = {
    "it is no SQL": newer_ttasks.MIGRATION + "CREATE TABEL x (y);\n",
    "it makes what is there": newer_ttasks.MIGRATION + "CREATE TABLE tasks (y);\n",
    "it breaks a rule": newer_ttasks.MIGRATION + "INSERT INTO labels VALUES (NULL, NULL);\n",
    "it changes an event": newer_ttasks.MIGRATION + "UPDATE events SET data = '{}';\n",
}


@pytest.mark.parametrize("bad", BAD_MIGRATIONS)
def test_a_migration_that_can_not_be_done_leaves_the_old_ledger_whole(ledger: Path, tmp_path: Path, bad: str) -> None:
    folder = newer_ttasks.write_migrations(tmp_path / "bad", BAD_MIGRATIONS[bad])
    before = contents(ledger)
    with pytest.MonkeyPatch.context() as patch:
        newer_ttasks.upgrade_ttasks(folder, patch.setattr)
        with pytest.raises(LedgerUnwritableError, match="nothing was written"):
            EventLog.open(ledger)

    assert pragma(ledger, "user_version") == SCHEMA_VERSION
    assert contents(ledger) == before
    make(ledger, "goes on")
    assert verify(Readers.open(ledger)).problems == []


# --- many at once ---------------------------------------------------------------------------------------------------


def test_eight_processes_that_open_one_new_path_at_once_share_one_ledger(path: Path) -> None:
    waiting = [start(PROGRAM, path, str(number)) for number in range(8)]
    for process in waiting:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in waiting:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()

    said = [process.communicate(timeout=60) for process in waiting]

    assert [error for _, error in said] == [""] * 8
    assert len({ledger for ledger, _ in said}) == 1
    readers = Readers.open(path)
    assert sorted(task.title for task in readers.tasks()) == [str(number) for number in range(8)]
    assert len(list(readers.events(type="RunnerStarted"))) == 8
    assert len(list(readers.events(type="LedgerCreated"))) == 1
    assert verify(readers).is_clean


NEWER_PROGRAM = (
    "import sys; from pathlib import Path; import newer; newer.upgrade_ttasks(Path(sys.argv[3]))\n" + PROGRAM
)


def test_eight_processes_of_a_newer_ttasks_that_open_one_ledger_at_once_migrate_it_once(
    ledger: Path, migrations: Path, upgraded: None
) -> None:
    before = contents(ledger)
    waiting = [start(NEWER_PROGRAM, ledger, str(number), migrations) for number in range(8)]
    for process in waiting:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"

    said = [process.communicate("go\n", timeout=60) for process in waiting]

    assert [error for _, error in said] == [""] * 8
    assert len({opened for opened, _ in said}) == 1
    assert query(ledger, "SELECT count(*) FROM tasks WHERE priority IS NULL") == [(8,)]  # appended after it
    check_migrated(ledger, before)
    assert verify(Readers.open(ledger)).problems == []
