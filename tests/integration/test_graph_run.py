"""Many tasks in dependency order: what runs when, what is blocked by what, and how a run ends early."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from freezegun import freeze_time

from processes import alive
from ttasks import (
    AlreadyRunningError,
    InMemoryStore,
    LedgerUnwritableError,
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
    TaskResult,
    TaskStatus,
    TaskType,
)
from ttasks.events.facts import GraphRunFinished, GraphRunStarted
from ttasks.log.verify import verify

PENDING, RUNNING, SUCCEEDED = TaskStatus.PENDING, TaskStatus.RUNNING, TaskStatus.SUCCEEDED
FAILED, CANCELLED = TaskStatus.FAILED, TaskStatus.CANCELLED
BLOCKED, INTERRUPTED = TaskStatus.BLOCKED, TaskStatus.INTERRUPTED
PATIENCE_S = 20


@pytest.fixture(autouse=True)
def _outside_git(outside_git: Path) -> None:
    """No description of a git checkout comes between."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture(params=["no store", "live", "file", "foreign"])
def store(request: pytest.FixtureRequest, path: Path) -> Iterator[Any]:
    match request.param:
        case "no store":
            yield None
        case "foreign":
            yield MagicMock()
        case kind:
            with InMemoryStore() if kind == "live" else SQLiteStore(path) as ledger:
                yield ledger
                assert verify(ledger._readers).problems == []


class Scripted:
    """An executor whose handler does what each task's payload says, and notes the titles in the order of their starts.

    ``ok`` returns, ``fail`` raises, ``cancel`` raises TaskCancelled; a callable given for a title does anything else.
    """

    def __init__(self, store: Any = None, **work: Callable[[TaskContext], Any]) -> None:
        self.started: list[str] = []
        self.heard: list[tuple[str, str]] = []
        self.executor = TaskExecutor.empty(store)
        self.executor.register(TaskType.BASH, self._handle)
        self.executor.events.subscribe(lambda event: self.heard.append((str(event.type), event.task.title)))
        self._work = work

    def _handle(self, context: TaskContext) -> Any:
        self.started.append(context.title)
        if context.title in self._work:
            return self._work[context.title](context)
        if context.payload == "fail":
            raise ValueError(f"{context.title} failed")
        if context.payload == "cancel":
            raise TaskCancelled(f"{context.title} gave up")
        return context.title


class Built:
    """A graph whose tasks go by their titles."""

    def __init__(self, store: Any = None, **work: Callable[[TaskContext], Any]) -> None:
        self.graph = TaskGraph(title="g")
        self.tasks: dict[str, Task] = {}
        self.scripted = Scripted(store, **work)

    def add(self, title: str, after: str = "", payload: str = "ok", **flags: Any) -> Task:
        task = self.tasks[title] = Task.bash(payload, title=title)
        return self.graph.add(task, after=[self.tasks[name] for name in after.split()], **flags)

    def run(self, max_workers: int = 4) -> TaskGraph:
        return self.graph.run(self.scripted.executor, max_workers)

    @property
    def ends(self) -> dict[str, TaskStatus]:
        return {title: task.status for title, task in self.tasks.items()}

    def named(self, found: list[Task]) -> str:
        return " ".join(task.title for task in found)

    @property
    def blocked_by(self) -> dict[str, str]:
        titles = {task.id: title for title, task in self.tasks.items()}
        return {title: titles[task.blocked_by] for title, task in self.tasks.items() if task.blocked_by is not None}


def run_facts(store: Any, graph: TaskGraph) -> list[Any]:
    events = store._readers.events(stream=f"graph-{graph.id}")
    return [event.fact for event in events if event.type.startswith("GraphRun")]


# --- order and data --------------------------------------------------------------------------------------------------


def test_run_returns_the_graph(store: Any) -> None:
    built = Built(store)
    built.add("a")
    assert built.run() is built.graph


def test_an_empty_graph_is_run_and_ok(store: Any) -> None:
    graph = TaskGraph()
    assert graph.run(TaskExecutor(store)).ok


@pytest.mark.parametrize("max_workers", [1, 4])
def test_every_task_starts_after_its_dependencies_have_succeeded(store: Any, max_workers: int) -> None:
    seen: dict[str, set[TaskStatus]] = {}

    def look(context: TaskContext) -> None:
        seen[context.title] = {parent.status for parent in context.upstream.values()}

    built = Built(store, **dict.fromkeys("abcdef", look))
    for title, after in [("f", ""), ("a", "f"), ("b", "f"), ("c", "a b"), ("d", "c f"), ("e", "")]:
        built.add(title, after)
    assert built.run(max_workers).ok
    assert seen == {"f": set(), "e": set(), **{title: {SUCCEEDED} for title in "abcd"}}
    assert sorted(built.scripted.started) == list("abcdef")


def test_upstream_is_exactly_the_direct_dependencies_as_the_graph_s_own_objects(store: Any) -> None:
    given: dict[str, list[Task]] = {}

    def look(context: TaskContext) -> None:
        given[context.title] = list(context.upstream.values())
        assert list(context.upstream) == [task.id for task in given[context.title]]

    built = Built(store, a=look, b=look, c=look, d=look)
    built.add("a")
    built.add("b", "a")
    built.add("c", "b")
    built.add("d", "c a")
    built.run()
    tasks = built.tasks
    expected = {"a": [], "b": [tasks["a"]], "c": [tasks["b"]], "d": [tasks["c"], tasks["a"]]}
    assert {title: list(map(id, found)) for title, found in given.items()} == {
        title: list(map(id, found)) for title, found in expected.items()
    }


