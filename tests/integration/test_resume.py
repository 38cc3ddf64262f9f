"""Going on with what was interrupted, by the library: what is done again, what is not, and what is refused."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from processes import until
from ttasks import (
    AlreadyRunningError,
    InMemoryStore,
    LedgerUnwritableError,
    NotResumableError,
    RetryPolicy,
    SQLiteStore,
    StreamConflictError,
    Task,
    TaskContext,
    TaskEvent,
    TaskExecutor,
    TaskGraph,
    TaskStatus,
    TaskType,
    TransitionError,
)
from ttasks.clock import monotonic_s
from ttasks.events.facts import TaskStarted
from ttasks.handlers.shell import bash_handler
from ttasks.log.survivors import Dead, Leader, end_survivors, mark
from ttasks.log.transaction import Batch
from ttasks.log.verify import verify
from ttasks.runtime.beginning import Beginning
from ttasks.runtime.graph_run import STOP_WAIT_S, GraphRun
from ttasks.stores.recording import Entry
from ttasks.stores.recovery import Recovery

PATIENCE_S = 60

DYING = """
import os, signal, sys, threading
from ttasks import *

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
    threading.Event().wait()

def work(context):
    if context.payload == "die":
        die()
    if context.payload.startswith("die on "):
        if context.attempt == int(context.payload.removeprefix("die on ")):
            die()
    if context.payload == "fail":
        raise RuntimeError("it failed")
    if context.payload == "flaky" and context.attempt < 3:
        raise RuntimeError(f"attempt {context.attempt} failed")
    return f"{context.title} was here"

store = SQLiteStore(sys.argv[1])
executor = TaskExecutor.empty(store)
executor.register(TaskType.BASH, work)
"""
"""A process whose BASH tasks do what they are told to: die with it, for example."""


def dies(path: Path, script: str, cwd: Path | None = None) -> None:
    """Run a script in a process that is killed by what it runs."""
    ran = subprocess.run(
        [sys.executable, "-c", DYING + script, str(path)], cwd=cwd, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert ran.returncode == -signal.SIGKILL, ran.stderr


def work(context: TaskContext) -> str:
    """Do in this process what was killed in the other one; it is known there by the same name."""
    if context.payload == "fail":
        raise RuntimeError("it failed")
    if context.payload == "flaky" and context.attempt < 3:
        raise RuntimeError(f"attempt {context.attempt} failed")
    return f"{context.title} was here"


work.__module__ = "__main__"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


class Resumer:
    """Opens the ledger and resumes, with the handler that the dead process had."""

    def __init__(self, path: Path) -> None:
        self.store = SQLiteStore(path)
        self.executor = TaskExecutor.empty(self.store)
        self.executor.register(TaskType.BASH, work)
        self.heard: list[tuple[str, str]] = []
        self.executor.events.subscribe(lambda event: self.heard.append((event.task.title, str(event.type))))

    def graph(self) -> TaskGraph:
        (graph,) = self.store.graphs.values()
        return graph

    def resume(self, **options: Any) -> TaskGraph:
        (graph,) = self.executor.resume(**options)
        assert isinstance(graph, TaskGraph)
        assert verify(self.store._readers).problems == []
        return graph


@pytest.fixture
def open_resumer(path: Path) -> Iterator[Callable[[], Resumer]]:
    made: list[Resumer] = []

    def make() -> Resumer:
        made.append(Resumer(path))
        return made[-1]

    yield make
    for resumer in made:
        resumer.executor.close()
        resumer.store.close()


def recorded(store: SQLiteStore) -> list[str]:
    """Return the types of all events, but for that which comes a moment later by itself."""
    return [event.type for event in store.events if event.type != "RunnerDescribed"]


def ends(graph: TaskGraph) -> dict[str, tuple[str, int]]:
    return {task.title: (str(task.status), task.attempts) for task in graph}


CHAIN = """
graph = TaskGraph(title="chain")
before = []
for title, payload in (("a", "ok"), ("b", {b!r}), ("c", "ok")):
    before = [graph.add(Task.bash(payload, title=title, {more}), after=before{policy})]
graph.add(Task.bash("ok", title="clean"), after=before, finally_=True)
graph.run(executor, max_workers=3)
"""


DONE = dict.fromkeys(("a", "b", "c", "clean"), ("succeeded", 1))


def chain(b: str = "die on 1", more: str = "", policy: str = "") -> str:
    return CHAIN.format(b=b, more=more, policy=policy)


# --- what is done again, and what is not ---------------------------------------------------------------------------


def test_the_same_run_of_the_same_graph_goes_on(path: Path, open_resumer: Callable[[], Resumer]) -> None:
    dies(path, chain())
    resumer = open_resumer()
    graph = resumer.resume()
    assert ends(graph) == {
        "a": ("succeeded", 1),
        "b": ("succeeded", 2),
        "c": ("succeeded", 1),
        "clean": ("succeeded", 1),
    }
    (run,) = resumer.store.runs
    assert (run.status, run.max_workers, run.run) == ("succeeded", 3, 1)
    assert [event.type for event in resumer.store.history(graph)] == [
        "GraphCreated", "GraphRunStarted", "GraphRunInterrupted", "GraphRunResumed", "GraphRunFinished",
    ]  # fmt: skip
    assert resumer.heard[:3] == [("b", "interrupted"), ("b", "started"), ("b", "succeeded")]


def test_a_killed_run_took_until_its_last_event_and_then_from_its_resume_on(
    path: Path, open_resumer: Callable[[], Resumer]
) -> None:
    dies(path, chain())
    resumer = open_resumer()
    graph = resumer.resume()

    events = resumer.store.history(graph)
    started, interrupted, finished = (events[index] for index in (1, 2, 4))
    last = max(event.recorded_at for event in resumer.store.events if event.runner == started.runner)
    assert interrupted.data["duration"] == (last - started.recorded_at).total_seconds() > 0
    (run,) = resumer.store.runs
    assert run.duration == interrupted.data["duration"] + finished.data["duration"]


def test_what_is_upstream_is_there_with_what_it_returned(path: Path, open_resumer: Callable[[], Resumer]) -> None:
    dies(path, chain())
    resumer = open_resumer()
    seen = {}

    def look(context: TaskContext) -> str:
        seen[context.title] = [task.result.output for task in context.upstream.values() if task.result]
        return "again"

    look.__module__, look.__qualname__ = "__main__", "work"
    resumer.executor.register(TaskType.BASH, look)
    resumer.resume()
    assert seen == {"b": ["a was here"], "c": ["again"], "clean": ["again"]}


def test_an_interrupted_attempt_has_a_result_that_says_so(path: Path, open_resumer: Callable[[], Resumer]) -> None:
    dies(path, chain(more='on_interrupted="ask"'))
    graph = open_resumer().resume()
    (task,) = graph.interrupted
    assert task.result is not None
    assert (task.result.status, task.result.termination_reason) == ("interrupted", "interrupted")
    assert "is gone: what became of the work is unknown" in (task.error or "")
    assert task.result.started_at <= task.result.finished_at
    assert task.result.duration >= 0


def test_what_failed_or_was_blocked_in_the_run_stays_that(path: Path, open_resumer: Callable[[], Resumer]) -> None:
    dies(
        path,
        """
