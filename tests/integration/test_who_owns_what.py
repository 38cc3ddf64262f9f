"""Who may run, cancel and record what, when several threads, handles, ledgers and processes want to."""

from __future__ import annotations

import copy
import os
import pickle
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, Mock, create_autospec, patch

import pytest

from ttasks import (
    AlreadyRunningError,
    LedgerUnwritableError,
    RecordedError,
    RetryPolicy,
    RunStatus,
    SQLiteStore,
    StreamConflictError,
    Task,
    TaskCancelled,
    TaskContext,
    TaskEvent,
    TaskExecutor,
    TaskGraph,
    TaskStatus,
    TaskType,
    WorkflowError,
)
from ttasks.log.files import lock_path
from ttasks.log.lock import WriterLock
from ttasks.log.verify import verify
from ttasks.runtime import executions
from ttasks.stores.ledger import LedgerTasks

PATIENCE_S = 20
Work = Callable[[TaskContext], Any]


@pytest.fixture(autouse=True)
def _outside_git(outside_git: Path) -> None:
    """No description of a git checkout comes between."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    with SQLiteStore(tmp_path / "ledger.db") as store:
        yield store
        assert verify(store._readers).problems == []


@pytest.fixture
def other(tmp_path: Path) -> Iterator[SQLiteStore]:
    with SQLiteStore(tmp_path / "other.db") as store:
        yield store
        assert verify(store._readers).problems == []


def executor(store: Any, work: Work = lambda context: "done") -> TaskExecutor:
    made = TaskExecutor(store)
    made.register(TaskType.PROMPT, work)
    return made


def until(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, "it never was"
        threading.Event().wait(0.005)


def types(store: SQLiteStore, task: Task) -> list[str]:
    return [event.type for event in store._readers.events(stream=f"task-{task.id}")]


# --- cancels of other processes --------------------------------------------------------------------------------------

CANCEL = "import sys; from ttasks import SQLiteStore; SQLiteStore(sys.argv[1]).tasks.cancel(sys.argv[2])"


def test_a_script_is_ended_as_soon_as_another_process_cancels_it(store: SQLiteStore) -> None:
    running = TaskExecutor(store)
    task = Task.bash("echo begun; sleep 1000")
    store.tasks.save(task)
    future = running.submit(task)
    until(lambda: running.is_running(task.id))
    subprocess.run([sys.executable, "-c", CANCEL, str(store.path), task.id], check=True)
    with pytest.raises(TaskCancelled):
        future.result(PATIENCE_S)
    assert task.is_cancelled


def test_a_retry_that_waits_is_ended_as_soon_as_another_process_cancels_it(store: SQLiteStore) -> None:
    running = TaskExecutor(store)
    task = Task.bash("exit 1")
    store.tasks.save(task)
    future = running.submit(task, retry_policy=RetryPolicy(2, 3600))
    until(lambda: task.is_failed)
    subprocess.run([sys.executable, "-c", CANCEL, str(store.path), task.id], check=True)
    with pytest.raises(TaskCancelled):
        future.result(PATIENCE_S)


CANCEL_GRAPH = "import sys; from ttasks import SQLiteStore; SQLiteStore(sys.argv[1]).graphs.cancel(sys.argv[2])"


def test_a_run_is_cancelled_as_soon_as_another_process_asks_for_it(store: SQLiteStore) -> None:
    graph = TaskGraph()
    slow = graph.add(Task.bash("sleep 1000"))
    child = graph.add(Task.bash("true"), after=[slow])
    cleanup = graph.add(Task.bash("true"), after=[child], finally_=True)
    running = TaskExecutor(store)
    thread = threading.Thread(target=graph.run, args=(running,))
    thread.start()
    until(lambda: running.is_running(slow.id))
    subprocess.run([sys.executable, "-c", CANCEL_GRAPH, str(store.path), graph.id], check=True)
    thread.join(PATIENCE_S)
    assert [task.status for task in (slow, child, cleanup)] == ["cancelled", "pending", "succeeded"]
    (run,) = store._readers.runs(graph.id)
    assert run.status is RunStatus.CANCELLED
    assert run.cancel_requested_by is not None


def test_a_graph_that_does_not_run_can_not_be_cancelled(store: SQLiteStore) -> None:
    graph = TaskGraph(title="idle")
    store.graphs.save(graph)
    with pytest.raises(ValueError, match=r"graph 'idle' .* is not running"):
        store.graphs.cancel(graph.id)
    with pytest.raises(KeyError):
        store.graphs.cancel("nobody")


def test_a_cancel_through_the_store_looks_again_when_the_task_was_started_meanwhile(store: SQLiteStore) -> None:
    go_on, started = threading.Event(), threading.Event()
    running = executor(store, lambda context: go_on.wait(PATIENCE_S))
    running.events.subscribe(lambda event: started.set())
    task = Task.prompt("work")
    store.tasks.save(task)
    load, futures = LedgerTasks.__getitem__, []

    def load_and_start(tasks: LedgerTasks, key: Any) -> Task:
        loaded = load(tasks, key)
        if not futures:
            futures.append(running.submit(task))
            assert started.wait(PATIENCE_S)
        return loaded

    with patch.object(LedgerTasks, "__getitem__", load_and_start):
        store.tasks.cancel(task.id)
    go_on.set()
    with pytest.raises(TaskCancelled):
        futures[0].result(PATIENCE_S)


def test_who_cancelled_what_did_not_run_is_recorded(store: SQLiteStore) -> None:
    for cancel in (
        lambda task: TaskExecutor(store).cancel(task),
        lambda task: store.tasks.cancel(task.id),
        lambda task: (task.cancel(), store.tasks.save(task)),
        lambda task: (task.transition_to(TaskStatus.CANCELLED), store.tasks.save(task)),
    ):
        task = Task.prompt("work")
        store.tasks.save(task)
        cancel(task)
        (*_, event) = store._readers.events(stream=f"task-{task.id}")
        assert "@" in (getattr(event.fact, "by", None) or ""), event


# --- handles that are overtaken --------------------------------------------------------------------------------------


def test_a_stale_handle_does_not_unhook_the_attempt_that_runs(store: SQLiteStore) -> None:
    running = TaskExecutor(store)
    task = Task.bash("sleep 1000")
    store.tasks.save(task)
    stale = store.tasks[task.id]
    future = running.submit(task)
    until(lambda: running.is_running(task.id))
    with pytest.raises((StreamConflictError, AlreadyRunningError)):
        running.execute(stale)
    assert running.is_running(task.id)
    running.cancel(stale)
    with pytest.raises(TaskCancelled):
        future.result(PATIENCE_S)


def test_a_conflict_says_what_came_first_and_who_recorded_it(store: SQLiteStore) -> None:
    task = Task.prompt("work")
    store.tasks.save(task)
    stale = store.tasks[task.id]
    task.title = "mine"
    store.tasks.save(task)
    stale.title = "theirs"
    with pytest.raises(StreamConflictError, match=r"the last is TaskRevised at \d+, recorded by .+@.+ \(process \d+\)"):
        store.tasks.save(stale)


@pytest.mark.parametrize("_", range(20))
def test_two_threads_that_execute_one_handle_run_it_once(store: SQLiteStore, _: int) -> None:
    both, entered, refused = threading.Barrier(2), list[str](), list[Exception]()

    def work(context: TaskContext) -> None:
        entered.append(context.id)
        until(lambda: len(refused) == 1)

    def execute() -> None:
        both.wait(PATIENCE_S)
        try:
            running.execute(task)
        except ValueError as refusal:
            refused.append(refusal)

    running, task = executor(store, work), Task.prompt("work")
    threads = [threading.Thread(target=execute) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert [type(refusal) for refusal in refused] == [AlreadyRunningError]
    assert "Cannot execute task with status 'running'" in str(refused[0])
    assert len(entered) == 1
    assert task.is_succeeded


@pytest.mark.parametrize("has_ledger", [True, False])
def test_a_graph_that_runs_is_not_run_again(store: SQLiteStore, has_ledger: bool) -> None:
    refused: list[Exception] = []

    def again(event: TaskEvent) -> None:
        if event.type == "started":
            try:
                graph.run(running)
            except ValueError as refusal:
                refused.append(refusal)

    graph = TaskGraph()
    graph.add(Task.prompt("work"))
    running = executor(store if has_ledger else None)
    running.events.subscribe(again)
    assert graph.run(running).ok
    assert [type(refusal) for refusal in refused] == [AlreadyRunningError]


def test_another_handle_of_a_graph_that_runs_is_refused(store: SQLiteStore) -> None:
    refused: list[Exception] = []

    def work(context: TaskContext) -> None:
        try:
            stale.run(running)
        except ValueError as refusal:
            refused.append(refusal)

    graph = TaskGraph()
    graph.add(Task.prompt("work"))
    store.graphs.save(graph)
    stale, running = store.graphs[graph.id], executor(store, work)
    assert graph.run(running).ok
    assert [type(refusal) for refusal in refused] == [AlreadyRunningError]


def test_a_task_cancelled_through_the_store_while_it_is_queued_never_runs(store: SQLiteStore) -> None:
    go_on = threading.Event()
    running = executor(store, lambda context: go_on.wait(PATIENCE_S))
    busy = [running.submit(Task.prompt("busy")) for _ in range(40)]
    task = Task.prompt("queued")
    store.tasks.save(task)
    future = running.submit(task)
    store.tasks.cancel(task.id)
    go_on.set()
    with pytest.raises(TaskCancelled):
        future.result(PATIENCE_S)
    assert task.is_cancelled
    for other_future in busy:
        other_future.result(PATIENCE_S)


# --- graphs that change while they run, and runs that break ----------------------------------------------------------


def test_a_task_that_is_added_while_its_graph_runs_waits_for_the_next_run(store: SQLiteStore) -> None:
    graph, running = TaskGraph(), executor(store, lambda context: extend())

    def extend() -> None:
        if len(graph) == 1:
            graph.add(Task.prompt("new"))

    graph.add(Task.prompt("first"))
    assert graph.run(running).run_status is RunStatus.SUCCEEDED
    assert [len(store.graphs[graph.id]), len(graph)] == [1, 2]
    assert not graph.ok
    assert graph.run(running).ok
    assert len(store.graphs[graph.id]) == 2


def test_a_run_goes_on_with_fewer_threads_where_the_system_has_no_more(store: SQLiteStore) -> None:
    start = threading.Thread.start

    def scarce(thread: threading.Thread) -> None:
        if thread.name == "ttasks-run-1":
            raise RuntimeError("can't start new thread")
        start(thread)

    graph = TaskGraph()
    for _ in range(6):
        graph.add(Task.prompt("work"))
    with patch.object(threading.Thread, "start", scarce):
        assert graph.run(executor(store), 6).ok


@pytest.mark.parametrize("scarce", ["ttasks-run", "ttasks-run-0"])
def test_a_run_without_any_thread_fails_and_can_be_run_again(store: SQLiteStore, scarce: str) -> None:
    start = threading.Thread.start

    def none(thread: threading.Thread) -> None:
        if thread.name == scarce:
            raise RuntimeError("can't start new thread")
        start(thread)

    graph = TaskGraph()
    graph.add(Task.prompt("work"))
    with patch.object(threading.Thread, "start", none), pytest.raises(RuntimeError, match="can't start new thread"):
        graph.run(executor(store))
    assert graph.run_status is not RunStatus.RUNNING
    assert graph.run(executor(store)).ok


def test_tasks_run_through_an_execute_that_was_replaced_on_the_instance() -> None:
    running, calls = executor(None), []
    execute = running.execute

    def spy(task: Task, *arguments: Any, **more: Any) -> Any:
        calls.append(task)
        return execute(task, *arguments, **more)

    running.execute = spy  # type: ignore[method-assign]
    graph = TaskGraph()
    task = graph.add(Task.prompt("work"))
    graph.run(running)
    assert calls == [task]


def test_tasks_run_through_an_execute_that_was_patched_on_the_class() -> None:
    graph = TaskGraph()
    task = graph.add(Task.prompt("work"))
    with patch.object(TaskExecutor, "execute") as execute:
        graph.run(executor(None))
    assert execute.call_args.args[0] is task


# --- ledgers that change ---------------------------------------------------------------------------------------------


def test_a_store_that_is_closed_while_a_task_runs_loses_nothing_of_its_result(tmp_path: Path) -> None:
    store, heard = SQLiteStore(tmp_path / "ledger.db"), []
    running = executor(store, lambda context: store.close() or "out")
    running.events.subscribe(lambda event: heard.append(event.type))
    task = Task.prompt("work")
    with pytest.raises(LedgerUnwritableError) as lost:
        running.execute(task)
    assert lost.value.result is not None
    assert lost.value.result.output == "out"
    assert heard == ["started", "persistence_failed"]
    with SQLiteStore(tmp_path / "ledger.db") as again:
        again.tasks.save(task)
        assert again.tasks[task.id].is_succeeded


def test_a_saved_task_that_is_run_without_a_ledger_is_saved_with_its_output(store: SQLiteStore) -> None:
    task = Task.bash("echo hello")
    store.tasks.save(task)
    TaskExecutor().execute(task)
    store.tasks.save(task)
    found = store.tasks[task.id].result
    assert found is not None
    assert found.output == "hello\n"
    assert types(store, task) == ["TaskCreated", "TaskImported", "TaskOutput"]


def test_what_another_ledger_took_over_is_not_pending_any_more(store: SQLiteStore, other: SQLiteStore) -> None:
    task = Task.prompt("work", title="one")
    store.tasks.save(task)
    task.title = "two"
    other.tasks.save(task)
    other.tasks.save(task)
    assert types(other, task) == ["TaskImported"]
    assert other.tasks[task.id].title == "two"


def test_a_graph_whose_ledger_was_lost_can_be_saved_into_another(tmp_path: Path, other: SQLiteStore) -> None:
    path = tmp_path / "lost.db"
    graph = TaskGraph()
    graph.add(Task.prompt("work"))
    with SQLiteStore(path) as lost, pytest.raises(LedgerUnwritableError):
        graph.run(executor(lost, lambda context: path.unlink()))
    other.graphs.save(graph)
    assert [task.status for task in other.graphs[graph.id]] == ["succeeded"]
    assert graph.run(executor(other)).ok


@pytest.mark.parametrize("mock", [Mock(spec=SQLiteStore), MagicMock(spec=SQLiteStore), create_autospec(SQLiteStore)])
def test_a_mock_is_no_ledger_whatever_it_claims(mock: Any) -> None:
    running = executor(mock)
    assert running.execute(Task.prompt("work")).output == "done"
    assert [type(error) for _, error in running.persistence_errors] == [AttributeError] * 2  # instances have `tasks`


# --- odd handlers, subscribers, stores, policies ---------------------------------------------------------------------


class Abort(TaskCancelled):
    """A cancel of a user's own, which takes no text."""

    def __init__(self) -> None:
        pass


