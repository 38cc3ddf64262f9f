"""Carrying on after a run: a new graph that shares what succeeded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ttasks import RetryPolicy, SQLiteStore, Task, TaskContext, TaskExecutor, TaskGraph, TaskStatus, TaskType
from ttasks.log.verify import verify


@pytest.fixture(autouse=True)
def _outside_git(outside_git: Path) -> None:
    """No description of a git checkout comes between."""


@pytest.fixture(params=["no ledger", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    if request.param == "no ledger":
        yield None
        return
    with SQLiteStore(tmp_path / "ledger.db") as store:
        yield store
        assert verify(store._readers).problems == []


class Moody:
    """An executor whose tasks fail when they are named so, and the titles of what it ran."""

    def __init__(self, store: Any, *failing: str) -> None:
        self.failing = set(failing)
        self.ran: list[str] = []
        self.executor = TaskExecutor.empty(store)
        self.executor.register(TaskType.BASH, self._work)

    def _work(self, context: TaskContext) -> None:
        self.ran.append(context.title)
        if context.title in self.failing:
            raise ValueError("as told")


def pipeline() -> tuple[TaskGraph, dict[str, Task]]:
    graph = TaskGraph(title="pipeline")
    tasks = {
        name: Task.bash("x", title=name, name=f"{name}!", env={"A": name}) for name in ("get", "make", "put", "log")
    }
    graph.add(tasks["get"])
    graph.add(tasks["make"], after=[tasks["get"]], retry_policy=RetryPolicy(2))
    graph.add(tasks["put"], after=[tasks["make"]])
    graph.add(tasks["log"], after=[tasks["put"]], finally_=True, required=False)
    return graph, tasks


def test_a_task_that_waits_for_a_person_is_not_repeated_unless_it_is_named() -> None:
    graph = TaskGraph()
    task = graph.add(Task.bash("x", title="upload", on_interrupted="ask"))
    task.transition_to(TaskStatus.RUNNING)
    task.transition_to(TaskStatus.INTERRUPTED)

    with pytest.raises(ValueError, match=r"'upload' .* waits for a person.*store\.tasks\.resolve.*Nothing was changed"):
        graph.retry()

    (again,) = graph.retry([task])
    assert again.is_pending


def statuses(graph: TaskGraph) -> list[str]:
    return [str(task.status) for task in graph]


def test_a_retry_shares_what_succeeded_and_repeats_the_rest_and_every_finally_task(store: Any) -> None:
    graph, tasks = pipeline()
    moody = Moody(store, "make")
    graph.run(moody.executor)
    assert statuses(graph) == ["succeeded", "failed", "blocked", "succeeded"]
    again = graph.retry()
    assert statuses(again) == ["succeeded", "pending", "pending", "pending"]
    get, make, put, log = again
    assert get is tasks["get"]
    assert [task.derived_from for task in again] == [None, *(tasks[name].id for name in ("make", "put", "log"))]
    assert (again.title, again.derived_from) == ("pipeline", graph.id)
    assert (again[make], again[put], again[log]) == ([get], [make], [put])
    assert again.is_finally(log) and again.is_optional(log)
    assert (make.name, make.env, make.payload) == ("make!", {"A": "make"}, "x")

    moody.failing.clear()
    moody.ran.clear()
    assert again.run(moody.executor).ok
    assert moody.ran == ["make", "put", "log"]
    assert statuses(graph) == ["succeeded", "failed", "blocked", "succeeded"]


def test_the_policy_of_a_repeated_task_is_kept(store: Any) -> None:
    graph, _ = pipeline()
    moody = Moody(store, "make")
    graph.run(moody.executor)
    moody.ran.clear()
    graph.retry().run(moody.executor)
    assert moody.ran == ["make", "make", "log"]


def test_named_tasks_are_repeated_with_all_that_depends_on_them(store: Any) -> None:
    graph, tasks = pipeline()
    moody = Moody(store)
    assert graph.run(moody.executor).ok
    assert statuses(graph.retry([tasks["make"]])) == ["succeeded", "pending", "pending", "pending"]
    assert statuses(graph.retry([tasks["get"]])) == ["pending"] * 4
    assert statuses(graph.retry([])) == ["succeeded", "succeeded", "succeeded", "pending"]


def test_a_retry_of_what_was_loaded_is_recorded_as_derived(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "ledger.db") as store:
        graph, _ = pipeline()
        moody = Moody(store, "put")
        graph.run(moody.executor)
        loaded = store.graphs[graph.id]
        again = loaded.retry()
        moody.failing.clear()
        assert again.run(moody.executor).ok
        found = store.graphs[again.id]
        assert found.derived_from == graph.id
        assert [task.derived_from is None for task in found] == [True, True, False, False]
        assert len(store.tasks) == 6
        assert verify(store._readers).problems == []


def test_a_retry_of_a_retry_is_derived_from_that(store: Any) -> None:
    graph, _ = pipeline()
    moody = Moody(store, "make")
    graph.run(moody.executor)
    second = graph.retry()
    second.run(moody.executor)
    third = second.retry()
    assert third.derived_from == second.id
    assert [task.derived_from for task in third][1:] == [task.id for task in second][1:]


def test_a_cancelled_task_is_repeated(store: Any) -> None:
    graph, tasks = pipeline()
    moody = Moody(store)
    moody.executor.cancel(tasks["make"])
    graph.run(moody.executor)
    assert graph.retry().run(moody.executor).ok


def test_nothing_is_retried_while_a_task_runs(store: Any) -> None:
    graph, tasks = pipeline()
    tasks["put"].transition_to(TaskStatus.RUNNING)
    with pytest.raises(ValueError, match="task 'put' is RUNNING"):
        graph.retry()


def test_only_tasks_of_the_graph_are_named() -> None:
    graph, _ = pipeline()
    with pytest.raises(TypeError, match="Expected Task, got str"):
        graph.retry(["make"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"task 'else' .* is not in the graph"):
        graph.retry([Task.bash("x", title="else")])