graph = TaskGraph()
bad = graph.add(Task.bash("fail", title="bad"))
graph.add(Task.bash("ok", title="child"), after=[bad])
graph.add(Task.bash("die on 1", title="other"), after=[graph.add(Task.bash("ok", title="first"))])
graph.run(executor, max_workers=1)
""",
    )
    graph = open_resumer().resume()
    assert ends(graph) == {
        "bad": ("failed", 1), "child": ("blocked", 0), "other": ("succeeded", 2), "first": ("succeeded", 1),
    }  # fmt: skip
    assert {graph_id: str(error) for graph_id, error in graph.errors.items()} == {graph.failed[0].id: "it failed"}
    assert graph.run_status == "failed"


def test_what_failed_before_the_run_is_tried_in_it_though_it_is_resumed(
    path: Path, open_resumer: Callable[[], Resumer]
) -> None:
    dies(
        path,
        """
graph = TaskGraph()
bad = graph.add(Task.bash("fail", title="bad"))
child = graph.add(Task.bash("ok", title="child"), after=[bad])
graph.run(executor)
bad.payload = "ok"
first = graph.add(Task.bash("die on 1", title="first"))
graph.add(bad, after=[first])
graph.run(executor)
""",
    )
    graph = open_resumer().resume()
    assert ends(graph) == {"bad": ("succeeded", 2), "child": ("succeeded", 1), "first": ("succeeded", 2)}
    assert graph.ok


def test_what_depends_on_a_failure_that_was_just_recorded_is_blocked(
    path: Path, open_resumer: Callable[[], Resumer]
) -> None:
    dies(
        path,
        """
graph = TaskGraph()
bad = graph.add(Task.bash("fail", title="bad"))
graph.add(Task.bash("ok", title="child"), after=[bad])
executor.events.subscribe(lambda event: die() if event.type == "failed" else None)
graph.run(executor)
""",
    )
    graph = open_resumer().resume()
    assert ends(graph) == {"bad": ("failed", 1), "child": ("blocked", 0)}


def test_a_graph_of_which_nothing_had_begun_is_run(path: Path, open_resumer: Callable[[], Resumer]) -> None:
    dies(path, "executor.execute = lambda *a, **k: die()\n" + chain())
    assert {status for status, _ in ends(open_resumer().resume()).values()} == {"succeeded"}


def test_a_graph_whose_tasks_were_all_done_is_closed(path: Path, open_resumer: Callable[[], Resumer]) -> None:
    dies(
        path,
        """
graph = TaskGraph()
graph.add(Task.bash("ok", title="a"))
executor.events.subscribe(lambda event: die() if event.type == "succeeded" else None)
graph.run(executor)
""",
    )
    resumer = open_resumer()
    assert ends(resumer.resume()) == {"a": ("succeeded", 1)}
    assert [str(run.status) for run in resumer.store.runs] == ["succeeded"]


# --- retries -------------------------------------------------------------------------------------------------------


def test_an_interrupted_attempt_costs_none_of_those_that_its_policy_allows(
    path: Path, open_resumer: Callable[[], Resumer]
) -> None:
    dies(
        path,
        """
def flaky(context):
    if context.attempt == 2:
        die()
    raise RuntimeError("no")
flaky.__qualname__ = "work"
executor.register(TaskType.BASH, flaky)
graph = TaskGraph()
graph.add(Task.bash("fail", title="a"), retry_policy=RetryPolicy(max_attempts=3))
graph.run(executor)
""",
    )
    resumer = open_resumer()
    graph = resumer.resume()
    assert ends(graph) == {"a": ("failed", 4)}, "one failed, one was interrupted, two were left"
    retries = [event.fact.retry for event in resumer.store.events(type="TaskStarted")]  # type: ignore[union-attr]
    assert retries == [0, 1, 1, 2]


WAITING = """
graph = TaskGraph()
graph.add(Task.bash("flaky", title="a"), retry_policy=RetryPolicy(max_attempts=3, backoff={backoff}))
executor.events.subscribe(lambda event: threading.Timer(0.05, die).start() if event.type == "failed" else None)
graph.run(executor)
"""


def test_a_wait_between_attempts_starts_over(path: Path, open_resumer: Callable[[], Resumer]) -> None:
    dies(path, WAITING.format(backoff=0.3))
    resumer = open_resumer()
    (work_left,) = resumer.store.interrupted()
    assert len(work_left.running) == 1, "a retry that nobody waits for any more is listed"
    graph = resumer.resume()
    assert ends(graph) == {"a": ("succeeded", 3)}
    scheduled = list(resumer.store.events(type="TaskRetryScheduled"))
    assert [event.fact.retry for event in scheduled] == [1, 1, 2]  # type: ignore[union-attr]
    starts = resumer.store.events(type="TaskStarted")
    second = list(starts)[1]
    assert (second.recorded_at - scheduled[1].recorded_at).total_seconds() >= 0.3
    assert resumer.heard[0] == ("a", "started"), "it was not interrupted: that attempt had failed"


def test_a_wait_that_was_resumed_can_be_cancelled(path: Path, open_resumer: Callable[[], Resumer]) -> None:
    dies(path, WAITING.format(backoff=60))
    resumer = open_resumer()
    graph = resumer.graph()
    (task,) = graph
    with resumer.executor.events.subscribed(lambda event: None):
        waiting = threading.Thread(target=resumer.executor.resume, args=(graph,))
        waiting.start()
        while len(resumer.store.events(type="TaskRetryScheduled")) < 2:
            assert waiting.is_alive()
        resumer.store.tasks.cancel(task.id)
        waiting.join(PATIENCE_S)
    assert ends(graph) == {"a": ("cancelled", 1)}


def test_a_retry_filter_that_can_not_be_restored_is_said_before_anything_starts(
    path: Path, open_resumer: Callable[[], Resumer]
) -> None:
    dies(path, chain(policy=", retry_policy=RetryPolicy(max_attempts=2, retry_on=OSError)"))
    resumer = open_resumer()
    before = recorded(resumer.store)
    with pytest.raises(NotResumableError, match=r"retried only on builtins\.OSError"):
        resumer.executor.resume()
    assert recorded(resumer.store) == before
    graph = resumer.graph()
    for task in graph:
        if task.title in ("b", "c"):
            graph.add(task, after=graph[task], retry_policy=RetryPolicy(max_attempts=2, retry_on=OSError))
    resumer.executor.resume(graph)
    assert graph.ok


# --- cancels -------------------------------------------------------------------------------------------------------


def test_a_cancel_that_was_asked_for_before_the_crash_is_obeyed(
    path: Path, open_resumer: Callable[[], Resumer]
) -> None:
    dies(
        path,
        """
