"""Running tasks and graphs for real: what is recorded, what subscribers hear, what is left."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from freezegun import freeze_time

from ttasks import (
    AlreadyRunningError,
    GraphError,
    InMemoryStore,
    RetryPolicy,
    SQLiteStore,
    StreamConflictError,
    Task,
    TaskCancelled,
    TaskContext,
    TaskEvent,
    TaskExecutionError,
    TaskExecutor,
    TaskGraph,
    TaskStatus,
    TaskTimeoutError,
    TaskType,
)
from ttasks.log.verify import verify

CAMPAIGN = os.environ.get("TTASKS_CAMPAIGN") == "full"


@pytest.fixture(params=["file", "memory", "live", "none"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    if request.param == "none":
        yield None
        return
    made = InMemoryStore() if request.param == "live" else None
    if made is None:
        made = SQLiteStore(":memory:" if request.param == "memory" else tmp_path / "ledger.db")
    with made:
        yield made
        assert verify(made._readers).problems == []


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SQLiteStore]:
    with SQLiteStore(tmp_path / "ledger.db") as made:
        yield made
        assert verify(made._readers).problems == []


def executor_with(store: Any, handler: Any) -> TaskExecutor:
    executor = TaskExecutor.empty(store)
    executor.register(TaskType.BASH, handler)
    return executor


def kinds(events: list[TaskEvent]) -> list[str]:
    return [str(event.type) for event in events]


def test_a_handler_that_prints_nothing_publishes_exactly_started_and_succeeded(store: Any) -> None:
    executor, heard = executor_with(store, lambda context: 41), []
    executor.events.subscribe(heard.append)
    task = Task.bash("x")
    result = executor.execute(task)
    assert kinds(heard) == ["started", "succeeded"]
    assert (result.raw, result.output, result.status, result.termination_reason) == (41, "", "succeeded", None)
    assert task.result is result
    assert all((event.record is not None) == (store is not None) for event in heard)


def test_every_lifecycle_event_is_in_the_file_before_anybody_hears_of_it(tmp_path: Path) -> None:
    path, seen = tmp_path / "ledger.db", []

    def look(event: TaskEvent) -> None:
        with contextlib.closing(sqlite3.connect(path)) as connection:
            (last,) = connection.execute("SELECT type FROM events ORDER BY position DESC LIMIT 1").fetchone()
            seen.append((str(event.type), last))

    with SQLiteStore(path) as store:
        executor = executor_with(store, lambda context: look_from_handler())

        def look_from_handler() -> None:
            with contextlib.closing(sqlite3.connect(path)) as connection:
                assert connection.execute("SELECT status FROM attempts").fetchall() == [("running",)]

        executor.events.subscribe(look)
        executor.execute(Task.bash("x"))
    assert seen == [("started", "TaskStarted"), ("succeeded", "TaskSucceeded")]


def test_a_failure_is_raised_again_recorded_and_may_be_tried_again(store: Any) -> None:
    attempts: list[int] = []

    def handler(context: TaskContext) -> str:
        attempts.append(context.attempt)
        if len(attempts) == 1:
            raise KeyError("lost")
        return "found"

    executor, task = executor_with(store, handler), Task.bash("x")
    with pytest.raises(KeyError):
        executor.execute(task)
    assert (task.status, task.error, task.result.termination_reason) == (TaskStatus.FAILED, "'lost'", "handler")
    assert executor.execute(task).output == "found"
    assert (attempts, task.attempts, task.error) == ([1, 2], 2, None)
    with pytest.raises(ValueError, match="Cannot execute task with status 'succeeded'"):
        executor.execute(task)


def test_retries_have_events_and_rows_of_their_own(ledger: SQLiteStore) -> None:
    def handler(context: TaskContext) -> None:
        if context.attempt < 3:
            raise OSError("again")

    executor, heard, task = executor_with(ledger, handler), [], Task.bash("x")
    executor.events.subscribe(heard.append)
    executor.execute(task, retry_policy=RetryPolicy(3, 0.001))
    assert kinds(heard) == ["started", "failed", "started", "failed", "started", "succeeded"]
    rows = [(each.attempt, each.retry, str(each.status)) for each in ledger._readers.attempts(task.id)]
    assert rows == [(1, 0, "failed"), (2, 1, "failed"), (3, 2, "succeeded")]


def test_a_type_without_a_handler_fails_the_task_and_only_says_failed(store: Any) -> None:
    executor, heard, task = TaskExecutor.empty(store), [], Task.bash("x")
    executor.events.subscribe(heard.append)
    with pytest.raises(ValueError, match="No handler registered for task type 'bash'"):
        executor.execute(task, retry_policy=RetryPolicy(5))
    assert (kinds(heard), heard[0].previous_status, task.attempts) == (["failed"], TaskStatus.PENDING, 1)


def test_a_cancel_from_a_subscriber_ends_the_process_and_is_published_once(store: Any) -> None:
    executor, heard, task = TaskExecutor(store), [], Task.bash("echo ready; sleep 100", title="t")

    def on_event(event: TaskEvent) -> None:
        heard.append(event)
        if event.output_chunk == "ready\n":
            executor.cancel(task)

    executor.events.subscribe(on_event)
    with pytest.raises(TaskCancelled, match=f"Task '{task.id}' was cancelled"):
        executor.execute(task)
    assert kinds(heard) == ["started", "output", "cancelled"]
    assert (task.status, task.result.output, task.result.termination_reason) == ("cancelled", "ready\n", "cancelled")
    executor.cancel(task)


def test_a_cancelled_retry_wait_ends_at_once(store: Any) -> None:
    executor = executor_with(store, lambda context: 1 / 0)
    task = Task.bash("x")
    executor.events.subscribe(lambda event: event.type == "failed" and task.cancel())
    with pytest.raises(TaskCancelled):
        executor.execute(task, retry_policy=RetryPolicy(2, 1000))
    assert (task.status, task.attempts, task.error) == (TaskStatus.CANCELLED, 1, "division by zero")


def test_a_task_that_has_not_started_is_cancelled_with_a_result_and_one_event(store: Any) -> None:
    executor, heard, task = TaskExecutor(store), [], Task.bash("x")
    executor.events.subscribe(heard.append)
    executor.cancel(task)
    executor.cancel(task)
    assert (kinds(heard), task.result.status, task.attempts) == (["cancelled"], TaskStatus.CANCELLED, 0)


def test_a_cancel_through_the_store_reaches_the_running_attempt(ledger: SQLiteStore) -> None:
    def handler(context: TaskContext) -> str:
        ledger.tasks.cancel(context.id)
        assert context.cancelled
        return "ignored"

    task = Task.bash("x")
    with pytest.raises(TaskCancelled):
        executor_with(ledger, handler).execute(task)
    types = [event.type for event in ledger._readers.events(stream=f"task-{task.id}")]
    assert types == ["TaskCreated", "TaskStarted", "TaskCancelRequested", "TaskCancelled"]


def test_a_stale_handle_can_not_run_or_save(ledger: SQLiteStore) -> None:
    executor, entered = executor_with(ledger, lambda context: entered.append(1)), []
    task = Task.bash("x")
    ledger.tasks.save(task)
    one, two = ledger.tasks[task.id], ledger.tasks[task.id]
    one.title = "first"
    ledger.tasks.save(one)
    two.title = "second"
    with pytest.raises(StreamConflictError):
        ledger.tasks.save(two)
    with pytest.raises(StreamConflictError):
        executor.execute(task)
    assert entered == []


def test_a_task_that_ran_without_a_ledger_is_saved_with_its_result_and_output(ledger: SQLiteStore) -> None:
    task = Task.bash("echo out; echo err >&2; exit 3")
    with pytest.raises(TaskExecutionError):
        TaskExecutor().execute(task)
    ledger.tasks.save(task)
    loaded = ledger.tasks[task.id]
    assert (loaded.status, loaded.result.output, loaded.error, loaded.attempts) == ("failed", "out\n", "err\n", 1)
    types = [event.type for event in ledger._readers.events(stream=f"task-{task.id}")]
    assert types == ["TaskImported", "TaskOutput"]


def test_long_errors_are_whole_after_loading_but_cut_in_rows(ledger: SQLiteStore) -> None:
    executor = TaskExecutor(ledger)
    printed = Task.bash("head -c 100000 /dev/zero | tr '\\0' e >&2; exit 1")
    with pytest.raises(TaskExecutionError):
        executor.execute(printed)
    raised = Task.bash("x")
    with pytest.raises(ValueError, match="eee"):
        executor_with(ledger, lambda context: (_ for _ in ()).throw(ValueError("e" * 100_000))).execute(raised)
    for task in (printed, raised):
        assert ledger._readers.task(task.id).error == "e" * 4096
        assert task.error == ledger.tasks[task.id].error == ledger.tasks[task.id].result.error == "e" * 100_000


# --- bash ------------------------------------------------------------------------------------------------------------


def live_members(group: int) -> list[int]:
    found = []
    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


@pytest.mark.parametrize("frozen", [False, True])
def test_a_time_out_ends_grandchildren_and_keeps_what_was_printed(ledger: SQLiteStore, frozen: bool) -> None:
    stubborn = "" if frozen else "trap '' TERM;"
    task = Task.bash(f"echo $$; ({stubborn} sleep 100) & sleep 100 & echo begun; wait", timeout=0.3)
    with freeze_time("2026-01-01") if frozen else contextlib.nullcontext(), pytest.raises(TaskTimeoutError) as late:
        TaskExecutor(ledger).execute(task)
    assert str(late.value) == task.error == "Task timed out after 0.3 seconds"
    group, begun = task.result.output.split()
    assert begun == "begun" and live_members(int(group)) == []
    assert (task.result.termination_reason, late.value.completed.stdout) == ("timeout", task.result.output)


def test_what_holds_the_output_open_is_waited_for_without_a_limit_and_ended_with_one(store: Any) -> None:
    executor = TaskExecutor(store)
    assert executor.execute(Task.bash("(sleep 0.2; echo late) & echo early")).output == "early\nlate\n"
    with pytest.raises(TaskTimeoutError):
        executor.execute(Task.bash("sleep 100 & echo early", timeout=0.3))


def test_scripts_get_cwd_env_a_clean_stdin_and_the_name_of_their_attempt(tmp_path: Path, ledger: SQLiteStore) -> None:
    script = 'pwd; echo "$A $TOKEN"; cat; echo "$TTASKS_ATTEMPT"'
    task = Task.bash(script, cwd=str(tmp_path), env={"A": "b", "TOKEN": "s3cret"})
    lines = TaskExecutor(ledger).execute(task).output.splitlines()
    assert lines[:2] == [str(tmp_path), "b s3cret"]
    (start,) = ledger._readers.events(stream=f"task-{task.id}", type="TaskStarted")
    assert lines[2] == f"{ledger._readers.ledger()}:{start.position}"


@pytest.mark.parametrize(
    ("task", "text"),
    [
        (Task.bash("exit 7"), "exited with code 7"),
        (Task.bash("echo ' said ' >&2; exit 1"), " said \n"),
        (Task.bash("true", cwd="/no/such/folder"), "the folder '/no/such/folder' (cwd) does not exist"),
        (Task.bash("a\0b"), "holds a NUL character"),
    ],
)
def test_a_script_that_fails_says_why(task: Task, text: str) -> None:
    with pytest.raises(TaskExecutionError) as failed:
        TaskExecutor().execute(task)
    assert text in str(failed.value) and task.error == str(failed.value)


def test_bad_utf_8_a_missing_line_end_and_a_huge_script_come_through(ledger: SQLiteStore) -> None:
    executor, lines = TaskExecutor(ledger), []
    executor.events.subscribe(lambda event: lines.append(event.output_chunk))
    assert executor.execute(Task.bash("printf 'a\\n\\377b\\nend'")).output == "a\n\ufffdb\nend"
    assert [line for line in lines if line] == ["a\n", "\ufffdb\n", "end"]
    huge = Task.bash("# " + "x" * 1_000_000 + "\necho done")
    assert executor.execute(huge).output == "done\n"
    assert ledger.tasks[huge.id].payload == huge.payload


@pytest.mark.campaign
def test_much_output_passes_through_and_the_ledger_grows_by_about_that(tmp_path: Path) -> None:
    size = 100_000_000 if CAMPAIGN else 5_000_000
    path = tmp_path / "ledger.db"
    with SQLiteStore(path) as store:
        task = Task.bash(f"yes 'a line of output, as a script prints it' | head -c {size}")
        assert len(TaskExecutor(store).execute(task).output) == size
        assert len(store.tasks[task.id].result.output) == size
    assert path.stat().st_size < size * 1.15 + 500_000


def test_output_is_durable_while_the_script_still_runs(tmp_path: Path) -> None:
    path, go_on = tmp_path / "ledger.db", tmp_path / "go"
    os.mkfifo(go_on)
    with SQLiteStore(path) as store:
        future = TaskExecutor(store).submit(Task.bash(f"echo early; cat {go_on}; echo late"))
        with contextlib.closing(sqlite3.connect(path)) as connection:
            while not connection.execute("SELECT 1 FROM task_output WHERE text = 'early\n'").fetchone():
                assert not future.done()
        go_on.write_text("now\n")
        assert future.result().output == "early\nnow\nlate\n"


# --- graphs ----------------------------------------------------------------------------------------------------------


def shape(kind: str, size: int) -> list[list[int]]:
    """Return the dependencies of each task, as indices of earlier ones."""
    chance = random.Random(size)
    if kind == "chain":
        return [[index - 1] if index else [] for index in range(size)]
    if kind == "fan":
        return [[0] if index else [] for index in range(size)]
    return [chance.sample(range(index), min(index, chance.randint(0, 3))) for index in range(size)]


@pytest.mark.parametrize(("kind", "size"), [("chain", 3000), ("fan", 3000), ("random", 5000)])
def test_a_large_graph_runs_each_task_once_after_its_dependencies(ledger: SQLiteStore, kind: str, size: int) -> None:
    done: list[str] = []
    graph, tasks = TaskGraph(), [Task.bash(str(index)) for index in range(size)]
    for task, parents in zip(tasks, shape(kind, size), strict=True):
        graph.add(task, after=[tasks[parent] for parent in parents])
    graph.run(executor_with(ledger, lambda context: done.append(context.id)), max_workers=8)
    place = {task_id: index for index, task_id in enumerate(done)}
    assert len(done) == len(place) == size and graph.ok
    assert all(place[parent.id] < place[task.id] for task, parents in graph.items() for parent in parents)
    assert ledger.graphs[graph.id].ok


def test_no_more_tasks_run_at_the_same_time_than_there_are_workers() -> None:
    lock, running, most = threading.Lock(), [], []
    meet = threading.Barrier(3)

    def handler(context: TaskContext) -> None:
        with lock:
            running.append(context.id)
            most.append(len(running))
        meet.wait(30)
        with lock:
            running.remove(context.id)

    graph = TaskGraph()
    for _ in range(9):
        graph.add(Task.bash("x"))
    graph.run(executor_with(None, handler), max_workers=3)
    assert graph.ok and max(most) == 3


def test_a_subclass_that_overrides_execute_runs_every_task(store: Any) -> None:
    calls: list[tuple[str, list[str], bool]] = []

    class Traced(TaskExecutor):
        def execute(self, task: Task, upstream: Any = None, **options: Any) -> Any:
            calls.append((task.title, [parent.title for parent in upstream.values()], "retry_policy" in options))
            if task.title == "odd":
                raise RuntimeError("left unsettled")
            return super().execute(task, upstream, **options)

    graph = TaskGraph()
    a = graph.add(Task.bash("true", title="a"), retry_policy=RetryPolicy(2))
    odd = graph.add(Task.bash("true", title="odd"), after=[a])
    late = graph.add(Task.bash("true", title="late"), after=[odd])
    graph.run(Traced(store))
    assert calls == [("a", [], True), ("odd", ["a"], False)]
    assert [str(task.status) for task in graph] == ["succeeded", "pending", "blocked"]
    assert late.blocked_by == odd.id and str(graph.errors[odd.id]) == "left unsettled" and not graph.ok


def test_a_graph_that_can_not_be_run_leaves_no_trace(ledger: SQLiteStore) -> None:
    before = ledger._readers.head()
    a, b, c = (Task.bash("true", title=title) for title in "abc")
    cyclic = TaskGraph()
    cyclic.add(a, after=[b])
    cyclic.add(b, after=[a])
    missing = TaskGraph()
    missing[a] = [c]
    running = TaskGraph()
    running.add(Task.bash("true")).transition_to(TaskStatus.RUNNING)
    executor = TaskExecutor(ledger)
    for graph, error, text in (
        (cyclic, GraphError, "cycle: a -> b -> a|cycle: b -> a -> b"),
        (missing, GraphError, "depends on unregistered task"),
        (running, AlreadyRunningError, "is RUNNING"),
    ):
        with pytest.raises(error, match=text):
            graph.run(executor)
    with pytest.raises(ValueError, match="max_workers must be greater than 0"):
        TaskGraph().run(executor, 0)
    assert ledger._readers.head() == before


def test_an_empty_graph_is_run_and_ok(store: Any) -> None:
    assert TaskGraph().run(TaskExecutor(store)).ok


SCRIPT = """
import signal, sys, threading
from ttasks import SQLiteStore, Task, TaskExecutor, TaskGraph, TaskType

