"""No more threads, no more memory, and the end of the interpreter: work is refused or goes on, and nothing is lost."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ttasks import NoThreadError, SQLiteStore, Task, TaskExecutor, TaskGraph, TaskType
from ttasks.log import lock
from ttasks.log.event_log import EventLog
from ttasks.log.lock import WriterLock
from ttasks.log.reading import Readers
from ttasks.log.verify import verify

pytestmark = pytest.mark.usefixtures("outside_git")


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return what takes away threads whose names begin with something."""
    start = threading.Thread.start

    def take_away(prefix: str) -> None:
        def refuse(thread: threading.Thread) -> None:
            if thread.name.startswith(prefix):
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", refuse)

    return take_away


# --- no more threads ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", ["ttasks-listen", "ttasks-flush"])
def test_without_a_thread_that_only_helps_a_script_runs_and_is_recorded_whole(
    tmp_path: Path, no_threads: Callable[[str], None], missing: str
) -> None:
    no_threads(missing)

    with SQLiteStore(tmp_path / "ledger.db") as store, TaskExecutor(store) as executor:
        task = Task.bash("echo out; echo err >&2")
        result = executor.execute(task)

        assert (result.output, result.error) == ("out\n", "err\n")
        assert store._readers.printed(task.id, 1) == {"stdout": "out\n", "stderr": "err\n"}