def test_a_task_can_use_what_its_dependencies_returned(store: Any) -> None:
    def join(context: TaskContext) -> str:
        return "+".join(parent.result.output for parent in context.upstream.values() if parent.result)

    built = Built(store, c=join)
    built.add("a")
    built.add("b")
    built.add("c", "a b")
    built.run()
    assert built.tasks["c"].result is not None
    assert built.tasks["c"].result.output == "a+b"


@pytest.mark.parametrize("max_workers", [1, 2, 3, 8])
def test_as_many_run_at_once_as_there_are_workers_and_no_more(store: Any, max_workers: int) -> None:
    lock, together = threading.Lock(), threading.Barrier(max_workers)
    now, most = 0, 0

    def work(context: TaskContext) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        together.wait(PATIENCE_S)
        with lock:
            now -= 1

    titles = [f"t{number}" for number in range(max_workers * 3)]
    built = Built(store, **dict.fromkeys(titles, work))
    for title in titles:
        built.add(title)
    assert built.run(max_workers).ok
    assert most == max_workers


@pytest.mark.parametrize("max_workers", [0, -1])
def test_there_is_at_least_one_worker(store: Any, max_workers: int) -> None:
    built = Built(store)
    built.add("a")
    with pytest.raises(ValueError, match="max_workers must be greater than 0"):
        built.run(max_workers)
    assert built.scripted.started == []


def test_no_thread_is_left_of_a_run(store: Any) -> None:
    built = Built(store)
    for title in "abcdef":
        built.add(title)
    built.run()
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("ttasks-run")] == []


def test_a_retry_policy_of_a_task_is_its_own(store: Any) -> None:
    built = Built(store)
    built.add("a", payload="fail", retry_policy=RetryPolicy(3))
    built.add("b", payload="fail")
    built.run()
    assert (built.tasks["a"].attempts, built.tasks["b"].attempts) == (3, 1)


def test_scripts_run_in_a_graph(store: Any) -> None:
    graph = TaskGraph()
    first = graph.add(Task.bash("echo first"))
    second = graph.add(Task.bash("exit 3"), after=[first])
    third = graph.add(Task.bash("echo third"), after=[second])
    last = graph.add(Task.bash("echo last"), after=[third], finally_=True)
    graph.run(TaskExecutor(store))
    assert [task.status for task in graph] == [SUCCEEDED, FAILED, BLOCKED, SUCCEEDED]
    assert last.result is not None and last.result.output == "last\n"


# --- failing, blocking, finally --------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", ["fail", "cancel"])
def test_a_bad_task_blocks_all_that_depend_on_it_and_nothing_else(store: Any, payload: str) -> None:
    built = Built(store)
    built.add("bad", payload=payload)
    built.add("child", "bad")
    built.add("grandchild", "child")
    built.add("other")
    built.run()
    assert built.ends == {
        "bad": FAILED if payload == "fail" else CANCELLED,
        "child": BLOCKED,
        "grandchild": BLOCKED,
        "other": SUCCEEDED,
    }
    assert built.blocked_by == {"child": "bad", "grandchild": "child"}
    assert sorted(built.scripted.started) == ["bad", "other"]
    assert not built.graph.ok


def test_a_blocked_task_has_no_result_and_says_so_on_the_bus(store: Any) -> None:
    built = Built(store)
    built.add("bad", payload="fail")
    child = built.add("child", "bad")
    built.run()
    assert child.result is None
    assert built.scripted.heard == [("started", "bad"), ("failed", "bad"), ("blocked", "child")]


def test_a_task_with_one_bad_parent_is_blocked_though_others_succeeded(store: Any) -> None:
    built = Built(store)
    built.add("good")
    built.add("bad", payload="fail")
    built.add("child", "good bad")
    built.run()
    assert built.blocked_by == {"child": "bad"}


def test_a_task_is_blocked_as_soon_as_one_parent_is_bad_while_others_run(store: Any) -> None:
    blocked = threading.Event()
    built = Built(store, slow=lambda context: blocked.wait(PATIENCE_S))
    built.scripted.executor.events.subscribe(lambda event: blocked.set() if event.type == "blocked" else None)
    built.add("slow")
    built.add("bad", payload="fail")
    built.add("child", "slow bad")
    built.run(2)
    assert blocked.is_set()
    assert built.tasks["slow"].result is not None and built.tasks["slow"].result.raw is True
    assert built.blocked_by == {"child": "bad"}


def test_of_several_bad_parents_the_first_declared_is_named(store: Any) -> None:
    built = Built(store)
    for title in "zax":
        built.add(title)
        built.tasks[title].cancel()
    built.add("child", "a x z")
    built.run()
    assert built.blocked_by == {"child": "a"}


@pytest.mark.parametrize("payload", ["ok", "fail", "cancel"])
def test_a_finally_task_runs_whatever_became_of_its_dependencies(store: Any, payload: str) -> None:
    built = Built(store)
    built.add("work", payload=payload)
    built.add("child", "work")
    built.add("cleanup", "work child", finally_=True)
    built.run()
    assert built.ends["cleanup"] is SUCCEEDED
    assert built.scripted.started[-1] == "cleanup"


def test_a_finally_task_waits_until_no_dependency_can_change(store: Any) -> None:
    seen: list[TaskStatus] = []
    release = threading.Event()
    built = Built(
        store,
        slow=lambda context: release.wait(PATIENCE_S),
        cleanup=lambda context: seen.extend(parent.status for parent in context.upstream.values()),
    )
    built.scripted.executor.events.subscribe(lambda event: release.set() if event.type == "failed" else None)
    built.add("slow")
    built.add("bad", payload="fail")
    built.add("cleanup", "bad slow", finally_=True)
    built.run(3)
    assert seen == [FAILED, SUCCEEDED]


