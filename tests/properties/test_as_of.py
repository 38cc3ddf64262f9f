"""What a store says of an earlier moment is what it said at that moment."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import appends, graph_histories, task_histories
from ttasks import InMemoryStore, PastStore, SQLiteStore, Task, TaskContext, TaskExecutor, TaskGraph, TaskType
from ttasks.events.facts import GraphCreated, GraphRevised, Member, RetrySpec
from ttasks.log.transaction import Batch
from ttasks.state import rows

pytestmark = [pytest.mark.usefixtures("outside_git"), pytest.mark.campaign, pytest.mark.timeout(1800)]
EXAMPLES = 150 if os.environ.get("TTASKS_CAMPAIGN") == "full" else 30
AnyStore = SQLiteStore | InMemoryStore | PastStore
IDS = ("a", "b", "g", "never")


# --- everything that a store can be asked --------------------------------------------------------------------------


def answers(store: AnyStore, *ids: str) -> dict[str, Any]:
    """Return what a store says, as values that stay as they are."""
    return {
        "tasks": [(task_id, shown_task(store.tasks[task_id])) for task_id in store.tasks],
        "task values": [(task.id, shown_task(task)) for task in store.tasks.values()],
        "task items": [(task_id, task.id) for task_id, task in store.tasks.items()],
        "graphs": [(graph_id, shown_graph(store.graphs[graph_id])) for graph_id in store.graphs],
        "graph values": [shown_graph(graph) for graph in store.graphs.values()],
        "counts": (len(store.tasks), len(store.graphs), len(store.events), len(store.runs)),
        "members": [(id_ in store.tasks, id_ in store.graphs) for id_ in ids],
        "found": [(store.tasks.get(id_) is None, store.graphs.get(id_) is None) for id_ in ids],
        "attempts": [rows.attempt_row(attempt) for id_ in ids for attempt in store._readers.attempts(id_)],
        "of agents": [of_agents(store, id_) for id_ in ids],
        "runs": list(store.runs),
        "run errors": [{task: (e.type, str(e)) for task, e in run.errors.items()} for run in store.runs],
        "latest runs": [list(store.runs(graph=id_, newest_first=True, limit=2)) for id_ in ids],
        "histories": [history(store, id_) for id_ in ids],
        "events": list(store.events),
        "latest events": list(store.events(newest_first=True, limit=5)),
        "outputs": [len(store.events(task=id_, type="TaskOutput")) for id_ in ids],
    }


def of_agents(store: AnyStore, id_: str) -> list[rows.Row]:
    return [
        *map(rows.tool_call_row, store._readers.tool_calls(id_)),
        *map(rows.permission_row, store._readers.permissions(id_)),
        *map(rows.model_call_row, store._readers.model_calls(id_)),
    ]


def shown_task(task: Task) -> tuple[Any, ...]:
    result = task.result
    ending = None
    if result is not None:
        ending = (
            result.status, result.started_at, result.finished_at, result.duration, result.output, result.error,
            result.returncode, result.termination_reason, result.error_code,
        )  # fmt: skip
    return (
        task.id, task.name, task.title, task.type, task.payload, task.description, task.created_at, task.timeout,
        task.cwd, task.env, task.on_interrupted, task.status, task.blocked_by, task.attempts, task.error, ending,
        rows.task_row(task._recorded),
    )  # fmt: skip


def shown_graph(graph: TaskGraph) -> tuple[Any, ...]:
    return (
        graph.id,
        graph.title,
        graph.created_at,
        [(shown_task(task), [parent.id for parent in parents]) for task, parents in graph.items()],
        [(graph.is_finally(task), graph.is_optional(task)) for task in graph],
        {task_id: str(error) for task_id, error in graph.errors.items()},
        graph.ok,
        graph.run_status,
        graph._state,
        repr(graph),
    )


def history(store: AnyStore, id_: str) -> list[Any] | None:
    with contextlib.suppress(KeyError):
        return store.history(id_)
    return None


# --- any history of facts ------------------------------------------------------------------------------------------


def as_recorded(fact: Any) -> Any:
    """Return the fact as a store would record it: of tasks that there are, with retry policies that can be."""
    if not isinstance(fact, GraphCreated | GraphRevised):
        return fact
    given_ = {member.task: member for member in fact.members}
    wanted = ("b", "a") if isinstance(fact, GraphCreated) else [task for task in given_ if task in ("a", "b")]
    members = [given_.get(task, Member(task)) for task in wanted]
    known = [
        replace(
            member,
            after=tuple(task for task in member.after if task in ("a", "b")),
            retry_policy=member.retry_policy and RetrySpec(3, 0.5, factor=2.0, max_backoff=9.0, jitter=0.1),
        )
        for member in members
    ]
    return replace(fact, members=tuple(known))


histories = appends(
    st.fixed_dictionaries(
        {
            "task-a": task_histories("a", max_events=8),
            "task-b": task_histories("b", max_events=8),
            "graph-g": graph_histories("g", max_events=6),
        }
    ).map(lambda drawn: {stream: [as_recorded(fact) for fact in facts] for stream, facts in drawn.items()})
)


def tasks_first(wanted: list[list[Batch]]) -> list[list[Batch]]:
    """Return the appends, the first of each task before all others: tasks come before their graph."""
    firsts = {batch.stream: batch for batches in reversed(wanted) for batch in reversed(batches)}
    begin = [firsts["task-a"], firsts["task-b"]]
    rest = [[batch for batch in batches if batch not in begin] for batches in wanted]
    return [begin, *(batches for batches in rest if batches)]


commits = histories.map(tasks_first)


@settings(max_examples=EXAMPLES)
@given(commits)
def test_at_the_end_of_every_commit_the_past_is_what_the_store_said_then(wanted: list[list[Batch]]) -> None:
    with SQLiteStore(":memory:") as store:
        log = store._writable()
        then = []
        for batches in wanted:
            log.append(*batches)
            then.append((log.readers.head_position(), answers(store, *IDS)))

        for position, said in then:
            assert answers(store.as_of(position), *IDS) == said


@settings(max_examples=EXAMPLES)
@given(commits)
def test_the_past_at_a_time_is_that_of_the_highest_position_recorded_by_then(wanted: list[list[Batch]]) -> None:
    with SQLiteStore(":memory:") as store:
        for batches in wanted:
            store._writable().append(*batches)
        recorded = [(event.position, event.recorded_at) for event in store.events]

        for _, moment in recorded:
            assert store.as_of(moment).position == max(position for position, at in recorded if at <= moment)


@settings(max_examples=EXAMPLES)
@given(commits)
def test_inside_a_commit_the_past_is_as_if_each_fact_had_had_a_commit_of_its_own(wanted: list[list[Batch]]) -> None:
    def timeless(said: dict[str, Any]) -> dict[str, Any]:
        """Leave out what tells the commits apart: when, and with what hashes."""
        runs = [(run.graph_id, run.run, run.status, run.position, run.why) for run in said["runs"]]
        facts = [(event.position, event.stream, event.version, event.fact) for event in said["events"][2:]]
        compared = ("tasks", "task values", "graphs", "counts", "members", "found", "run errors", "outputs")
        return {"runs": runs, "facts": facts, **{name: said[name] for name in compared}}

    with SQLiteStore(":memory:") as store, SQLiteStore(":memory:") as singly:
        log = singly._writable()
        then = []
        for batches in wanted:
            store._writable().append(*batches)
            for batch in batches:
                for version, fact in enumerate(batch.facts, log.readers.version(batch.stream)):
                    log.append(Batch(batch.stream, [fact], version))
                    then.append((log.readers.head_position(), timeless(answers(singly, *IDS))))

        for position, said in then:
            assert timeless(answers(store.as_of(position), *IDS)) == said


# --- any history of what users do ----------------------------------------------------------------------------------


def handler(context: TaskContext) -> str:
    if context.payload == "fail":
        raise ValueError("as told")
    return context.payload


class User:
    """Somebody with two tasks, one of which fails, and a graph of both with a third."""

    def __init__(self, store: SQLiteStore | InMemoryStore) -> None:
        self.store = store
        self.executor = TaskExecutor.empty(store)
        self.executor.register(TaskType.BASH, handler)
        fine, bad, last = Task.bash("fine", title="fine"), Task.bash("fail", title="bad"), Task.bash("x", title="last")
        graph = TaskGraph(title="graph")
        graph.add(fine)
        graph.add(bad, after=[fine])
        graph.add(last, after=[bad], finally_=True)
        self.made: dict[str, Any] = {"fine": fine, "bad": bad, "last": last, "graph": graph}
        self.ids = [thing.id for thing in self.made.values()]

    def find(self, name: str) -> Any:
        """Return what the store has, else what was made here."""
        made = self.made[name]
        collection: Any = self.store.graphs if name == "graph" else self.store.tasks
        return collection.get(made.id, made)

    def save(self, name: str) -> None:
        (self.store.graphs if name == "graph" else self.store.tasks).save(self.find(name))

    def rename(self, name: str) -> None:
        thing = self.find(name)
        with contextlib.suppress(AttributeError):  # it has SUCCEEDED
            thing.title += "!"
        self.save(name)

    def delete(self, name: str) -> None:
        collection: Any = self.store.graphs if name == "graph" else self.store.tasks
        collection.pop(self.made[name].id, None)

    def run(self, name: str) -> None:
        with contextlib.suppress(ValueError, RuntimeError):  # it fails, it is over, or it was deleted
            if name == "graph":
                self.find(name).run(self.executor)
            else:
                self.executor.execute(self.find(name))


ACTIONS = (User.save, User.rename, User.delete, User.run)
steps = st.lists(
    st.tuples(st.sampled_from(ACTIONS), st.sampled_from(["fine", "bad", "last", "graph"])), min_size=1, max_size=8
)


@pytest.mark.parametrize("kind", ["file", "live"])
@settings(max_examples=EXAMPLES)
@given(wanted=steps)
def test_whatever_a_user_does_the_past_is_what_the_store_said_then(
    kind: str, wanted: list[tuple[Callable[[User, str], None], str]]
) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        SQLiteStore(f"{folder}/ledger.db") if kind == "file" else InMemoryStore() as store,
    ):
        user = User(store)
        then = []
        for action, name in wanted:
            action(user, name)
            then.append((store._readers.head_position(), answers(store, *user.ids)))

        for position, said in then:
            assert answers(store.as_of(position), *user.ids) == said
