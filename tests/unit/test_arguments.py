"""Arguments that can't be meant are refused at the call, by name, before anything has happened."""

from __future__ import annotations

import math
import sqlite3
import subprocess
from collections import UserDict
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from commands import TTASKS
from ttasks import (
    AlreadyRunningError,
    InMemoryStore,
    NotFoundError,
    RetryPolicy,
    SealedTaskError,
    SQLiteStore,
    Task,
    TaskContext,
    TaskExecutor,
    TaskGraph,
    TaskStatus,
    TaskType,
    TransitionError,
    UnknownTypeError,
)

# --- executors -------------------------------------------------------------------------------------------------------


class Own:
    """A store of a user's own."""

    def __init__(self) -> None:
        self.saved: list[Any] = []
        self.tasks = self.graphs = SimpleNamespace(save=self.saved.append)


NO_STORES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "text": (lambda path: str(path), r"TaskExecutor\(SQLiteStore\('.*ledger.db'\)\)$"),
    "path": (lambda path: path, r"TaskExecutor\(SQLiteStore\('.*ledger.db'\)\)$"),
    "bytes": (lambda path: bytes(path), r"TaskExecutor\(SQLiteStore\('ledger.db'\)\)$"),
    "connection": (lambda _: sqlite3.connect(":memory:"), r"TaskExecutor\(SQLiteStore\('ledger.db'\)\)$"),
    "number": (lambda _: 4, r"TaskExecutor\(SQLiteStore\('ledger.db'\)\)$"),
    "dict": (lambda _: {}, r"TaskExecutor\(SQLiteStore\('ledger.db'\)\)$"),
    "task": (lambda _: Task.bash(""), r"TaskExecutor\(SQLiteStore\('ledger.db'\)\)$"),
    "class": (lambda _: InMemoryStore, r"TaskExecutor\(InMemoryStore\(\)\)$"),
    "class with a path": (lambda _: SQLiteStore, r"TaskExecutor\(SQLiteStore\('ledger.db'\)\)$"),
    "class of a user's own": (lambda _: Own, r"TaskExecutor\(Own\(\)\)$"),
}


@pytest.mark.parametrize("kind", NO_STORES)
def test_an_executor_refuses_what_is_no_store_and_says_how_to_give_one(tmp_path: Path, kind: str) -> None:
    make, call = NO_STORES[kind]
    path = tmp_path / "ledger.db"
    with pytest.raises(TypeError, match=f"^store must be a store, got .*: nothing would be recorded. Give one: {call}"):
        TaskExecutor(make(path))
    with pytest.raises(TypeError, match=r"^store must be a store"):
        TaskExecutor.empty(make(path))
    assert not path.exists()


@pytest.mark.parametrize("store", [None, Own(), MagicMock(), MagicMock(spec=Path), object(), SimpleNamespace()])
def test_an_executor_takes_any_other_store_without_looking_at_it(store: Any) -> None:
    if store is not None and isinstance(store, Path):
        store.tasks = store.graphs = MagicMock()
    executor = TaskExecutor.empty(store)
    executor.register(TaskType.BASH, lambda _: "done")
    assert executor.execute(Task.bash("")).output == "done"


@pytest.mark.parametrize("executor", [None, 3, "bash", InMemoryStore(), TaskExecutor, object()])
def test_a_graph_is_run_by_an_executor(executor: Any) -> None:
    graph = TaskGraph()
    task = graph.add(Task.bash(""))
    call = r"graph.run\(TaskExecutor\(store\)\)"
    with pytest.raises(TypeError, match=f"^executor must be a TaskExecutor, got .*: {call}$"):
        graph.run(executor)
    assert task.is_pending


@pytest.mark.parametrize("graph", [None, 3, Task.bash("")])
def test_an_executor_runs_graphs(graph: Any) -> None:
    with pytest.raises(TypeError, match=r"^graph must be a TaskGraph"):
        TaskExecutor().run_graph(graph)


@pytest.mark.parametrize("task_type", ["bash", None, TaskStatus.PENDING, 3])
def test_only_types_are_registered(task_type: Any) -> None:
    with pytest.raises(TypeError, match=r"^task_type must be a TaskType, got"):
        TaskExecutor().is_registered(task_type)


# --- upstream --------------------------------------------------------------------------------------------------------

UPSTREAM: dict[str, Any] = {
    "a number": 3,
    "zero": 0,
    "text": "",
    "a list of tasks": [Task.bash("")],
    "an empty list": [],
    "a task": Task.bash(""),
    "text in place of a task": {"id": "output"},
    "None in place of a task": {"id": None},
    "a task as the key": {Task.bash(""): Task.bash("")},
    "a number as the key": {1: Task.bash("")},
}


