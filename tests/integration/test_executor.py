"""One task at a time: what is recorded, what is published and what is raised, with every kind of store and none."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import sqlite3
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from freezegun import freeze_time

from ttasks import (
    AlreadyRunningError,
    InMemoryStore,
    LedgerUnwritableError,
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
    TaskResult,
    TaskStatus,
    TaskTimeoutError,
    TaskType,
)
from ttasks.errors import TtasksError
from ttasks.log.verify import verify

PENDING, RUNNING, SUCCEEDED = TaskStatus.PENDING, TaskStatus.RUNNING, TaskStatus.SUCCEEDED
FAILED, CANCELLED = TaskStatus.FAILED, TaskStatus.CANCELLED
BLOCKED, INTERRUPTED = TaskStatus.BLOCKED, TaskStatus.INTERRUPTED

PATIENCE_S = 20
"""How long a test waits for what has to come before it says that it never did."""
PROMPTLY_S = 3
"""How long it may take what has to happen at once."""
POOL_SIZE = min(32, (os.cpu_count() or 1) + 4)
"""The standard library's default."""


@pytest.fixture(autouse=True)
def _outside_git(outside_git: Path) -> None:
    """No description of a git checkout comes between."""


@pytest.fixture(params=["no store", "live", "file", "foreign"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    match request.param:
        case "no store":
            yield None
        case "foreign":
            yield MagicMock()
        case kind:
            with InMemoryStore() if kind == "live" else SQLiteStore(tmp_path / "ledger.db") as ledger:
                yield ledger
                assert verify(ledger._readers).problems == []


@pytest.fixture(params=["no store", "file"])
def store_or_none(request: pytest.FixtureRequest, path: Path) -> Iterator[Any]:
    if request.param == "no store":
        yield None
        return
    with SQLiteStore(path) as ledger:
        yield ledger


@pytest.fixture(params=["live", "file"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    with InMemoryStore() if request.param == "live" else SQLiteStore(tmp_path / "ledger.db") as ledger:
        yield ledger
        assert verify(ledger._readers).problems == []


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


class Running:
    """An executor with one handler, what its bus said, and what its handler was entered for."""

    def __init__(self, store: Any, work: Callable[[TaskContext], Any]) -> None:
        self.entered: list[TaskContext] = []
        self.heard: list[TaskEvent] = []
        self.executor = TaskExecutor.empty(store)
        self.executor.events.subscribe(self.heard.append)

        def handler(context: TaskContext) -> Any:
            self.entered.append(context)
            return work(context)

        self.executor.register(TaskType.BASH, handler)

    @property
    def said(self) -> list[str]:
        return [str(event.type) for event in self.heard]

    @property
    def moves(self) -> list[tuple[TaskStatus | None, TaskStatus]]:
        return [(event.previous_status, event.status) for event in self.heard]


def fails(context: TaskContext) -> Any:
    raise ValueError(f"boom {context.attempt}")


def history(store: Any, task: Task) -> list[str]:
    return [event.type for event in store._readers.events(stream=f"task-{task.id}")]


def facts(store: Any, type_: str) -> list[Any]:
    return [event.fact for event in store._readers.events(type=type_)]


def recorded(store: Any, task: Task) -> Task:
    """Return a handle over what the ledger itself has."""
    state = store._readers.task(task.id)
    assert state is not None
    return Task._load(state, store._ledger, store._readers)


def at(status: TaskStatus) -> Task:
    """Return a task that was brought to `status` by hand."""
    task = Task.bash("work", title="x")
    if status in (SUCCEEDED, INTERRUPTED):
        task.transition_to(RUNNING)
    if status is not PENDING:
        task.transition_to(status)
    return task


def in_thread(work: Callable[[], Any]) -> Future[Any]:
    """Run `work` in a thread of its own that can't keep the tests from ending."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


# --- what comes of a run ---------------------------------------------------------------------------------------------


def test_a_handler_that_returns_publishes_exactly_its_start_and_its_success(store: Any) -> None:
    running = Running(store, lambda context: "done")
    task = Task.bash("work")
    running.executor.execute(task)
    assert running.said == ["started", "succeeded"]
    assert running.moves == [(PENDING, RUNNING), (RUNNING, SUCCEEDED)]
    assert all(event.task is task and event.task_id == task.id for event in running.heard)
    assert [event.error for event in running.heard] == [None, None]


def test_a_task_that_succeeded_shows_the_very_result_that_execute_returned(store: Any) -> None:
    task = Task.bash("work")
    result = Running(store, lambda context: "done").executor.execute(task)
    assert task.result is result
    assert (task.status, task.error, task.attempts) == (SUCCEEDED, None, 1)
    assert (result.task_id, result.status, result.output, result.raw) == (task.id, SUCCEEDED, "done", "done")
    assert (result.error, result.returncode, result.termination_reason) == (None, None, None)


@pytest.mark.parametrize("value", [None, 7, {"a": 1}, b"bytes", ["x"]])
def test_what_a_handler_returns_is_raw_and_output_only_if_it_is_text(store: Any, value: object) -> None:
    task = Task.bash("work")
    result = Running(store, lambda context: value).executor.execute(task)
    assert result.raw is value
    assert result.output == ""


@pytest.mark.parametrize("wrap", [str, str.encode])
def test_a_completed_process_that_a_handler_returns_gives_output_error_and_code(store: Any, wrap: Any) -> None:
    completed = subprocess.CompletedProcess(["x"], 3, wrap("out ✓\n"), wrap("err ✗\n"))
    result = Running(store, lambda context: completed).executor.execute(Task.bash("work"))
    assert (result.status, result.output, result.error, result.returncode) == (SUCCEEDED, "out ✓\n", "err ✗\n", 3)
    assert result.raw is completed


def test_a_completed_process_that_a_handler_returns_is_recorded_as_output(ledger: Any) -> None:
    completed = subprocess.CompletedProcess(["x"], 0, "out\n", "err\n")
    task = Task.bash("work")
    Running(ledger, lambda context: completed).executor.execute(task)
    found = recorded(ledger, task)
    assert history(ledger, task) == ["TaskCreated", "TaskStarted", "TaskOutput", "TaskSucceeded"]
    assert found.result is not None
    assert (found.result.output, found.result.error, found.result.raw) == ("out\n", "err\n", None)
    assert found.error is None


def test_a_failure_is_published_recorded_and_raised_again_as_it_was(store: Any) -> None:
    error = ValueError("boom")
    running = Running(store, MagicMock(side_effect=error))
    task = Task.bash("work")
    with pytest.raises(ValueError, match="boom") as raised:
        running.executor.execute(task)
    assert raised.value is error
    assert running.said == ["started", "failed"]
    assert running.moves == [(PENDING, RUNNING), (RUNNING, FAILED)]
    assert [event.error for event in running.heard] == [None, "boom"]
    assert (task.status, task.error, task.attempts) == (FAILED, "boom", 1)
    assert task.result is not None
    assert (task.result.status, task.result.error, task.result.termination_reason) == (FAILED, "boom", "handler")


def test_any_exception_is_a_failure_also_one_that_ends_programs(store: Any) -> None:
    running = Running(store, MagicMock(side_effect=SystemExit("out")))
    task = Task.bash("work")
    with pytest.raises(SystemExit):
        running.executor.execute(task)
    assert (task.status, task.error) == (FAILED, "out")
    assert running.said == ["started", "failed"]


def test_a_ctrl_c_in_a_handler_settles_the_task_and_goes_on_up(store: Any) -> None:
    running = Running(store, MagicMock(side_effect=KeyboardInterrupt))
    task = Task.bash("work")
    with pytest.raises(KeyboardInterrupt):
        running.executor.execute(task)
    assert task.is_terminal
    assert task.result is not None
    assert not running.executor.is_running(task.id)


def test_an_exception_without_a_text_leaves_a_text_all_the_same(store: Any) -> None:
    task = Task.bash("work")
    with pytest.raises(KeyError):
        Running(store, MagicMock(side_effect=KeyError())).executor.execute(task)
    assert task.error


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (TaskExecutionError("bad", subprocess.CompletedProcess(["x"], 7, "out", "bad")), "exit_code"),
        (TaskTimeoutError("late", subprocess.CompletedProcess(["x"], -15, "out", "")), "timeout"),
    ],
)
def test_a_handler_may_raise_what_a_script_would(store: Any, raised: Exception, reason: str) -> None:
    task = Task.bash("work")
    with pytest.raises(type(raised)):
        Running(store, MagicMock(side_effect=raised)).executor.execute(task)
    assert task.result is not None
    assert (task.result.output, task.result.error, task.result.termination_reason) == ("out", str(raised), reason)
    assert task.result.raw is raised.completed  # type: ignore[attr-defined]


class OutOfQuota(TtasksError):
    code = "quota_exceeded"


class OfSomebodyElse(Exception):
    code = "E42"


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (TaskExecutionError("no", code="rate_limited"), "rate_limited"),
        (TaskTimeoutError("late", code="timeout"), "timeout"),
        (TaskExecutionError("no"), None),
        (OutOfQuota("no"), "quota_exceeded"),
        (OfSomebodyElse("no"), None),
        (TaskExecutionError("no", code=7), None),  # type: ignore[arg-type]
    ],
)
def test_what_went_wrong_has_a_word_for_programs_where_its_error_has_one(
    ledger: Any, raised: Exception, code: str | None
) -> None:
    task = Task.bash("work")
    with pytest.raises(type(raised)):
        Running(ledger, MagicMock(side_effect=raised)).executor.execute(task)

    assert task.result is not None
    assert task.result.error_code == code
    assert ledger._readers.attempts(task.id)[0].error_code == code
    assert ledger._load_task(ledger._readers.task(task.id)).result.error_code == code


def test_what_succeeds_has_no_word_for_what_went_wrong(ledger: Any) -> None:
    task = Task.bash("work")
    Running(ledger, MagicMock(return_value="fine")).executor.execute(task)

    assert task.result is not None
    assert task.result.error_code is None


@pytest.mark.parametrize("kind", [TaskExecutionError, TaskTimeoutError])
def test_an_error_of_a_task_keeps_its_parts_when_it_is_pickled(kind: Any) -> None:
    completed = subprocess.CompletedProcess(["x"], 7, "out", "bad")

    back = pickle.loads(pickle.dumps(kind("bad", completed, code="rate_limited")))

    assert (str(back), back.completed.returncode, back.code) == ("bad", 7, "rate_limited")


@freeze_time("2024-02-29 12:34:56.789012")
def test_times_are_utc_and_the_duration_does_not_come_from_the_calendar(store: Any) -> None:
    def work(context: TaskContext) -> None:
        with freeze_time("2031-01-01"):
            pass

    result = Running(store, work).executor.execute(Task.bash("work"))
    assert result.started_at == result.finished_at == datetime(2024, 2, 29, 12, 34, 56, 789012, tzinfo=UTC)
    assert result.started_at.tzinfo is UTC
    assert 0 < result.duration < PATIENCE_S


@pytest.mark.parametrize("length", [4_000, 5_000, 200_000])
def test_an_error_of_any_length_is_kept_whole(ledger: Any, length: int) -> None:
    text = "é" * length
    task = Task.bash("work")
    with pytest.raises(ValueError, match="é"):
        Running(ledger, MagicMock(side_effect=ValueError(text))).executor.execute(task)
    found = recorded(ledger, task)
    assert found.error == text
    assert found.result is not None and found.result.error == text


HOSTILE = ["\0", "a\udcffb", "😀\u2028", "x" * 2**20, ""]
HOSTILE_IDS = ["nul", "surrogate", "emoji", "megabyte", "empty"]


@pytest.mark.parametrize("text", HOSTILE, ids=HOSTILE_IDS)
def test_hostile_text_comes_back_as_it_was(text: str) -> None:
    with InMemoryStore() as store:
        task = Task.bash(text, title=text, description=text)
        Running(store, lambda context: text).executor.execute(task)
        found = recorded(store, task)
        assert (found.payload, found.title, found.description) == (text, text, text)
        assert found.result is not None and found.result.output == text


@pytest.mark.parametrize(
    "text",
    [pytest.param(text, id=name) for text, name in zip(HOSTILE, HOSTILE_IDS, strict=True)],
)
def test_a_ledger_with_hostile_text_verifies(text: str) -> None:
    with InMemoryStore() as store:
        Running(store, lambda context: text).executor.execute(Task.bash(text, title=text, description=text))
        assert verify(store._readers).problems == []


class Speechless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Odd(str):
    """A text that is not quite one."""


@pytest.mark.parametrize(
    "effect",
    [
        {"side_effect": Speechless()},
        {"return_value": subprocess.CompletedProcess("x", returncode=object())},  # type: ignore[call-overload]
    ],
    ids=["an error without words", "a code that is no number"],
)
def test_whatever_a_handler_does_its_task_is_settled(ledger: Any, effect: dict[str, Any]) -> None:
    task = Task.bash("work")
    with contextlib.suppress(Exception):
        Running(ledger, MagicMock(**effect)).executor.execute(task)
    assert task.is_terminal
    assert recorded(ledger, task).is_terminal


@pytest.mark.parametrize("value", [Odd("text"), subprocess.CompletedProcess("x", 0, b"\xff\xfe", None)])
def test_odd_values_that_a_handler_returns_are_recorded(ledger: Any, value: object) -> None:
    task = Task.bash("work")
    result = Running(ledger, lambda context: value).executor.execute(task)
    assert result.raw is value
    found = recorded(ledger, task).result
    assert found is not None
    assert found.output == result.output == ("text" if isinstance(value, Odd) else "\ufffd\ufffd")


# --- what the log and the bus hold -----------------------------------------------------------------------------------


def test_the_log_holds_the_attempt_and_who_ran_it(ledger: Any) -> None:
    task = Task.bash("work", cwd="/", env={"A": "b"}, timeout=5)
    running = Running(ledger, lambda context: "done")
    running.executor.execute(task)
    assert history(ledger, task) == ["TaskCreated", "TaskStarted", "TaskSucceeded"]
    (started,) = facts(ledger, "TaskStarted")
    assert (started.attempt, started.payload, started.cwd, started.env, started.timeout) == (
        1,
        "work",
        "/",
        {"A": "b"},
        5,
    )
    assert started.handler == f"{__name__}.Running.__init__.<locals>.handler"
    (attempt,) = ledger._readers.attempts(task.id)
    assert (attempt.attempt, attempt.status, attempt.handler) == (1, SUCCEEDED, started.handler)


def test_a_creation_that_was_pending_is_recorded_in_the_commit_of_the_start(ledger: Any) -> None:
    task = Task.bash("work")
    Running(ledger, lambda context: "done").executor.execute(task)
    times = [event.recorded_at for event in ledger._readers.events(stream=f"task-{task.id}")]
    assert times[0] == times[1]


def test_every_lifecycle_event_names_its_record_with_a_ledger(ledger: Any) -> None:
    running = Running(ledger, lambda context: "done")
    task = Task.bash("work")
    running.executor.execute(task)
    events = list(ledger._readers.events(stream=f"task-{task.id}"))
    assert [event.record for event in running.heard] == events[1:]
    assert [event.timestamp for event in running.heard] == [event.recorded_at for event in events[1:]]
    assert [event.record.attempt for event in running.heard if event.record] == [1, 1]


@pytest.mark.parametrize("no_ledger", [None, MagicMock()])
def test_without_a_ledger_no_event_has_a_record(no_ledger: Any) -> None:
    running = Running(no_ledger, lambda context: "done")
    running.executor.execute(Task.bash("work"))
    assert [event.record for event in running.heard] == [None, None]


def rows(path: Path, query: str, *parameters: object) -> list[tuple[Any, ...]]:
    """Ask the ledger as a stranger would."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return connection.execute(query, parameters).fetchall()


@pytest.mark.parametrize("work", [lambda context: "done", fails, MagicMock(side_effect=TaskCancelled)])
def test_a_subscriber_that_opens_the_ledger_finds_what_it_is_told(path: Path, work: Any) -> None:
    seen: list[tuple[str, bytes]] = []
    told: list[tuple[str, bytes]] = []

    def look(event: TaskEvent) -> None:
        assert event.record is not None
        told.append((event.record.type, event.record.hash))
        seen.extend(rows(path, "SELECT type, hash FROM events WHERE position = ?", event.record.position))
        seen_status.extend(rows(path, "SELECT status FROM tasks WHERE id = ?", event.task_id))

    seen_status: list[tuple[str]] = []
    with SQLiteStore(path) as store:
        running = Running(store, work)
        running.executor.events.subscribe(look)
        with contextlib.suppress(ValueError, TaskCancelled):
            running.executor.execute(Task.bash("work"))
        assert running.executor.events.errors == []
    assert seen == told
    assert len(told) == 2
    assert [status for (status,) in seen_status] == [event.status for event in running.heard]


def test_the_start_is_in_the_file_before_the_handler_is_entered(path: Path) -> None:
    seen: list[tuple[Any, ...]] = []

    def work(context: TaskContext) -> None:
        seen.extend(rows(path, "SELECT type FROM events WHERE stream = ? ORDER BY position", f"task-{context.id}"))
        seen.extend(rows(path, "SELECT attempt, status FROM attempts WHERE task_id = ?", context.id))

    with SQLiteStore(path) as store:
        Running(store, work).executor.execute(Task.bash("work"))
    assert seen == [("TaskCreated",), ("TaskStarted",), (1, "running")]


def test_subscribers_hear_of_it_on_the_thread_that_runs_it(store: Any) -> None:
    where: list[threading.Thread] = []
    running = Running(store, lambda context: context.emit_progress(1))
    running.executor.events.subscribe(lambda event: where.append(threading.current_thread()))
    running.executor.execute(Task.bash("work"))
    assert where == [threading.current_thread()] * 3


def test_progress_is_published_without_a_record_and_recorded_before_the_end(ledger: Any) -> None:
    def work(context: TaskContext) -> None:
        context.emit_progress(50, "half")
        context.emit_progress(message="nearly")

    running = Running(ledger, work)
    task = Task.bash("work")
    running.executor.execute(task)
    assert running.said == ["started", "progress", "progress", "succeeded"]
    _, first, second, _ = running.heard
    assert (first.progress_percent, first.progress_message) == (50, "half")
    assert (second.progress_percent, second.progress_message) == (None, "nearly")
    assert (first.previous_status, first.status, first.record) == (None, RUNNING, None)
    told = [(fact.attempt, fact.percent, fact.message) for fact in facts(ledger, "TaskProgressed")]
    assert told == [(1, 50, "half"), (1, None, "nearly")]
    assert history(ledger, task)[-1] == "TaskSucceeded"


def test_progress_that_comes_after_the_end_is_not_recorded(ledger: Any) -> None:
    running = Running(ledger, lambda context: "done")
    task = Task.bash("work")
    running.executor.execute(task)
    with contextlib.suppress(Exception):
        running.entered[0].emit_progress(99)
    running.executor.execute(Task.bash("another"))
    assert facts(ledger, "TaskProgressed") == []


# --- what its handler is given ---------------------------------------------------------------------------------------


def test_a_handler_is_given_what_this_attempt_runs(store: Any) -> None:
    parent = Task.bash("parent")
    running = Running(store, lambda context: context.upstream[parent.id] is parent)
    task = Task.bash("work", title="t", description="d", timeout=3, cwd="/", env={"A": "b"})
    assert running.executor.execute(task, {parent.id: parent}).raw is True
    (context,) = running.entered
    assert (context.id, context.title, context.description, context.payload) == (task.id, "t", "d", "work")
    assert (context.timeout, context.cwd, dict(context.env), context.attempt) == (3, "/", {"A": "b"}, 1)


def test_an_edit_while_it_runs_changes_the_task_but_not_the_attempt(ledger: Any) -> None:
    def work(context: TaskContext) -> str:
        if context.attempt == 1:
            task.title = task.payload = "edited"
            raise ValueError("again")
        return context.payload

    task = Task.bash("work")
    running = Running(ledger, work)
    with pytest.raises(ValueError, match="again"):
        running.executor.execute(task)
    assert (running.entered[0].title, running.entered[0].payload) == ("", "work")
    assert running.executor.execute(task).output == "edited"
    assert [fact.payload for fact in facts(ledger, "TaskStarted")] == ["work", "edited"]
    assert recorded(ledger, task).title == "edited"


def test_while_it_runs_status_is_running_everywhere(ledger: Any) -> None:
    seen: list[TaskStatus] = []

    def work(context: TaskContext) -> None:
        seen.extend([context.status, task.status, recorded(ledger, task).status])

    task = Task.bash("work")
    Running(ledger, work).executor.execute(task)
    assert seen == [RUNNING] * 3


# --- handlers --------------------------------------------------------------------------------------------------------


def test_an_executor_has_the_four_built_in_handlers_and_an_empty_one_none() -> None:
    assert [TaskExecutor().is_registered(task_type) for task_type in TaskType] == [True] * 4
    assert [TaskExecutor.empty().is_registered(task_type) for task_type in TaskType] == [False] * 4


def test_empty_makes_the_subclass() -> None:
    class Mine(TaskExecutor):
        pass

    assert type(Mine.empty()) is Mine


def test_the_store_is_as_given() -> None:
    foreign = object()
    assert TaskExecutor().store is None
    assert TaskExecutor(foreign).store is foreign
    assert TaskExecutor.empty(foreign).store is foreign


def test_registering_again_replaces_the_handler() -> None:
    executor = TaskExecutor()
    executor.register(TaskType.BASH, lambda context: "mine")
    assert executor.execute(Task.bash("exit 1")).output == "mine"


@pytest.mark.parametrize("task_type", ["bash", None, PENDING])
def test_handlers_are_registered_for_types(task_type: Any) -> None:
    with pytest.raises(TypeError, match="task_type must be a TaskType"):
        TaskExecutor.empty().register(task_type, print)


@pytest.mark.parametrize("handler", [None, "print", 1])
def test_handlers_are_callable(handler: Any) -> None:
    executor = TaskExecutor.empty()
    with pytest.raises(TypeError, match="handler must be callable"):
        executor.register(TaskType.BASH, handler)
    assert not executor.is_registered(TaskType.BASH)


@pytest.mark.parametrize("before", [PENDING, FAILED, BLOCKED, INTERRUPTED])
def test_a_task_without_a_handler_fails_and_the_bus_hears_only_that(store: Any, before: TaskStatus) -> None:
    executor, heard = TaskExecutor.empty(store), []
    executor.events.subscribe(heard.append)
    task = at(before)
    with pytest.raises(ValueError, match="No handler registered for task type 'bash'"):
        executor.execute(task, retry_policy=RetryPolicy(5))
    assert [(str(event.type), event.previous_status, event.status) for event in heard] == [("failed", before, FAILED)]
    assert (task.status, task.error) == (FAILED, "No handler registered for task type 'bash'")
    assert task.result is not None
    assert (task.result.status, task.result.error) == (FAILED, "No handler registered for task type 'bash'")


def test_a_task_without_a_handler_has_its_start_and_failure_in_one_commit(ledger: Any) -> None:
    task = Task.bash("work")
    with pytest.raises(ValueError, match="No handler"):
        TaskExecutor.empty(ledger).execute(task)
    assert history(ledger, task) == ["TaskCreated", "TaskStarted", "TaskFailed"]
    assert len({event.recorded_at for event in ledger._readers.events(stream=f"task-{task.id}")}) == 1
    assert [attempt.status for attempt in ledger._readers.attempts(task.id)] == [FAILED]


# --- what may run ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [PENDING, FAILED, BLOCKED, INTERRUPTED])
def test_a_task_that_may_run_runs_from_where_it_stands(store: Any, before: TaskStatus) -> None:
    running = Running(store, lambda context: "done")
    running.executor.execute(at(before))
    assert running.moves == [(before, RUNNING), (RUNNING, SUCCEEDED)]


@pytest.mark.parametrize("before", [RUNNING, SUCCEEDED, CANCELLED])
def test_a_task_that_may_not_run_is_refused_without_a_trace(store: Any, before: TaskStatus) -> None:
    running = Running(store, lambda context: "done")
    task = at(before)
    with pytest.raises(ValueError, match=f"Cannot execute task with status '{before}'"):
        running.executor.execute(task)
    assert (running.said, running.entered, task.status, task.attempts) == ([], [], before, 0)
    if isinstance(store, SQLiteStore | InMemoryStore):
        assert len(store.tasks) == 0


def test_a_task_may_not_be_executed_in_its_own_handler(store: Any) -> None:
    refusals: list[BaseException] = []

    def work(context: TaskContext) -> None:
        try:
            running.executor.execute(task)
        except ValueError as refusal:
            refusals.append(refusal)

    task = Task.bash("work")
    running = Running(store, work)
    running.executor.execute(task)
    assert [type(refusal) for refusal in refusals] == [AlreadyRunningError]
    assert "Cannot execute task with status 'running'" in str(refusals[0])
    assert (len(running.entered), task.status) == (1, SUCCEEDED)


def test_of_many_threads_that_execute_one_task_one_runs_it(store: Any) -> None:
    start, release = threading.Barrier(8), threading.Event()
    running = Running(store, lambda context: release.wait(PATIENCE_S))
    task = Task.bash("work")
    over: list[int] = []

    def execute() -> TaskResult:
        start.wait()
        try:
            return running.executor.execute(task)
        finally:
            over.append(1)
            if len(over) == 7:  # all the others were refused while the winner runs
                release.set()

    futures = [in_thread(execute) for _ in range(8)]
    refusals = [error for future in futures if (error := future.exception(PATIENCE_S)) is not None]
    assert len(running.entered) == 1
    assert len(refusals) == 7
    assert all(isinstance(error, ValueError | StreamConflictError) for error in refusals)
    assert (task.status, task.attempts) == (SUCCEEDED, 1)
    assert running.said == ["started", "succeeded"]


@pytest.mark.parametrize("task", [None, "task", TaskGraph(), object()])
def test_only_a_task_can_be_executed_submitted_or_cancelled(store: Any, task: Any) -> None:
    with TaskExecutor.empty(store) as executor:
        for call in (executor.execute, executor.submit, executor.cancel):
            with pytest.raises(TypeError, match="task must be a Task"):
                call(task)


@pytest.mark.parametrize("policy", [3, "3", {"max_attempts": 3}])
def test_a_retry_policy_is_checked_before_anything_happens(store: Any, policy: Any) -> None:
    running = Running(store, lambda context: "done")
    task = Task.bash("work")
    with pytest.raises(TypeError, match="retry_policy must be a RetryPolicy"):
        running.executor.execute(task, retry_policy=policy)
    with pytest.raises(TypeError, match="retry_policy must be a RetryPolicy"):
        running.executor.submit(task, retry_policy=policy)
    assert (task.status, running.said) == (PENDING, [])


# --- retries ---------------------------------------------------------------------------------------------------------


def succeeds_at(attempt: int) -> Callable[[TaskContext], str]:
    def work(context: TaskContext) -> str:
        if context.attempt < attempt:
            raise ValueError(f"boom {context.attempt}")
        return f"done {context.attempt}"

    return work


def test_each_attempt_has_its_own_events(store: Any) -> None:
    running = Running(store, succeeds_at(3))
    task = Task.bash("work")
    result = running.executor.execute(task, retry_policy=RetryPolicy(5))
    assert running.said == ["started", "failed", "started", "failed", "started", "succeeded"]
    assert running.moves[1:4] == [(RUNNING, FAILED), (FAILED, RUNNING), (RUNNING, FAILED)]
    assert [event.error for event in running.heard if event.error] == ["boom 1", "boom 2"]
    assert (task.status, task.attempts, task.error, result.output) == (SUCCEEDED, 3, None, "done 3")
    assert task.result is result


def test_each_attempt_has_its_own_row_and_its_wait_is_recorded(ledger: Any) -> None:
    task = Task.bash("work")
    policy = RetryPolicy(3, 0.002, factor=2)
    with pytest.raises(ValueError, match="boom 3"):
        Running(ledger, fails).executor.execute(task, retry_policy=policy)
    attempts = ledger._readers.attempts(task.id)
    assert [(a.attempt, a.retry, a.status, a.error) for a in attempts] == [
        (number, number - 1, FAILED, f"boom {number}") for number in (1, 2, 3)
    ]
    tried = ["TaskStarted", "TaskFailed", "TaskRetryScheduled"]
    assert history(ledger, task) == ["TaskCreated", *tried, *tried, "TaskStarted", "TaskFailed"]
    waits = facts(ledger, "TaskRetryScheduled")
    assert [(wait.attempt, wait.retry, wait.delay) for wait in waits] == [(1, 1, 0.002), (2, 2, 0.004)]
    assert facts(ledger, "TaskStarted")[0].retry_policy == policy.spec()


def test_a_failure_and_the_wait_for_its_retry_share_a_commit(ledger: Any) -> None:
    task = Task.bash("work")
    Running(ledger, succeeds_at(2)).executor.execute(task, retry_policy=RetryPolicy(2))
    by_type = {event.type: event for event in ledger._readers.events(stream=f"task-{task.id}")}
    assert by_type["TaskFailed"].recorded_at == by_type["TaskRetryScheduled"].recorded_at


def test_after_the_last_attempt_the_last_error_is_raised(store: Any) -> None:
    task = Task.bash("work")
    running = Running(store, fails)
    with pytest.raises(ValueError, match="boom 3"):
        running.executor.execute(task, retry_policy=RetryPolicy(3))
    assert (task.status, task.error, task.attempts) == (FAILED, "boom 3", 3)
    assert [context.attempt for context in running.entered] == [1, 2, 3]


def test_attempts_are_counted_over_the_task_s_life_and_retries_anew(store: Any) -> None:
    task = Task.bash("work")
    running = Running(store, fails)
    for last in (2, 4):
        with pytest.raises(ValueError, match=f"boom {last}"):
            running.executor.execute(task, retry_policy=RetryPolicy(2))
    assert task.attempts == 4


@pytest.mark.parametrize("error", [TaskCancelled("no"), KeyboardInterrupt(), SystemExit(1)])
def test_what_is_no_failure_of_the_work_is_not_tried_again(store: Any, error: BaseException) -> None:
    running = Running(store, MagicMock(side_effect=error))
    with pytest.raises(type(error)):
        running.executor.execute(Task.bash("work"), retry_policy=RetryPolicy(5))
    assert len(running.entered) == 1


def test_a_retry_on_that_raises_does_not_leave_the_task_running(store: Any) -> None:
    def broken(error: BaseException) -> bool:
        raise KeyError("broken predicate")

    task = Task.bash("work")
    with pytest.raises((KeyError, ValueError)):
        Running(store, fails).executor.execute(task, retry_policy=RetryPolicy(2, retry_on=broken))
    assert task.status is FAILED


# --- cancelling: before, while, between, after -----------------------------------------------------------------------


@pytest.mark.parametrize("before", [PENDING, FAILED, BLOCKED, INTERRUPTED])
def test_cancelling_what_does_not_run_gives_a_result_and_one_event(store: Any, before: TaskStatus) -> None:
    running = Running(store, lambda context: "done")
    task = at(before)
    running.executor.cancel(task)
    running.executor.cancel(task)
    assert running.moves == [(before, CANCELLED)]
    assert running.said == ["cancelled"]
    assert (task.status, task.attempts) == (CANCELLED, 0)
    assert task.result is not None
    assert (task.result.status, task.result.termination_reason) == (CANCELLED, "cancelled")
    assert running.heard[0].error == task.result.error == f"Task '{task.id}' was cancelled"


def test_cancelling_what_does_not_run_keeps_its_error(store: Any) -> None:
    task = at(FAILED)
    task.error = "it was like this before"
    TaskExecutor.empty(store).cancel(task)
    assert task.error == "it was like this before"


def test_the_result_of_a_cancel_before_the_start_is_recorded(ledger: Any) -> None:
    task = Task.bash("work")
    TaskExecutor.empty(ledger).cancel(task)
    assert history(ledger, task) == ["TaskCreated", "TaskCancelled"]
    assert recorded(ledger, task).result == task.result
    assert ledger._readers.attempts(task.id) == []


def test_cancelling_after_success_does_nothing(store: Any) -> None:
    running = Running(store, lambda context: "done")
    task = Task.bash("work")
    result = running.executor.execute(task)
    running.executor.cancel(task)
    assert running.said == ["started", "succeeded"]
    assert (task.status, task.result) == (SUCCEEDED, result)


@pytest.mark.parametrize("text", ["", "mine"])
def test_a_handler_may_raise_a_cancel_of_its_own(store: Any, text: str) -> None:
    running = Running(store, MagicMock(side_effect=TaskCancelled(text) if text else TaskCancelled))
    task = Task.bash("work")
    shown = text or f"Task '{task.id}' was cancelled"
    with pytest.raises(TaskCancelled) as raised:
        running.executor.execute(task)
    assert str(raised.value) == shown
    assert running.said == ["started", "cancelled"]
    assert running.heard[1].error == shown
    assert task.result is not None
    assert (task.status, task.result.status, task.result.error) == (CANCELLED, CANCELLED, shown)
    assert task.result.termination_reason == "cancelled"


Canceller = Callable[[TaskExecutor, Task], None]


@pytest.mark.parametrize(
    "cancel",
    [lambda executor, task: executor.cancel(task), lambda executor, task: task.cancel()],
    ids=["executor.cancel", "task.cancel"],
)
@pytest.mark.parametrize("end", ["returns", "raises", "raises a cancel"])
def test_a_task_cancelled_from_another_thread_ends_cancelled_whatever_its_handler_does(
    store: Any, cancel: Canceller, end: str
) -> None:
    entered, cancelled = threading.Event(), threading.Event()

    def work(context: TaskContext) -> str:
        entered.set()
        assert cancelled.wait(PATIENCE_S)
        if end == "raises":
            raise ValueError("what it still said")
        if end == "raises a cancel":
            context.raise_if_cancelled()
        return "done all the same"

    running = Running(store, work)
    task = Task.bash("work")
    future = in_thread(lambda: running.executor.execute(task))
    assert entered.wait(PATIENCE_S)
    cancel(running.executor, task)
    assert running.entered[0].cancelled
    assert task.status is RUNNING
    cancel(running.executor, task)
    cancelled.set()
    with pytest.raises(TaskCancelled, match=f"^Task '{task.id}' was cancelled$") as raised:
        future.result(PATIENCE_S)
    assert isinstance(raised.value.__cause__, ValueError) is (end == "raises")
    assert running.said == ["started", "cancelled"]
    assert (task.status, task.error) == (CANCELLED, None)
    assert task.result is not None
    said = "what it still said" if end == "raises" else f"Task '{task.id}' was cancelled"
    assert (task.result.error, task.result.termination_reason, running.heard[1].error) == (said, "cancelled", said)


@pytest.mark.parametrize(
    "raised", [GeneratorExit("late"), asyncio.CancelledError("late"), TaskExecutionError("late"), OSError(2)]
)
def test_after_a_cancel_execute_says_so_whatever_the_handler_raised(store: Any, raised: BaseException) -> None:
    def work(_: TaskContext) -> None:
        running.executor.cancel(task)
        raise raised

    running = Running(store, work)
    task = Task.bash("work")
    with pytest.raises(TaskCancelled, match=f"^Task '{task.id}' was cancelled$") as error:
        running.executor.execute(task)
    assert error.value.__cause__ is raised
    assert task.result is not None
    assert (task.status, task.error, task.result.error) == (CANCELLED, None, str(raised))


def test_a_cancel_that_the_handler_puts_into_words_is_raised_as_it_was(store: Any) -> None:
    own = TaskCancelled("enough")

    def work(_: TaskContext) -> None:
        running.executor.cancel(task)
        raise own

    running = Running(store, work)
    task = Task.bash("work")
    with pytest.raises(TaskCancelled) as error:
        running.executor.execute(task)
    assert error.value is own
    assert task.result is not None
    assert task.result.error == "enough"


def test_a_cancel_while_it_runs_is_recorded_as_a_request_first(ledger: Any) -> None:
    def work(context: TaskContext) -> str:
        running.executor.cancel(task)
        return "done all the same"

    running = Running(ledger, work)
    task = Task.bash("work")
    with pytest.raises(TaskCancelled):
        running.executor.execute(task)
    assert history(ledger, task) == ["TaskCreated", "TaskStarted", "TaskCancelRequested", "TaskCancelled"]
    assert "@" in facts(ledger, "TaskCancelRequested")[0].by


def test_a_cancel_through_the_store_reaches_the_handler_at_once(ledger: Any) -> None:
    seen: list[bool] = []

    def work(context: TaskContext) -> str:
        ledger.tasks.cancel(task.id)
        seen.append(context.cancelled)
        return "done all the same"

    task = Task.bash("work")
    running = Running(ledger, work)
    with pytest.raises(TaskCancelled):
        running.executor.execute(task)
    assert seen == [True]
    assert (task.status, recorded(ledger, task).status) == (CANCELLED, CANCELLED)
    assert history(ledger, task).count("TaskCancelRequested") == 1


def test_a_cancel_through_another_handle_and_another_executor_reaches_the_handler(path: Path) -> None:
    seen: list[bool] = []

    def work(context: TaskContext) -> None:
        TaskExecutor(store).cancel(store.tasks[task.id])
        seen.append(context.cancelled)

    with SQLiteStore(path) as store:
        task = Task.bash("work")
        with pytest.raises(TaskCancelled):
            Running(store, work).executor.execute(task)
        assert seen == [True]
        assert store.tasks[task.id].status is CANCELLED


@pytest.mark.parametrize(
    "cancel",
    [
        pytest.param(lambda store, other: store.tasks.cancel(other.id), id="store.tasks.cancel"),
        pytest.param(lambda store, other: TaskExecutor(store).cancel(other), id="executor.cancel"),
        pytest.param(lambda store, other: (other.cancel(), store.tasks.save(other)), id="task.cancel and save"),
    ],
)
def test_a_request_to_cancel_conflicts_with_nothing_that_was_recorded_meanwhile(path: Path, cancel: Any) -> None:
    def work(context: TaskContext) -> None:
        other = store.tasks[task.id]
        context.emit_progress(50)
        while not facts(store, "TaskProgressed"):  # it is recorded in a moment
            threading.Event().wait(0.01)
        cancel(store, other)

    with SQLiteStore(path) as store:
        task = Task.bash("work")
        with pytest.raises(TaskCancelled):
            Running(store, work).executor.execute(task)
        assert store.tasks[task.id].status is CANCELLED


CANCELLER = "import sys; from ttasks import SQLiteStore; SQLiteStore(sys.argv[1]).tasks.cancel(sys.argv[2])"


@pytest.mark.parametrize("end", ["returns", "raises"])
def test_a_cancel_that_another_process_recorded_wins_over_what_the_handler_did(path: Path, end: str) -> None:
    def work(context: TaskContext) -> str:
        subprocess.run([sys.executable, "-c", CANCELLER, str(path), task.id], check=True)
        if end == "raises":
            raise ValueError("boom")
        return "done all the same"

    with SQLiteStore(path) as store:
        task = Task.bash("work")
        running = Running(store, work)
        with pytest.raises(TaskCancelled):
            running.executor.execute(task, retry_policy=RetryPolicy(3))
        assert running.said == ["started", "cancelled"]
        assert store.tasks[task.id].status is CANCELLED
        assert history(store, task) == ["TaskCreated", "TaskStarted", "TaskCancelRequested", "TaskCancelled"]


def cancel_at(kind: str, running: Running) -> None:
    def cancel(event: TaskEvent) -> None:
        if event.type == kind:
            running.executor.cancel(event.task)

    running.executor.events.subscribe(cancel)


def test_a_subscriber_that_cancels_at_the_start_ends_it(store: Any) -> None:
    running = Running(store, lambda context: context.raise_if_cancelled())
    cancel_at("started", running)
    task = Task.bash("work")
    with pytest.raises(TaskCancelled):
        running.executor.execute(task)
    assert running.said == ["started", "cancelled"]
    assert task.status is CANCELLED


def test_a_subscriber_that_cancels_at_the_end_changes_nothing_after_success(store: Any) -> None:
    running = Running(store, lambda context: "done")
    cancel_at("succeeded", running)
    assert running.executor.execute(Task.bash("work")).output == "done"
    assert running.said == ["started", "succeeded"]


def test_a_subscriber_that_cancels_a_failure_for_good_gets_one_event(store: Any) -> None:
    running = Running(store, fails)
    cancel_at("failed", running)
    task = Task.bash("work")
    with pytest.raises((ValueError, TaskCancelled)):
        running.executor.execute(task)
    assert sorted(running.said) == ["cancelled", "failed", "started"]
    assert task.status is CANCELLED


def test_a_subscriber_that_cancels_at_a_failure_ends_the_wait_for_the_retry(store_or_none: Any) -> None:
    running = Running(store_or_none, fails)
    cancel_at("failed", running)
    task = Task.bash("work")
    future = in_thread(lambda: running.executor.execute(task, retry_policy=RetryPolicy(3, 3600)))
    with pytest.raises(TaskCancelled):
        future.result(PROMPTLY_S)
    assert running.said == ["started", "failed", "cancelled"]
    assert (task.status, task.attempts, len(running.entered)) == (CANCELLED, 1, 1)


@pytest.mark.parametrize(
    "cancel",
    [lambda executor, task: executor.cancel(task), lambda executor, task: task.cancel()],
    ids=["executor.cancel", "task.cancel"],
)
def test_a_cancel_ends_the_wait_for_a_retry_at_once(store_or_none: Any, cancel: Canceller) -> None:
    failed = threading.Event()
    running = Running(store_or_none, fails)
    running.executor.events.subscribe(lambda event: failed.set() if event.type == "failed" else None)
    task = Task.bash("work")
    future = in_thread(lambda: running.executor.execute(task, retry_policy=RetryPolicy(3, 3600)))
    assert failed.wait(PATIENCE_S)
    cancel(running.executor, task)
    with pytest.raises(TaskCancelled):
        future.result(PROMPTLY_S)
    assert running.said == ["started", "failed", "cancelled"]
    assert (task.status, task.attempts, len(running.entered)) == (CANCELLED, 1, 1)
    assert task.result is not None and task.result.status is CANCELLED


def test_a_cancel_through_the_store_ends_the_wait_for_a_retry_at_once(path: Path) -> None:
    failed = threading.Event()
    with SQLiteStore(path) as store:
        running = Running(store, fails)
        running.executor.events.subscribe(lambda event: failed.set() if event.type == "failed" else None)
        task = Task.bash("work")
        future = in_thread(lambda: running.executor.execute(task, retry_policy=RetryPolicy(3, 3600)))
        assert failed.wait(PATIENCE_S)
        store.tasks.cancel(task.id)
        with pytest.raises(TaskCancelled):
            future.result(PROMPTLY_S)
        assert store.tasks[task.id].status is CANCELLED


def test_while_its_retry_waits_a_task_can_not_be_executed_again(store: Any) -> None:
    refusals: list[Exception] = []

    def again(event: TaskEvent) -> None:
        if event.type == "failed":
            try:
                running.executor.execute(task)
            except ValueError as refusal:
                refusals.append(refusal)

    running = Running(store, succeeds_at(2))
    running.executor.events.subscribe(again)
    task = Task.bash("work")
    running.executor.execute(task, retry_policy=RetryPolicy(2))
    assert [type(refusal) for refusal in refusals] == [AlreadyRunningError]
    assert len(running.entered) == 2


def test_a_wait_beyond_all_numbers_can_be_cancelled(path: Path) -> None:
    failed = threading.Event()
    with SQLiteStore(path) as store:
        running = Running(store, fails)
        running.executor.events.subscribe(lambda event: failed.set() if event.type == "failed" else None)
        task = Task.bash("work")
        policy = RetryPolicy(3, sys.float_info.max, jitter=1)
        future = in_thread(lambda: running.executor.execute(task, retry_policy=policy))
        assert failed.wait(PROMPTLY_S)
        running.executor.cancel(task)
        with pytest.raises(TaskCancelled):
            future.result(PROMPTLY_S)
        assert verify(store._readers).problems == []


# --- blocking --------------------------------------------------------------------------------------------------------


def test_a_blocked_task_names_its_parent_and_has_no_result(store: Any) -> None:
    running = Running(store, lambda context: "done")
    task, parent = Task.bash("work"), Task.bash("parent")
    running.executor.mark_blocked(task, parent.id)
    assert (task.status, task.blocked_by, task.result) == (BLOCKED, parent.id, None)
    assert running.said == ["blocked"]
    assert running.moves == [(PENDING, BLOCKED)]


def test_only_a_pending_task_can_be_blocked(store: Any) -> None:
    running = Running(store, lambda context: "done")
    task = at(FAILED)
    with pytest.raises(ValueError, match="Cannot transition task from 'failed' to 'blocked'"):
        running.executor.mark_blocked(task, "parent")
    assert (task.status, running.said) == (FAILED, [])


def test_running_a_blocked_task_clears_who_blocked_it(ledger: Any) -> None:
    running = Running(ledger, lambda context: "done")
    task = Task.bash("work")
    running.executor.mark_blocked(task, "parent")
    running.executor.execute(task)
    assert (task.blocked_by, recorded(ledger, task).blocked_by) == (None, None)


# --- nothing runs that can't be recorded -----------------------------------------------------------------------------


@contextlib.contextmanager
def locked_by_a_stranger(path: Path) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as stranger:
        stranger.execute("BEGIN EXCLUSIVE")
        yield
        stranger.execute("ROLLBACK")


@contextlib.contextmanager
def moved_away(path: Path) -> Iterator[None]:
    kept = path.with_name("kept.db")
    path.rename(kept)
    yield
    kept.replace(path)


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[None]:
    with moved_away(path):
        other = path.with_name("other.db")
        with SQLiteStore(other):
            pass
        other.rename(path)
        yield


TROUBLES = [locked_by_a_stranger, moved_away, replaced]


@pytest.mark.parametrize("trouble", TROUBLES)
def test_what_can_not_be_recorded_is_not_run_and_the_task_is_as_it_was(path: Path, trouble: Any) -> None:
    with SQLiteStore(path, busy_timeout=0.1) as store:
        running = Running(store, lambda context: "done")
        running.executor.execute(Task.bash("first"))
        running.heard.clear()
        running.entered.clear()
        task = Task.bash("work")
        with trouble(path), pytest.raises(LedgerUnwritableError) as lost:
            running.executor.execute(task, retry_policy=RetryPolicy(3))
        assert lost.value.result is None
        assert (running.entered, running.said) == ([], [])
        assert (task.status, task.result, task.attempts, task.error) == (PENDING, None, 0, None)
        assert running.executor.execute(task).output == "done"
        assert verify(store._readers).problems == []


def test_with_a_store_that_was_closed_nothing_runs(path: Path) -> None:
    with SQLiteStore(path) as store:
        running = Running(store, lambda context: "done")
    task = Task.bash("work")
    with pytest.raises(LedgerUnwritableError):
        running.executor.execute(task)
    assert (running.entered, running.said, task.status) == ([], [], PENDING)


@pytest.mark.parametrize("call", ["cancel", "mark_blocked"])
def test_what_can_not_be_recorded_is_neither_cancelled_nor_blocked(path: Path, call: str) -> None:
    with SQLiteStore(path, busy_timeout=0.1) as store:
        running = Running(store, lambda context: "done")
        task = Task.bash("work")
        store.tasks.save(task)
        with locked_by_a_stranger(path), pytest.raises(LedgerUnwritableError):
            getattr(running.executor, call)(task, *(["parent"] if call == "mark_blocked" else []))
        assert (task.status, task.result, running.said) == (PENDING, None, [])


@pytest.mark.parametrize("end", ["returns", "raises"])
def test_a_ledger_lost_while_the_handler_runs_leaves_the_end_on_the_handle(path: Path, end: str) -> None:
    kept = path.with_name("kept.db")

    def work(context: TaskContext) -> str:
        path.rename(kept)
        if end == "raises":
            raise ValueError("boom")
        return "done"

    with SQLiteStore(path) as store:
        running = Running(store, work)
        task = Task.bash("work")
        with pytest.raises(LedgerUnwritableError) as lost:
            running.executor.execute(task, retry_policy=RetryPolicy(3))
        assert lost.value.result is task.result
        assert task.result is not None
        assert (task.status, task.error) == ((FAILED, "boom") if end == "raises" else (SUCCEEDED, None))
        assert task.result.status is task.status
        assert len(running.entered) == 1
        assert running.said == ["started", "persistence_failed"]
        assert running.heard[1].record is None
        assert running.heard[1].error

        kept.rename(path)
        assert store.tasks[task.id].status is RUNNING
        store.tasks.save(task)
        found = store.tasks[task.id]
        assert (found.status, found.error, found.result) == (task.status, task.error, task.result)
        assert verify(store._readers).problems == []


def test_what_a_handler_said_of_its_progress_waits_with_the_end(path: Path) -> None:
    kept = path.with_name("kept.db")

    def work(context: TaskContext) -> str:
        path.rename(kept)
        context.emit_progress(50)
        return "done"

    with SQLiteStore(path) as store:
        task = Task.bash("work")
        with pytest.raises(LedgerUnwritableError):
            Running(store, work).executor.execute(task)
        kept.rename(path)
        store.tasks.save(task)
        assert [fact.percent for fact in facts(store, "TaskProgressed")] == [50]
        assert verify(store._readers).problems == []


def test_a_ledger_lost_before_a_retry_keeps_the_failure_and_its_result(path: Path) -> None:
    def lose(event: TaskEvent) -> None:
        if event.type == "failed":
            path.rename(path.with_name("kept.db"))

    with SQLiteStore(path) as store:
        running = Running(store, fails)
        running.executor.events.subscribe(lose)
        task = Task.bash("work")
        with pytest.raises(LedgerUnwritableError) as lost:
            running.executor.execute(task, retry_policy=RetryPolicy(3))
        assert lost.value.result is not None
        assert lost.value.result.error == "boom 1"
        assert (task.status, len(running.entered)) == (FAILED, 1)


def test_a_ledger_that_is_back_before_the_end_was_not_lost(path: Path) -> None:
    def work(context: TaskContext) -> str:
        with moved_away(path):
            pass
        return "done"

    with SQLiteStore(path) as store:
        running = Running(store, work)
        running.executor.execute(Task.bash("work"))
        assert running.said == ["started", "succeeded"]


# --- a store that is not ours ----------------------------------------------------------------------------------------


class Foreign:
    """A user's own store: it has the two collections, and raises what it is told to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.saved: list[tuple[str, TaskStatus]] = []
        self.saved_graphs: list[tuple[TaskGraph, list[TaskStatus]]] = []
        self.tasks = MagicMock()
        self.graphs = MagicMock()
        self.tasks.save.side_effect = self._save
        self.graphs.save.side_effect = self._save_graph
        self._error = error

    def _save(self, task: Task) -> None:
        self.saved.append((task.id, task.status))
        if self._error is not None:
            raise self._error

    def _save_graph(self, graph: TaskGraph) -> None:
        self.saved_graphs.append((graph, [task.status for task in graph]))
        if self._error is not None:
            raise self._error


def test_a_foreign_store_is_given_the_task_at_every_transition() -> None:
    foreign = Foreign()
    running = Running(foreign, succeeds_at(2))
    task, blocked, cancelled = Task.bash("work"), Task.bash("blocked"), Task.bash("cancelled")
    running.executor.execute(task, retry_policy=RetryPolicy(2))
    running.executor.mark_blocked(blocked, task.id)
    running.executor.cancel(cancelled)
    assert foreign.saved == [
        *((task.id, status) for status in (RUNNING, FAILED, RUNNING, SUCCEEDED)),
        (blocked.id, BLOCKED),
        (cancelled.id, CANCELLED),
    ]
    assert (running.executor.persistence_errors, running.executor.graph_persistence_errors) == ([], [])


def test_a_foreign_store_is_given_the_graph_before_and_after_a_run() -> None:
    foreign = Foreign()
    graph = TaskGraph()
    graph.add(Task.bash("work"))
    graph.run(Running(foreign, lambda context: "done").executor)
    assert foreign.saved_graphs == [(graph, [PENDING]), (graph, [SUCCEEDED])]


def test_what_a_foreign_store_raises_is_listed_and_published_and_the_work_goes_on() -> None:
    error = OSError("disk on fire")
    running = Running(Foreign(error), lambda context: "done")
    task = Task.bash("work")
    assert running.executor.execute(task).output == "done"
    assert running.executor.persistence_errors == [(task.id, error)] * 2
    assert running.said == ["started", "persistence_failed", "succeeded", "persistence_failed"]
    assert [event.error for event in running.heard if event.error] == ["disk on fire"] * 2


def test_the_list_of_persistence_errors_is_new_each_time() -> None:
    running = Running(Foreign(OSError("x")), lambda context: "done")
    running.executor.execute(Task.bash("work"))
    running.executor.persistence_errors.clear()
    assert len(running.executor.persistence_errors) == 2


def test_a_store_without_collections_is_not_checked_when_the_executor_is_made() -> None:
    running = Running(object(), lambda context: "done")
    assert running.executor.execute(Task.bash("work")).output == "done"
    assert [type(error) for _, error in running.executor.persistence_errors] == [AttributeError] * 2


@pytest.mark.parametrize("action", ["error", "ignore", "default"])
def test_what_a_foreign_store_raises_for_a_graph_is_warned_of_and_is_never_an_error(action: Any) -> None:
    error = OSError("disk on fire")
    running = Running(Foreign(error), lambda context: "done")
    graph = TaskGraph()
    graph.add(Task.bash("work"))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter(action)
        assert graph.run(running.executor).ok
    assert running.executor.graph_persistence_errors == [(graph.id, error)] * 2
    told = [str(warning.message) for warning in warned]
    assert told == [f"graph persistence failed for graph '{graph.id}': disk on fire"] * 2


UNDER_W_ERROR = """
from ttasks import Task, TaskExecutor, TaskGraph
graph = TaskGraph()
graph.add(Task.bash("echo done"))
print(graph.run(TaskExecutor(object())).ok)
"""


def test_under_w_error_a_graph_with_a_broken_foreign_store_runs_to_its_end() -> None:
    ran = subprocess.run([sys.executable, "-W", "error", "-c", UNDER_W_ERROR], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "True\n")
    assert ran.stderr.count("graph persistence failed for graph") == 2


# --- many at a time --------------------------------------------------------------------------------------------------


def test_a_submitted_task_ends_in_its_future(store: Any) -> None:
    running = Running(store, lambda context: context.payload)
    tasks = [Task.bash(str(number)) for number in range(20)]
    with running.executor as executor:
        futures = [executor.submit(task) for task in tasks]
        assert [future.result(PATIENCE_S).output for future in futures] == [task.payload for task in tasks]
    assert [future.result() is task.result for future, task in zip(futures, tasks, strict=True)] == [True] * 20


def test_what_a_submitted_task_raises_is_raised_by_its_future(store: Any) -> None:
    with Running(store, fails).executor as executor:
        future = executor.submit(Task.bash("work"), retry_policy=RetryPolicy(2))
        with pytest.raises(ValueError, match="boom 2"):
            future.result(PATIENCE_S)


def test_the_upstream_mapping_is_copied_at_the_call(store: Any) -> None:
    parent = Task.bash("parent")
    upstream = {parent.id: parent}
    release = threading.Event()
    running = Running(store, lambda context: release.wait(PATIENCE_S) and context.upstream[parent.id] is parent)
    with running.executor as executor:
        future = executor.submit(Task.bash("work"), upstream)
        upstream.clear()
        release.set()
        assert future.result(PATIENCE_S).raw is True


def test_a_task_that_may_not_run_is_refused_by_submit(store: Any) -> None:
    with Running(store, lambda context: "done").executor as executor, pytest.raises(ValueError, match="Cannot execute"):
        executor.submit(at(CANCELLED))


def test_the_pool_has_the_standard_library_s_size(store: Any) -> None:
    together = threading.Barrier(POOL_SIZE)
    with Running(store, lambda context: together.wait(PATIENCE_S)).executor as executor:
        futures = [executor.submit(Task.bash("work")) for _ in range(POOL_SIZE)]
        assert {future.result(PATIENCE_S).status for future in futures} == {SUCCEEDED}


@contextlib.contextmanager
def busy(running: Running, release: threading.Event) -> Iterator[None]:
    """Keep every thread of the pool busy inside the `with`: what is submitted there is queued."""
    futures = [running.executor.submit(Task.bash("busy")) for _ in range(POOL_SIZE)]
    try:
        yield
    finally:
        release.set()
    for future in futures:
        future.result(PATIENCE_S)


@pytest.mark.parametrize("cancel", ["future", "executor", "task"])
def test_a_task_cancelled_while_it_is_queued_never_runs(store: Any, cancel: str) -> None:
    release = threading.Event()
    running = Running(store, lambda context: release.wait(PATIENCE_S))
    with running.executor as executor:
        task = Task.bash("queued")
        with busy(running, release):
            future = executor.submit(task)
            match cancel:
                case "future":
                    assert future.cancel()
                case "executor":
                    executor.cancel(task)
                case _:
                    task.cancel()
        if cancel != "future":
            with pytest.raises(TaskCancelled, match=f"Task '{task.id}' was cancelled"):
                future.result(PATIENCE_S)
    assert task.status is CANCELLED
    assert task.id not in {context.id for context in running.entered}


def test_the_future_of_running_work_can_not_be_cancelled(store: Any) -> None:
    entered, release = threading.Event(), threading.Event()

    def work(context: TaskContext) -> str:
        entered.set()
        assert release.wait(PATIENCE_S)
        return "done"

    with Running(store, work).executor as executor:
        future = executor.submit(Task.bash("work"))
        assert entered.wait(PATIENCE_S)
        assert not future.cancel()
        release.set()
        assert future.result(PATIENCE_S).output == "done"


def test_after_shutdown_nothing_can_be_submitted(store: Any) -> None:
    running = Running(store, lambda context: "done")
    assert not running.executor.is_shutdown
    running.executor.shutdown()
    running.executor.close()
    running.executor.shutdown()
    assert running.executor.is_shutdown
    task = Task.bash("work")
    with pytest.raises(RuntimeError, match="executor is shut down"):
        running.executor.submit(task)
    assert (task.status, running.said) == (PENDING, [])


def test_shutdown_waits_for_what_is_queued_and_what_runs(store: Any) -> None:
    running = Running(store, lambda context: "done")
    tasks = [Task.bash("work") for _ in range(POOL_SIZE * 3)]
    with running.executor as executor:
        for task in tasks:
            executor.submit(task)
    assert {task.status for task in tasks} == {SUCCEEDED}


def test_shutdown_from_one_of_its_own_workers_waits_for_the_others(store: Any) -> None:
    entered, release = threading.Event(), threading.Event()
    seen: list[TaskStatus] = []

    def work(context: TaskContext) -> str:
        if context.payload == "slow":
            entered.set()
            assert release.wait(PATIENCE_S)
            return "slow"
        assert entered.wait(PATIENCE_S)
        threading.Timer(0.05, release.set).start()
        running.executor.shutdown()
        seen.append(slow.status)
        return "done"

    running = Running(store, work)
    slow, closing = Task.bash("slow"), Task.bash("closing")
    running.executor.submit(slow)
    assert running.executor.submit(closing).result(PATIENCE_S).output == "done"
    assert seen == [SUCCEEDED]
    assert running.executor.is_shutdown
    running.executor.shutdown()


def test_two_workers_that_shut_down_at_once_do_not_wait_for_each_other(store: Any) -> None:
    both = threading.Barrier(2)

    def work(context: TaskContext) -> str:
        both.wait(PATIENCE_S)
        running.executor.shutdown()
        return "done"

    running = Running(store, work)
    futures = [running.executor.submit(Task.bash("work")) for _ in range(2)]
    assert [future.result(PATIENCE_S).output for future in futures] == ["done", "done"]


def test_a_subclass_that_overrides_execute_is_used_by_submit(store: Any) -> None:
    class Mine(TaskExecutor):
        def execute(self, task: Task, upstream: Any = None, **more: Any) -> TaskResult:
            ran.append((task.id, more))
            return super().execute(task, upstream, **more)

    ran: list[tuple[str, Any]] = []
    executor = Mine.empty(store)
    executor.register(TaskType.BASH, lambda context: "done")
    first, second, policy = Task.bash("work"), Task.bash("work"), RetryPolicy(2)
    with executor:
        executor.submit(first).result(PATIENCE_S)
        executor.submit(second, retry_policy=policy).result(PATIENCE_S)
    assert ran == [(first.id, {}), (second.id, {"retry_policy": policy})]


def test_workers_that_all_shut_down_while_work_is_queued_do_not_wait_for_ever() -> None:
    all_are_queued = threading.Event()

    def work(context: TaskContext) -> None:
        assert all_are_queued.wait(PATIENCE_S)
        running.executor.shutdown()

    running = Running(None, work)
    futures = [running.executor.submit(Task.bash("work")) for _ in range(80)]  # more than the pool has threads
    all_are_queued.set()
    for future in futures:
        future.result(PATIENCE_S)
