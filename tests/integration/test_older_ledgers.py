"""A ledger of an older ttasks: reading leaves it as it is, writing migrates it, but not beside a living old runner."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

import newer as newer_ttasks
from ledgers import contents
from strategies import created
from ttasks import DamagedLedgerError, LedgerUnwritableError, SQLiteStore, Task, TaskExecutor
from ttasks.cli.app import command
from ttasks.log import files, migrate
from ttasks.log.event_log import EventLog
from ttasks.log.liveness import RunnerLock
from ttasks.log.projection import TABLES
from ttasks.log.reading import Readers
from ttasks.log.transaction import Batch
from ttasks.log.verify import verify
from ttasks.version import __version__

pytestmark = pytest.mark.usefixtures("outside_git")
GOLDEN = Path(__file__).parents[1] / "golden"
OLD = range(1, migrate.SCHEMA_VERSION)


@pytest.fixture(params=OLD, ids=[f"schema {version}" for version in OLD])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a ledger as an older ttasks wrote it, in a folder of its own."""
    folder = tmp_path / "old"
    folder.mkdir()
    return Path(shutil.copyfile(GOLDEN / f"schema-{request.param}" / "ledger.db", folder / "ledger.db"))


def migrated(old: Path) -> Path:
    """Return a migrated copy of a ledger."""
    path = Path(shutil.copyfile(old, old.parent.parent / "ledger.db"))
    EventLog.open(path).close()
    return path