@pytest.mark.parametrize("kind", UPSTREAM)
def test_upstream_holds_tasks_by_id(kind: str) -> None:
    store, entered = InMemoryStore(), list[str]()
    executor = TaskExecutor.empty(store)
    executor.register(TaskType.BASH, lambda context: entered.append(context.id))
    task = Task.bash("")
    for take in (executor.execute, executor.submit, TaskContext):
        with pytest.raises(TypeError, match=r"^upstream must "):
            take(task, UPSTREAM[kind])  # type: ignore[operator]
    assert (entered, task.is_pending, len(store.tasks)) == ([], True, 0)


@pytest.mark.parametrize("kind", [dict, MappingProxyType, UserDict])
def test_upstream_may_be_any_mapping(kind: Callable[[dict[str, Task]], Any]) -> None:
    parent = Task.bash("")
    executor = TaskExecutor.empty()
    executor.register(TaskType.BASH, lambda context: list(context.upstream))
    given = kind({parent.id: parent})
    assert executor.execute(Task.bash(""), given).raw == [parent.id]
    assert executor.submit(Task.bash(""), given).result().raw == [parent.id]


# --- fields of tasks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factory", [Task.bash, Task.powershell, Task.prompt, Task.agent])
def test_a_folder_may_be_a_path_and_is_recorded_as_text(tmp_path: Path, factory: Callable[..., Task]) -> None:
    task = factory("true", cwd=tmp_path)
    assert task.cwd == str(tmp_path)
    store = InMemoryStore()
    store.tasks.save(task)
    assert store.history(task)[0].data["cwd"] == str(tmp_path)


def test_a_script_runs_in_a_folder_that_was_given_as_a_path(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "ledger.db") as store:
        task = Task("where", "pwd -P", TaskType.BASH, cwd=tmp_path)
        assert TaskExecutor(store).execute(task).output == f"{tmp_path.resolve()}\n"
        assert store.tasks[task.id].cwd == str(tmp_path)
        graph = TaskGraph()
        graph.add(task)
        graph.add(Task.bash("exit 1", cwd=tmp_path))
        assert [fresh.cwd for fresh in graph.retry()] == [str(tmp_path)] * 2


def test_a_withheld_folder_may_be_given_again_as_a_path(tmp_path: Path) -> None:
    folder = tmp_path / "s3cret-s3cret"
    folder.mkdir()
    with SQLiteStore(tmp_path / "ledger.db", redact=["re:s3cret-s3cret"]) as store:
        store.tasks.save(task := Task.bash("pwd -P", cwd=folder))
        loaded = store.tasks[task.id]
        loaded.give_again(cwd=folder)
        assert loaded.cwd == str(folder)
        with pytest.raises(TypeError, match=r"^cwd must be a str or a path"):
            store.tasks[task.id].give_again(cwd=3)  # type: ignore[arg-type]


class BytesPath:
    def __fspath__(self) -> bytes:
        return b"/"


@pytest.mark.parametrize("cwd", [3, b"/", BytesPath(), ["/"]])
def test_a_folder_is_text_or_a_path(cwd: Any) -> None:
    with pytest.raises(TypeError, match=r"^cwd must be a str or a path, got"):
        Task.bash("true", cwd=cwd)


@pytest.mark.parametrize("timeout", [math.inf, -math.inf, math.nan, 0, -1, 10**400])
def test_a_timeout_that_can_not_be_meant_says_what_is_allowed(timeout: float) -> None:
    allowed = "^timeout must be greater than 0 and finite, in seconds, or None for no limit; got"
    with pytest.raises(ValueError, match=allowed):
        Task.bash("true", timeout=timeout)
    task = Task.bash("true")
    with pytest.raises(ValueError, match=allowed):
        task.timeout = timeout
    assert task.timeout is None


def test_an_answer_that_can_not_be_meant_says_which_there_are() -> None:
    with pytest.raises(ValueError, match=r"^on_interrupted must be one of 'rerun', 'fail', 'ask', got 'x'$"):
        Task.bash("true", on_interrupted="x")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^on_interrupted must be one of 'rerun', 'fail', 'ask', got NoneType$"):
        Task.bash("true", on_interrupted=None)  # type: ignore[arg-type]


# --- types of events -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("typo", "meant"), [("TaskStartd", "TaskStarted"), ("taskstarted", "TaskStarted"), ("Zz", "")])
def test_a_type_of_event_that_there_is_not_is_refused(typo: str, meant: str) -> None:
    store = InMemoryStore()
    hint = f"; did you mean '{meant}'\\?" if meant else ""
    for given in (typo, ["TaskCreated", typo]):
        with pytest.raises(UnknownTypeError, match=f"^no type of event is called '{typo}'{hint}$") as refused:
            store.events(type=given)
        assert isinstance(refused.value, ValueError | NotFoundError)
        assert (refused.value.type, refused.value.like) == (typo, meant or None)
    with pytest.raises(UnknownTypeError):
        store.as_of(1).events(type=typo)


