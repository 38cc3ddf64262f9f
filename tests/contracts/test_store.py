"""What every store of the library does alike: in a file, in SQLite's memory, and with live objects."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ttasks import (
    InMemoryStore,
    LedgerError,
    LedgerUnwritableError,
    RetryPolicy,
    SQLiteStore,
    Store,
    StreamConflictError,
    Task,
    TaskContext,
    TaskExecutionError,
    TaskExecutor,
    TaskGraph,
    TaskStatus,
    TaskType,
)
from ttasks.events.facts import GraphRevised, TaskDeleted, TaskRevised, TaskStarted
from ttasks.log import files
from ttasks.log.event_log import EventLog
from ttasks.log.liveness import let_go, take_in_hand
from ttasks.log.transaction import Batch
from ttasks.log.verify import verify
from ttasks.state.record import evolve

AnyStore = SQLiteStore | InMemoryStore


@pytest.fixture(params=["file", "memory", "live"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AnyStore]:
    made: AnyStore
    match request.param:
        case "file":
            made = SQLiteStore(tmp_path / "ledger.db")
        case "memory":
            made = SQLiteStore(":memory:")
        case _:
            made = InMemoryStore()
    with made:
        yield made
        if made._log is not None:
            assert verify(made._readers).problems == []


def recorded(store: AnyStore) -> list[str]:
    """Return the types of all events about tasks and graphs."""
    return [event.type for event in store._readers.events() if event.stream.startswith(("task-", "graph-"))]


def reloaded_task(store: AnyStore, task: Task) -> Task:
    """Return what the ledger itself has of a task, also where the store holds the live one."""
    state = store._readers.task(task.id)
    assert state is not None
    return Task._load(state, store._ledger, store._readers)


def reloaded_graph(store: AnyStore, graph: TaskGraph) -> TaskGraph:
    """Return what the ledger itself has of a graph."""
    state = store._readers.graph(graph.id)
    assert state is not None
    return TaskGraph._load(state, {task.id: reloaded_task(store, task) for task in graph}, store._ledger)


def overtaken(store: AnyStore, monkeypatch: pytest.MonkeyPatch, *ahead: Batch) -> list[Batch]:
    """Let somebody append to a stream right before the store does; return what they have left to append."""
    log, left = store._writable(), list(ahead)
    append = log.append

    def slower(*batches: Batch) -> Any:
        for batch in batches:
            for other in [other for other in left if other.stream == batch.stream]:
                left.remove(other)
                append(other)
        return append(*batches)

    monkeypatch.setattr(log, "append", slower)
    return left


def born(second: int, **fields: Any) -> Task:
    return Task("t", "true", TaskType.BASH, created_at=datetime(2024, 1, 1, 0, 0, second, tzinfo=UTC), **fields)


def executor(store: Any = None) -> TaskExecutor:
    """Return one whose handler fails where the payload is ``fail``, and returns the payload else."""

    def handler(context: TaskContext) -> str:
        if context.payload == "fail":
            raise ValueError("as told")
        return context.payload

    made = TaskExecutor.empty(store)
    made.register(TaskType.BASH, handler)
    return made


# --- the collections -------------------------------------------------------------------------------------------------


def test_it_is_a_store(store: AnyStore) -> None:
    assert isinstance(store, Store)


def test_anything_with_the_two_collections_is_a_store() -> None:
    class Mine:
        tasks: Any = None
        graphs: Any = None

    class Half:
        tasks: Any = None

    assert isinstance(Mine(), Store)
    assert not isinstance(Half(), Store)


def test_a_store_needs_no_more_than_the_two_collections() -> None:
    assert {name for name in vars(Store) if not name.startswith("_")} == {"tasks", "graphs"}


def test_a_new_store_is_empty(store: AnyStore) -> None:
    assert (len(store.tasks), list(store.tasks), len(store.graphs), list(store.graphs)) == (0, [], 0, [])
    assert recorded(store) == []


def test_a_saved_task_is_found_by_its_id(store: AnyStore) -> None:
    task = Task.bash("make", title="t", description="d", timeout=3, cwd="/", env={"A": "b"}, on_interrupted="ask")
    store.tasks.save(task)
    found = store.tasks[task.id]
    assert found == task
    for name in ("title", "payload", "type", "description", "timeout", "created_at", "cwd", "env", "on_interrupted"):
        assert getattr(found, name) == getattr(task, name)


def test_setting_an_item_saves_it(store: AnyStore) -> None:
    task, graph = Task.bash("make"), TaskGraph()
    store.tasks[task.id] = task
    store.graphs[graph.id] = graph
    assert store.tasks[task.id] == task
    assert store.graphs[graph.id].id == graph.id
    assert recorded(store) == ["TaskCreated", "GraphCreated"]


def test_membership_is_by_id_or_object(store: AnyStore) -> None:
    task, graph = Task.bash("make"), TaskGraph()
    store.tasks.save(task)
    store.graphs.save(graph)
    assert task in store.tasks
    assert task.id in store.tasks
    assert graph in store.graphs
    assert graph.id in store.graphs


@pytest.mark.parametrize("key", [123, [], None, {}, b"x", "no-such-id", 1.5, object()])
def test_membership_of_anything_else_is_false(store: AnyStore, key: object) -> None:
    store.tasks.save(Task.bash("make"))
    assert key not in store.tasks
    assert key not in store.graphs


def test_a_task_is_no_graph_and_a_graph_no_task(store: AnyStore) -> None:
    task, graph = Task.bash("make"), TaskGraph()
    store.tasks.save(task)
    store.graphs.save(graph)
    assert task not in store.graphs
    assert task.id not in store.graphs
    assert graph not in store.tasks
    assert graph.id not in store.tasks


@pytest.mark.parametrize("collection", ["tasks", "graphs"])
@pytest.mark.parametrize("key", ["missing", 123, None])
def test_what_is_missing_is_a_key_error(store: AnyStore, collection: str, key: Any) -> None:
    with pytest.raises(KeyError):
        getattr(store, collection)[key]
    with pytest.raises(KeyError):
        del getattr(store, collection)[key]


def test_cancelling_what_is_missing_is_a_key_error(store: AnyStore) -> None:
    with pytest.raises(KeyError):
        store.tasks.cancel("missing")


@pytest.mark.parametrize("wrong", [None, "task", TaskGraph(), object()])
def test_only_a_task_can_be_saved_as_a_task(store: AnyStore, wrong: Any) -> None:
    with pytest.raises(TypeError, match="task must be a Task"):
        store.tasks.save(wrong)
    with pytest.raises(TypeError, match="task must be a Task"):
        store.tasks["id"] = wrong
    assert recorded(store) == []


@pytest.mark.parametrize("wrong", [None, "graph", Task.bash("make"), object()])
def test_only_a_graph_can_be_saved_as_a_graph(store: AnyStore, wrong: Any) -> None:
    with pytest.raises(TypeError, match="graph must be a TaskGraph"):
        store.graphs.save(wrong)
    with pytest.raises(TypeError, match="graph must be a TaskGraph"):
        store.graphs["id"] = wrong
    assert recorded(store) == []


def test_saving_under_another_id_is_refused(store: AnyStore) -> None:
    task, graph = Task.bash("make"), TaskGraph()
    with pytest.raises(ValueError, match="id"):
        store.tasks["another"] = task
    with pytest.raises(ValueError, match="id"):
        store.graphs["another"] = graph
    assert recorded(store) == []


def test_the_mixins_of_a_mutable_mapping_work(store: AnyStore) -> None:
    first, second = born(1), born(2)
    store.tasks.update({first.id: first, second.id: second})
    assert store.tasks.get("missing") is None
    assert list(store.tasks.keys()) == [first.id, second.id]
    assert list(store.tasks.values()) == [first, second]
    assert list(store.tasks.items()) == [(first.id, first), (second.id, second)]
    assert store.tasks.setdefault(first.id, second) == first
    assert store.tasks.pop(first.id) == first
    assert first not in store.tasks
    store.tasks.clear()
    assert len(store.tasks) == 0


def test_views_of_the_graphs_hold_graphs(store: AnyStore) -> None:
    graph = TaskGraph(title="g")
    store.graphs.save(graph)
    assert [found.id for found in store.graphs.values()] == [graph.id]
    assert [(key, found.title) for key, found in store.graphs.items()] == [(graph.id, "g")]


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_snapshots_come_in_order_of_birth(kind: str, tmp_path: Path) -> None:
    with SQLiteStore(":memory:" if kind == "memory" else tmp_path / "ledger.db") as store:
        late, early, middle = born(30), born(10), born(20)
        twins = sorted([born(15), born(15)], key=lambda task: task.id)
        for task in (late, early, *reversed(twins), middle):
            store.tasks.save(task)
        assert list(store.tasks) == [early.id, *(twin.id for twin in twins), middle.id, late.id]
        assert list(store.tasks.values()) == [early, *twins, middle, late]


def test_live_tasks_come_in_the_order_they_were_saved() -> None:
    with InMemoryStore() as store:
        late, early, middle = born(30), born(10), born(20)
        for task in (late, early, middle, late):
            store.tasks.save(task)
        assert list(store.tasks) == [late.id, early.id, middle.id]


def test_live_objects_are_the_very_ones() -> None:
    with InMemoryStore() as store:
        task, graph = Task.bash("make"), TaskGraph()
        inside = graph.add(Task.bash("inside"))
        store.tasks.save(task)
        store.graphs.save(graph)
        assert store.tasks[task.id] is task
        assert store.graphs[graph.id] is graph
        assert store.tasks[inside.id] is inside


def test_what_an_executor_runs_is_held_by_a_live_store() -> None:
    with InMemoryStore() as store:
        task, graph = Task.bash("make"), TaskGraph()
        graph.add(Task.bash("inside"))
        executor(store).execute(task)
        graph.run(executor(store))
        assert store.tasks[task.id] is task
        assert store.graphs[graph.id] is graph


def test_a_graph_that_is_deleted_while_all_are_read_is_left_out(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "ledger.db") as store:
        first, second = TaskGraph(title="first"), TaskGraph(title="second")
        store.graphs.save(first)
        store.graphs.save(second)
        ids = iter(store.graphs)
        del store.graphs[first.id]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(store.graphs), "__iter__", lambda _: ids)
            assert [graph.title for graph in store.graphs.values()] == ["second"]


def test_snapshots_know_nothing_of_later_changes(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "ledger.db") as store:
        task = Task.bash("make", title="old")
        store.tasks.save(task)
        task.title = "new"
        assert store.tasks[task.id] is not task
        assert store.tasks[task.id].title == "old"


# --- saving ----------------------------------------------------------------------------------------------------------


def test_saving_with_nothing_pending_appends_nothing(store: AnyStore) -> None:
    graph = TaskGraph(title="g")
    a = graph.add(Task.bash("a"))
    graph.add(Task.bash("b"), after=[a])
    store.graphs.save(graph)
    before = recorded(store)
    store.graphs.save(graph)
    store.tasks.save(a)
    store.graphs.save(store.graphs[graph.id])
    store.tasks.save(store.tasks[a.id])
    assert recorded(store) == before == ["TaskCreated", "TaskCreated", "GraphCreated"]


def test_setting_a_field_to_what_it_is_leaves_nothing_pending(store: AnyStore) -> None:
    task = Task.bash("make", title="t")
    store.tasks.save(task)
    task.title = "t"
    store.tasks.save(task)
    assert recorded(store) == ["TaskCreated"]


def test_each_change_is_an_event_of_its_own(store: AnyStore) -> None:
    task = Task.bash("make")
    store.tasks.save(task)
    task.title = "t"
    task.timeout = 5
    task.transition_to(TaskStatus.FAILED, error="because")
    store.tasks.save(task)
    assert recorded(store) == ["TaskCreated", "TaskRevised", "TaskRevised", "TaskFailed"]
    found = reloaded_task(store, task)
    assert (found.title, found.timeout, found.status, found.error) == ("t", 5, TaskStatus.FAILED, "because")


def test_a_task_that_was_changed_before_it_was_ever_saved_arrives_as_a_snapshot(store: AnyStore) -> None:
    task = Task.bash("make")
    task.title = "t"
    task.transition_to(TaskStatus.FAILED, error="because")
    store.tasks.save(task)
    assert recorded(store) == ["TaskImported"]
    found = reloaded_task(store, task)
    assert (found.title, found.status, found.error) == ("t", TaskStatus.FAILED, "because")


@pytest.mark.parametrize("payload", ["printed", "fail"])
def test_a_task_that_was_run_without_a_ledger_arrives_with_its_result(store: AnyStore, payload: str) -> None:
    task = Task.bash(payload)
    with contextlib.suppress(ValueError):
        executor().execute(task)
    store.tasks.save(task)
    assert recorded(store)[0] == "TaskImported"
    found, live = reloaded_task(store, task), task.result
    assert live is not None and found.result is not None
    assert found.status is task.status
    assert found.attempts == 1
    assert found.error == task.error
    for name in ("task_id", "status", "started_at", "finished_at", "duration", "output", "error", "termination_reason"):
        assert getattr(found.result, name) == getattr(live, name)


def test_a_task_that_failed_without_a_ledger_arrives_with_the_word_for_what_went_wrong(store: AnyStore) -> None:
    def fail(context: TaskContext) -> None:
        raise TaskExecutionError("no", code="rate_limited")

    task, executor = Task.bash("x"), TaskExecutor.empty()
    executor.register(TaskType.BASH, fail)
    with pytest.raises(TaskExecutionError):
        executor.execute(task)

    store.tasks.save(task)

    found = reloaded_task(store, task).result
    assert found is not None
    assert found.error_code == "rate_limited"


def test_a_script_that_was_run_without_a_ledger_arrives_with_both_its_streams(store: AnyStore) -> None:
    task = Task.bash("echo out; seq 5000 >&2; exit 3")
    with pytest.raises(RuntimeError):
        TaskExecutor().execute(task)
    store.tasks.save(task)
    assert recorded(store) == ["TaskImported", "TaskOutput"]
    found = reloaded_task(store, task).result
    assert found is not None
    assert found.output == "out\n"
    assert found.error == "".join(f"{number}\n" for number in range(1, 5001))
    assert (found.returncode, found.raw) == (3, None)


def test_a_task_of_another_ledger_arrives_with_its_result_but_not_its_earlier_attempts(store: AnyStore) -> None:
    with InMemoryStore() as elsewhere:
        task = Task.bash("fail")
        with pytest.raises(ValueError, match="as told"):
            executor(elsewhere).execute(task)
        task.payload = "fine"
        executor(elsewhere).execute(task)
        store.tasks.save(task)
    assert recorded(store) == ["TaskImported", "TaskOutput"]
    found = reloaded_task(store, task)
    assert (found.status, found.attempts) == (TaskStatus.SUCCEEDED, 2)
    assert found.result is not None and found.result.output == "fine"


def test_a_task_that_goes_back_to_a_ledger_it_was_in_is_imported_after_what_it_has_there(store: AnyStore) -> None:
    task = Task.bash("make")
    store.tasks.save(task)
    with InMemoryStore() as elsewhere:
        task.title = "there"
        elsewhere.tasks.save(task)
        task.title = "back"
        store.tasks.save(task)
        assert [event.type for event in elsewhere._readers.events(stream=f"task-{task.id}")] == ["TaskImported"]
    assert recorded(store) == ["TaskCreated", "TaskImported"]
    assert reloaded_task(store, task).title == "back"


def test_a_run_in_a_ledger_is_saved_already(store: AnyStore) -> None:
    task = Task.bash("fine")
    result = executor(store).execute(task)
    before = recorded(store)
    store.tasks.save(task)
    assert recorded(store) == before == ["TaskCreated", "TaskStarted", "TaskSucceeded"]
    assert reloaded_task(store, task).result == result


def test_of_two_handles_the_second_to_save_is_refused(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "ledger.db") as store:
        mine = Task.bash("make", title="old")
        store.tasks.save(mine)
        theirs = store.tasks[mine.id]
        theirs.title = "theirs"
        store.tasks.save(theirs)
        mine.title = "mine"
        with pytest.raises(StreamConflictError) as refusal:
            store.tasks.save(mine)
        assert (refusal.value.stream, refusal.value.expected_version, refusal.value.version) == (
            f"task-{mine.id}",
            1,
            2,
        )
        assert store.tasks[mine.id].title == "theirs"
        assert mine.title == "mine"


def test_of_two_graph_handles_the_second_to_save_is_refused_whole(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "ledger.db") as store:
        mine = TaskGraph(title="old")
        store.graphs.save(mine)
        theirs = store.graphs[mine.id]
        theirs.title = "theirs"
        store.graphs.save(theirs)
        mine.add(Task.bash("new"))
        with pytest.raises(StreamConflictError):
            store.graphs.save(mine)
        assert len(store.graphs[mine.id]) == 0
        assert len(store.tasks) == 0


def test_a_stale_handle_is_refused_before_the_handler_is_entered(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "ledger.db") as store:
        mine = Task.bash("make")
        store.tasks.save(mine)
        executor(store).execute(store.tasks[mine.id])
        entered: list[str] = []
        mine_executor = TaskExecutor.empty(store)
        mine_executor.register(TaskType.BASH, lambda context: entered.append(context.id))
        with pytest.raises(StreamConflictError):
            mine_executor.execute(mine)
        assert entered == []
        assert mine.status is TaskStatus.PENDING


# --- deleting --------------------------------------------------------------------------------------------------------


def test_a_deleted_task_is_gone_from_the_collection_but_not_from_the_history(store: AnyStore) -> None:
    task = Task.bash("make")
    store.tasks.save(task)
    del store.tasks[task.id]
    assert task not in store.tasks
    assert (len(store.tasks), list(store.tasks), list(store.tasks.values())) == (0, [], [])
    with pytest.raises(KeyError):
        store.tasks[task.id]
    assert recorded(store) == ["TaskCreated", "TaskDeleted"]


def test_a_graph_may_be_deleted_by_the_object_too(store: AnyStore) -> None:
    graph, task = TaskGraph(), Task.bash("make")
    store.graphs.save(graph)
    store.tasks.save(task)
    del store.graphs[graph]  # type: ignore[arg-type]
    del store.tasks[task]  # type: ignore[arg-type]
    assert (len(store.tasks), len(store.graphs)) == (0, 0)


def test_deleting_is_done_though_somebody_writes_just_before(store: AnyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    task, graph = Task.bash("make"), TaskGraph()
    store.tasks.save(task)
    store.graphs.save(graph)
    ahead = overtaken(
        store,
        monkeypatch,
        Batch(f"task-{task.id}", [TaskRevised({"title": "new"})], 1),
        Batch(f"graph-{graph.id}", [GraphRevised(title="new")], 1),
    )
    del store.tasks[task.id]
    del store.graphs[graph.id]
    assert ahead == []
    assert (len(store.tasks), len(store.graphs)) == (0, 0)
    assert recorded(store)[2:] == ["TaskRevised", "TaskDeleted", "GraphRevised", "GraphDeleted"]


def test_deleting_what_somebody_deletes_just_before_is_a_key_error(
    store: AnyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task.bash("make")
    store.tasks.save(task)
    overtaken(store, monkeypatch, Batch(f"task-{task.id}", [TaskDeleted("somebody")], 1))
    with pytest.raises(KeyError):
        del store.tasks[task.id]
    assert recorded(store) == ["TaskCreated", "TaskDeleted"]


def test_deleting_twice_is_a_key_error(store: AnyStore) -> None:
    task, graph = Task.bash("make"), TaskGraph()
    store.tasks.save(task)
    store.graphs.save(graph)
    del store.tasks[task.id]
    del store.graphs[graph.id]
    with pytest.raises(KeyError):
        del store.tasks[task.id]
    with pytest.raises(KeyError):
        del store.graphs[graph.id]


def test_deleting_a_graph_keeps_its_tasks(store: AnyStore) -> None:
    graph = TaskGraph()
    task = graph.add(Task.bash("make"))
    store.graphs.save(graph)
    del store.graphs[graph.id]
    assert graph not in store.graphs
    assert len(store.graphs) == 0
    assert store.tasks[task.id] == task


def test_a_deleted_task_stays_visible_through_a_graph_that_needs_it(store: AnyStore) -> None:
    graph = TaskGraph()
    task = graph.add(Task.bash("make"))
    store.graphs.save(graph)
    del store.tasks[task.id]
    assert task not in store.tasks
    assert list(store.graphs[graph.id]) == [task]


def test_saving_a_deleted_task_brings_it_back(store: AnyStore) -> None:
    task = Task.bash("make", title="t")
    store.tasks.save(task)
    del store.tasks[task.id]
    store.tasks.save(task)
    assert store.tasks[task.id].title == "t"
    assert recorded(store) == ["TaskCreated", "TaskDeleted", "TaskImported"]


def test_what_a_task_printed_is_there_once_after_it_came_back(store: AnyStore) -> None:
    task = Task.bash("echo out; seq 2000 >&2; exit 3")
    with pytest.raises(RuntimeError):
        TaskExecutor(store).execute(task)
    del store.tasks[task.id]
    store.tasks.save(task)
    found = reloaded_task(store, task).result
    assert found is not None
    assert (found.output, found.error) == ("out\n", "".join(f"{number}\n" for number in range(1, 2001)))
    assert store._readers.last_lines(task.id, 1, 5000)[0] == ("stdout", "out")
    assert len(store._readers.last_lines(task.id, 1, 5000)) == 2001


def test_what_a_task_printed_elsewhere_takes_the_place_of_what_it_printed_here(store: AnyStore) -> None:
    task = Task.bash("fine")
    store.tasks.save(task)
    executor(store).execute(store._load_task(store._readers.task(task.id)))  # type: ignore[arg-type]
    with InMemoryStore() as elsewhere:
        theirs = Task._load(evolve(task._recorded, payload="theirs"), "another ledger", elsewhere._readers)
        executor(elsewhere).execute(theirs)
        store.tasks.pop(task.id)
        store.tasks.save(theirs)
    found = reloaded_task(store, task)
    assert (found.attempts, found.result.output) == (1, "theirs")  # type: ignore[union-attr]


def test_a_deleted_task_comes_back_with_its_result_and_its_edits(store: AnyStore) -> None:
    task = Task.bash("fail", title="t")
    with pytest.raises(ValueError, match="as told"):
        executor(store).execute(task)
    del store.tasks[task.id]
    task.title = "new"
    store.tasks.save(task)
    found = reloaded_task(store, task)
    assert (found.title, found.status, found.attempts, found.error) == ("new", TaskStatus.FAILED, 1, "as told")
    assert found.result is not None and found.result.termination_reason == "handler"
    before = recorded(store)
    store.tasks.save(task)
    assert recorded(store) == before


def test_a_task_that_came_back_can_be_run(store: AnyStore) -> None:
    task = Task.bash("fine")
    store.tasks.save(task)
    del store.tasks[task.id]
    store.tasks.save(task)
    assert executor(store).execute(task).output == "fine"


def test_a_stale_handle_brings_a_deleted_task_back_too(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "ledger.db") as store:
        mine = Task.bash("make", title="mine")
        store.tasks.save(mine)
        theirs = store.tasks[mine.id]
        theirs.title = "theirs"
        store.tasks.save(theirs)
        del store.tasks[mine.id]
        store.tasks.save(mine)
        assert store.tasks[mine.id].title == "mine"


def test_saving_a_deleted_graph_brings_it_back(store: AnyStore) -> None:
    graph = TaskGraph(title="g")
    task = graph.add(Task.bash("make"))
    store.graphs.save(graph)
    del store.graphs[graph.id]
    store.graphs.save(graph)
    assert store._readers.ids("graphs") == [graph.id]
    assert list(store.graphs[graph.id]) == [task]
    assert reloaded_graph(store, graph).title == "g"


def test_a_deleted_graph_comes_back_with_what_its_runs_came_to(store: AnyStore) -> None:
    graph = TaskGraph(title="g")
    graph.add(Task.bash("make"))
    graph.run(executor(store))
    del store.graphs[graph.id]
    store.graphs.save(graph)
    assert reloaded_graph(store, graph).run_status == "succeeded"
    graph.run(executor(store))
    assert [run.run for run in store._readers.runs(graph.id)] == [1, 2]


def test_a_deleted_graph_comes_back_with_what_is_pending(store: AnyStore) -> None:
    graph = TaskGraph(title="g")
    store.graphs.save(graph)
    del store.graphs[graph.id]
    graph.title = "new"
    task = graph.add(Task.bash("make"))
    store.graphs.save(graph)
    assert graph in store.graphs
    found = reloaded_graph(store, graph)
    assert (found.title, list(found)) == ("new", [task])


def test_a_deleted_and_edited_task_comes_back_with_its_graph(store: AnyStore) -> None:
    graph = TaskGraph()
    task = graph.add(Task.bash("make"))
    store.graphs.save(graph)
    del store.tasks[task.id]
    task.title = "new"
    store.graphs.save(graph)
    assert store._readers.ids("tasks") == [task.id]
    assert reloaded_graph(store, graph).items() == [(task, [])]


def test_a_graph_runs_with_a_task_that_was_deleted(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "ledger.db") as store:
        graph = TaskGraph()
        task = graph.add(Task.bash("make"))
        store.graphs.save(graph)
        del store.tasks[task.id]
        assert store.graphs[graph.id].run(executor(store)).ok
        assert task not in store.tasks


# --- live objects --------------------------------------------------------------------------------------------------


def test_a_live_object_hears_that_it_is_deleted_and_runs_on_without_coming_back() -> None:
    with InMemoryStore() as store:
        graph = TaskGraph()
        task = graph.add(Task.bash("fine"))
        store.graphs.save(graph)
        del store.tasks[task.id]
        assert graph.run(executor(store)).ok
        assert task not in store.tasks
        assert list(store.graphs[graph.id]) == [task]
        del store.graphs[graph.id]
        graph.run(executor(store))
        assert graph not in store.graphs
        store.graphs.save(graph)
        assert (list(store.graphs), list(store.tasks)) == ([graph.id], [task.id])
        assert verify(store._readers).is_clean


def test_what_comes_back_comes_last() -> None:
    with InMemoryStore() as store:
        first, second = born(1), born(2)
        one, two = TaskGraph(), TaskGraph()
        for task in (first, second):
            store.tasks.save(task)
        for graph in (one, two):
            store.graphs.save(graph)
        del store.tasks[first.id]
        del store.graphs[one.id]
        store.tasks.save(first)
        store.graphs.save(one)
        assert list(store.tasks) == [second.id, first.id]
        assert list(store.graphs) == [two.id, one.id]
        assert store.graphs.values() == [two, one]
        assert store.graphs.items() == [(two.id, two), (one.id, one)]


def test_a_live_store_holds_the_graph_s_tasks_in_the_graph_s_order() -> None:
    with InMemoryStore() as store:
        graph = TaskGraph()
        late, early = graph.add(born(2)), graph.add(born(1))
        graph.run(executor(store))
        assert list(store.tasks) == [late.id, early.id]


def test_a_snapshot_that_knows_less_never_takes_the_place_of_a_live_object() -> None:
    with InMemoryStore() as store:
        graph = TaskGraph(title="old")
        task = graph.add(Task.bash("make", title="old"))
        store.graphs.save(graph)
        position = len(store.events)
        task.title = graph.title = "new"
        store.graphs.save(graph)
        stale = store.as_of(position)
        store.tasks.save(stale.tasks[task.id])
        store.graphs.save(stale.graphs[graph.id])
        assert store.tasks[task.id] is task
        assert store.graphs[graph.id] is graph
        del store.tasks[task.id]
        del store.graphs[graph.id]
        with pytest.raises(StreamConflictError):
            stale.graphs[graph.id].run(executor(store))
        assert (len(store.tasks), len(store.graphs)) == (0, 0)


def test_of_two_live_handles_the_one_that_was_saved_last_is_held() -> None:
    with InMemoryStore() as store:
        task = Task.bash("make", title="old")
        store.tasks.save(task)
        other = store.as_of(len(store.events)).tasks[task.id]
        other.title = "new"
        store.tasks.save(other)
        assert store.tasks[task.id] is other
        assert list(store.tasks) == [task.id]


CLOSED: dict[str, Callable[[Any, Task], object]] = {
    "tasks[…]": lambda store, task: store.tasks[task.id],
    "tasks.get": lambda store, task: store.tasks.get(task.id),
    "get of what was never there": lambda store, _: store.tasks.get("none"),
    "in tasks": lambda store, task: task in store.tasks,
    "123 in tasks": lambda store, _: 123 in store.tasks,
    "iter(tasks)": lambda store, _: iter(store.tasks),
    "len(tasks)": lambda store, _: len(store.tasks),
    "tasks.keys": lambda store, _: list(store.tasks.keys()),
    "tasks.values": lambda store, _: store.tasks.values(),
    "tasks.items": lambda store, _: store.tasks.items(),
    "graphs[…]": lambda store, _: store.graphs["none"],
    "graphs.get": lambda store, _: store.graphs.get("none"),
    "in graphs": lambda store, _: "none" in store.graphs,
    "None in graphs": lambda store, _: None in store.graphs,
    "iter(graphs)": lambda store, _: iter(store.graphs),
    "len(graphs)": lambda store, _: len(store.graphs),
    "graphs.values": lambda store, _: store.graphs.values(),
    "graphs.items": lambda store, _: store.graphs.items(),
    "events": lambda store, _: list(store.events),
    "history": lambda store, task: store.history(task),
    "runs": lambda store, _: list(store.runs),
    "as_of": lambda store, _: store.as_of(1),
    "interrupted": lambda store, _: store.interrupted(),
    "owed": lambda store, _: store.owed(),
}
VIEWS: dict[str, Callable[[Any], Callable[[], object]]] = {
    "events": lambda store: store.events.__iter__,
    "len(events)": lambda store: store.events.__len__,
    "some events": lambda store: store.events(type="TaskCreated").__iter__,
    "fewer events": lambda store: partial(store.events(limit=3), type="TaskCreated"),
    "follow": lambda store: store.events.follow,
    "runs": lambda store: store.runs.__iter__,
    "len(runs)": lambda store: store.runs.__len__,
    "the past": lambda store: store.as_of(2).tasks.__len__,
    "events of the past": lambda store: store.as_of(2).events.__len__,
    "the past of the past": lambda store: store.as_of(2).as_of(1).interrupted,
}


@pytest.mark.parametrize("question", CLOSED)
def test_a_closed_store_answers_no_question(store: AnyStore, question: str) -> None:
    task = Task.bash("make")
    store.tasks.save(task)
    store.close()
    with pytest.raises(LedgerError, match="is closed: nothing can be read from it any more"):
        CLOSED[question](store, task)
    assert repr(store)


def test_a_store_keeps_its_connections_when_another_one_of_the_same_file_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, open_reader = [], files.open_reader

    def counted(path: Path) -> Any:
        opened.append(path)
        return open_reader(path)

    monkeypatch.setattr(files, "open_reader", counted)
    with SQLiteStore(tmp_path / "ledger.db") as store:
        with SQLiteStore(tmp_path / "ledger.db") as other:
            assert len(other.tasks) == 0
        for _ in range(3):
            assert len(store.tasks) == 0
    assert len(opened) == 1


def test_what_is_saved_while_a_store_is_closing_is_refused_because_it_is_closed(
    store: AnyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    close, closing = EventLog.close, []

    def saving_meanwhile(log: EventLog) -> None:
        with pytest.raises(LedgerUnwritableError, match="is closed; nothing was written"):
            store.tasks.save(Task.bash("true"))
        closing.append(log)
        close(log)

    monkeypatch.setattr(EventLog, "close", saving_meanwhile)
    store.close()
    assert len(closing) == 1


@pytest.mark.parametrize("question", CLOSED)
def test_a_closed_store_that_only_read_answers_no_question(tmp_path: Path, question: str) -> None:
    task = Task.bash("make")
    with SQLiteStore(tmp_path / "ledger.db") as store:
        store.tasks.save(task)
    with SQLiteStore(tmp_path / "ledger.db", read_only=True) as looking:
        past = looking.as_of(3)
    for closed in (looking, past):
        with pytest.raises(LedgerError, match="is closed: nothing can be read from it any more"):
            CLOSED[question](closed, task)


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_of_a_store_that_was_closed_shows_nothing(store: AnyStore, view: str) -> None:
    store.tasks.save(Task.bash("make"))
    question = VIEWS[view](store)
    question()
    store.close()
    with pytest.raises(LedgerError, match="is closed: nothing can be read from it any more"):
        question()


def test_what_a_store_handed_out_can_be_read_after_it_was_closed(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "ledger.db") as store:
        task = Task.bash("echo out; echo err >&2; exit 3")
        with pytest.raises(TaskExecutionError):
            TaskExecutor(store).execute(task)
        loaded = store.tasks[task.id]
    assert loaded.result is not None
    assert (loaded.status, loaded.error, loaded.result.output) == (TaskStatus.FAILED, "err\n", "out\n")


QUESTIONS = {
    "tasks[…]": "store.tasks[task.id]",
    "task in tasks": "task in store.tasks",
    "list(tasks)": "list(store.tasks)",
    "len(tasks)": "len(store.tasks)",
    "tasks.values()": "store.tasks.values()",
    "graphs[…]": "store.graphs[graph.id]",
    "graph in graphs": "graph in store.graphs",
    "list(graphs)": "list(store.graphs)",
    "len(graphs)": "len(store.graphs)",
    "graphs.values()": "store.graphs.values()",
    "tasks.save": "store.tasks.save(Task.bash('x'))",
    "tasks.save again": "store.tasks.save(task)",
    "graphs.save": "store.graphs.save(graph)",
    "del tasks[…]": "store.tasks.pop(task.id)",
    "cancel": "store.tasks.cancel(task.id)",
    "events": "list(store.events)",
    "len(events)": "len(store.events)",
    "follow": "store.events.follow(1)",
    "runs": "list(store.runs)",
    "history": "store.history(task)",
    "as_of": "store.as_of(1)",
    "execute": "TaskExecutor(store).execute(task)",
    "run": "graph.run(TaskExecutor(store))",
}


@pytest.mark.parametrize("kind", ["SQLiteStore(':memory:')", "InMemoryStore()"])
def test_in_a_forked_child_a_ledger_in_memory_refuses_everything_and_goes_on_in_its_parent(kind: str) -> None:
    program = f"""
        import os, sys
        from ttasks import *
        store, task, graph = {kind}, Task.bash("true"), TaskGraph()
        graph.add(task)
        store.graphs.save(graph)
        child = os.fork()
        if child == 0:
            for name, question in {QUESTIONS!r}.items():
                try:
                    print(name, "->", eval(question))
                except RuntimeError as error:
                    if "forked" not in str(error):
                        print(name, "->", repr(error))
            print(repr(store)[:8])
            sys.stdout.flush()
            os._exit(0)
        os.waitpid(child, 0)
        graph.run(TaskExecutor(store))
        print(graph.ok, len(store.tasks))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines() == [kind[:8], "True 1"]