graph = TaskGraph()
task = graph.add(Task.bash("ok", title="a"))
other = SQLiteStore(sys.argv[1])
def cancel(context):
    log = other._log
    from ttasks.log.transaction import Batch
    from ttasks.events.facts import TaskCancelRequested
    log.append(Batch(f"task-{context.id}", [TaskCancelRequested("ann@host")], None))
    die()
cancel.__qualname__ = "work"
executor.register(TaskType.BASH, cancel)
graph.run(executor)
""",
    )
    resumer = open_resumer()
    graph = resumer.resume()
    assert ends(graph) == {"a": ("cancelled", 1)}
    last = list(resumer.store.history(graph.cancelled[0]))[-2:]
    assert [event.type for event in last] == ["TaskInterrupted", "TaskCancelled"]
    assert last[0].recorded_at == last[1].recorded_at, "in one commit"


def test_of_a_cancelled_run_only_what_is_owed_is_run_and_it_closes_as_cancelled(
    path: Path, open_resumer: Callable[[], Resumer]
) -> None:
    dies(path, chain())
    resumer = open_resumer()
    graph = resumer.graph()
    resumer.store.graphs.cancel(graph.id)
    (left,) = resumer.store.interrupted()
    assert left.is_cancelled
    assert (left.running, left.left, len(left.owed)) == ((), left.owed, 1)
    graph = resumer.resume()
    assert ends(graph) == {"a": ("succeeded", 1), "b": ("cancelled", 1), "c": ("pending", 0), "clean": ("succeeded", 1)}
    assert graph.run_status == "cancelled"
    assert resumer.store.owed() == []


def test_only_finally_tasks_are_run_where_that_is_wanted(path: Path, open_resumer: Callable[[], Resumer]) -> None:
    dies(path, chain())
    resumer = open_resumer()
    assert [one.title for one in resumer.store.owed()] == ["clean"]
    graph = resumer.resume(finally_only=True)
    assert ends(graph) == {"a": ("succeeded", 1), "b": ("cancelled", 1), "c": ("pending", 0), "clean": ("succeeded", 1)}
    assert graph.run_status == "cancelled"
    (request,) = resumer.store.events(type="GraphCancelRequested")
    assert request.fact.why == "resume --finally-only"  # type: ignore[union-attr]
    assert resumer.executor.resume() == []


def test_a_finally_task_that_was_interrupted_itself_is_owed_again(
    path: Path, open_resumer: Callable[[], Resumer]
) -> None:
    dies(path, chain("ok").replace('Task.bash("ok", title="clean")', 'Task.bash("die on 1", title="clean")'))
    resumer = open_resumer()
    assert [(one.title, one.asks) for one in resumer.store.owed()] == [("clean", False)]
    assert ends(resumer.resume())["clean"] == ("succeeded", 2)
    assert resumer.store.owed() == []


def test_a_finally_task_that_waits_for_a_person_is_owed_until_that_decides(
    path: Path, open_resumer: Callable[[], Resumer]
) -> None:
    dies(
        path,
        chain("ok").replace('Task.bash("ok", title="clean")', 'Task.bash("die", title="clean", on_interrupted="ask")'),
    )
    resumer = open_resumer()
    graph = resumer.resume()
    assert (graph.run_status, ends(graph)["clean"]) == ("failed", ("interrupted", 1))
    (owed,) = resumer.store.owed()
    assert (owed.title, owed.asks, owed.graph_id) == ("clean", True, graph.id)
    resumer.store.tasks.resolve(owed.task_id, "succeeded")
    assert (resumer.store.owed(), resumer.store.interrupted()) == ([], [])


def test_a_dead_task_is_cancelled_by_whoever_asks(path: Path, open_resumer: Callable[[], Resumer]) -> None:
    dies(path, "executor.execute(Task.bash('die'))")
    resumer = open_resumer()
    (task,) = resumer.store.tasks.values()
    resumer.executor.cancel(task)
    assert resumer.heard == [("", "interrupted"), ("", "cancelled")]
    assert [event.type for event in resumer.store.history(task)][-3:] == [
        "TaskCancelRequested", "TaskInterrupted", "TaskCancelled",
    ]  # fmt: skip
    assert task.result is not None
    assert task.result.status == "cancelled"


def test_a_subscriber_may_record_what_it_hears_of_the_cancel_of_a_dead_task(
    path: Path, tmp_path: Path, open_resumer: Callable[[], Resumer]
) -> None:
    dies(path, "executor.execute(Task.bash('die'))")
    resumer = open_resumer()
    (task,) = resumer.store.tasks.values()
    with SQLiteStore(tmp_path / "mirror.db") as mirror:
        subscribe = resumer.executor.events.subscribe
        subscribe(lambda event: mirror.tasks.save(event.task))
        subscribe(lambda event: resumer.store.tasks.save(Task.bash("true", title=str(event.type))))
        resumer.executor.cancel(task)
        assert mirror.tasks[task.id].is_cancelled
    assert {each.title for each in resumer.store.tasks.values()} == {"", "interrupted", "cancelled"}


# --- on_interrupted ------------------------------------------------------------------------------------------------


def test_a_task_that_is_to_fail_fails_and_blocks_what_depends_on_it(
    path: Path, open_resumer: Callable[[], Resumer]
) -> None:
    dies(path, chain("die", more='on_interrupted="fail"'))
    resumer = open_resumer()
    graph = resumer.resume()
    assert ends(graph) == {"a": ("succeeded", 1), "b": ("failed", 1), "c": ("blocked", 0), "clean": ("succeeded", 1)}
    assert graph.failed[0].error == "attempt 1 was interrupted, and on_interrupted is 'fail'"
    assert resumer.heard[:2] == [("b", "interrupted"), ("b", "failed")]


def test_a_task_that_asks_waits_and_the_rest_of_the_graph_goes_on(
    path: Path, open_resumer: Callable[[], Resumer]
) -> None:
    dies(path, chain("die", more='on_interrupted="ask"'))
    resumer = open_resumer()
    graph = resumer.resume()
    assert ends(graph) == {
        "a": ("succeeded", 1), "b": ("interrupted", 1), "c": ("blocked", 0), "clean": ("succeeded", 1),
    }  # fmt: skip
    (work_left,) = resumer.store.interrupted()
    assert (work_left.kind, work_left.id, work_left.can_go_on) == ("task", graph.interrupted[0].id, False)
    assert work_left.asking == (work_left.id,)
    assert resumer.executor.resume() == []
    resumer.store.tasks.resolve(work_left.id, "succeeded", note="I looked")
    again = resumer.store.graphs[graph.id].retry()
    again.run(resumer.executor)
    assert again.ok
    assert ends(again) == {
        "a": ("succeeded", 1),
        "b": ("succeeded", 1),
        "c": ("succeeded", 1),
        "clean": ("succeeded", 1),
    }
    (resolved,) = resumer.store.events(type="TaskResolved")
    assert (resolved.fact.note, "@" in resolved.fact.by) == ("I looked", True)  # type: ignore[union-attr]


def test_a_person_may_decide_before_the_run_is_resumed(path: Path, open_resumer: Callable[[], Resumer]) -> None:
    dies(path, chain("die", more='on_interrupted="ask"'))
    resumer = open_resumer()
    task = next(task for task in resumer.graph() if task.title == "b")
    resumer.store.tasks.resolve(task.id, "succeeded")
    graph = resumer.resume()
    assert ends(graph) == {
        "a": ("succeeded", 1),
        "b": ("succeeded", 1),
        "c": ("succeeded", 1),
        "clean": ("succeeded", 1),
    }


def test_a_person_may_let_a_task_be_run_again(path: Path, open_resumer: Callable[[], Resumer]) -> None:
    dies(path, chain(more='on_interrupted="ask"'))
    resumer = open_resumer()
    task = next(task for task in resumer.graph() if task.title == "b")
    resumer.store.tasks.resolve(task.id, "rerun")
    assert ends(resumer.resume())["b"] == ("succeeded", 2)


@pytest.mark.parametrize(("answer", "note", "error"), [("maybe", None, ValueError), ("failed", 3, TypeError)])
def test_what_a_person_says_is_checked(
    path: Path, open_resumer: Callable[[], Resumer], answer: Any, note: Any, error: type[Exception]
) -> None:
    dies(path, "executor.execute(Task.bash('die'))")
    resumer = open_resumer()
    (task,) = resumer.store.tasks.values()
    with pytest.raises(error):
        resumer.store.tasks.resolve(task.id, answer, note=note)
    with pytest.raises(KeyError):
        resumer.store.tasks.resolve("nobody", "failed")


def test_after_three_interrupted_attempts_in_a_row_a_task_waits_for_a_person(
    path: Path, open_resumer: Callable[[], Resumer]
) -> None:
    dies(path, chain("die"))
    for attempt in (2, 3):
        dies(path, "executor.resume()")
        with SQLiteStore(path, read_only=True) as store:
            assert len(store.events(type="TaskStarted")) == 1 + attempt
    graph = open_resumer().resume()
    assert ends(graph) == {
        "a": ("succeeded", 1), "b": ("interrupted", 3), "c": ("blocked", 0), "clean": ("succeeded", 1),
    }  # fmt: skip


# --- what can't be restored ----------------------------------------------------------------------------------------


def test_a_payload_for_another_handler_never_reaches_a_shell(path: Path, tmp_path: Path) -> None:
    dies(path, chain("die", more="").replace('"ok"', f'"touch {tmp_path}/shell"'))
    with SQLiteStore(path) as store, TaskExecutor(store) as executor:
        before = recorded(store)
        with pytest.raises(
            NotResumableError, match=r"run by __main__\.work, and it is ttasks.*bash_handler"
        ) as refusal:
            executor.resume()
        assert "force_handlers" in refusal.value.problems[0]
        assert recorded(store) == before
        assert not (tmp_path / "shell").exists()
        executor.resume(force_handlers=True)
        assert (tmp_path / "shell").exists()
        (resumed,) = store.events(type="GraphRunResumed")
        assert resumed.fact.forced_handlers is True  # type: ignore[union-attr]


def test_tasks_that_had_not_begun_are_refused_another_handler_too(path: Path) -> None:
    dies(
        path,
        """
