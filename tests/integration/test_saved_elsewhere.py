"""A running task or graph that is saved into another store: its executor keeps it, and the other has a snapshot."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ttasks import (
    AlreadyRunningError,
    InMemoryStore,
    RetryPolicy,
    SQLiteStore,
    Task,
    TaskCancelled,
    TaskContext,
    TaskEvent,
    TaskEventType,
    TaskExecutor,
    TaskGraph,
    TaskStatus,
    TaskType,
)
from ttasks.log.verify import verify
from ttasks.reentrance import is_mine
from ttasks.runtime.attempt import Attempt

Ledger = SQLiteStore | InMemoryStore
Make = Callable[[str], Ledger]


@pytest.fixture(params=["file", "memory"])
def make(request: pytest.FixtureRequest, tmp_path: Path, outside_git: Path) -> Iterator[Make]:
    made: list[Ledger] = []

    def make_store(name: str) -> Ledger:
        made.append(SQLiteStore(tmp_path / f"{name}.db") if request.param == "file" else InMemoryStore())
        return made[-1]

    yield make_store
    for store in made:
        assert verify(store._readers).problems == []  # type: ignore[arg-type]
        store.close()


def executor_of(work: Callable[[TaskContext], Any], store: Any = None) -> TaskExecutor:
    executor = TaskExecutor.empty(store)
    executor.register(TaskType.BASH, work)
    return executor


def types_of(store: Ledger, what: Task | TaskGraph) -> list[str]:
    return [event.type for event in store.history(what)]


def in_a_thread(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


class Delegating:
    """A store of a user's own, which gives what it is told to one of the library's."""

    def __init__(self, store: Ledger) -> None:
        self.tasks = store.tasks
        self.graphs = store.graphs


def test_a_subscriber_that_mirrors_each_event_leaves_both_ledgers_with_the_end(make: Make) -> None:
    store, mirror = make("store"), make("mirror")
    executor = TaskExecutor(store)
    executor.events.subscribe(lambda event: mirror.tasks.save(event.task))
    task = Task.bash("echo one; echo two")

    executor.execute(task)

    assert executor.events.errors == []
    assert types_of(store, task) == ["TaskCreated", "TaskStarted", "ProcessSpawned", "TaskOutput", "TaskSucceeded"]
    assert types_of(mirror, task) == ["TaskImported", "TaskImported", "TaskOutput"]  # nothing for a line of output
    for ledger in (store, mirror):
        shown = ledger.tasks[task.id]
        assert shown.is_succeeded
        assert shown.result is not None
        assert shown.result.output == "one\ntwo\n"


def test_after_the_end_the_task_still_belongs_to_the_ledger_that_ran_it(make: Make) -> None:
    store, mirror = make("store"), make("mirror")
    executor = executor_of(lambda _: "done", store)
    executor.events.subscribe(lambda event: mirror.tasks.save(event.task))
    task = Task.bash("")
    executor.execute(task)
    recorded = types_of(store, task), types_of(mirror, task)

    store.tasks.save(task)
    mirror.tasks.save(task)

    assert (types_of(store, task), types_of(mirror, task)) == recorded


def test_a_failed_attempt_and_its_retry_reach_both_ledgers(make: Make) -> None:
    store, mirror = make("store"), make("mirror")
    executor = executor_of(lambda context: 1 / 0 if context.attempt == 1 else "done", store)
    executor.events.subscribe(lambda event: mirror.tasks.save(event.task))
    task = Task.bash("")

    executor.execute(task, retry_policy=RetryPolicy(2))

    assert executor.events.errors == []
    assert [ledger.tasks[task.id].status for ledger in (store, mirror)] == [TaskStatus.SUCCEEDED] * 2


def test_a_store_of_a_users_own_that_delegates_to_a_ledger_has_the_end(make: Make) -> None:
    ledger = make("ledger")
    executor = executor_of(lambda _: "done", Delegating(ledger))
    task = Task.bash("")

    executor.execute(task)

    assert executor.persistence_errors == []
    assert (task.status, ledger.tasks[task.id].status) == (TaskStatus.SUCCEEDED, TaskStatus.SUCCEEDED)
    recorded = types_of(ledger, task)
    ledger.tasks.save(task)
    assert types_of(ledger, task) == recorded


def test_a_graph_run_under_a_store_that_delegates_ends_right_in_both(make: Make) -> None:
    ledger = make("ledger")

    def work(context: TaskContext) -> None:
        if context.payload == "fails":
            raise RuntimeError

    graph = TaskGraph()
    good, bad, behind = Task.bash("good"), Task.bash("fails"), Task.bash("behind")
    graph.add(good)
    graph.add(bad, after=[good])
    graph.add(behind, after=[bad])
    executor = executor_of(work, Delegating(ledger))

    graph.run(executor)

    assert executor.persistence_errors == executor.graph_persistence_errors == []
    expected = [TaskStatus.SUCCEEDED, TaskStatus.FAILED, TaskStatus.BLOCKED]
    assert [task.status for task in graph] == expected
    assert [ledger.tasks[task.id].status for task in graph] == expected


def test_a_graph_that_another_thread_saves_elsewhere_in_mid_run_stays_where_it_runs(make: Make) -> None:
    store, other = make("store"), make("other")
    graph = TaskGraph(title="nightly")
    first, second = Task.bash("first"), Task.bash("second")
    graph.add(first)
    graph.add(second, after=[first])
    late = Task.bash("late")
    seen: list[list[TaskStatus]] = []

    def work(context: TaskContext) -> None:
        if context.payload == "second":
            graph.add(late)
        in_a_thread(lambda: other.graphs.save(graph))
        seen.append([other.tasks[task.id].status for task in (first, second)])
        assert other.interrupted() == []

    graph.run(executor_of(work, store))

    assert seen == [[TaskStatus.RUNNING, TaskStatus.PENDING], [TaskStatus.SUCCEEDED, TaskStatus.RUNNING]]
    assert types_of(store, graph)[-1] == "GraphRunFinished"
    assert [types_of(store, task) for task in (first, second)] == [["TaskCreated", "TaskStarted", "TaskSucceeded"]] * 2
    store.graphs.save(graph)
    assert late in store.graphs[graph.id]


def test_a_handler_that_saves_its_own_task_without_a_ledger_does_not_lose_its_end(make: Make) -> None:
    ledger = make("ledger")
    task = Task.bash("")

    def work(_: TaskContext) -> str:
        ledger.tasks.save(task)
        return str(ledger.tasks[task.id].status)

    result = executor_of(work).execute(task)

    assert (result.output, task.status) == ("running", TaskStatus.SUCCEEDED)
    ledger.tasks.save(task)
    assert ledger.tasks[task.id].is_succeeded


@pytest.mark.parametrize("by", ["the handle that runs", "a loaded handle"])
def test_a_running_task_that_is_deleted_and_saved_again_comes_back_as_its_runner_knows_it(make: Make, by: str) -> None:
    store = make("store")
    task = Task.bash("")

    def work(_: TaskContext) -> str:
        handle = task if by == "the handle that runs" else store.tasks[task.id]
        del store.tasks[task.id]
        store.tasks.save(handle)
        assert store.interrupted() == []
        return str(store.tasks[task.id].status)

    result = executor_of(work, store).execute(task)

    assert (result.output, task.status, store.tasks[task.id].status) == (
        "running",
        TaskStatus.SUCCEEDED,
        TaskStatus.SUCCEEDED,
    )


def test_a_stale_handle_brings_a_deleted_task_back_running_and_not_as_it_was_before(make: Make, tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "stale.db") as store:
        task = Task.bash("")
        store.tasks.save(task)
        stale = store.tasks[task.id]
        stale.title = "renamed"

        def work(_: TaskContext) -> None:
            del store.tasks[task.id]
            store.tasks.save(stale)

        executor_of(work, store).execute(task)

        assert (store.tasks[task.id].status, store.tasks[task.id].title) == (TaskStatus.SUCCEEDED, "renamed")


def test_a_task_that_is_deleted_and_saved_while_its_retry_waits_keeps_its_retry_and_its_output(make: Make) -> None:
    store = make("store")
    executor = TaskExecutor(store)
    task = Task.bash("""echo "try $TRY"; [ -e done ] && exit 0; touch done; exit 1""", env={"TRY": "one"})
    shown: list[str] = []

    def save_again(event: TaskEvent) -> None:
        if event.type is TaskEventType.FAILED:
            del store.tasks[task.id]
            store.tasks.save(task)
            result = store.tasks[task.id].result
            shown.append(result.output if result is not None else "")

    executor.events.subscribe(save_again)
    executor.execute(task, retry_policy=RetryPolicy(2))

    assert executor.events.errors == []
    assert shown == ["try one\n"]
    assert store.tasks[task.id].is_succeeded


def test_nothing_starts_a_snapshot_of_a_task_that_runs_elsewhere(make: Make) -> None:
    store, other = make("store"), make("other")
    started: list[str] = []
    graph = TaskGraph()
    task = Task.bash("", on_interrupted="rerun")
    graph.add(task)

    def work(context: TaskContext) -> None:
        started.append(context.id)
        other.graphs.save(graph)
        again = executor_of(lambda again: started.append(again.id), other)
        assert again.resume() == []
        with pytest.raises(AlreadyRunningError):
            again.execute(other.tasks[task.id])
        with pytest.raises(AlreadyRunningError):
            other.graphs[graph.id].run(again)

    graph.run(executor_of(work, store))

    assert (graph.ok, started, graph.errors) == (True, [task.id], {})


def test_a_snapshot_whose_end_was_never_saved_waits_for_a_person(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "other.db") as other:
        task = Task.bash("", on_interrupted="rerun", title="mirrored")
        executor_of(lambda _: other.tasks.save(task)).execute(task)

        (left,) = other.interrupted()
        again = executor_of(lambda _: pytest.fail("it ran already"), other)

        assert (left.running, left.asking) == ((), (task.id,))
        assert left.why == "attempt 1 was recorded elsewhere, and its end was not saved here"
        assert again.resume() == []
        again.resume(task.id)
        assert other.tasks[task.id].is_interrupted
        other.tasks.resolve(task.id, "succeeded")
        assert other.tasks[task.id].is_succeeded


def test_a_snapshot_that_a_dead_process_left_is_not_started_again(tmp_path: Path) -> None:
    script = f"""
        import os, signal
        from ttasks import *
        other = SQLiteStore({str(tmp_path / "other.db")!r})
        task = Task.bash("")
        def work(context):
            other.tasks.save(task)
            os.kill(os.getpid(), signal.SIGKILL)
        executor = TaskExecutor.empty(SQLiteStore({str(tmp_path / "store.db")!r}))
        executor.register(TaskType.BASH, work)
        executor.execute(task)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False, cwd=tmp_path)

    with SQLiteStore(tmp_path / "other.db") as other, SQLiteStore(tmp_path / "store.db") as store:
        ran: list[str] = []
        executor_of(lambda _: ran.append("other"), other).resume()
        assert (ran, [left.can_go_on for left in other.interrupted()]) == ([], [False])
        executor_of(lambda _: ran.append("store"), store).resume(force_handlers=True)
        assert ran == ["store"]


