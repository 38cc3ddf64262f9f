"""A graph's handle: what is in it, what it answers, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from freezegun import freeze_time

from ttasks import (
    InMemoryStore,
    RetryPolicy,
    SQLiteStore,
    StreamConflictError,
    Task,
    TaskCancelled,
    TaskContext,
    TaskExecutor,
    TaskGraph,
    TaskStatus,
    TaskType,
)


def tasks(*titles: str) -> list[Task]:
    return [Task.bash(title, title=title) for title in titles]


def scripted() -> TaskExecutor:
    """Return an executor whose handler does what a task's payload says: ``ok``, ``fail`` or ``cancel``."""

    def handler(context: TaskContext) -> str:
        if context.payload == "fail":
            raise ValueError("as told")
        if context.payload == "cancel":
            raise TaskCancelled("as told")
        return "ok"

    executor = TaskExecutor.empty()
    executor.register(TaskType.BASH, handler)
    return executor


# --- adding ----------------------------------------------------------------------------------------------------------


def test_tasks_stay_in_insertion_order() -> None:
    graph = TaskGraph()
    for task in (added := tasks(*"dbca")):
        graph.add(task)
    assert list(graph) == added
    assert len(graph) == 4


def test_an_empty_graph_has_nothing() -> None:
    graph = TaskGraph()
    assert (len(graph), list(graph), graph.items(), graph.roots(), graph.leaves()) == (0, [], [], [], [])


@freeze_time("2024-02-29 12:34:56.789012")
def test_a_graph_has_a_title_an_id_and_a_time_of_birth() -> None:
    graph, other = TaskGraph(title="nightly"), TaskGraph()
    assert (graph.title, other.title) == ("nightly", "")
    assert graph.id != other.id
    assert graph.created_at == datetime(2024, 2, 29, 12, 34, 56, 789012, tzinfo=UTC)


@pytest.mark.parametrize("name", ["id", "created_at"])
def test_id_and_time_of_birth_are_read_only(name: str) -> None:
    graph = TaskGraph()
    with pytest.raises(AttributeError):
        setattr(graph, name, getattr(graph, name))


@pytest.mark.parametrize("title", [None, 1, b"x"])
def test_a_title_is_a_text(title: Any) -> None:
    graph = TaskGraph(title="x")
    with pytest.raises(TypeError, match="title must be a str"):
        TaskGraph(title=title)
    with pytest.raises(TypeError, match="title must be a str"):
        graph.title = title
    assert graph.title == "x"


def test_the_title_is_keyword_only() -> None:
    with pytest.raises(TypeError):
        TaskGraph("x")  # type: ignore[misc]


def test_setting_an_item_is_adding_with_dependencies() -> None:
    a, b, c = tasks(*"abc")
    graph = TaskGraph()
    graph[a] = []
    graph[b] = [a]
    graph[c] = (task for task in (b, a))
    assert graph.items() == [(a, []), (b, [a]), (c, [b, a])]


def test_direct_dependencies_come_in_declaration_order() -> None:
    a, b, c, d = tasks(*"abcd")
    graph = TaskGraph()
    for task in (a, b, c):
        graph.add(task)
    graph.add(d, after=[c, a, b])
    assert graph[d] == graph.dependencies(d) == [c, a, b]


def test_only_direct_dependencies_are_given() -> None:
    a, b, c = tasks(*"abc")
    graph = TaskGraph()
    graph[a], graph[b], graph[c] = [], [a], [b]
    assert graph[c] == [b]


def test_repeated_dependencies_count_once() -> None:
    a, b = tasks(*"ab")
    graph = TaskGraph()
    graph.add(a)
    graph.add(b, after=[a, a, a])
    assert graph[b] == [a]


def test_what_is_given_as_dependencies_is_copied() -> None:
    a, b = tasks(*"ab")
    after = [a]
    graph = TaskGraph()
    graph.add(a)
    graph.add(b, after=after)
    after.clear()
    graph[b].clear()
    assert graph[b] == [a]