def everything_in(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def version_of(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


def ttasks(path: Path, *words: str) -> tuple[int, str]:
    done = CliRunner().invoke(command, [*words, "--ledger", str(path)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    return done.exit_code, done.output.replace(str(path), "LEDGER")


def ids(path: Path, table: str, where: str) -> list[str]:
    with closing(Readers.open(path)) as readers:
        return [row[0] for row in readers._all(f"SELECT id FROM {table} WHERE is_deleted = 0 AND {where} ORDER BY id")]


# --- reading --------------------------------------------------------------------------------------------------------


def test_every_command_that_reads_shows_an_older_ledger_as_it_shows_it_migrated(old: Path) -> None:
    now = migrated(old)
    before = everything_in(old.parent)
    shown = [["ls"], ["ls", "--tasks", "-n", "99"], ["events"], ["verify"], ["resume", "--list"]]
    shown += [["show", id_] for table in ("tasks", "graphs") for id_ in ids(now, table, "id <> 'lost'")]

    for words in shown:
        code, said = ttasks(old, *words)
        assert (code, said) == ttasks(now, *words)
        assert code == 0, words

    after = everything_in(old.parent)
    after.pop("ledger.db-verified")
    assert after == before


def test_a_store_that_only_reads_shows_an_older_ledger_as_it_shows_it_migrated(old: Path) -> None:
    now = migrated(old)
    before = everything_in(old.parent)

    with SQLiteStore(old, read_only=True) as then, SQLiteStore(now, read_only=True) as later:
        assert list(then.tasks) == list(later.tasks)
        for task in then.tasks.values():
            other = later.tasks[task.id]
            assert (task.status, task.error, task.attempts) == (other.status, other.error, other.attempts)
            assert then._readers.attempts(task.id) == later._readers.attempts(task.id)
            assert then._readers.tool_calls(task.id) == later._readers.tool_calls(task.id)
        assert [run.status for run in then.runs] == [run.status for run in later.runs]
        assert list(then.events) == list(later.events)
        assert [task.status for task in then.as_of(60).tasks.values()] == [
            task.status for task in later.as_of(60).tasks.values()
        ]
        with pytest.raises(LedgerUnwritableError, match="is read-only"):
            then.tasks.save(Task.bash("true"))

    assert everything_in(old.parent) == before


def test_an_older_ledger_is_read_in_a_folder_that_holds_an_old_wal(old: Path) -> None:
    writing = (
        "import os, sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); "
        "c.execute('PRAGMA journal_mode = WAL'); c.execute('UPDATE tasks SET title = \"killed\"'); "
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", writing, str(old)], check=False)
    assert old.with_name("ledger.db-wal").stat().st_size > 0

    with SQLiteStore(old, read_only=True) as store:
        assert {task.title for task in store.tasks.values()} == {"killed"}
    assert version_of(old) < migrate.SCHEMA_VERSION


def test_who_reads_an_older_ledger_sees_all_that_is_recorded_after_its_migration(old: Path) -> None:
    with SQLiteStore(old, read_only=True) as looking:
        count = len(looking.tasks)
        assert looking._readers.schema_version < migrate.SCHEMA_VERSION
        with SQLiteStore(old) as store, TaskExecutor(store) as executor:
            task = Task.bash("true")
            executor.execute(task)

            assert len(looking.tasks) == count + 1
            assert looking.tasks[task.id].is_succeeded
            assert looking._readers.schema_version == migrate.SCHEMA_VERSION


def test_what_an_older_ledger_lacks_has_the_default_that_a_migration_gives_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    migration = """
ALTER TABLE tasks ADD COLUMN patience REAL NOT NULL DEFAULT 2.5;
ALTER TABLE runs ADD COLUMN took REAL;
"""
    path = tmp_path / "ledger.db"
    with closing(EventLog.open(path)) as log:
        log.append(Batch("task-a", [created("a")], 0))
    newer_ttasks.upgrade_ttasks(newer_ttasks.write_migrations(tmp_path / "more", migration), monkeypatch.setattr)

    with closing(Readers.open(path)) as readers:
        assert readers._all("SELECT title, patience FROM tasks") == [("a", 2.5)]
        assert readers._all("SELECT took FROM runs") == []
    assert verify(Readers.open(path)).problems == []


def test_verify_checks_an_older_ledger_against_its_own_version(old: Path) -> None:
    with closing(sqlite3.connect(old)) as connection:
        connection.execute("UPDATE tasks SET title = 'other' WHERE id = 'lost'")
        connection.execute("ALTER TABLE runs ADD COLUMN odd TEXT")
        connection.commit()

    found = [str(problem) for problem in verify(Readers.open(old)).problems]

    assert found[0] == 'rows: the ledger: row lost of tasks: title is "other", its events say "lost"'
    assert [text for text in found[1:] if "the table runs is not as ttasks made it" not in text] == []


def test_verify_says_of_a_version_that_no_ledger_has_that_it_is_none(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    EventLog.open(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 0")

    assert [str(problem) for problem in verify(Readers.open(path)).problems] == [
        "schema: the ledger: its schema_version is 0, which is that of no ledger"
    ]


# --- writing --------------------------------------------------------------------------------------------------------

WRITES: dict[str, Callable[[Path], list[str]]] = {
    "resume": lambda path: ["resume", ids(path, "tasks", "status = 'interrupted'")[0]],
    "retry": lambda path: ["retry", ids(path, "graphs", "status = 'failed'")[0]],
    "cancel": lambda path: ["cancel", ids(path, "tasks", "status = 'pending'")[0]],
    "resolve": lambda path: ["resolve", ids(path, "tasks", "status = 'interrupted'")[0], "--failed"],
    "rebuild": lambda _: ["rebuild"],
    "run": lambda path: ["run", workflow(path)],
}


def workflow(ledger: Path) -> str:
    file = ledger.parent.parent / "one.yaml"
    file.write_text("tasks:\n  one:\n    bash: 'true'\n", "utf-8")
    return str(file)


@pytest.mark.parametrize("name", WRITES)
def test_every_command_that_writes_migrates_an_older_ledger_and_does_its_work(
    old: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ttasks.cli.resume.run_folder", lambda *_: None)  # that of its runs is nowhere here
    events = contents_of_events(old)
    words = WRITES[name](old)

    code, said = ttasks(old, *words)

    assert version_of(old) == migrate.SCHEMA_VERSION, said
    assert code == (1 if name == "retry" else 0), said  # its task fails again
    now = contents_of_events(old)
    assert now[: len(events)] == events
    assert len(now) > len(events) or name == "rebuild"
    assert verify(Readers.open(old)).problems == []


def contents_of_events(path: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT * FROM events ORDER BY position").fetchall()


def test_rebuild_lifts_an_older_ledger_and_changes_nothing_else(old: Path) -> None:
    now = migrated(old)

    assert ttasks(old, "rebuild")[0] == 0

    assert contents(old) == contents(now)


# --- beside a living runner of an older ttasks ----------------------------------------------------------------------

RUNNER = """
import sys
from pathlib import Path
from ttasks import SQLiteStore, Task, TaskExecutor

with SQLiteStore(sys.argv[1]) as store, TaskExecutor(store) as executor:
    task = Task.bash("echo begun; read line < " + sys.argv[2], title="long")
    executor.events.subscribe(lambda event: print(event.type, flush=True))
    executor.execute(task)
"""


@contextmanager
def older_runner(path: Path, fifo: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a task with the ttasks of today, until somebody writes into `fifo`."""
    os.mkfifo(fifo)
    running = subprocess.Popen([sys.executable, "-c", RUNNER, str(path), str(fifo)], stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    while running.stdout.readline() != "output\n":
        pass
    try:
        yield running
    finally:
        running.kill()
        running.wait()
        running.stdout.close()
        with suppress(OSError):  # lets a script end that still waits, because the test failed
            os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))


def runners(path: Path) -> list[object]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT DISTINCT runner FROM events").fetchall()


@pytest.fixture
def upgraded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is one of a newer ttasks."""
    newer_ttasks.upgrade_ttasks(newer_ttasks.write_migrations(tmp_path / "migrations"), monkeypatch.setattr)


@pytest.mark.usefixtures("upgraded")
def test_beside_a_living_older_runner_nothing_is_written_and_it_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    path = Path(shutil.copyfile(GOLDEN / "schema-1" / "ledger.db", folder / "ledger.db"))
    opening = f"import ttasks; ttasks.SQLiteStore({str(path)!r}).close()"
    subprocess.run([sys.executable, "-c", opening], check=True)
    assert version_of(path) == newer_ttasks.OLDER
    with older_runner(path, tmp_path / "fifo") as running:
        words = {name: make(path) for name, make in WRITES.items()}
        before, runners_before = everything_in(folder), runners(path)
        who = f"process {running.pid} of {getpass.getuser()}@{socket.gethostname()}, ttasks {__version__}, since 20"
        expected = (
            f"has schema_version {newer_ttasks.OLDER}, and an older ttasks works with it: {who}",
            f"This ttasks would migrate it to schema_version {newer_ttasks.VERSION}, and what that runs could not be",
            "Nothing was written: try again when that process has ended, or use its ttasks",
        )

        for name in WRITES:
            code, said = ttasks(path, *words[name])
            assert code == 1, name
            assert [text for text in expected if text not in said] == [], said
        with pytest.raises(LedgerUnwritableError, match="an older ttasks works with it: process"):
            SQLiteStore(path)

        assert ttasks(path, "ls", "--tasks")[0] == 0  # reading is no harm
        after = everything_in(folder)
        assert (set(after), after["ledger.db"]) == (set(before), before["ledger.db"])
        assert (version_of(path), runners(path)) == (newer_ttasks.OLDER, runners_before)
        (tmp_path / "fifo").write_text("go on\n", "utf-8")
        assert running.stdout is not None and running.stdout.read() == "succeeded\n"
        assert running.wait() == 0

    assert ttasks(path, *words["cancel"])[0] == 0
    assert version_of(path) == newer_ttasks.VERSION
    assert verify(Readers.open(path)).problems == []


@pytest.mark.usefixtures("upgraded")
def test_a_runner_that_was_killed_does_not_keep_a_ledger_old(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with older_runner(path, tmp_path / "fifo"):
        pass
    assert list(tmp_path.glob("ledger.db-runner-*"))

    code, said = ttasks(path, "rebuild")

    assert (code, version_of(path)) == (0, newer_ttasks.VERSION), said


@pytest.mark.usefixtures("upgraded")
def test_a_process_that_holds_a_lock_and_has_recorded_nothing_is_named_by_it(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    subprocess.run([sys.executable, "-c", f"import ttasks; ttasks.SQLiteStore({str(path)!r}).close()"], check=True)
    lock = RunnerLock(path, "unheard-of")

    with pytest.raises(LedgerUnwritableError, match="an older ttasks works with it: runner unheard-of"):
        EventLog.open(path)

    lock.release()
    EventLog.open(path).close()
    assert version_of(path) == newer_ttasks.VERSION


# --- where it can't be migrated -------------------------------------------------------------------------------------

FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
from ttasks.cli.app import command
command()
"""


def test_on_a_full_disk_an_older_ledger_stays_as_it_is_and_the_command_says_why(old: Path) -> None:
    before = everything_in(old.parent)

    unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, "rebuild", "--ledger", str(old)],
        capture_output=True, text=True, check=False, env=unmeasured,  # its data would find the disk full as well
    )  # fmt: skip

    assert done.returncode == 1
    assert done.stderr.startswith(f"ttasks: the ledger {old} can't be written: ")
    assert done.stderr.endswith("; nothing was written\n") and done.stderr.count("\n") == 1
    assert everything_in(old.parent)["ledger.db"] == before["ledger.db"]
    assert ttasks(old, "rebuild")[0] == 0


def test_a_full_disk_is_said_also_of_a_ledger_that_is_ahead_of_its_header(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    with closing(sqlite3.connect(old, isolation_level=None)) as connection:
        connection.execute("PRAGMA user_version = 1")
    monkeypatch.setattr(files, "upgrade", full)

    with pytest.raises(LedgerUnwritableError, match="disk is full; nothing was written"):
        SQLiteStore(old)


@pytest.mark.parametrize("how", ["DELETE FROM _sqlite_migrations", "DROP TABLE _sqlite_migrations"])
def test_an_older_ledger_that_does_not_say_what_was_applied_is_refused_and_why(old: Path, how: str) -> None:
    with closing(sqlite3.connect(old, isolation_level=None)) as connection:
        connection.execute(how)
    before = contents_of_events(old)

    with pytest.raises(DamagedLedgerError, match=r"the table _sqlite_migrations .*; nothing was written\. `ttasks ver"):
        SQLiteStore(old)

    assert contents_of_events(old) == before


@pytest.mark.parametrize("stated", OLD)
def test_a_ledger_that_is_ahead_of_what_its_header_says_is_migrated(old: Path, stated: int) -> None:
    stated = min(stated, version_of(old))
    with closing(sqlite3.connect(old, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA user_version = {stated}")

    SQLiteStore(old).close()

    assert version_of(old) == migrate.SCHEMA_VERSION
    assert verify(Readers.open(old)).problems == []


def test_two_that_open_an_older_ledger_at_once_migrate_it_once(old: Path) -> None:
    before = contents_of_events(old)
    program = "import sys, ttasks; print(flush=True); sys.stdin.readline(); ttasks.SQLiteStore(sys.argv[1]).close()"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(old)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for each in both:
        assert each.stdout is not None and each.stdout.readline() == "\n"

    assert [each.communicate("go\n")[0] for each in both] == ["", ""]
    assert [each.returncode for each in both] == [0, 0]
    assert contents_of_events(old) == before
    assert set(TABLES) <= set(contents(old))
    assert verify(Readers.open(old)).problems == []