def test_a_cancel_beside_the_snapshot_reaches_the_runner_and_both_ledgers(make: Make) -> None:
    store, mirror = make("store"), make("mirror")
    executor = TaskExecutor(store)
    executor.events.subscribe(lambda event: mirror.tasks.save(event.task))
    task = Task.bash("sleep 60")

    def cancel(event: TaskEvent) -> None:
        if event.type is TaskEventType.STARTED:
            mirror.tasks.cancel(task.id)

    executor.events.subscribe(cancel)
    with pytest.raises(TaskCancelled):
        executor.execute(task)

    assert executor.events.errors == []
    assert [ledger.tasks[task.id].status for ledger in (store, mirror)] == [TaskStatus.CANCELLED] * 2


def test_a_copy_of_a_running_task_in_another_ledger_leaves_its_end_alone(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "store.db") as store, SQLiteStore(tmp_path / "other.db") as other:
        task = Task.bash("")

        def work(_: TaskContext) -> None:
            other.tasks.save(store.tasks[task.id])
            assert other.interrupted() == []
            assert other.tasks[task.id].is_running

        executor_of(work, store).execute(task)

        assert store.tasks[task.id].is_succeeded
        assert [left.can_go_on for left in other.interrupted()] == [False]


def test_a_task_may_end_while_a_snapshot_of_it_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SQLiteStore(tmp_path / "store.db") as store, SQLiteStore(tmp_path / "other.db") as other:
        task, recorded, saving, over = Task.bash(""), threading.Event(), threading.Event(), threading.Event()
        settled, is_kept_from = Attempt.settled, Task._is_kept_from

        def wait_for_save(attempt: Attempt) -> None:  # its end is recorded, and the task not let go yet
            settled(attempt)
            recorded.set()
            assert saving.wait(30)

        def look(task: Task, ledger: str) -> bool:
            is_kept = is_kept_from(task, ledger)
            if is_kept and not is_mine(task._lock):  # now the task may be let go
                saving.set()
                assert over.wait(30)
            return is_kept

        def execute() -> None:
            executor_of(lambda _: None, store).execute(task)
            over.set()

        monkeypatch.setattr(Attempt, "settled", wait_for_save)
        monkeypatch.setattr(Task, "_is_kept_from", look)
        thread = threading.Thread(target=execute, daemon=True)
        thread.start()
        assert recorded.wait(30)
        try:
            other.tasks.save(task)
        finally:
            saving.set()
            thread.join(30)

        assert [ledger.tasks[task.id].status for ledger in (store, other)] == [TaskStatus.SUCCEEDED] * 2
        assert other._log is not None and other._log._watchers == {}