def test_dependencies_may_be_added_after_the_tasks_that_name_them() -> None:
    a, b = tasks(*"ab")
    graph = TaskGraph()
    graph.add(b, after=[a])
    graph.add(a)
    assert graph[b] == [a]
    assert graph.run(scripted()).ok


def test_a_dependency_that_is_not_added_yet_is_given_all_the_same() -> None:
    a, b = tasks(*"ab")
    graph = TaskGraph()
    graph.add(b, after=[a])
    assert graph[b] == [a]
    assert graph.items() == [(b, [a])]
    assert repr(graph) == "TaskGraph(1 tasks, edges=[a->b])"


def test_adding_again_replaces_edges_flags_and_policy_in_the_old_place() -> None:
    a, b, c = tasks(*"abc")
    graph = TaskGraph()
    graph.add(a)
    graph.add(b, after=[a], finally_=True, required=False, retry_policy=RetryPolicy(5))
    graph.add(c)
    graph.add(b, after=[c])
    assert list(graph) == [a, b, c]
    assert graph[b] == [c]
    assert (graph.is_finally(b), graph.is_optional(b)) == (False, False)
    assert b.id not in graph._policies


def test_membership_is_that_of_the_task() -> None:
    a, b = tasks(*"ab")
    graph = TaskGraph()
    graph.add(a)
    assert a in graph
    assert b not in graph
    assert a.id not in graph
    assert None not in graph


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (lambda graph, task: graph.add("task"), "Expected Task"),
        (lambda graph, task: graph.add(None), "Expected Task"),
        (lambda graph, task: graph.add(task, after=[object()]), "Expected Task dependency, got object"),
        (lambda graph, task: graph.add(task, after=[task.id]), "Expected Task dependency, got str"),
        (lambda graph, task: graph.add(task, after=task), "Task"),
        (lambda graph, task: graph.add(task, after=None), "NoneType"),
        (lambda graph, task: graph.add(task, finally_=1), "finally_ must be a bool"),
        (lambda graph, task: graph.add(task, finally_=None), "finally_ must be a bool"),
        (lambda graph, task: graph.add(task, finally_=True, required=0), "required must be a bool"),
        (lambda graph, task: graph.add(task, retry_policy=3), "retry_policy must be a RetryPolicy"),
        (lambda graph, task: graph.__setitem__(task, [object()]), "Expected Task dependency, got object"),
        (lambda graph, task: graph.__setitem__("task", []), "Expected Task"),
    ],
)
def test_adding_what_is_of_the_wrong_type_changes_nothing(
    add: Callable[[TaskGraph, Task], object], message: str
) -> None:
    graph, task = TaskGraph(), Task.bash("true")
    with pytest.raises(TypeError, match=message):
        add(graph, task)
    assert len(graph) == 0


def test_an_optional_task_has_to_be_a_finally_task() -> None:
    graph = TaskGraph()
    with pytest.raises(ValueError, match="required=False is only valid with finally_=True"):
        graph.add(Task.bash("true"), required=False)
    assert len(graph) == 0


@pytest.mark.parametrize("ask", ["dependencies", "__getitem__", "is_finally", "is_optional"])
def test_asking_about_a_task_that_is_not_in_the_graph_is_a_key_error(ask: str) -> None:
    with pytest.raises(KeyError):
        getattr(TaskGraph(), ask)(Task.bash("true"))


def test_flags_are_as_given() -> None:
    a, b, c = tasks(*"abc")
    graph = TaskGraph()
    graph.add(a)
    graph.add(b, finally_=True)
    graph.add(c, finally_=True, required=False)
    assert [graph.is_finally(task) for task in graph] == [False, True, True]
    assert [graph.is_optional(task) for task in graph] == [False, False, True]


# --- views -----------------------------------------------------------------------------------------------------------