executor.register(TaskType.PROMPT, lambda context: die())
graph = TaskGraph()
first = graph.add(Task.prompt("?", title="first", on_interrupted="fail"))
graph.add(Task.bash("rm -rf everything", title="second"), after=[first], finally_=True)
graph.run(executor)
""",
    )
    with (
        SQLiteStore(path) as store,
        TaskExecutor(store) as executor,
        pytest.raises(NotResumableError, match=r"bash tasks such as 'second' were run by __main__\.work"),
    ):
        executor.resume()


def test_where_no_handler_is_registered_that_is_said(path: Path) -> None:
    dies(path, chain())
    with (
        SQLiteStore(path) as store,
        TaskExecutor.empty(store) as executor,
        pytest.raises(NotResumableError, match="none is registered now"),
    ):
        executor.resume()


def test_secrets_have_to_be_given_again(path: Path, open_resumer: Callable[[], Resumer]) -> None:
    dies(path, chain(more='env={"API_TOKEN": "s3cr3t-value"}'))
    resumer = open_resumer()
    with pytest.raises(NotResumableError, match=r"--env API_TOKEN") as refusal:
        resumer.executor.resume()
    assert len(refusal.value.problems) == 2, "of each task that is to run; what is done needs nothing"
    graph = resumer.graph()
    for task in graph:
        if not task.is_succeeded and "API_TOKEN" in task.env:
            task.give_again(env={"API_TOKEN": "s3cr3t-value"})
    resumer.executor.resume(graph)
    assert graph.ok


def test_a_resumed_task_runs_in_the_folder_that_its_run_was_started_in(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    dies(path, """
executor = TaskExecutor(store)
executor.events.subscribe(lambda event: die() if event.type == "started" else None)
graph = TaskGraph()
first = graph.add(Task.bash("pwd", title="first"))
graph.add(Task.bash("pwd", title="second"), after=[first], retry_policy=RetryPolicy(max_attempts=2))
graph.add(Task.bash("pwd", title="elsewhere", cwd="/"), after=[first])
graph.run(executor)
""", cwd=folder)  # fmt: skip
    with SQLiteStore(path) as store, TaskExecutor(store) as executor:
        (graph,) = executor.resume()
        assert isinstance(graph, TaskGraph)
        said = {task.title: task.result.output.strip() for task in graph if task.result}
        assert said == {"first": str(folder), "second": str(folder), "elsewhere": "/"}


def test_a_folder_that_is_gone_is_said_before_anything_starts(path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    dies(path, "executor.execute(Task.bash('die'))\n", cwd=folder)
    dies(path, chain(), cwd=folder)
    folder.rmdir()
    with SQLiteStore(path) as store, TaskExecutor(store) as executor:
        executor.register(TaskType.BASH, work)
        for work_left in store.interrupted():
            with pytest.raises(NotResumableError, match=f"the folder {folder}"):
                executor.resume(work_left.id)


# --- tasks that ran by themselves ----------------------------------------------------------------------------------


def test_a_task_that_ran_by_itself_is_resumed_too(path: Path, open_resumer: Callable[[], Resumer]) -> None:
    dies(path, "executor.execute(Task.bash('die on 1', title='alone'), retry_policy=RetryPolicy(max_attempts=2))")
    resumer = open_resumer()
    (work_left,) = resumer.store.interrupted()
    assert (work_left.kind, work_left.title, work_left.run) == ("task", "alone", None)
    (task,) = resumer.executor.resume(work_left.id)
    assert isinstance(task, Task)
    assert (task.status, task.attempts) == ("succeeded", 2)
    assert resumer.heard == [("alone", "interrupted"), ("alone", "started"), ("alone", "succeeded")]
    assert resumer.executor.resume(task) == []


def test_a_task_that_fails_again_is_no_exception(path: Path, open_resumer: Callable[[], Resumer]) -> None:
    dies(path, "executor.execute(Task.bash('die', title='alone'))")
    resumer = open_resumer()
    resumer.executor.register(TaskType.BASH, fail)
    (task,) = resumer.executor.resume()
    assert isinstance(task, Task)
    assert task.is_failed


def fail(context: TaskContext) -> None:
    raise RuntimeError("no")


fail.__module__, fail.__qualname__ = "__main__", "work"


def test_a_retry_of_a_task_that_nobody_waits_for_is_resumed(path: Path, open_resumer: Callable[[], Resumer]) -> None:
    dies(
        path,
        """