# --- cancelling ------------------------------------------------------------------------------------------------------


def test_a_store_cancels_a_task_by_id(store: AnyStore) -> None:
    task = Task.bash("make")
    store.tasks.save(task)
    store.tasks.cancel(task.id)
    assert store.tasks[task.id].status is TaskStatus.CANCELLED
    store.tasks.cancel(task.id)
    assert recorded(store) == ["TaskCreated", "TaskCancelled"]


def test_a_cancel_is_done_though_somebody_writes_just_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SQLiteStore(tmp_path / "ledger.db") as store:
        task = Task.bash("make")
        store.tasks.save(task)
        overtaken(store, monkeypatch, Batch(f"task-{task.id}", [TaskRevised({"title": "new"})], 1))
        store.tasks.cancel(task.id)
        assert recorded(store) == ["TaskCreated", "TaskRevised", "TaskCancelled"]


def test_a_cancel_of_a_task_that_is_started_just_before_is_a_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SQLiteStore(tmp_path / "ledger.db") as store:
        task = Task.bash("make")
        store.tasks.save(task)
        started = TaskStarted(1, "somewhere.handler", "make", datetime(2026, 1, 1, tzinfo=UTC), 0)
        overtaken(store, monkeypatch, Batch(f"task-{task.id}", [started], 1))
        take_in_hand(store._ledger, f"task-{task.id}")
        try:
            store.tasks.cancel(task.id)
        finally:
            let_go(store._ledger, f"task-{task.id}")
        assert recorded(store) == ["TaskCreated", "TaskStarted", "TaskCancelRequested"]