def test_a_finally_task_without_dependencies_is_ready_at_once(store: Any) -> None:
    built = Built(store)
    built.add("first", finally_=True)
    assert built.run().ok


def test_a_finally_task_waits_only_for_its_own_dependencies(store: Any) -> None:
    cleaned = threading.Event()
    built = Built(store, slow=lambda context: cleaned.wait(PATIENCE_S), cleanup=lambda context: cleaned.set())
    built.add("slow")
    built.add("quick")
    built.add("cleanup", "quick", finally_=True)
    built.run(2)
    assert built.tasks["slow"].result is not None and built.tasks["slow"].result.raw is True


def test_finally_tasks_may_depend_on_each_other_and_run_in_order(store: Any) -> None:
    built = Built(store)
    built.add("work", payload="fail")
    built.add("stop", "work", "fail", finally_=True)
    built.add("report", "stop", finally_=True)
    built.run()
    assert built.scripted.started == ["work", "stop", "report"]
    assert built.ends == {"work": FAILED, "stop": FAILED, "report": SUCCEEDED}


def test_a_failed_finally_task_blocks_what_ordinarily_depends_on_it(store: Any) -> None:
    built = Built(store)
    built.add("cleanup", payload="fail", finally_=True)
    built.add("after", "cleanup")
    built.run()
    assert built.blocked_by == {"after": "cleanup"}


def test_an_ordinary_task_runs_after_a_finally_task_that_succeeded(store: Any) -> None:
    built = Built(store)
    built.add("work", payload="fail")
    built.add("cleanup", "work", finally_=True)
    built.add("after", "cleanup")
    built.run()
    assert built.ends == {"work": FAILED, "cleanup": SUCCEEDED, "after": SUCCEEDED}


def test_a_required_finally_task_that_fails_makes_the_graph_not_ok(store: Any) -> None:
    built = Built(store)
    built.add("work")
    built.add("cleanup", "work", "fail", finally_=True)
    built.run()
    assert not built.graph.ok
    assert built.named(built.graph.required_failed) == "cleanup"


def test_an_optional_task_that_fails_leaves_the_graph_ok(store: Any) -> None:
    built = Built(store)
    built.add("work")
    report = built.add("report", "work", "fail", finally_=True, required=False)
    built.run()
    assert built.graph.ok
    assert built.graph.optional_failed == [report]
    assert list(built.graph.errors) == [report.id]


# --- running again ---------------------------------------------------------------------------------------------------


def test_what_succeeded_before_counts_and_is_not_run_again(store: Any) -> None:
    built = Built(store)
    built.add("good")
    bad = built.add("bad", payload="fail")
    built.add("child", "good bad")
    built.add("cleanup", "child", finally_=True)
    built.run()
    bad.payload = "ok"
    built.scripted.started.clear()
    assert built.run().ok
    assert built.scripted.started == ["bad", "child"]
    assert bad.attempts == 2
    assert built.blocked_by == {}


def test_running_a_graph_that_is_done_runs_nothing(store: Any) -> None:
    built = Built(store)
    built.add("a")
    built.add("b", "a")
    built.run()
    built.scripted.started.clear()
    assert built.run().ok
    assert built.scripted.started == []


def test_a_graph_can_be_extended_and_run_again(store: Any) -> None:
    built = Built(store)
    built.add("a")
    built.run()
    built.add("b", "a")
    assert built.run().ok
    assert built.scripted.started == ["a", "b"]


def test_a_cancelled_task_never_runs_again_and_blocks_its_children_in_every_run(store: Any) -> None:
    built = Built(store)
    gone = built.add("gone", payload="cancel")
    built.add("child", "gone")
    built.run()
    gone.payload = "ok"
    built.run()
    assert built.ends == {"gone": CANCELLED, "child": BLOCKED}
    assert built.scripted.started == ["gone"]


def test_a_blocked_task_stays_blocked_when_its_parent_fails_again(store: Any) -> None:
    built = Built(store)
    built.add("bad", payload="fail")
    built.add("child", "bad")
    built.run()
    built.run()
    assert built.ends == {"bad": FAILED, "child": BLOCKED}
    assert built.blocked_by == {"child": "bad"}
    assert [what for what in built.scripted.heard if what[0] == "blocked"] == [("blocked", "child")]


def test_a_bad_parent_that_will_still_be_tried_blocks_nobody_yet(store: Any) -> None:
    built = Built(store)
    first = built.add("first", payload="fail")
    built.run()
    first.payload = "ok"
    built.add("second", "first")
    assert built.run().ok
    assert ("blocked", "second") not in built.scripted.heard


def test_a_task_that_failed_before_is_left_alone_when_its_parent_went_bad(store: Any) -> None:
    built = Built(store)
    parent = built.add("parent")
    child = built.add("child", "parent", "fail")
    built.run()
    before = child.result
    added = built.add("added", payload="fail")
    built.graph.add(child, after=[parent, added])
    built.run()
    assert (child.status, child.result, child.attempts) == (FAILED, before, 1)


def test_a_finally_task_that_succeeded_is_not_repeated(store: Any) -> None:
    built = Built(store)
    built.add("work", payload="fail")
    built.add("cleanup", "work", finally_=True)
    built.run()
    built.run()
    assert built.scripted.started == ["work", "cleanup", "work"]


def test_an_interrupted_task_is_run_again(store: Any) -> None:
    built = Built(store)
    task = built.add("a")
    task.transition_to(RUNNING)
    task.transition_to(INTERRUPTED)
    built.add("b", "a")
    assert built.run().ok