def test_without_a_thread_for_its_description_a_runner_records_all_the_same(
    tmp_path: Path, no_threads: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    no_threads("ttasks-describe")

    with SQLiteStore(tmp_path / "ledger.db") as store:
        store.tasks.save(Task.bash("true"))
        assert [event.type for event in store.events] == ["LedgerCreated", "RunnerStarted", "TaskCreated"]


def test_without_a_thread_for_its_process_a_task_fails_with_that_reason(
    tmp_path: Path, no_threads: Callable[[str], None]
) -> None:
    no_threads("ttasks-process")

    with SQLiteStore(tmp_path / "ledger.db") as store, TaskExecutor(store) as executor:
        task = Task.bash("true")
        with pytest.raises(RuntimeError, match="can't start new thread"):
            executor.execute(task)
        assert (store.tasks[task.id].status, store.tasks[task.id].error) == (task.status, "can't start new thread")
        assert task.is_failed


def test_without_a_thread_that_ends_it_a_script_is_ended_at_its_time_out_all_the_same(
    no_threads: Callable[[str], None],
) -> None:
    no_threads("ttasks-end")
    task = Task.bash("exec sleep 60", timeout=0.2)

    with pytest.raises(TimeoutError):
        TaskExecutor().execute(task)

    assert task.is_failed


@pytest.mark.parametrize("missing", ["ttasks-run", "ttasks-run-"])
def test_a_graph_that_gets_no_thread_is_refused_or_closed_and_none_of_it_is_left_running(
    tmp_path: Path, no_threads: Callable[[str], None], missing: str
) -> None:
    no_threads(missing)
    graph, task = TaskGraph(), Task.bash("true")
    graph.add(task)

    with SQLiteStore(tmp_path / "ledger.db") as store, TaskExecutor(store) as executor:
        with pytest.raises(NoThreadError, match=r"none to be had: can't start new thread\. Nothing was done"):
            graph.run(executor)

        assert task.is_pending
        assert [str(run.status) for run in store.runs] == ([] if missing == "ttasks-run" else ["interrupted"])


def test_a_task_that_no_thread_takes_is_refused_and_never_run_later(no_threads: Callable[[str], None]) -> None:
    run: list[str] = []
    with TaskExecutor() as executor:
        executor.register(TaskType.BASH, lambda context: run.append(context.title))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(threading.Thread, "start", lambda _: (_ for _ in ()).throw(RuntimeError("no new thread")))
            with pytest.raises(NoThreadError, match="submitting a task needs a thread"):
                executor.submit(Task.bash("…", title="refused"))

        executor.submit(Task.bash("…", title="taken")).result()

    assert run == ["taken"]


def test_without_a_thread_to_wait_in_the_writers_lock_is_asked_for_again_and_again(
    tmp_path: Path, no_threads: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    no_threads("ttasks-lock")
    path = tmp_path / "ledger.db-lock"
    mine, theirs = WriterLock(path), WriterLock(path)
    assert theirs.acquire(0)
    assert mine.acquire(0.05) is False

    paused: list[float] = []

    def let_go(seconds: float) -> None:
        paused.append(seconds)
        if len(paused) == 3:
            theirs.release()

    monkeypatch.setattr(lock.time, "sleep", let_go)
    assert mine.acquire(30)

    assert len(paused) == 3
    with path.open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    mine.close()
    theirs.close()


# --- no more memory -------------------------------------------------------------------------------------------------


BREAKS: dict[str, tuple[type, str]] = {
    "readers": (Readers, "close"),
    "connection": (EventLog, "_close_file"),
    "lock": (WriterLock, "acquire"),
}


@pytest.mark.parametrize("breaks", BREAKS)
def test_where_closing_fails_everything_else_is_given_up_and_the_ledger_can_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks: str
) -> None:
    path = tmp_path / "ledger.db"
    store = SQLiteStore(path)
    store.tasks.save(Task.bash("true", title="kept"))

    def no_memory(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        place, name = BREAKS[breaks]
        patch.setattr(place, name, no_memory)
        with pytest.raises(MemoryError):
            store.close()
    store.close()

    assert store._log is None
    with SQLiteStore(path) as again:
        assert [task.title for task in again.tasks.values()] == ["kept"]
        again.tasks.save(Task.bash("true"))
    assert verify(Readers.open(path)).problems == []
    assert list(tmp_path.glob("*-runner-*")) == []


LITTLE_MEMORY = """
import resource, sys
import ttasks.cli.run
from ttasks.cli.app import command
(pages, *_) = open("/proc/self/statm").read().split()
resource.setrlimit(resource.RLIMIT_AS, (int(pages) * resource.getpagesize(),) * 2)
command()
"""


def test_a_command_that_gets_no_memory_ends_with_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "one.yaml"
    file.write_text("tasks:\n  one:\n    bash: 'true'\n", "utf-8")

    unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run(
        [sys.executable, "-c", LITTLE_MEMORY, "run", str(file), "--ledger", str(tmp_path / "ledger.db")],
        capture_output=True, text=True, check=False, env=unmeasured,  # what measures would get no memory either
    )  # fmt: skip

    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("ttasks: ") and done.stderr.count("\n") == 1


# --- the end of the interpreter -------------------------------------------------------------------------------------

AT_EXIT = """
import atexit, os, sys
from ttasks import *

_, path, when, call = sys.argv
store = SQLiteStore(path)
executor = TaskExecutor(store)
executor.execute(Task.bash("echo before"))

def work():
    graph = TaskGraph()
    graph.add(Task.bash("echo late"))
    calls = {
        "execute": lambda: executor.execute(Task.bash("echo late")),
        "graph": lambda: graph.run(executor),
        "submit": lambda: executor.submit(Task.bash("echo late")).result(),
    }
    try:
        calls[call]()
        os.write(1, b"done\\n")
    except NoThreadError as refusal:
        os.write(1, f"{refusal}\\n".encode())

class Late:
    def __del__(self):
        work()

if when == "__del__":
    late = Late()
else:
    atexit.register(work)
"""


@pytest.mark.parametrize("call", ["execute", "graph", "submit"])
@pytest.mark.parametrize("when", ["__del__", "atexit"])
def test_at_the_end_of_the_interpreter_work_is_done_or_refused_and_no_start_is_left(
    tmp_path: Path, when: str, call: str
) -> None:
    path = tmp_path / "ledger.db"

    done = subprocess.run(
        [sys.executable, "-c", AT_EXIT, str(path), when, call], capture_output=True, text=True, timeout=60, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
    is_done = done.stdout == "done\n"
    assert is_done or ("needs a thread" in done.stdout and done.stdout.endswith("Nothing was done\n"))
    assert not is_done or when == "atexit"
    with SQLiteStore(path, read_only=True) as store:
        types = [event.type for event in store.events]
        assert types.count("TaskStarted") == types.count("TaskSucceeded") == 1 + is_done
        assert types.count("GraphRunStarted") == types.count("GraphRunFinished")