def test_a_type_that_only_a_newer_ttasks_knows_can_be_asked_for(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "ledger.db") as store:
        store.tasks.save(Task.bash(""))
        head = store.events(newest_first=True, limit=1)
        position = next(iter(head)).position
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        connection.execute(
            "INSERT INTO events (position, stream, version, type, type_version, recorded_at, data, hash) SELECT"
            " max(position) + 1, 'task-new', 1, 'TaskDreamed', 1, max(recorded_at), '{}', zeroblob(32) FROM events"
        )
    connection.close()
    with SQLiteStore(tmp_path / "ledger.db", read_only=True) as store:
        assert len(store.events(type="TaskDreamed")) == 1
        assert len(store.as_of(position).events(type="TaskDreamed")) == 0


# --- tasks and graphs without a title --------------------------------------------------------------------------------


def refusals(tmp_path: Path) -> dict[str, Callable[[Task, TaskGraph], object]]:
    running = TaskExecutor.empty()

    def in_its_own_handler(task: Task, _: TaskGraph) -> None:
        running.register(TaskType.BASH, lambda _: running.execute(task))
        running.execute(task)

    def by_hand(task: Task, _: TaskGraph) -> None:
        running.register(TaskType.BASH, lambda _: task.transition_to(TaskStatus.FAILED))
        running.execute(task)

    def in_a_graph(task: Task, graph: TaskGraph) -> None:
        task.transition_to(TaskStatus.RUNNING)
        graph.run(running)

    def retried(task: Task, graph: TaskGraph) -> None:
        task.transition_to(TaskStatus.RUNNING)
        graph.retry()

    def sealed(task: Task, _: TaskGraph) -> None:
        task.transition_to(TaskStatus.RUNNING)
        task.transition_to(TaskStatus.SUCCEEDED)
        task.title = "late"

    def resolved(task: Task, _: TaskGraph) -> None:
        with SQLiteStore(tmp_path / "resolve.db") as store:
            store.tasks.save(task)
            store.tasks.resolve(task.id, "failed")

    def cancelled(task: Task, _: TaskGraph) -> None:
        task.cancel()
        running.execute(task)

    return {
        "in its own handler": in_its_own_handler,
        "by hand": by_hand,
        "in a graph": in_a_graph,
        "retried": retried,
        "sealed": sealed,
        "resolved": resolved,
        "cancelled": cancelled,
        "given again": lambda task, _: task.give_again(payload="x"),
    }


@pytest.mark.parametrize("how", list(refusals(Path())))
def test_a_task_without_a_title_is_named_by_its_id(tmp_path: Path, how: str) -> None:
    graph = TaskGraph()
    task = graph.add(Task.bash(""))
    with pytest.raises((AlreadyRunningError, TransitionError, SealedTaskError, ValueError)) as refused:
        refusals(tmp_path)[how](task, graph)
    assert task.id in str(refused.value)
    assert "''" not in str(refused.value)


def test_a_graph_without_a_title_is_named_by_its_id() -> None:
    graph = TaskGraph()
    graph.add(Task.bash(""))
    executor = TaskExecutor.empty(InMemoryStore())
    refused: list[str] = []

    def work(_: TaskContext) -> None:
        with pytest.raises(AlreadyRunningError) as error:
            graph.run(executor)
        refused.append(str(error.value))

    executor.register(TaskType.BASH, work)
    graph.run(executor)
    assert refused == [f"graph {graph.id} is running already. Nothing was written"]


def test_the_command_names_tasks_and_graphs_without_a_title_by_their_ids(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.db"
    with SQLiteStore(ledger) as store:
        graph = TaskGraph()
        task = graph.add(Task.bash("exit 3"))
        graph.run(TaskExecutor(store))
    again = subprocess.run(
        [*TTASKS, "retry", graph.id, "--ledger", str(ledger)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    with SQLiteStore(ledger, read_only=True) as store:
        (retried,) = (one for one in store.graphs.values() if one.id != graph.id)
        (fresh,) = retried
    assert task.id != fresh.id
    assert f"{retried.id[-8:]}: carrying on" in again.stdout, again.stdout + again.stderr
    assert f"{fresh.id[-8:]}: failed" in again.stdout


def test_a_policy_says_what_its_numbers_may_be() -> None:
    with pytest.raises(ValueError, match="backoff must be a finite non-negative number, got inf"):
        RetryPolicy(2, math.inf)
