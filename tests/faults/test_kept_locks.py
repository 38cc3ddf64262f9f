"""Looking at a ledger gives up none of the locks that keep other processes from taking its WAL away (fcntl(2))."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pages import get_all
from ttasks import NotALedgerError, SQLiteStore, Task, TaskExecutor
from ttasks.log import files
from ttasks.log.reading import Readers
from ttasks.log.verify import verify

ANOTHER = """
import sys
from ttasks import SQLiteStore, Task, TaskExecutor
with SQLiteStore(sys.argv[1]) as store, TaskExecutor(store) as executor:
    executor.execute(Task.bash("true", title="of another process"))
"""


def another_process_writes(path: Path) -> None:
    """Let a process come, write and go: where it is the last one, it takes the WAL away."""
    subprocess.run([sys.executable, "-c", ANOTHER, str(path)], check=True, timeout=60)


def read_only(path: Path) -> None:
    with SQLiteStore(path, read_only=True) as store:
        assert len(store.tasks) > 0


def open_readers(path: Path) -> None:
    Readers.open(path).close()


def ask_for_the_version(path: Path) -> None:
    assert files.schema_version(path) is not None


def browse(path: Path) -> None:
    assert [answer.status for answer in get_all(path, "/ledger/tasks", "/-/ttasks/ledger")] == [200, 200]


@pytest.mark.parametrize("look", [read_only, open_readers, ask_for_the_version, browse])
def test_what_a_writer_records_is_kept_though_its_own_process_looked_and_others_came_and_went(
    tmp_path: Path, look: Callable[[Path], None]
) -> None:
    path = tmp_path / "ledger.db"
    with SQLiteStore(path) as store, TaskExecutor(store) as executor:
        executor.execute(Task.bash("true", title="mine"))
        for _ in range(2):
            wal = (tmp_path / "ledger.db-wal").stat().st_ino
            look(path)
            another_process_writes(path)
            assert (tmp_path / "ledger.db-wal").stat().st_ino == wal
            executor.execute(Task.bash("true", title="mine"))
        assert len(store.tasks) == 5
    with SQLiteStore(path, read_only=True) as store:
        assert [task.title for task in store.tasks.values()].count("of another process") == 2
        assert len(store.tasks) == 5
        assert verify(store._readers).problems == []


def test_what_is_recorded_in_a_copy_with_its_wal_is_kept_though_a_reader_was_there_first(tmp_path: Path) -> None:
    original, path = tmp_path / "original.db", tmp_path / "ledger.db"
    with SQLiteStore(original) as store, TaskExecutor(store) as executor:
        executor.execute(Task.bash("true", title="mine"))
        for end in ("", "-wal"):
            shutil.copy(f"{original}{end}", f"{path}{end}")
    readers = Readers.open(path)
    assert readers.count("tasks") == 1
    with SQLiteStore(path) as store, TaskExecutor(store) as executor:
        executor.execute(Task.bash("true", title="mine"))
        wal = (tmp_path / "ledger.db-wal").stat().st_ino
        assert readers.count("tasks") == 2  # the connection from before can't be used any more
        another_process_writes(path)
        assert (tmp_path / "ledger.db-wal").stat().st_ino == wal
        executor.execute(Task.bash("true", title="mine"))
    assert readers.count("tasks") == 4
    readers.close()
    with SQLiteStore(path, read_only=True) as store:
        assert len(store.tasks) == 4
        assert verify(store._readers).problems == []


def test_connections_that_were_kept_are_closed_when_nobody_has_the_ledger_open_any_more(tmp_path: Path) -> None:
    original, path = tmp_path / "original.db", tmp_path / "ledger.db"
    with SQLiteStore(original) as store:
        store.tasks.save(Task.bash("true"))
        for end in ("", "-wal"):
            shutil.copy(f"{original}{end}", f"{path}{end}")
    first, second = (files.open_reader(path)[0] for _ in range(2))
    with SQLiteStore(path) as store, TaskExecutor(store) as executor:
        executor.execute(Task.bash("true", title="mine"))
        first.close()
        assert first.execute("SELECT 1").fetchone() == (1,)
    second.close()
    for connection in (first, second):
        with pytest.raises(sqlite3.ProgrammingError):
            connection.execute("SELECT 1")


def test_a_reader_sees_what_comes_later_though_its_own_process_looked_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    another_process_writes(path)
    with SQLiteStore(path):  # while somebody has it open, readers lock as usual
        readers = Readers.open(path)
        assert readers.count("tasks") == 1
    for number in (2, 3):
        files.schema_version(path)
        another_process_writes(path)
        assert readers.count("tasks") == number
    readers.close()


def test_a_file_that_sqlite_does_not_take_for_its_own_is_told_by_its_first_bytes(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    another_process_writes(path)
    content = bytearray(path.read_bytes())
    content[16:18] = b"\0\1"  # a page size that there is not
    path.write_bytes(content)
    assert files.schema_version(path) == files.SCHEMA_VERSION
    content[68:72] = b"none"
    path.write_bytes(content)
    with pytest.raises(NotALedgerError, match="a SQLite database, but not a ledger"):
        files.schema_version(path)
