"""The ledger goes away, fills up, or somebody else holds it: nothing reported is lost, nothing untrue is said."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ttasks import LedgerUnwritableError, SQLiteStore, Task, TaskEvent, TaskExecutor, TaskGraph, TaskStatus, TaskType
from ttasks.log.reading import Readers
from ttasks.log.verify import verify


def executor_on(store: SQLiteStore) -> TaskExecutor:
    executor = TaskExecutor.empty(store)
    executor.register(TaskType.BASH, lambda context: "done")
    return executor


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "ledger.db"


def is_clean(path: Path) -> bool:
    with contextlib.closing(Readers.open(path)) as readers:
        return verify(readers).is_clean


def fill(store: SQLiteStore) -> None:
    """Let the ledger's file have no page more than it has."""
    connection = store._log._connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.execute(f"PRAGMA max_page_count = {pages}")


def test_on_a_full_disk_nothing_is_run_and_the_task_is_as_it_was(ledger: Path) -> None:
    entered = []
    with SQLiteStore(ledger) as store:
        executor = TaskExecutor.empty(store)
        executor.register(TaskType.BASH, lambda context: entered.append(context.id))
        executor.execute(Task.bash("first"))
        fill(store)
        task = Task.bash("x" * 100_000)
        with pytest.raises(LedgerUnwritableError, match="full"):
            executor.execute(task)
        assert task.status is TaskStatus.PENDING
        assert len(entered) == 1
    assert is_clean(ledger)


def test_after_a_full_disk_has_room_again_the_same_store_goes_on(ledger: Path) -> None:
    with SQLiteStore(ledger) as store:
        executor = executor_on(store)
        executor.execute(Task.bash("first"))
        fill(store)
        task = Task.bash("x" * 100_000)
        with pytest.raises(LedgerUnwritableError):
            executor.execute(task)
        store._log._connection.execute("PRAGMA max_page_count = 1000000")
        assert executor.execute(task).output == "done"
        assert store.tasks[task.id].status is TaskStatus.SUCCEEDED
    assert is_clean(ledger)