def test_roots_depend_on_nothing_and_on_leaves_nothing_depends() -> None:
    a, b, c, d = tasks(*"abcd")
    graph = TaskGraph()
    graph[a], graph[b], graph[c], graph[d] = [], [a], [a], []
    assert graph.roots() == [a, d]
    assert graph.leaves() == [b, c, d]


def test_the_repr_names_the_edges() -> None:
    a, b = tasks("A", "B")
    graph = TaskGraph(title="t")
    graph[a], graph[b] = [], [a]
    assert repr(graph) == "TaskGraph(2 tasks, edges=[A->B])"


def test_the_repr_of_a_graph_without_edges_says_so() -> None:
    graph = TaskGraph()
    graph.add(Task.bash("true"))
    assert repr(graph) == "TaskGraph(1 tasks, edges=[])"


@pytest.fixture
def mixed() -> tuple[TaskGraph, dict[str, Task]]:
    """A graph that was run, with a task for each view."""
    graph = TaskGraph()
    named = {
        name: Task.bash(payload, title=name)
        for name, payload in [
            ("good", "ok"),
            ("bad", "fail"),
            ("given_up", "cancel"),
            ("behind_bad", "ok"),
            ("cleanup", "fail"),
            ("report", "fail"),
            ("interrupted", "ok"),
        ]
    }
    graph.add(named["good"])
    graph.add(named["bad"])
    graph.add(named["given_up"])
    graph.add(named["behind_bad"], after=[named["bad"]])
    graph.add(named["cleanup"], after=[named["bad"]], finally_=True)
    graph.add(named["report"], after=[named["cleanup"]], finally_=True, required=False)
    graph.run(scripted())
    graph.add(named["interrupted"])
    named["interrupted"].transition_to(TaskStatus.RUNNING)
    named["interrupted"].transition_to(TaskStatus.INTERRUPTED)
    return graph, named


@pytest.mark.parametrize(
    ("view", "names"),
    [
        ("succeeded", "good"),
        ("failed", "bad cleanup report"),
        ("cancelled", "given_up"),
        ("blocked", "behind_bad"),
        ("interrupted", "interrupted"),
        ("finally_tasks", "cleanup report"),
        ("optional_tasks", "report"),
        ("required_tasks", "good bad given_up behind_bad cleanup interrupted"),
        ("optional_failed", "report"),
        ("required_failed", "bad cleanup"),
        ("required_blocked", "behind_bad"),
    ],
)
def test_each_view_lists_its_tasks_in_insertion_order(
    mixed: tuple[TaskGraph, dict[str, Task]], view: str, names: str
) -> None:
    graph, named = mixed
    assert getattr(graph, view) == [named[name] for name in names.split()]


@pytest.mark.parametrize("view", ["succeeded", "failed", "required_tasks", "finally_tasks", "errors"])
def test_each_view_is_fresh(mixed: tuple[TaskGraph, dict[str, Task]], view: str) -> None:
    graph, _ = mixed
    before = getattr(graph, view)
    getattr(graph, view).clear()
    assert getattr(graph, view) == before


@pytest.mark.parametrize("view", ["succeeded", "errors", "ok", "blocked"])
def test_views_are_derived_and_cannot_be_set(view: str) -> None:
    with pytest.raises(AttributeError):
        setattr(TaskGraph(), view, None)


def test_a_graph_is_ok_when_every_required_task_succeeded() -> None:
    good, optional = Task.bash("ok"), Task.bash("fail")
    graph = TaskGraph()
    graph.add(good)
    graph.add(optional, finally_=True, required=False)
    assert not graph.ok
    assert graph.run(scripted()).ok
    assert graph.optional_failed == [optional]


def test_errors_are_those_of_the_latest_run() -> None:
    task = Task.bash("fail")
    graph = TaskGraph()
    graph.add(task)
    graph.run(scripted())
    assert {task_id: repr(error) for task_id, error in graph.errors.items()} == {task.id: "ValueError('as told')"}
    task.payload = "ok"
    graph.run(scripted())
    assert graph.errors == {}
    assert graph.ok