def test_a_store_cancels_a_task_by_the_object_too(store: AnyStore) -> None:
    task = Task.bash("make")
    store.tasks.save(task)
    store.tasks.cancel(task)  # type: ignore[arg-type]
    assert store.tasks[task.id].is_cancelled


def test_a_store_leaves_a_task_that_succeeded_alone(store: AnyStore) -> None:
    task = Task.bash("fine")
    executor(store).execute(task)
    before = recorded(store)
    store.tasks.cancel(task.id)
    assert recorded(store) == before
    assert store.tasks[task.id].status is TaskStatus.SUCCEEDED


# --- graphs ----------------------------------------------------------------------------------------------------------


def test_a_saved_graph_comes_back_as_it_was(store: AnyStore) -> None:
    graph = TaskGraph(title="g")
    b, a, c, d = (Task.bash(title, title=title) for title in "bacd")
    policy = RetryPolicy(3, 0.5, factor=2.0, max_backoff=9.0, jitter=0.1)
    graph.add(b, after=[c, a])
    graph.add(a, retry_policy=policy)
    graph.add(c)
    graph.add(d, after=[b], finally_=True, required=False)
    store.graphs.save(graph)
    found = reloaded_graph(store, graph)
    assert (found.id, found.title, found.created_at) == (graph.id, graph.title, graph.created_at)
    assert found.items() == [(b, [c, a]), (a, []), (c, []), (d, [b])]
    assert [found.is_finally(task) for task in found] == [False, False, False, True]
    assert [found.is_optional(task) for task in found] == [False, False, False, True]
    assert found._policies == {a.id: policy}
    assert repr(found) == repr(graph)