executor.events.subscribe(lambda event: threading.Timer(0.05, die).start() if event.type == "failed" else None)
executor.execute(Task.bash("flaky", title="alone"), retry_policy=RetryPolicy(max_attempts=3, backoff=0.1))
""",
    )
    resumer = open_resumer()
    (task,) = resumer.executor.resume()
    assert isinstance(task, Task)
    assert (task.status, task.attempts) == ("succeeded", 3)


def test_a_retry_of_a_task_by_itself_that_is_cancelled_while_it_waits_is_no_exception(
    path: Path, open_resumer: Callable[[], Resumer]
) -> None:
    dies(
        path,
        f"""
executor.events.subscribe(lambda event: threading.Timer(0.05, die).start() if event.type == "failed" else None)
executor.execute(Task.bash("fail"), retry_policy=RetryPolicy(max_attempts=2, backoff={PATIENCE_S}))
""",
    )
    resumer = open_resumer()
    (task,) = resumer.store.tasks.values()
    resumed: list[Any] = []
    resuming = threading.Thread(target=lambda: resumed.extend(resumer.executor.resume(task)))
    resuming.start()
    until(lambda: resumer.executor._live.get(task.id))
    resumer.store.tasks.cancel(task.id)
    resuming.join(PATIENCE_S)
    assert resumed == [task]
    assert (task.status, task.attempts) == ("cancelled", 1)


def test_a_filter_of_a_task_that_ran_by_itself_can_not_be_restored(
    path: Path, open_resumer: Callable[[], Resumer]
) -> None:
    dies(path, "executor.execute(Task.bash('die'), retry_policy=RetryPolicy(max_attempts=2, retry_on=OSError))")
    resumer = open_resumer()
    with pytest.raises(NotResumableError, match=r"only on builtins\.OSError"):
        resumer.executor.resume()
    resumer.executor.register(TaskType.BASH, lambda context: None)
    with pytest.raises(NotResumableError, match=r"run by __main__\.work"):
        resumer.executor.resume()
    resumer.executor.resume(force_handlers=True)


def test_executing_an_interrupted_task_is_a_persons_decision(path: Path, open_resumer: Callable[[], Resumer]) -> None:
    dies(path, "executor.execute(Task.bash('die on 1', title='alone', on_interrupted='ask'))")
    resumer = open_resumer()
    (task,) = resumer.store.tasks.values()
    assert task.is_running, "the status is what is recorded"
    resumer.executor.execute(task)
    assert (task.status, task.attempts) == ("succeeded", 2)
    assert [event.type for event in resumer.store.history(task)].count("TaskInterrupted") == 1


def test_executing_a_task_whose_retry_nobody_waits_for_begins_anew(
    path: Path, open_resumer: Callable[[], Resumer]
) -> None:
    dies(
        path,
        """
executor.events.subscribe(lambda event: threading.Timer(0.05, die).start() if event.type == "failed" else None)
executor.execute(Task.bash("fail"), retry_policy=RetryPolicy(max_attempts=2, backoff=60))
""",
    )
    resumer = open_resumer()
    (task,) = resumer.store.tasks.values()
    with pytest.raises(RuntimeError, match="it failed"):
        resumer.executor.submit(task).result(PATIENCE_S)
    assert (task.status, task.attempts) == ("failed", 2)
    assert resumer.store.interrupted() == []


def test_a_task_of_an_interrupted_run_is_resumed_with_its_graph(
    path: Path, open_resumer: Callable[[], Resumer]
) -> None:
    dies(path, chain())
    resumer = open_resumer()
    task = next(task for task in resumer.graph() if task.title == "b")
    with pytest.raises(TransitionError, match="is of a run of graph"):
        resumer.executor.resume(task)


def test_a_task_of_a_run_that_is_over_has_its_upstream_when_it_is_resumed(
    path: Path, open_resumer: Callable[[], Resumer]
) -> None:
    dies(path, chain(more='on_interrupted="ask"'))
    resumer = open_resumer()
    (task,) = resumer.resume().interrupted
    resumer.store.tasks.resolve(task.id, "rerun")
    seen = []

    def look(context: TaskContext) -> None:
        seen.extend(parent.title for parent in context.upstream.values())

    look.__module__, look.__qualname__ = "__main__", "work"
    resumer.executor.register(TaskType.BASH, look)
    resumer.executor.resume(task.id)
    assert seen == ["a"]


# --- a new run -----------------------------------------------------------------------------------------------------


def test_a_new_run_records_first_what_the_dead_one_left(path: Path, open_resumer: Callable[[], Resumer]) -> None:
    dies(path, chain())
    resumer = open_resumer()
    graph = resumer.graph()
    graph.run(resumer.executor)
    assert ends(graph) == {
        "a": ("succeeded", 1),
        "b": ("succeeded", 2),
        "c": ("succeeded", 1),
        "clean": ("succeeded", 1),
    }
    assert [(run.run, str(run.status)) for run in resumer.store.runs] == [(1, "interrupted"), (2, "succeeded")]


def test_a_new_run_tries_what_was_to_fail_and_leaves_what_asks(path: Path, open_resumer: Callable[[], Resumer]) -> None:
    dies(
        path,
        """
graph = TaskGraph()
for answer in ("fail", "ask"):
    task = graph.add(Task.bash("die on 1", title=answer, on_interrupted=answer))
    graph.add(Task.bash("ok", title=f"after {answer}"), after=[task])