# --- what can't be run -----------------------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Any) -> Any:
    with InMemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "ledger.db") as store:
        yield store


def traces(store: InMemoryStore | SQLiteStore) -> list[str]:
    """Return what the ledger holds besides its own birth."""
    return [event.type for event in store._readers.events() if event.stream != "ledger"]


def circular() -> TaskGraph:
    a, b, c, d = tasks(*"abcd")
    graph = TaskGraph()
    graph[a], graph[b], graph[c], graph[d] = [c], [a], [b], [c]
    return graph


def of_itself() -> TaskGraph:
    (a,) = tasks("a")
    graph = TaskGraph()
    graph[a] = [a]
    return graph


def incomplete() -> TaskGraph:
    a, b = tasks(*"ab")
    graph = TaskGraph()
    graph[b] = [a]
    return graph


def running_in_memory() -> TaskGraph:
    a, b = tasks(*"ab")
    a.transition_to(TaskStatus.RUNNING)
    graph = TaskGraph()
    graph[a], graph[b] = [], [a]
    return graph


@pytest.mark.parametrize(
    ("build", "max_workers", "message"),
    [
        (circular, 4, "cycle"),
        (of_itself, 4, "cycle"),
        (incomplete, 4, "depends on unregistered"),
        (running_in_memory, 4, "is RUNNING"),
        (TaskGraph, 0, "max_workers must be greater than 0"),
        (TaskGraph, -3, "max_workers must be greater than 0"),
    ],
)
def test_a_graph_that_can_not_be_run_is_refused_without_a_trace(
    store: InMemoryStore | SQLiteStore, build: Callable[[], TaskGraph], max_workers: int, message: str
) -> None:
    graph = build()
    with pytest.raises(ValueError, match=message):
        graph.run(TaskExecutor(store), max_workers)
    assert traces(store) == []
    assert list(store.tasks) == list(store.graphs) == []


def test_a_cycle_names_its_tasks_and_no_other() -> None:
    with pytest.raises(ValueError, match="cycle") as refusal:
        circular().run(scripted())
    named = str(refusal.value).split("cycle", 1)[1].split(".")[0]
    assert {title for title in "abcd" if f" {title}" in named} == {"a", "b", "c"}


def test_an_unregistered_dependency_is_named_with_the_task_that_needs_it() -> None:
    with pytest.raises(ValueError, match="task 'b' depends on unregistered"):
        incomplete().run(scripted())


@pytest.mark.parametrize("build", [circular, incomplete])
def test_a_graph_that_can_not_be_run_can_not_be_saved(
    store: InMemoryStore | SQLiteStore, build: Callable[[], TaskGraph]
) -> None:
    with pytest.raises(ValueError, match=r"cycle|depends on unregistered"):
        store.graphs.save(build())
    assert traces(store) == []


def test_a_graph_that_was_refused_runs_once_it_is_mended() -> None:
    a, b = tasks(*"ab")
    graph = TaskGraph()
    graph[a], graph[b] = [b], [a]
    with pytest.raises(ValueError, match="cycle"):
        graph.run(scripted())
    graph[a] = []
    assert graph.run(scripted()).ok


@pytest.mark.usefixtures("outside_git")
def test_a_graph_with_a_stale_and_edited_task_is_refused_and_nothing_is_written(tmp_path: Any) -> None:
    (a,) = tasks("a")
    graph = TaskGraph()
    graph.add(a)
    with SQLiteStore(tmp_path / "ledger.db") as store:
        store.graphs.save(graph)
        other = store.tasks[a.id]
        other.title = "theirs"
        store.tasks.save(other)
        a.title = "mine"
        before = traces(store)
        with pytest.raises(StreamConflictError):
            graph.run(TaskExecutor(store))
        assert traces(store) == before