def test_a_revised_graph_comes_back_as_it_was_revised(store: AnyStore) -> None:
    graph = TaskGraph(title="g")
    a, b, c = (Task.bash(title, title=title) for title in "abc")
    graph[a], graph[b] = [], [a]
    store.graphs.save(graph)
    graph.title = "new"
    graph.add(b, finally_=True)
    graph.add(c, after=[b])
    store.graphs.save(graph)
    found = reloaded_graph(store, graph)
    assert found.title == "new"
    assert found.items() == [(a, []), (b, []), (c, [b])]
    assert found.finally_tasks == [b]


def test_a_loaded_graph_has_the_errors_of_its_latest_run_by_type_and_text(store: AnyStore) -> None:
    graph = TaskGraph()
    task = graph.add(Task.bash("fail"))
    graph.run(executor(store))
    found = reloaded_graph(store, graph)
    error = found.errors[task.id]
    assert (error.type, str(error)) == ("builtins.ValueError", "as told")  # type: ignore[attr-defined]
    assert not found.ok
    assert found.failed == [task]


def test_a_loaded_graph_can_be_run_again(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "ledger.db") as store:
        graph = TaskGraph()
        bad = graph.add(Task.bash("fail", title="bad"))
        child = graph.add(Task.bash("child", title="child"), after=[bad])
        graph.run(executor(store))
        found = store.graphs[graph.id]
        next(iter(found)).payload = "mended"
        assert found.run(executor(store)).ok
        again = store.graphs[graph.id]
        assert again.ok
        assert again.errors == {}
        assert [task.result.output for task in again] == ["mended", "child"]
        assert store.tasks[child.id].blocked_by is None