barrier = threading.Barrier(2)
def both(context):
    barrier.wait()
    die()
both.__qualname__ = "work"
executor.register(TaskType.BASH, both)
graph.run(executor)
""",
    )
    resumer = open_resumer()
    graph = resumer.graph()
    graph.run(resumer.executor)
    assert ends(graph) == {
        "fail": ("succeeded", 2), "after fail": ("succeeded", 1),
        "ask": ("interrupted", 1), "after ask": ("blocked", 0),
    }  # fmt: skip


# --- who may ---------------------------------------------------------------------------------------------------------


def test_what_a_live_runner_runs_is_left_alone(path: Path, open_resumer: Callable[[], Resumer]) -> None:
    script = (
        DYING
        + """
graph = TaskGraph(title="live")
def wait(context):
    print("running", flush=True)
    sys.stdin.readline()
wait.__qualname__ = "work"
executor.register(TaskType.BASH, wait)
graph.add(Task.bash("ok", title="a"))
graph.run(executor)
"""
    )
    live = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert live.stdout is not None and live.stdin is not None
    assert live.stdout.readline() == "running\n"
    resumer = open_resumer()
    graph = resumer.graph()
    (task,) = graph
    before = recorded(resumer.store)
    assert (resumer.store.interrupted(), resumer.store.owed()) == ([], [])
    assert resumer.executor.resume() == []
    for refused in (
        lambda: resumer.executor.resume(graph),
        lambda: resumer.executor.resume(task),
        lambda: graph.run(resumer.executor),
        lambda: resumer.executor.execute(task),
        lambda: resumer.store.tasks.resolve(task.id, "failed"),
    ):
        with pytest.raises(AlreadyRunningError):
            refused()
    assert recorded(resumer.store) == before
    live.stdin.write("\n")
    live.communicate()
    assert live.returncode == 0


@pytest.mark.parametrize("kind", ["graph", "task"])
def test_of_two_who_resume_at_once_one_wins_and_the_other_is_told(
    path: Path, open_resumer: Callable[[], Resumer], kind: str
) -> None:
    dies(path, chain() if kind == "graph" else "executor.execute(Task.bash('die on 1'))")
    resumers = [open_resumer(), open_resumer()]
    barrier = threading.Barrier(2)
    refused: list[Exception] = []

    def resume(resumer: Resumer) -> None:
        (work_left,) = resumer.store.interrupted()
        handle = resumer.graph() if kind == "graph" else resumer.store.tasks[work_left.id]
        barrier.wait()
        try:
            resumer.executor.resume(handle)
        except AlreadyRunningError as refusal:
            refused.append(refusal)

    threads = [threading.Thread(target=resume, args=(resumer,)) for resumer in resumers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    store = resumers[0].store
    assert len(refused) <= 1
    assert len(store.events(type="TaskInterrupted")) == 1
    assert {task.status for task in store.tasks.values()} == {"succeeded"}
    assert sum(task.attempts for task in store.tasks.values()) == (5 if kind == "graph" else 2)


def test_a_handle_that_has_not_heard_of_a_resume_is_refused(path: Path, open_resumer: Callable[[], Resumer]) -> None:
    dies(path, chain())
    resumer = open_resumer()
    stale = resumer.graph()
    resumer.resume()
    assert resumer.executor.resume(stale) == []
    with pytest.raises(StreamConflictError):
        stale.run(resumer.executor)


SHELL = """
from ttasks.handlers.shell import bash_handler
executor.register(TaskType.BASH, bash_handler)
"""
SCRIPT_THAT_STAYS = f"""
{SHELL}
executor.events.subscribe(lambda event: die() if event.type == "output" else None)
graph = TaskGraph()
task = graph.add(Task.bash("sleep 1000 & echo started; wait"))
"""


@pytest.mark.parametrize("kind", ["task", "graph"])
def test_a_handle_that_has_not_heard_of_a_resume_ends_nothing_of_what_runs_now(
    kind: str, path: Path, open_resumer: Callable[[], Resumer]
) -> None:
    dies(path, SCRIPT_THAT_STAYS + ("executor.execute(task)" if kind == "task" else "graph.run(executor)"))
    resumer = open_resumer()
    store, executor = resumer.store, resumer.executor
    executor.register(TaskType.BASH, bash_handler)
    recovery = Recovery(store._readers)
    (task,) = store.tasks.values()
    runs = [Entry(graph, [recovery.interrupted_run(recovery.runs(graph.id)[-1])]) for graph in store.graphs.values()]
    executor._recover([recovery.find(task)], *runs)  # as by one that is killed right after that
    graphs, (task,) = store.graphs.values(), store.tasks.values()
    with subprocess.Popen([sys.executable, "-c", DYING + SHELL + "executor.resume()", str(path)]) as other:
        try:
            script = until(lambda: [at.pid for at in store._readers.attempts(task.id)[1:] if at.pid is not None])[0]
            with pytest.raises(AlreadyRunningError):
                graphs[0].run(executor) if kind == "graph" else executor.resume(task)
            assert psutil.Process(script).status() != psutil.STATUS_ZOMBIE
            assert store.tasks[task.id].is_running
        finally:
            other.kill()
            latest = store._readers.attempts(task.id)[-1]
            runner = store._readers.runner(latest.runner)
            assert runner is not None
            end_survivors({mark(store._readers.ledger(), latest.position): Dead(runner.id)})


def test_one_that_is_refused_keeps_no_other_from_going_on(path: Path, open_resumer: Callable[[], Resumer]) -> None:
    dies(path, chain())
    dies(path, chain())
    resumer = open_resumer()
    second = list(resumer.store.graphs.values())[1]

    def take(event: TaskEvent) -> None:
        if len(others) == 0:
            others.append(None)
            other = open_resumer()
            other.executor.resume(second.id)

    others: list[None] = []
    resumer.executor.events.subscribe(take)
    with pytest.raises(AlreadyRunningError, match="somebody else has resumed"):
        resumer.executor.resume()
    assert {task.status for task in resumer.store.tasks.values()} == {"succeeded"}


def test_resuming_needs_a_ledger() -> None:
    with pytest.raises(ValueError, match="no ledger"):
        TaskExecutor().resume()


def test_arguments_are_checked(path: Path, open_resumer: Callable[[], Resumer]) -> None:
    resumer = open_resumer()
    assert resumer.executor.resume() == []
    with pytest.raises(TypeError, match="what must be a TaskGraph, a Task or an id"):
        resumer.executor.resume(3)  # type: ignore[arg-type]
    with pytest.raises(KeyError):
        resumer.executor.resume("nothing has this id")


# --- looking -------------------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    """Return what the files hold, but for SQLite's own notes of who reads."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.endswith("-shm")}