signal.signal(signal.SIGINT, signal.default_int_handler)
graph = TaskGraph()
first = graph.add(Task.bash("echo begun; sleep 100", title="first"))
second = graph.add(Task.bash("echo never", title="second"), after=[first])
clean = graph.add(Task.bash("echo cleaning; " + sys.argv[2], title="clean"), after=[second], finally_=True)
with SQLiteStore(sys.argv[1]) as store:
    executor = TaskExecutor(store)
    # In one piece: several threads print.
    executor.events.subscribe(lambda event: print((event.output_chunk or event.type) + "\\n", end="", flush=True))
    try:
        graph.run(executor)
    except KeyboardInterrupt:
        print("interrupted", *[task.status for task in graph], store.graphs[graph.id].run_status)
"""


@pytest.mark.parametrize(
    ("cleaning", "presses", "end"),
    [
        ("true", 1, "interrupted cancelled pending succeeded cancelled"),
        ("sleep 100", 2, "interrupted cancelled pending interrupted interrupted"),
    ],
)
def test_ctrl_c_cancels_and_runs_finally_tasks_and_a_second_one_stops(
    tmp_path: Path, cleaning: str, presses: int, end: str
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "ledger.db"), cleaning], stdout=subprocess.PIPE, text=True
    ) as process:
        words = iter(["begun", "cleaning"][:presses])
        wanted, printed = next(words), ""
        for printed in process.stdout:
            if wanted is not None and printed.startswith(wanted):
                process.send_signal(signal.SIGINT)
                wanted = next(words, None)
    # The second press may come before the process that the first one cancelled has ended.
    assert printed.replace("interrupted interrupted pending", "interrupted cancelled pending").strip() == end
    assert process.returncode == 0
    with SQLiteStore(tmp_path / "ledger.db", read_only=True) as store:
        assert verify(store._readers).problems == []