def test_a_graph_and_its_tasks_are_saved_in_one_commit(store: AnyStore) -> None:
    graph = TaskGraph()
    for _ in range(3):
        graph.add(Task.bash("make"))
    store.graphs.save(graph)
    events = [event for event in store._readers.events() if event.stream.startswith(("task-", "graph-"))]
    assert [event.type for event in events] == ["TaskCreated"] * 3 + ["GraphCreated"]
    assert len({event.recorded_at for event in events}) == 1


def test_a_graph_whose_task_is_stale_is_not_saved_at_all(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "ledger.db") as store:
        graph = TaskGraph()
        stale, new = graph.add(Task.bash("stale")), graph.add(Task.bash("new"))
        store.tasks.save(stale)
        theirs = store.tasks[stale.id]
        theirs.title = "theirs"
        store.tasks.save(theirs)
        stale.title = "mine"
        with pytest.raises(StreamConflictError):
            store.graphs.save(graph)
        assert new not in store.tasks
        assert graph not in store.graphs


# --- opening, closing, showing ---------------------------------------------------------------------------------------


def test_the_reprs_say_where_and_how_much(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "ledger.db") as store:
        assert repr(store) == f"SQLiteStore({tmp_path / 'ledger.db'})"
    with SQLiteStore(":memory:") as store:
        assert repr(store) == "SQLiteStore(:memory:)"
    with InMemoryStore() as live:
        live.tasks.save(Task.bash("make"))
        live.graphs.save(TaskGraph())
        live.graphs.save(TaskGraph())
        assert repr(live) == "InMemoryStore(1 tasks, 2 graphs)"
        assert repr(live.tasks) == "InMemoryTaskCollection(1 tasks)"
        assert repr(live.graphs) == "InMemoryGraphCollection(2 graphs)"