def test_who_only_looks_writes_nothing(path: Path) -> None:
    dies(path, chain())
    before = contents(path.parent)
    with SQLiteStore(path, read_only=True) as store:
        (work_left,) = store.interrupted()
        assert len(store.owed()) == 1
        assert (work_left.kind, work_left.title, work_left.run) == ("graph", "chain", 1)
        titles = {task.id: task.title for task in store.tasks.values()}
        assert [titles[id_] for id_ in work_left.running] == ["b"]
        assert [titles[id_] for id_ in work_left.left] == ["c", "clean"]
        assert [titles[id_] for id_ in work_left.owed] == ["clean"]
        assert "is gone" in work_left.why
        assert work_left.heard_at is not None
        assert store.tasks[work_left.running[0]].is_running, "the status is the fold"
    assert contents(path.parent) == before


def test_the_past_lists_what_was_recorded_as_interrupted(path: Path, open_resumer: Callable[[], Resumer]) -> None:
    dies(path, chain(more='on_interrupted="ask"'))
    resumer = open_resumer()
    before = resumer.store._readers.head_position()
    graph = resumer.resume()
    assert resumer.store.as_of(before).interrupted() == [], "nobody can say any more what lived then"
    then = resumer.store.as_of(resumer.store._readers.head_position())
    assert [work.id for work in then.interrupted()] == [graph.interrupted[0].id]
    assert then.owed() == []


def test_the_past_lists_the_runs_and_finally_tasks_that_were_interrupted(
    path: Path, open_resumer: Callable[[], Resumer]
) -> None:
    asking = 'Task.bash("die", title="clean", on_interrupted="ask")'
    dies(path, chain("ok").replace('Task.bash("ok", title="clean")', asking))
    resumer = open_resumer()
    graph = resumer.resume()
    then = resumer.store.as_of(resumer.store._readers.head_position())
    assert [(one.graph_id, one.asks) for one in then.owed()] == [(graph.id, True)]
    (resumed,) = resumer.store.events(type="GraphRunResumed")
    (left,) = resumer.store.as_of(resumed.position - 1).interrupted()
    assert (left.kind, left.id) == ("graph", graph.id)


def test_a_deleted_graph_is_neither_listed_nor_resumed(path: Path, open_resumer: Callable[[], Resumer]) -> None:
    dies(path, chain())
    resumer = open_resumer()
    del resumer.store.graphs[resumer.graph().id]
    assert [work.kind for work in resumer.store.interrupted()] == ["task"]
    assert resumer.store.owed() == []


def test_a_task_of_a_deleted_graph_is_resumed_by_itself(path: Path, open_resumer: Callable[[], Resumer]) -> None:
    dies(path, chain())
    resumer = open_resumer()
    del resumer.store.graphs[resumer.graph().id]
    (task,) = resumer.executor.resume()
    assert isinstance(task, Task)
    assert (task.title, task.status, task.attempts) == ("b", "succeeded", 2)
    assert resumer.store.interrupted() == []


# --- one process -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_what_a_process_left_itself_can_be_resumed_in_it(kind: str, path: Path, monkeypatch: Any) -> None:
    with SQLiteStore(path) if kind == "file" else InMemoryStore() as store:
        executor = TaskExecutor.empty(store)
        assert store._log is not None
        append = type(store._log).append
        lost: list[bool] = []

        def lose(context: TaskContext) -> str:
            if not lost:
                lost.append(True)
                monkeypatch.setattr(type(store._log), "append", refuse)
            return "done"

        def refuse(*_: object) -> None:
            raise LedgerUnwritableError("the disk is full")

        executor.register(TaskType.BASH, lose)
        graph = TaskGraph()
        task = graph.add(Task.bash("work"))
        with pytest.raises(LedgerUnwritableError):
            graph.run(executor)
        monkeypatch.setattr(type(store._log), "append", append)
        (work_left,) = store.interrupted()
        assert work_left.running == (task.id,)
        if kind == "file":
            (resumed,) = executor.resume()
            assert isinstance(resumed, TaskGraph)
            assert ends(resumed) == {"": ("succeeded", 2)}
        else:  # the handles are the very ones that hold the end as pending: a save records it
            store.graphs.save(graph)
            assert (task.status, task.attempts) == ("succeeded", 1)
            assert executor.resume() == [graph]
            assert graph.run_status == "succeeded"


def test_an_execute_that_was_overridden_is_used_by_a_resume_too(path: Path) -> None:
    dies(path, WAITING.format(backoff=0.05))
    executed = []

    class Mine(TaskExecutor):
        def execute(self, task: Task, *arguments: Any, **named: Any) -> Any:
            executed.append(task.title)
            return super().execute(task, *arguments, **named)

    with SQLiteStore(path) as store, Mine(store) as executor:
        executor.register(TaskType.BASH, work)
        (graph,) = executor.resume()
        assert isinstance(graph, TaskGraph)
        assert ends(graph) == {"a": ("succeeded", 3)}
        assert executed == ["a"]


def test_a_second_run_that_is_refused_does_not_keep_the_first_from_hearing_of_its_cancel(path: Path) -> None:
    with SQLiteStore(path) as store, TaskExecutor(store) as executor:
        graph = TaskGraph()
        task = graph.add(Task.bash("sleep 1000"))
        store.graphs.save(graph)
        stale = store.graphs[graph.id]
        running = threading.Thread(target=graph.run, args=(executor,))
        running.start()
        until(lambda: executor.is_running(task.id))
        try:
            with pytest.raises(AlreadyRunningError):
                stale.run(executor)
            store.graphs.cancel(graph.id)
            until(lambda: graph.run_status == "cancelled")
        finally:
            executor.cancel(task)
            running.join()


def test_after_a_reboot_no_process_is_the_one_that_an_attempt_spawned(path: Path, monkeypatch: Any) -> None:
    with SQLiteStore(path) as store, TaskExecutor(store) as executor:
        with pytest.raises(RuntimeError):
            executor.execute(task := Task.bash("sleep 0.3; exit 1"))
        (attempt,) = store._readers.attempts(task.id)
        assert attempt.pid is not None
        assert Recovery(store._readers)._dead(task, attempt).leader == Leader(attempt.pid, attempt.process_start)
        monkeypatch.setattr("ttasks.log.runner.boot_id", lambda: "of another boot")
        assert Recovery(store._readers)._dead(task, attempt).leader is None