def test_an_end_that_a_full_disk_refused_is_pending_and_saved_later(ledger: Path) -> None:
    heard: list[TaskEvent] = []
    with SQLiteStore(ledger) as store:
        executor = TaskExecutor.empty(store)

        def work(context: object) -> str:
            fill(store)
            return "y" * 200_000

        executor.register(TaskType.BASH, work)
        executor.events.subscribe(heard.append)
        task = Task.bash("work")
        with pytest.raises(LedgerUnwritableError) as lost:
            executor.execute(task)
        assert lost.value.result is task.result
        assert task.status is TaskStatus.SUCCEEDED
        assert [str(event.type) for event in heard] == ["started", "persistence_failed"]
        assert store.tasks[task.id].status is TaskStatus.RUNNING
        store._log._connection.execute("PRAGMA max_page_count = 1000000")
        store.tasks.save(task)
        assert store.tasks[task.id].status is TaskStatus.SUCCEEDED
        assert store.tasks[task.id].result.output == "y" * 200_000
    assert is_clean(ledger)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of one megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        missing("a small tmpfs can't be mounted here: that needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_output_that_fills_a_real_disk_stops_a_graph_and_leaves_a_clean_ledger(small_disk: Path) -> None:
    path = small_disk / "ledger.db"
    graph = TaskGraph(title="too much")
    first = graph.add(Task.bash("echo small", title="first"))
    second = graph.add(Task.bash("head -c 3000000 /dev/zero | tr '\\0' x", title="second"), after=[first])
    third = graph.add(Task.bash("echo never", title="third"), after=[second])
    with SQLiteStore(path) as store:
        with pytest.raises(LedgerUnwritableError) as lost:
            graph.run(TaskExecutor(store))
        assert lost.value.result is not None and len(lost.value.result.output) == 3_000_000
        assert [task.status for task in graph] == [TaskStatus.SUCCEEDED, TaskStatus.SUCCEEDED, TaskStatus.PENDING]
        assert third.attempts == 0
        recorded = store.graphs[graph.id]
        assert [task.status for task in recorded] == [TaskStatus.SUCCEEDED, TaskStatus.RUNNING, TaskStatus.PENDING]
    assert is_clean(path)


def test_a_folder_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        folder = Path("/proc/ttasks-can-not-be-made")
    else:
        folder = tmp_path / "closed"
        folder.mkdir(mode=0o500)
    with pytest.raises(LedgerUnwritableError, match="can't be written"):
        SQLiteStore(folder / "ledger.db")


def test_a_ledger_held_by_a_stranger_is_waited_for_and_then_refused(ledger: Path) -> None:
    with SQLiteStore(ledger, busy_timeout=0.2) as store:
        executor = executor_on(store)
        executor.execute(Task.bash("first"))
        stranger = sqlite3.connect(ledger, isolation_level=None)
        stranger.execute("BEGIN IMMEDIATE")
        task = Task.bash("second")
        with pytest.raises(LedgerUnwritableError, match="Another program holds it"):
            executor.execute(task)
        assert task.status is TaskStatus.PENDING
        stranger.execute("ROLLBACK")
        stranger.close()
        assert executor.execute(task).output == "done"
    assert is_clean(ledger)


def test_a_stranger_who_lets_go_in_time_is_not_noticed(ledger: Path) -> None:
    with SQLiteStore(ledger) as store:
        executor = executor_on(store)
        executor.execute(Task.bash("first"))
        stranger = sqlite3.connect(ledger, isolation_level=None, check_same_thread=False)
        stranger.execute("BEGIN IMMEDIATE")
        timer = threading.Timer(0.3, stranger.execute, ["ROLLBACK"])
        timer.start()
        assert executor.execute(Task.bash("second")).output == "done"
        timer.join()
        stranger.close()


@pytest.mark.parametrize("replace", [False, True], ids=["deleted", "replaced"])
def test_a_ledger_that_was_deleted_or_replaced_is_not_written_into(ledger: Path, replace: bool) -> None:
    with SQLiteStore(ledger) as store:
        executor = executor_on(store)
        executor.execute(Task.bash("first"))
        kept = ledger.with_name("kept.db")
        ledger.rename(kept)
        if replace:
            with SQLiteStore(ledger.with_name("other.db")):
                pass
            ledger.with_name("other.db").rename(ledger)
        task = Task.bash("second")
        with pytest.raises(LedgerUnwritableError, match="deleted or replaced"):
            executor.execute(task)
        assert task.status is TaskStatus.PENDING
        kept.replace(ledger)
        assert executor.execute(task).output == "done"
    assert is_clean(ledger)


def test_a_folder_that_vanished_while_a_task_ran_leaves_its_end_pending(ledger: Path) -> None:
    with SQLiteStore(ledger) as store:
        executor = TaskExecutor.empty(store)
        away = ledger.parent.with_name("away")
        executor.register(TaskType.BASH, lambda context: ledger.parent.rename(away) and "done")
        task = Task.bash("work")
        with pytest.raises(LedgerUnwritableError) as lost:
            executor.execute(task)
        assert lost.value.result is task.result
        shutil.move(away, ledger.parent)
        store.tasks.save(task)
        assert store.tasks[task.id].is_succeeded
    assert is_clean(ledger)


def test_a_writer_waits_for_a_process_that_holds_the_lock_file(ledger: Path) -> None:
    with SQLiteStore(ledger, busy_timeout=0.3) as store:
        executor = executor_on(store)
        executor.execute(Task.bash("first"))
        holder = subprocess.Popen(
            ["flock", str(ledger) + "-lock", "sh", "-c", "echo held; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(LedgerUnwritableError, match="locked by another process"):
            executor.execute(Task.bash("second"))
        holder.communicate(b"")
        executor.execute(Task.bash("third"))
    assert is_clean(ledger)