def test_parent_folders_are_made_and_the_ledger_is_its_owner_s_alone(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "ledger.db"
    with SQLiteStore(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("convert", [str, Path, lambda path: os.fspath(path)])
def test_a_path_may_be_a_text_or_a_path(tmp_path: Path, convert: Any) -> None:
    path = tmp_path / "ledger.db"
    with SQLiteStore(convert(path)) as store:
        store.tasks.save(Task.bash("make"))
    assert path.exists()


def test_what_was_saved_is_there_when_the_file_is_opened_again(tmp_path: Path) -> None:
    task = Task.bash("fine")
    with SQLiteStore(tmp_path / "ledger.db") as store:
        result = executor(store).execute(task)
    with SQLiteStore(tmp_path / "ledger.db") as store:
        assert store.tasks[task.id].result == result


def test_two_stores_on_one_path_show_the_same(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "ledger.db") as one, SQLiteStore(tmp_path / "ledger.db") as other:
        task = Task.bash("make")
        one.tasks.save(task)
        assert task in other.tasks
        other.tasks.cancel(task.id)
        assert one.tasks[task.id].is_cancelled


def test_closing_one_of_two_stores_on_a_path_leaves_the_other_open(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "ledger.db") as one:
        with SQLiteStore(tmp_path / "ledger.db"):
            pass
        one.tasks.save(Task.bash("make"))
        assert len(one.tasks) == 1


def test_two_ledgers_in_memory_are_two() -> None:
    with SQLiteStore(":memory:") as one, SQLiteStore(":memory:") as other:
        one.tasks.save(Task.bash("make"))
        assert len(other.tasks) == 0


def test_a_ledger_in_memory_makes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for store in (SQLiteStore(":memory:"), InMemoryStore()):
        with store:
            executor(store).execute(Task.bash("fine"))
            assert store._writable()._lock is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("busy_timeout", "error"),
    [("1", TypeError), (None, TypeError), (True, TypeError), (-1, ValueError), (float("nan"), ValueError),
     (float("inf"), ValueError), (10**9, ValueError)],
)  # fmt: skip
def test_a_time_out_that_can_t_be_meant_is_refused_and_nothing_is_made(
    tmp_path: Path, busy_timeout: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match="busy_timeout must be"):
        SQLiteStore(tmp_path / "ledger.db", busy_timeout=busy_timeout)
    assert list(tmp_path.iterdir()) == []


def test_closing_twice_is_closing_once(store: AnyStore) -> None:
    store.close()
    store.close()


def test_a_closed_store_refuses_to_save(store: AnyStore) -> None:
    store.close()
    with pytest.raises(LedgerUnwritableError, match="closed"):
        store.tasks.save(Task.bash("make"))
    with pytest.raises(LedgerUnwritableError, match="closed"):
        store.graphs.save(TaskGraph())


def test_a_store_that_only_reads_shows_everything_and_refuses_to_save(tmp_path: Path) -> None:
    task = Task.bash("fine")
    with SQLiteStore(tmp_path / "ledger.db") as store:
        executor(store).execute(task)
    with SQLiteStore(tmp_path / "ledger.db", read_only=True) as looking:
        found = looking.tasks[task.id]
        assert found.result is not None and found.result.output == "fine"
        with pytest.raises(LedgerUnwritableError, match="read-only"):
            looking.tasks.save(Task.bash("make"))
        with pytest.raises(LedgerUnwritableError, match="read-only"):
            del looking.tasks[task.id]


def test_many_threads_may_save_at_once(store: AnyStore) -> None:
    start = threading.Barrier(8)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            start.wait()
            for _ in range(20):
                task = Task.bash("fine")
                store.tasks.save(task)
                task.title = "t"
                store.tasks.save(task)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(store.tasks) == 160
    assert {task.title for task in store.tasks.values()} == {"t"}