def test_a_task_cancelled_by_somebody_else_before_its_turn_does_not_run(store: Any) -> None:
    built = Built(store, first=lambda context: built.scripted.executor.cancel(built.tasks["second"]))
    built.add("first")
    built.add("second", "first")
    built.add("third", "second")
    built.run()
    assert built.ends == {"first": SUCCEEDED, "second": CANCELLED, "third": BLOCKED}
    assert built.scripted.started == ["first"]
    assert built.blocked_by == {"third": "second"}


def test_cancelling_a_running_task_of_a_graph_ends_it_and_blocks_what_follows(store: Any) -> None:
    def work(context: TaskContext) -> None:
        built.scripted.executor.cancel(built.tasks["work"])
        context.raise_if_cancelled()

    built = Built(store, work=work)
    built.add("work")
    built.add("child", "work")
    built.add("cleanup", "work", finally_=True)
    built.run()
    assert built.ends == {"work": CANCELLED, "child": BLOCKED, "cleanup": SUCCEEDED}
    assert isinstance(built.graph.errors[built.tasks["work"].id], TaskCancelled)


# --- what is raised --------------------------------------------------------------------------------------------------


def test_what_a_task_raised_is_in_errors_as_it_was(store: Any) -> None:
    error = ValueError("boom")
    built = Built(store, bad=MagicMock(side_effect=error))
    bad = built.add("bad")
    built.add("good")
    built.run()
    assert built.graph.errors == {bad.id: error}


@pytest.mark.parametrize("error", [KeyboardInterrupt("mine"), SystemExit("mine"), GeneratorExit("mine")])
@pytest.mark.parametrize("max_workers", [1, 4])
def test_what_ends_programs_ends_in_a_handler_only_its_task(store: Any, error: BaseException, max_workers: int) -> None:
    built = Built(store, bad=MagicMock(side_effect=error))
    bad = built.add("bad")
    built.add("child", "bad")
    built.add("other")
    built.add("cleanup", "child", finally_=True)
    built.run(max_workers)
    assert bad.is_terminal and bad.status.is_bad
    assert {**built.ends, "bad": None} == {"bad": None, "child": BLOCKED, "other": SUCCEEDED, "cleanup": SUCCEEDED}
    assert built.graph.errors == {bad.id: error}


def test_a_task_without_a_handler_fails_in_a_graph_as_it_does_alone(store: Any) -> None:
    built = Built(store)
    built.tasks["a"] = built.graph.add(Task.prompt("hello", title="a"))
    built.add("b", "a")
    built.add("c")
    built.run()
    assert built.ends == {"a": FAILED, "b": BLOCKED, "c": SUCCEEDED}
    assert "No handler registered" in str(built.graph.errors[built.tasks["a"].id])


class Overriding(TaskExecutor):
    """An executor of a user's own, which notes what it is asked to execute, and raises for some."""

    asked: list[tuple[str, list[str], dict[str, Any]]]
    refused: dict[str, BaseException]

    def execute(self, task: Task, upstream: Any = None, **more: Any) -> TaskResult:
        self.asked.append((task.title, [parent.title for parent in upstream.values()], more))
        if task.title in self.refused:
            raise self.refused[task.title]
        return super().execute(task, upstream, **more)


def overriding(store: Any, **refused: BaseException) -> Overriding:
    executor = Overriding.empty(store)
    executor.asked, executor.refused = [], refused
    executor.register(TaskType.BASH, Scripted()._handle)
    return executor


def test_every_task_goes_through_an_overridden_execute(store: Any) -> None:
    built, policy = Built(), RetryPolicy(2)
    built.add("a")
    built.add("b", "a", retry_policy=policy)
    built.add("c", "b a", finally_=True)
    executor = overriding(store)
    assert built.graph.run(executor).ok
    assert executor.asked == [("a", [], {}), ("b", ["a"], {"retry_policy": policy}), ("c", ["b", "a"], {})]


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt("mine"), StreamConflictError("s", 1, 2)])
@pytest.mark.parametrize("max_workers", [1, 4])
def test_an_exception_that_leaves_a_task_unsettled_is_in_errors_and_never_deadlocks(
    store: Any, error: BaseException, max_workers: int
) -> None:
    built = Built()
    odd = built.add("odd")
    built.add("child", "odd")
    built.add("cleanup", "child", finally_=True)
    built.add("other")
    executor = overriding(store, odd=error)
    built.graph.run(executor, max_workers)
    assert built.graph.errors == {odd.id: error}
    assert built.ends == {"odd": PENDING, "child": BLOCKED, "cleanup": SUCCEEDED, "other": SUCCEEDED}
    assert built.blocked_by == {"child": "odd"}
    assert not built.graph.ok


def test_an_execute_that_does_nothing_leaves_the_graph_not_ok_and_never_deadlocks(store: Any) -> None:
    class Idle(TaskExecutor):
        def execute(self, task: Task, upstream: Any = None, **more: Any) -> Any:
            return None

    built = Built()
    built.add("a")
    built.add("b", "a")
    built.graph.run(Idle(store))
    assert not built.graph.ok
    assert built.tasks["b"].status is BLOCKED


def test_a_task_that_succeeded_but_has_an_error_makes_the_graph_not_ok(store: Any) -> None:
    class Late(TaskExecutor):
        def execute(self, task: Task, upstream: Any = None, **more: Any) -> TaskResult:
            super().execute(task, upstream, **more)
            raise RuntimeError("afterwards")

    graph = TaskGraph()
    task = graph.add(Task.bash("true"))
    graph.run(Late(store))
    assert task.is_succeeded
    assert list(graph.errors) == [task.id]
    assert not graph.ok