def test_a_cancel_of_a_user_s_own_class_is_a_cancel() -> None:
    def work(context: TaskContext) -> None:
        raise Abort

    task = Task.prompt("work")
    with pytest.raises(TaskCancelled):
        executor(None, work).execute(task)
    assert task.is_cancelled


class Odd(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


def test_what_a_foreign_store_raises_without_words_breaks_nothing(capsys: Any) -> None:
    mock = Mock()
    mock.tasks.save.side_effect = mock.graphs.save.side_effect = Odd()
    running = executor(mock)
    assert running.execute(Task.prompt("work")).output == "done"
    graph = TaskGraph()
    graph.add(Task.prompt("work"))
    with pytest.warns(RuntimeWarning, match="Odd, which has no text"):
        assert graph.run(running).ok
    assert running.events.errors == []


@pytest.mark.parametrize("error", [KeyError, SystemExit])
def test_a_retry_on_that_raises_whatever_it_is_leaves_no_task_running(store: SQLiteStore, error: Any) -> None:
    def fail(context: TaskContext) -> None:
        raise ValueError("boom")

    def broken(raised: BaseException) -> bool:
        raise error

    task = Task.prompt("work")
    with pytest.raises(error):
        executor(store, fail).execute(task, retry_policy=RetryPolicy(2, retry_on=broken))
    assert task.is_failed
    assert store.tasks[task.id].is_failed


def test_progress_after_the_end_is_refused(store: SQLiteStore) -> None:
    contexts: list[TaskContext] = []
    heard: list[str] = []
    running = executor(store, contexts.append)
    running.events.subscribe(lambda event: heard.append(str(event.type)))
    running.execute(Task.prompt("work"))
    with pytest.raises(RuntimeError, match="attempt 1 has ended"):
        contexts[0].emit_progress(5)
    assert heard == ["started", "succeeded"]


@pytest.mark.parametrize(("task", "parent"), [("x", "y"), (Task.prompt("x"), 5), (Task.prompt("x"), Task.prompt("y"))])
def test_only_tasks_are_blocked_and_only_by_ids(store: SQLiteStore, task: Any, parent: Any) -> None:
    with pytest.raises(TypeError, match="must be a"):
        executor(store).mark_blocked(task, parent)
    assert len(store.tasks) == 0


def test_shutdown_from_a_callback_of_a_future_returns() -> None:
    running, raised, done = executor(None), [], threading.Event()

    def shut(future: Any) -> None:
        try:
            running.shutdown()
        except BaseException as error:
            raised.append(error)
        done.set()

    running.submit(Task.prompt("work")).add_done_callback(shut)
    assert done.wait(PATIENCE_S)
    assert raised == []


def test_shutdown_from_a_subscriber_that_hears_output_returns() -> None:
    running = TaskExecutor()
    running.events.subscribe(lambda event: running.shutdown() if event.type == "output" else None)
    assert running.submit(Task.bash("echo hi")).result(PATIENCE_S).output == "hi\n"
    assert running.events.errors == []


def test_a_task_that_runs_by_hand_keeps_its_graph_from_running() -> None:
    graph = TaskGraph()
    graph.add(Task.prompt("work", title="a")).transition_to(TaskStatus.RUNNING)
    with pytest.raises(ValueError, match="task 'a' is RUNNING"):
        graph.run(executor(None))


class Mine(TaskExecutor):
    def __init__(self, store: Any = None) -> None:
        super().__init__(store)
        self.log: list[str] = []


def test_an_empty_executor_of_a_subclass_is_made_by_it() -> None:
    mine = Mine.empty()
    assert (type(mine), mine.log) == (Mine, [])
    assert not any(mine.is_registered(kind) for kind in TaskType)


def test_a_ledger_that_a_stranger_locks_keeps_no_other_ledger_from_being_durable(
    store: SQLiteStore, tmp_path: Path
) -> None:
    with SQLiteStore(tmp_path / "locked.db", busy_timeout=60) as locked:
        stranger = sqlite3.connect(tmp_path / "locked.db", isolation_level=None)
        os.mkfifo("fifo")
        os.mkfifo("fifo2")
        first = TaskExecutor(locked).submit(Task.bash("echo held; read line < fifo"))
        until(lambda: list(locked._readers.events(type="TaskStarted")))
        stranger.execute("BEGIN IMMEDIATE")
        second = TaskExecutor(store).submit(Task.bash("echo seen; read line < fifo2"))
        until(lambda: list(store._readers.events(type="TaskOutput")))
        Path("fifo2").write_text("go\n")
        assert second.result(PATIENCE_S).output == "seen\n"
        stranger.execute("ROLLBACK")
        stranger.close()
        Path("fifo").write_text("go\n")
        assert first.result(PATIENCE_S).output == "held\n"


def test_a_loaded_handle_shows_the_errors_of_what_it_shows_not_of_what_came_later(store: SQLiteStore) -> None:
    def fail(context: TaskContext) -> None:
        raise ValueError(str(context.attempt) * 9000)

    running, task = executor(store, fail), Task.prompt("work")
    with pytest.raises(ValueError, match="1" * 9000):
        running.execute(task)
    early = store.tasks[task.id]
    with pytest.raises(ValueError, match="2" * 9000):
        running.execute(task)
    late = store.tasks[task.id]
    for handle, error in ((early, "1" * 9000), (late, "2" * 9000)):
        assert handle.error == error
        assert handle.result is not None
        assert handle.result.error == error


def test_what_a_failed_script_printed_is_not_recorded_again_with_the_end_of_the_run(store: SQLiteStore) -> None:
    graph = TaskGraph()
    task = graph.add(Task.bash("seq 20000 >&2; exit 1"))
    graph.run(TaskExecutor(store))
    (end,) = store._readers.events(type="GraphRunFinished")
    assert len(str(end.fact)) < 10_000
    assert str(store.graphs[graph.id].errors[task.id]).endswith("\n19999\n20000\n")


# --- copies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("handle", [Task.prompt("x"), TaskGraph()])
@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, pickle.dumps])
def test_handles_are_not_copied(handle: Any, make: Any) -> None:
    with pytest.raises(TypeError, match="can't be copied or pickled: save it, and load it"):
        make(handle)