def test_a_handler_that_ends_as_it_is_given_up_keeps_no_run_from_stopping(path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("ttasks.runtime.graph_run.STOP_WAIT_S", 0.1)
    with SQLiteStore(path) as store, TaskExecutor.empty(store) as executor:
        entered, may_end = threading.Event(), threading.Event()
        executor.register(TaskType.BASH, lambda context: [entered.set(), may_end.wait(PATIENCE_S)])
        graph = TaskGraph()
        task = graph.add(Task.bash("x"))

        def has_ended_just_now(*_: object) -> None:
            raise StreamConflictError(f"task-{task.id}", 2, 3)

        run = GraphRun(Beginning(executor, graph, 1))
        leading = threading.Thread(target=run.run)
        leading.start()
        assert entered.wait(PATIENCE_S)
        monkeypatch.setattr(executor, "_settle", has_ended_just_now)
        run._pass_on([SystemExit()])
        leading.join(10)
        has_stopped = not leading.is_alive()
        monkeypatch.undo()
        may_end.set()
        leading.join(PATIENCE_S)
        assert has_stopped
        assert (run._failure, graph.run_status) == (None, "interrupted")


def test_a_run_that_is_stopped_waits_for_no_retry_and_starts_none_later(path: Path) -> None:
    with SQLiteStore(path) as store, TaskExecutor.empty(store) as executor:
        executor.register(TaskType.BASH, lambda context: 1 / 0)
        graph = TaskGraph()
        task = graph.add(Task.bash("x"), retry_policy=RetryPolicy(2, backoff=PATIENCE_S))
        waits = threading.Event()
        executor.events.subscribe(lambda event: waits.set() if event.type == "failed" else None)
        run = GraphRun(Beginning(executor, graph, 1))
        begun_s = monotonic_s()
        leading = threading.Thread(target=run.run)
        leading.start()
        assert waits.wait(PATIENCE_S)
        run._pass_on([SystemExit()])
        leading.join(PATIENCE_S)
        assert monotonic_s() - begun_s < STOP_WAIT_S
        assert graph.run_status == "interrupted"
        assert task.id not in executor._live
        (left,) = store.interrupted()
        assert left.running == (task.id,)


def test_a_run_that_is_stopped_while_a_resumed_retry_waits_can_be_resumed_again(
    path: Path, open_resumer: Callable[[], Resumer]
) -> None:
    dies(path, WAITING.format(backoff=0.2))
    dies(path, "executor.events.subscribe(print)\nthreading.Timer(0.05, die).start()\nexecutor.resume()")
    resumer = open_resumer()
    assert ends(resumer.resume()) == {"a": ("succeeded", 3)}


# --- running by hand -------------------------------------------------------------------------------------------------


def test_what_was_set_to_running_by_hand_counts_as_dead_once_it_is_recorded(path: Path) -> None:
    with SQLiteStore(path) as store, TaskExecutor.empty(store) as executor:
        executor.register(TaskType.BASH, work)
        graph = TaskGraph()
        task = graph.add(Task.bash("ok", title="by hand"))
        task.transition_to(TaskStatus.RUNNING)
        with pytest.raises(AlreadyRunningError):
            graph.run(executor)
        assert len(store.events) == 1, "nothing was written"
        store.tasks.save(task)
        (left,) = store.interrupted()
        assert (left.kind, left.id, left.why) == ("task", task.id, "it was set to RUNNING by hand")
        assert executor.resume() == [task]
        loaded = store.tasks[task.id]
        assert (loaded.status, loaded.attempts) == ("succeeded", 1)
        (interrupted,) = store.events(type="TaskInterrupted")
        assert interrupted.fact.error == "it was set to RUNNING by hand, and nobody runs it"  # type: ignore[union-attr]


def test_what_was_set_to_running_by_hand_is_cancelled_without_asking_anybody(path: Path) -> None:
    with SQLiteStore(path) as store:
        task = Task.bash("ok")
        task.transition_to(TaskStatus.RUNNING)
        store.tasks.save(task)
        store.tasks.cancel(task.id)
        assert store.tasks[task.id].is_cancelled
        assert store.interrupted() == []


def test_a_run_is_resumed_in_the_folder_that_it_was_started_in_also_where_its_process_had_moved(
    path: Path, tmp_path: Path
) -> None:
    for name in ("before", "then", "later"):
        (tmp_path / name).mkdir()
    script = f"""
executor = TaskExecutor(store)
store.tasks.save(Task.bash("true"))  # it registers here
os.chdir({str(tmp_path / "then")!r})
executor.events.subscribe(lambda event: die() if event.task.title == "second" else None)
graph = TaskGraph()
first = graph.add(Task.bash("pwd", title="first"))
graph.add(Task.bash("pwd", title="second"), after=[first])
graph.add(Task.bash("pwd", title="third"), after=[first])
graph.run(executor, max_workers=1)
"""
    dies(path, script, cwd=tmp_path / "before")
    alone = f"""
executor = TaskExecutor(store)
store.tasks.save(Task.bash("true"))
os.chdir({str(tmp_path / "later")!r})
executor.events.subscribe(lambda event: die())
executor.execute(Task.bash("pwd", title="alone"))
"""
    dies(path, alone, cwd=tmp_path / "before")
    with SQLiteStore(path) as store, TaskExecutor(store) as executor:
        executor.resume()
        said = {task.title: task.result.output.strip() for task in store.tasks.values() if task.result is not None}
        then, later = str(tmp_path / "then"), str(tmp_path / "later")
        assert said == {"first": then, "second": then, "third": then, "alone": later}


def test_a_copy_of_a_ledger_leaves_alone_what_the_other_runs(tmp_path: Path) -> None:
    one, two = tmp_path / "one.db", tmp_path / "two.db"
    with SQLiteStore(one) as store:
        store.tasks.save(Task.bash("true"))
    two.write_bytes(one.read_bytes())
    live = subprocess.Popen(
        [sys.executable, "-c", DYING + "TaskExecutor(store).execute(Task.bash('echo $$ > pid; sleep 1000'))", str(two)],
        cwd=tmp_path,
    )
    try:
        until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
        pid = int((tmp_path / "pid").read_text())
        dies(one, "TaskExecutor(store).events\nexecutor.execute(Task.bash('die on 1'))")
        with SQLiteStore(one) as store, TaskExecutor.empty(store) as executor:
            executor.register(TaskType.BASH, work)
            (task,) = executor.resume()
            assert task.is_succeeded  # type: ignore[union-attr]
        assert psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        assert live.poll() is None
    finally:
        with SQLiteStore(two) as store:
            for task in store.tasks.values():
                store.tasks.cancel(task.id)
        live.wait(PATIENCE_S)


def test_what_this_process_left_itself_is_said_to_be_lost_by_it(path: Path) -> None:
    with SQLiteStore(path) as store:
        task = Task.bash("true")
        store.tasks.save(task)
        assert store._log is not None
        begun = TaskStarted(1, "somewhere.handler", "true", datetime.now(UTC), 0)
        store._log.append(Batch(f"task-{task.id}", [begun], 1))
        (left,) = store.interrupted()
        assert left.why == "this process has lost track of it"