def test_a_subscriber_may_run_a_task_of_its_own(store: Any) -> None:
    built = Built(store)
    extra = Task.bash("ok", title="extra")

    def run_extra(event: TaskEvent) -> None:
        if event.type == "succeeded" and event.task.title == "a":
            built.scripted.executor.execute(extra)

    built.scripted.executor.events.subscribe(run_extra)
    built.add("a")
    built.add("b", "a")
    assert built.run().ok
    assert extra.is_succeeded
    assert built.scripted.executor.events.errors == []


def test_a_task_may_run_a_graph_of_its_own(store: Any) -> None:
    inner = Built(store)
    inner.add("inner")
    outer = Built(store, outer=lambda context: inner.run().ok)
    outer.add("outer")
    outer.add("after", "outer")
    assert outer.run(1).ok
    assert inner.graph.ok


def test_a_graph_can_not_be_run_while_it_runs(store: Any) -> None:
    refusals: list[Exception] = []

    def again(context: TaskContext) -> None:
        try:
            built.graph.run(built.scripted.executor)
        except ValueError as refusal:
            refusals.append(refusal)

    built = Built(store, a=again)
    built.add("a")
    built.add("b")
    assert built.run(1).ok
    assert [type(refusal) for refusal in refusals] == [AlreadyRunningError]
    assert built.scripted.started == ["a", "b"]


def test_a_graph_that_another_handle_runs_is_refused(path: Path) -> None:
    refusals: list[Exception] = []

    def again(context: TaskContext) -> None:
        try:
            store.graphs[built.graph.id].run(built.scripted.executor)
        except ValueError as refusal:
            refusals.append(refusal)

    with SQLiteStore(path) as store:
        built = Built(store, a=again)
        built.add("a")
        built.run()
    assert [type(refusal) for refusal in refusals] == [AlreadyRunningError]


def test_a_task_that_somebody_else_has_run_is_in_errors(path: Path) -> None:
    with SQLiteStore(path) as store:
        built = Built(store)
        stale = built.add("stale")
        built.add("child", "stale")
        built.add("other")
        store.graphs.save(built.graph)
        Scripted(store).executor.execute(store.tasks[stale.id])
        built.run()
        assert isinstance(built.graph.errors[stale.id], StreamConflictError)
        assert built.scripted.started == ["other"]
        assert (built.ends["child"], built.ends["other"]) == (BLOCKED, SUCCEEDED)
        assert verify(store._readers).problems == []


# --- what is recorded ------------------------------------------------------------------------------------------------


def test_a_run_is_recorded_with_its_start_and_its_end(path: Path) -> None:
    with SQLiteStore(path) as store:
        built = Built(store)
        bad = built.add("bad", payload="fail")
        built.add("child", "bad")
        built.add("cleanup", "child", finally_=True, required=False)
        built.run(3)
        started, finished = run_facts(store, built.graph)
        assert isinstance(started, GraphRunStarted)
        assert (started.run, started.max_workers, started.tasks) == (1, 3, tuple(task.id for task in built.graph))
        assert (started.edges, started.finally_tasks, started.optional_tasks) == (((1, 0), (2, 1)), (2,), (2,))
        assert isinstance(finished, GraphRunFinished)
        assert (finished.run, finished.outcome) == (1, RunStatus.FAILED)
        assert finished.errors == {bad.id: {"type": "builtins.ValueError", "text": "bad failed"}}


def test_each_run_has_its_own_row_and_its_attempts_name_it(path: Path) -> None:
    with SQLiteStore(path) as store:
        built = Built(store)
        bad = built.add("bad", payload="fail")
        built.run()
        bad.payload = "ok"
        built.run()
        assert [(run.run, run.status) for run in store._readers.runs(built.graph.id)] == [
            (1, RunStatus.FAILED),
            (2, RunStatus.SUCCEEDED),
        ]
        assert [(attempt.graph, attempt.run) for attempt in store._readers.attempts(bad.id)] == [
            (built.graph.id, 1),
            (built.graph.id, 2),
        ]
        assert store.graphs[built.graph.id].run_status is RunStatus.SUCCEEDED


def test_an_end_and_the_next_start_share_a_commit(path: Path) -> None:
    with SQLiteStore(path) as store:
        built = Built(store)
        built.add("a")
        built.add("b", "a")
        built.run()
        at = {(event.type, event.stream): event for event in store._readers.events()}
        end = at["TaskSucceeded", f"task-{built.tasks['a'].id}"]
        start = at["TaskStarted", f"task-{built.tasks['b'].id}"]
        assert (start.recorded_at, start.cause) == (end.recorded_at, end.position)


def test_every_event_of_a_graph_that_was_published_is_in_the_ledger(path: Path) -> None:
    events: list[TaskEvent] = []
    with SQLiteStore(path) as store:
        built = Built(store)
        built.scripted.executor.events.subscribe(events.append)
        built.add("bad", payload="fail")
        built.add("child", "bad")
        for title in "abcdefgh":
            built.add(title)
        built.add("cleanup", "child a b", finally_=True)
        built.run()
        recorded = {event.position: event for event in store._readers.events()}
    assert len(events) == 21
    assert all(event.record is not None and recorded[event.record.position] == event.record for event in events)


# --- size ------------------------------------------------------------------------------------------------------------


def chain(count: int) -> Iterator[tuple[int, list[int]]]:
    return ((number, [number - 1] if number else []) for number in range(count))