@pytest.mark.parametrize(
    "error",
    [
        StreamConflictError("task-x", 1, 2, by="the last is TaskRevised at 5"),
        WorkflowError(Path("f.yaml"), [(3, "build", "unknown key")]),
        RecordedError("builtins.ValueError", "boom"),
        TaskCancelled("gone"),
    ],
)
def test_errors_are_copied_with_all_they_say(error: Exception) -> None:
    for twin in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert vars(twin) == vars(error)


def test_a_loaded_result_is_pickled_with_its_output(store: SQLiteStore) -> None:
    task = Task.bash("echo out; echo err >&2")
    TaskExecutor(store).execute(task)
    result = pickle.loads(pickle.dumps(store.tasks[task.id].result))
    assert (result.output, result.error) == ("out\n", "err\n")


def test_an_event_with_a_record_can_be_hashed(store: SQLiteStore) -> None:
    heard: list[TaskEvent] = []
    running = executor(store)
    running.events.subscribe(heard.append)
    running.execute(Task.prompt("work", env={"A": "b"}))
    assert len(set(heard)) == 2


@pytest.mark.parametrize("cancel", [lambda executor, task: executor.cancel(task), lambda _, task: task.cancel()])
def test_a_cancel_is_recorded_before_what_runs_hears_of_it(
    store: SQLiteStore, cancel: Callable[[TaskExecutor, Task], None]
) -> None:
    task, executor = Task.bash(""), TaskExecutor.empty(store)
    recorded: list[list[str]] = []

    def work(context: TaskContext) -> None:
        assert context._port is not None
        context._port.on_cancel(lambda: recorded.append([event.type for event in store.history(task)]))
        cancel(executor, task)

    executor.register(TaskType.BASH, work)
    with pytest.raises(TaskCancelled):
        executor.execute(task)

    assert recorded == [["TaskCreated", "TaskStarted", "TaskCancelRequested"]]
    assert [event.type for event in store.history(task)] == [*recorded[0], "TaskCancelled"]


def test_a_ledger_that_is_locked_does_not_keep_a_task_from_being_cancelled(
    store: SQLiteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executions, "REQUEST_WAIT_S", 0.05)
    task, executor = Task.bash(""), TaskExecutor.empty(store)
    lock, heard = WriterLock(lock_path(tmp_path / "ledger.db")), threading.Event()

    def work(context: TaskContext) -> None:
        assert context._port is not None
        context._port.on_cancel(heard.set)
        assert lock.acquire(PATIENCE_S)
        try:
            executor.cancel(task)
            assert heard.is_set()
        finally:
            lock.release()

    executor.register(TaskType.BASH, work)
    with pytest.raises(TaskCancelled):
        executor.execute(task)

    types = [event.type for event in store.history(task)]
    assert types == ["TaskCreated", "TaskStarted", "TaskCancelRequested", "TaskCancelled"]