def fan(count: int) -> Iterator[tuple[int, list[int]]]:
    return (
        (number, [] if number == 0 else [0] if number < count - 1 else list(range(count - 1)))
        for number in range(count)
    )


def anyhow(count: int) -> Iterator[tuple[int, list[int]]]:
    chance = random.Random(7)
    for number in range(count):
        yield number, [chance.randrange(number) for _ in range(chance.randrange(4)) if number]


@pytest.mark.parametrize(("shape", "count"), [(chain, 600), (fan, 600), (anyhow, 1000)], ids=["chain", "fan", "random"])
def test_a_big_graph_runs_is_ok_and_verifies(path: Path, shape: Any, count: int) -> None:
    graph, tasks, ran = TaskGraph(), [], []
    for number, after in shape(count):
        tasks.append(
            graph.add(Task.bash(""), after=[tasks[parent] for parent in after]) if after else graph.add(Task.bash(""))
        )
        assert len(tasks) == number + 1
    with SQLiteStore(path) as store:
        executor = TaskExecutor.empty(store)
        executor.register(TaskType.BASH, lambda context: ran.append(context.id))
        assert graph.run(executor).ok
        assert sorted(ran) == sorted(task.id for task in tasks)
        assert verify(store._readers).problems == []
        loaded = store.graphs[graph.id]
        assert loaded.ok
        assert len(loaded) == count


def test_a_long_chain_behind_a_failure_is_blocked_whole() -> None:
    graph, tasks = TaskGraph(), []
    for _, after in chain(3000):
        tasks.append(graph.add(Task.bash("fail" if not tasks else "ok"), after=[tasks[parent] for parent in after]))
    graph.run(Scripted().executor)
    assert graph.blocked == tasks[1:]
    assert [task.blocked_by for task in tasks[1:]] == [task.id for task in tasks[:-1]]


def test_a_cycle_through_thousands_of_tasks_is_found() -> None:
    graph = TaskGraph()
    tasks = [Task.bash("") for _ in range(3000)]
    for number, task in enumerate(tasks):
        graph.add(task, after=[tasks[number - 1]])
    with pytest.raises(ValueError, match="cycle"):
        graph.run(Scripted().executor)


# --- a lost ledger ---------------------------------------------------------------------------------------------------


def test_when_the_ledger_is_lost_nothing_more_starts_and_a_later_save_records_the_run_as_interrupted(
    path: Path,
) -> None:
    kept, both = path.with_name("kept.db"), threading.Barrier(2)
    lost_now = threading.Event()

    def lose(context: TaskContext) -> str:
        both.wait(PATIENCE_S)
        path.rename(kept)
        lost_now.set()
        return "lost"

    def slow(context: TaskContext) -> str:
        both.wait(PATIENCE_S)
        assert lost_now.wait(PATIENCE_S)
        return "slow"

    with SQLiteStore(path) as store:
        built = Built(store, lose=lose, slow=slow)
        for title, after in [("lose", ""), ("slow", ""), ("next", "lose"), ("more", ""), ("cleanup", "next slow")]:
            built.add(title, after, finally_=title == "cleanup")
        with pytest.raises(LedgerUnwritableError):
            built.run(2)
        assert built.ends == {
            "lose": SUCCEEDED,
            "slow": SUCCEEDED,
            "next": PENDING,
            "more": PENDING,
            "cleanup": PENDING,
        }
        assert built.scripted.heard.count(("persistence_failed", "lose")) == 1
        assert built.scripted.heard.count(("persistence_failed", "slow")) == 1
        assert ("succeeded", "lose") not in built.scripted.heard

        kept.rename(path)
        store.graphs.save(built.graph)
        found = store.graphs[built.graph.id]
        assert found.run_status is RunStatus.INTERRUPTED
        assert [task.status for task in found] == [SUCCEEDED, SUCCEEDED, PENDING, PENDING, PENDING]
        assert verify(store._readers).problems == []
        assert built.run().ok
        assert [run.status for run in store._readers.runs(built.graph.id)] == [
            RunStatus.INTERRUPTED,
            RunStatus.SUCCEEDED,
        ]


def test_a_ledger_that_is_lost_before_the_run_leaves_everything_as_it_was(path: Path) -> None:
    with SQLiteStore(path) as store:
        built = Built(store)
        built.add("a")
        path.rename(path.with_name("kept.db"))
        with pytest.raises(LedgerUnwritableError):
            built.run()
        assert (built.ends, built.scripted.started, built.scripted.heard) == ({"a": PENDING}, [], [])
        path.with_name("kept.db").rename(path)
        assert built.run().ok
        assert verify(store._readers).problems == []


def test_a_ledger_lost_at_the_very_end_leaves_the_run_s_end_pending(path: Path) -> None:
    kept = path.with_name("kept.db")

    def lose(event: TaskEvent) -> None:
        if event.type == "succeeded":
            path.rename(kept)

    with SQLiteStore(path) as store:
        built = Built(store)
        built.add("a")
        built.scripted.executor.events.subscribe(lose)
        with pytest.raises(LedgerUnwritableError):
            built.run()
        assert built.ends == {"a": SUCCEEDED}
        kept.rename(path)
        store.graphs.save(built.graph)
        assert store.graphs[built.graph.id].run_status is not RunStatus.RUNNING
        assert verify(store._readers).problems == []


# --- Ctrl-C ----------------------------------------------------------------------------------------------------------

PRELUDE = """
import os, signal, sys, threading
from ttasks import *
signal.signal(signal.SIGINT, signal.default_int_handler)
store = SQLiteStore(sys.argv[1])
graph = TaskGraph(title="g")
executor = TaskExecutor(store)

def hear(event):
    # In one piece: several threads print.
    print(f"{event.type} {event.task.title} {(event.output_chunk or '').strip()}\\n", end="", flush=True)

executor.events.subscribe(hear)

def press():
    os.kill(os.getpid(), signal.SIGINT)

def finish(max_workers=4):
    try:
        graph.run(executor, max_workers)
    except KeyboardInterrupt:
        print("KeyboardInterrupt", graph.id, flush=True)
        sys.exit(130)
    print("returned", graph.id, flush=True)
"""


class Session:
    """A real process that runs a graph, and what it said."""

    def __init__(self, path: Path, script: str) -> None:
        self.path = path
        command = [sys.executable, "-c", PRELUDE + script, str(path)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []

    def read_until(self, start: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.strip())
            if line.startswith(start):
                return line.strip()
        _, errors = self.process.communicate()
        raise AssertionError(f"it never said {start!r}: {self.lines} {errors}")

    def press(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def end(self) -> float:
        """Wait for the process to end; return how many seconds that took."""
        began = time.monotonic()
        out, errors = self.process.communicate(timeout=PATIENCE_S * 2)
        self.lines += out.splitlines()
        self.errors = errors
        return time.monotonic() - began

    @contextlib.contextmanager
    def ledger(self) -> Iterator[tuple[SQLiteStore, TaskGraph, dict[str, TaskStatus]]]:
        with SQLiteStore(self.path) as store:
            assert verify(store._readers).problems == []
            graph = store.graphs[next(iter(store.graphs))]
            yield store, graph, {task.title: task.status for task in graph}


@pytest.fixture
def session(path: Path) -> Iterator[Callable[[str], Session]]:
    begun: list[Session] = []

    def begin(script: str) -> Session:
        begun.append(Session(path, script))
        return begun[-1]

    yield begin
    for left in begun:
        left.process.kill()
        left.process.communicate()


WORK_AND_CLEANUP = """
done = graph.add(Task.bash("true", title="done"))
work = graph.add(Task.bash("echo $$; sleep 1000 & sleep 1000", title="work"), after=[done])
child = graph.add(Task.bash("true", title="child"), after=[work])
other = graph.add(Task.bash("true", title="other"), after=[child])
cleanup = graph.add(Task.bash("echo cleaned", title="cleanup"), after=[work, other], finally_=True)
report = graph.add(Task.bash("echo told", title="report"), after=[cleanup], finally_=True)
finish()
"""


def test_one_ctrl_c_cancels_what_runs_leaves_the_rest_pending_and_runs_finally_tasks(session: Any) -> None:
    ran = session(WORK_AND_CLEANUP)
    group = int(ran.read_until("output work").split()[-1])
    ran.press()
    assert ran.end() < PATIENCE_S
    assert ran.process.returncode == 130, ran.errors
    assert ran.lines[-1].startswith("KeyboardInterrupt")
    assert "output cleanup cleaned" in ran.lines
    assert alive(group) == []
    with ran.ledger() as (store, graph, ends):
        assert ends == {
            "done": SUCCEEDED,
            "work": CANCELLED,
            "child": PENDING,
            "other": PENDING,
            "cleanup": SUCCEEDED,
            "report": SUCCEEDED,
        }
        assert graph.run_status is RunStatus.CANCELLED
        kinds = [event.type for event in store._readers.events(stream=f"graph-{graph.id}")]
        assert kinds == ["GraphCreated", "GraphRunStarted", "GraphCancelRequested", "GraphRunFinished"]
        (run,) = store._readers.runs(graph.id)
        assert run.cancel_requested_by is not None and "@" in run.cancel_requested_by
        assert run.why == "Ctrl-C"


def test_a_cancelled_run_can_be_run_again(session: Any) -> None:
    ran = session(WORK_AND_CLEANUP)
    ran.read_until("output work")
    ran.press()
    ran.end()
    with ran.ledger() as (store, graph, _):
        graph.run(Scripted(store).executor)
        assert {task.title: task.status for task in graph} == {
            "done": SUCCEEDED,
            "work": CANCELLED,
            "child": BLOCKED,
            "other": BLOCKED,
            "cleanup": SUCCEEDED,
            "report": SUCCEEDED,
        }
        assert graph.run_status is RunStatus.FAILED


def test_a_finally_task_that_runs_at_ctrl_c_goes_on(session: Any) -> None:
    ran = session("""
os.mkfifo("fifo")
work = graph.add(Task.bash("true", title="work"))
graph.add(Task.bash("echo began; read < fifo; echo cleaned", title="cleanup"), after=[work], finally_=True)
def let_go(event):
    if event.type == "cancelled":
        open("fifo", "w").write("go\\n")
executor.events.subscribe(let_go)
slow = graph.add(Task.bash("sleep 1000", title="slow"))
finish()
""")
    ran.read_until("output cleanup began")
    ran.press()
    ran.end()
    assert "output cleanup cleaned" in ran.lines
    with ran.ledger() as (_, graph, ends):
        assert ends == {"work": SUCCEEDED, "cleanup": SUCCEEDED, "slow": CANCELLED}
        assert graph.run_status is RunStatus.CANCELLED


def test_ctrl_c_while_a_retry_waits_ends_the_wait(session: Any) -> None:
    ran = session("""
graph.add(Task.bash("exit 1", title="work"), retry_policy=RetryPolicy(5, 3600))
finish()
""")
    ran.read_until("failed work")
    ran.press()
    assert ran.end() < PATIENCE_S
    with ran.ledger() as (_, graph, ends):
        assert ends == {"work": CANCELLED}
        assert graph.run_status is RunStatus.CANCELLED


FINALLY_HANGS = """
work = graph.add(Task.bash("sleep 1000", title="work"))
cleanup = graph.add(Task.bash("echo $$; sleep 1000 & sleep 1000", title="cleanup"), after=[work], finally_=True)
report = graph.add(Task.bash("true", title="report"), after=[cleanup], finally_=True)
finish()
"""


def second_ctrl_c(ran: Session) -> None:
    ran.read_until("started work")
    ran.press()
    group = int(ran.read_until("output cleanup").split()[-1])
    ran.press()
    took_s, left = ran.end(), alive(group)
    if left:
        os.killpg(group, signal.SIGKILL)
    assert left == []
    assert took_s < 8
    assert ran.process.returncode == 130, ran.errors
    assert ran.lines[-1].startswith("KeyboardInterrupt")
    with ran.ledger() as (store, graph, ends):
        assert ends == {"work": CANCELLED, "cleanup": INTERRUPTED, "report": PENDING}
        assert graph.run_status is RunStatus.INTERRUPTED
        (attempt,) = store._readers.attempts(graph.finally_tasks[0].id)
        assert (attempt.status, attempt.reason) == (INTERRUPTED, "interrupted")


def test_a_second_ctrl_c_stops_at_once_and_finally_tasks_stay_owed(session: Any) -> None:
    second_ctrl_c(session(FINALLY_HANGS))


def test_a_second_ctrl_c_stops_at_once_also_where_execute_is_overridden(session: Any) -> None:
    own = """
class Mine(TaskExecutor):
    def execute(self, task, upstream=None, **more):
        return super().execute(task, upstream, **more)
executor = Mine(store)
executor.events.subscribe(hear)
"""
    second_ctrl_c(session(own + FINALLY_HANGS))


def test_a_handler_that_does_not_end_does_not_keep_a_second_ctrl_c_for_ever(session: Any) -> None:
    ran = session("""
import ttasks.runtime.graph_run
ttasks.runtime.graph_run.STOP_WAIT_S = 0.5
def stubborn(context):
    print("stubborn", flush=True)
    threading.Event().wait()
executor.register(TaskType.BASH, stubborn)
graph.add(Task.bash("", title="work"))
finish()
""")
    ran.read_until("stubborn")
    ran.press()
    with SQLiteStore(ran.path) as store:  # the first one is heard before the second comes
        until(lambda: any(event.type == "GraphCancelRequested" for event in store._readers.events()))
    ran.press()
    assert ran.end() < PATIENCE_S
    with ran.ledger() as (_, graph, ends):
        assert ends == {"work": INTERRUPTED}
        assert graph.run_status is RunStatus.INTERRUPTED


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        threading.Event().wait(0.01)


def test_ctrl_c_before_the_first_task_starts_is_a_cancel_too(session: Any) -> None:
    ran = session("""
gone = graph.add(Task.bash("true", title="gone"))
gone.cancel()
graph.add(Task.bash("true", title="child"), after=[gone])
graph.add(Task.bash("echo cleaned", title="cleanup"), after=[gone], finally_=True)
def at_once(event):
    if event.type == "blocked":
        press()
        threading.Event().wait(0.5)  # or it would all be over before the main thread looks up
executor.events.subscribe(at_once)
finish()
""")
    ran.end()
    assert ran.lines[-1].startswith("KeyboardInterrupt")
    with ran.ledger() as (_, graph, ends):
        assert ends == {"gone": CANCELLED, "child": BLOCKED, "cleanup": SUCCEEDED}
        assert graph.run_status is RunStatus.CANCELLED


def test_ctrl_c_without_a_ledger_cancels_and_runs_finally_tasks(session: Any) -> None:
    ran = session("""
executor = TaskExecutor()
executor.events.subscribe(hear)
work = graph.add(Task.bash("echo $$; sleep 1000", title="work"))
child = graph.add(Task.bash("true", title="child"), after=[work])
graph.add(Task.bash("echo cleaned", title="cleanup"), after=[child], finally_=True)
try:
    graph.run(executor)
except KeyboardInterrupt:
    print("ends", *(str(task.status) for task in graph), flush=True)
""")
    ran.read_until("output work")
    ran.press()
    ran.end()
    assert ran.lines[-1] == "ends cancelled pending succeeded"


def test_ctrl_c_of_a_run_with_one_busy_worker_still_reaches_the_finally_task(session: Any) -> None:
    ran = session(WORK_AND_CLEANUP.replace("finish()", "finish(1)"))
    ran.read_until("output work")
    ran.press()
    ran.end()
    with ran.ledger() as (_, graph, ends):
        assert (ends["work"], ends["cleanup"], ends["report"]) == (CANCELLED, SUCCEEDED, SUCCEEDED)
        assert graph.run_status is RunStatus.CANCELLED


# --- how long a run took ---------------------------------------------------------------------------------------------


def test_a_clock_that_is_set_back_makes_no_run_shorter(tmp_path: Path) -> None:
    def set_the_clock_back(context: TaskContext) -> None:
        frozen.move_to("2026-11-24 07:00")

    graph = TaskGraph()
    graph.add(Task.bash("x"))
    with SQLiteStore(tmp_path / "ledger.db") as store, TaskExecutor.empty(store) as executor:
        executor.register(TaskType.BASH, set_the_clock_back)
        with freeze_time("2026-11-24 08:00") as frozen:
            graph.run(executor)

        (run,) = store.runs
        assert run.finished_at is not None
        assert run.finished_at < run.started_at
        assert run.duration is not None
        assert 0 < run.duration < 60
