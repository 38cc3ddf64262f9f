"""What every store of the library remembers alike: its events, histories, runs, and what it was at earlier moments."""

from __future__ import annotations

import contextlib
import copy
import pickle
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from ttasks import (
    InMemoryStore,
    LedgerUnwritableError,
    PastStore,
    RecordedEvent,
    Run,
    Runner,
    RunStatus,
    SQLiteStore,
    Store,
    StreamConflictError,
    Task,
    TaskContext,
    TaskExecutor,
    TaskGraph,
    TaskStatus,
    TaskType,
    UnknownEventError,
)
from ttasks.events.facts import RunnerDescribed
from ttasks.log import reading
from ttasks.log.reading import Readers
from ttasks.log.transaction import Batch
from ttasks.log.verify import verify

pytestmark = pytest.mark.usefixtures("outside_git")
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


def born(second: int, **fields: Any) -> Task:
    return Task("t", "true", TaskType.BASH, created_at=datetime(2024, 1, 1, 0, 0, second, tzinfo=UTC), **fields)


def executor(store: Any) -> TaskExecutor:
    """Return one whose handler fails where the payload is ``fail``, and returns the payload else."""

    def handler(context: TaskContext) -> str:
        if context.payload == "fail":
            raise ValueError("as told")
        return context.payload

    made = TaskExecutor.empty(store)
    made.register(TaskType.BASH, handler)
    return made


def saved(store: AnyStore, count: int = 1, **fields: Any) -> list[Task]:
    """Return tasks that were saved, each in a commit of its own."""
    tasks = [Task.bash("true", title=f"task {number}", **fields) for number in range(count)]
    for task in tasks:
        store.tasks.save(task)
    return tasks


def positions(events: Any) -> list[int]:
    return [event.position for event in events]


def types(events: Any) -> list[str]:
    return [event.type for event in events]


def head(store: AnyStore) -> int:
    return positions(store.events)[-1]


# --- events --------------------------------------------------------------------------------------------------------


def test_a_store_s_events_are_all_that_was_recorded_in_order(store: AnyStore) -> None:
    saved(store, 2)
    assert types(store.events) == ["LedgerCreated", "RunnerStarted", "TaskCreated", "TaskCreated"]
    assert positions(store.events) == [1, 2, 3, 4]
    assert all(isinstance(event, RecordedEvent) for event in store.events)
    assert len(store.events) == 4


def test_events_may_be_read_any_number_of_times_and_show_what_came_meanwhile(store: AnyStore) -> None:
    events = store.events
    assert types(events) == ["LedgerCreated"]
    saved(store)
    assert types(events) == types(events) == ["LedgerCreated", "RunnerStarted", "TaskCreated"]


@pytest.mark.parametrize("by_id", [False, True])
def test_events_of_a_task_are_those_of_its_stream(store: AnyStore, by_id: bool) -> None:
    first, second = saved(store, 2)
    first.title = "new"
    store.tasks.save(first)
    assert types(store.events(task=first.id if by_id else first)) == ["TaskCreated", "TaskRevised"]
    assert types(store.events(task=second.id if by_id else second)) == ["TaskCreated"]


@pytest.mark.parametrize("by_id", [False, True])
def test_events_of_a_graph_are_its_own_and_not_its_tasks(store: AnyStore, by_id: bool) -> None:
    graph = TaskGraph(title="g")
    graph.add(Task.bash("true"))
    store.graphs.save(graph)
    assert types(store.events(graph=graph.id if by_id else graph)) == ["GraphCreated"]


def test_events_of_a_stream_by_its_name(store: AnyStore) -> None:
    (task,) = saved(store)
    assert types(store.events(stream="ledger")) == ["LedgerCreated"]
    assert types(store.events(stream=f"task-{task.id}")) == ["TaskCreated"]
    assert types(store.events(stream="task-")) == []


def test_events_of_one_type_or_of_several(store: AnyStore) -> None:
    saved(store, 2)
    assert positions(store.events(type="TaskCreated")) == [3, 4]
    assert positions(store.events(type=("TaskCreated", "LedgerCreated"))) == [1, 3, 4]
    assert positions(store.events(type=iter(["RunnerStarted"]))) == [2]
    assert positions(store.events(type="TaskSucceeded")) == []


def test_positions_are_bounds_that_don_t_count_themselves(store: AnyStore) -> None:
    saved(store, 4)
    assert positions(store.events(after=2)) == [3, 4, 5, 6]
    assert positions(store.events(before=3)) == [1, 2]
    assert positions(store.events(after=2, before=5)) == [3, 4]
    assert positions(store.events(after=0)) == [1, 2, 3, 4, 5, 6]
    assert positions(store.events(after=6)) == positions(store.events(before=0)) == []
    assert positions(store.events(after=10**30)) == []
    assert positions(store.events(before=10**30)) == [1, 2, 3, 4, 5, 6]


def test_times_are_bounds_that_count_themselves(store: AnyStore) -> None:
    saved(store, 3)
    at = {event.position: event.recorded_at for event in store.events}
    assert positions(store.events(since=at[4])) == [4, 5]
    assert positions(store.events(until=at[4])) == [1, 2, 3, 4]
    assert positions(store.events(since=at[4], until=at[4])) == [4]
    assert positions(store.events(since=at[5] + timedelta(microseconds=1))) == []
    assert positions(store.events(until=at[1] - timedelta(microseconds=1))) == []


def test_a_naive_time_is_local(store: AnyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    time.tzset()
    try:
        saved(store, 2)
        at = list(store.events)[3].recorded_at
        local = at.astimezone().replace(tzinfo=None)
        assert local - at.replace(tzinfo=None) == timedelta(hours=5, minutes=45)
        assert positions(store.events(since=local)) == [4]
        assert positions(store.events(until=local - timedelta(microseconds=1))) == [1, 2, 3]
        assert store.as_of(local).position == 4
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_limit_counts_from_where_the_view_begins(store: AnyStore) -> None:
    saved(store, 3)
    assert positions(store.events(limit=2)) == [1, 2]
    assert positions(store.events(after=2, limit=2)) == [3, 4]
    assert positions(store.events(newest_first=True, limit=2)) == [5, 4]
    assert positions(store.events(limit=0)) == []
    assert positions(store.events(limit=100)) == [1, 2, 3, 4, 5]
    assert positions(store.events(limit=10**30)) == [1, 2, 3, 4, 5]
    assert len(store.events(limit=10**30)) == 5


def test_a_view_may_begin_with_the_latest(store: AnyStore) -> None:
    (task,) = saved(store)
    task.title = "new"
    store.tasks.save(task)
    assert positions(store.events(newest_first=True)) == [4, 3, 2, 1]
    assert types(store.events(task=task, newest_first=True)) == ["TaskRevised", "TaskCreated"]


def test_calling_a_view_narrows_it_and_leaves_it_as_it_was(store: AnyStore) -> None:
    saved(store, 3)
    created = store.events(type="TaskCreated")
    assert positions(created(after=3)) == [4, 5]
    assert positions(created(after=3)(before=5)) == [4]
    assert positions(created(after=3)(after=4)) == [5]
    assert positions(created) == [3, 4, 5]


def test_the_length_of_a_view_is_how_many_events_it_has(store: AnyStore) -> None:
    (task, *_) = saved(store, 3)
    for view in (
        store.events,
        store.events(type="TaskCreated"),
        store.events(task=task),
        store.events(after=2, limit=2),
        store.events(limit=0),
        store.events(newest_first=True, limit=100),
        store.events(since=datetime(2100, 1, 1)),
    ):
        assert len(view) == len(positions(view))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"after": "1"}, TypeError, "after must be an int, got str"),
        ({"after": True}, TypeError, "after must be an int, got bool"),
        ({"before": 1.5}, TypeError, "before must be an int, got float"),
        ({"after": -1}, ValueError, "after must not be negative, got -1"),
        ({"limit": -1}, ValueError, "limit must not be negative"),
        ({"limit": False}, TypeError, "limit must be an int"),
        ({"since": 3}, TypeError, "since must be a datetime, got int"),
        ({"until": "2026-11-24"}, TypeError, "until must be a datetime, got str"),
        ({"task": 3}, TypeError, "task must be a Task or the id of one, got int"),
        ({"task": TaskGraph()}, TypeError, "task must be a Task or the id of one, got TaskGraph"),
        ({"graph": Task.bash("x")}, TypeError, "graph must be a TaskGraph or the id of one, got Task"),
        ({"stream": b"ledger"}, TypeError, "stream must be a str, got bytes"),
        ({"type": 3}, TypeError, "type must be the name of a type of event"),
        ({"type": ["TaskCreated", None]}, TypeError, "type must be the name of a type of event"),
        ({"type": []}, ValueError, "type must name"),
        ({"newest_first": 1}, TypeError, "newest_first must be a bool, got int"),
        ({"task": "a", "graph": "b"}, ValueError, "give one of task, graph and stream"),
        ({"task": "a", "stream": "task-a"}, ValueError, "give one of task, graph and stream"),
        ({"since": datetime.max.replace(tzinfo=UTC).astimezone(UTC), "limit": 1.0}, TypeError, "limit must be an int"),
    ],
)
def test_what_can_t_be_meant_is_refused_at_the_call(
    store: AnyStore, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        store.events(**arguments)


def test_a_time_outside_the_calendar_is_refused(store: AnyStore) -> None:
    far = datetime.max.replace(tzinfo=timezone(-timedelta(hours=5)))
    with pytest.raises(ValueError, match="is no time in UTC"):
        store.events(until=far)
    with pytest.raises(ValueError, match="is no time in UTC"):
        store.as_of(far)


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("limit", [None, 4, 5, 6])
def test_events_come_in_pages_and_none_is_lost_between_them(
    store: AnyStore, monkeypatch: pytest.MonkeyPatch, newest_first: bool, limit: int | None
) -> None:
    monkeypatch.setattr(reading, "PAGE_EVENTS", 2)
    (task,) = saved(store)
    for number in range(6):
        task.title = str(number)
        store.tasks.save(task)
    for view, everything in ((store.events, range(1, 10)), (store.events(task=task), range(3, 10))):
        expected = list(reversed(everything)) if newest_first else list(everything)
        assert positions(view(newest_first=newest_first, limit=limit)) == expected[:limit]


def test_a_slow_reader_comes_to_what_is_recorded_meanwhile(store: AnyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PAGE_EVENTS", 1)
    events = iter(store.events)
    assert next(events).type == "LedgerCreated"
    saved(store)
    assert types(events) == ["RunnerStarted", "TaskCreated"]


def test_a_view_says_what_it_shows(store: AnyStore) -> None:
    assert repr(store.events) == "EventView()"
    assert repr(store.events(type="TaskOutput", after=3)) == "EventView(types=('TaskOutput',), after=3)"


# --- following -----------------------------------------------------------------------------------------------------


class Follower:
    """Somebody who follows in a thread of its own."""

    def __init__(self, events: Iterator[RecordedEvent]) -> None:
        self.heard: list[RecordedEvent] = []
        self.failure: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._follow, args=(events,))
        self._thread.start()

    def _follow(self, events: Iterator[RecordedEvent]) -> None:
        try:
            for event in events:
                with self._changed:
                    self.heard.append(event)
                    self._changed.notify_all()
        except BaseException as failure:
            self.failure = failure

    def wait_for(self, count: int) -> list[RecordedEvent]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.heard) >= count, timeout=30)
            return list(self.heard)

    def end(self) -> list[RecordedEvent]:
        self._thread.join(30)
        assert not self._thread.is_alive()
        assert self.failure is None
        return self.heard


def test_a_follower_hears_what_is_recorded_from_the_call_on(store: AnyStore) -> None:
    saved(store)
    events = store.events.follow(timeout=30)
    (second,) = saved(store)
    follower = Follower(events)
    assert [event.stream for event in follower.wait_for(1)] == [f"task-{second.id}"]
    (third,) = saved(store)
    assert [event.stream for event in follower.wait_for(2)] == [f"task-{second.id}", f"task-{third.id}"]
    store.close()
    assert len(follower.end()) == 2


def test_a_follower_may_begin_after_a_position_or_at_a_time(store: AnyStore) -> None:
    saved(store, 2)
    third = list(store.events)[2].recorded_at
    assert positions(store.events(after=0).follow(timeout=0)) == [1, 2, 3, 4]
    assert positions(store.events(after=2).follow(timeout=0)) == [3, 4]
    assert positions(store.events(since=third, type="TaskCreated").follow(timeout=0)) == [3, 4]
    assert positions(store.events.follow(timeout=0)) == []


def test_a_follower_hears_only_what_its_view_shows(store: AnyStore) -> None:
    (task,) = saved(store)
    events = store.events(task=task, type=["TaskRevised", "TaskDeleted"]).follow(timeout=30)
    follower = Follower(events)
    for title in ("a", "b"):
        task.title = title
        store.tasks.save(task)
        saved(store)
    assert types(follower.wait_for(2)) == ["TaskRevised", "TaskRevised"]
    store.close()
    assert types(follower.end()) == ["TaskRevised", "TaskRevised"]


def test_a_follower_ends_after_its_limit(store: AnyStore) -> None:
    events = store.events(type="TaskCreated", limit=2).follow(timeout=30)
    saved(store, 3)
    assert positions(events) == [3, 4]
    assert positions(store.events(limit=0).follow()) == []


def test_a_follower_ends_when_nothing_came_for_as_long_as_it_waits(store: AnyStore) -> None:
    begun = time.monotonic()
    assert positions(store.events.follow(timeout=0.2)) == []
    assert 0.2 <= time.monotonic() - begun < 10


def test_the_time_out_counts_from_the_last_event_that_was_taken(
    store: AnyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("ttasks.clock.monotonic_s", lambda: now[0])

    def wait(_: threading.Event, seconds: float) -> bool:
        now[0] += seconds
        if now[0] > 100.9 and len(store.events) == 1:
            saved(store)
        return False

    monkeypatch.setattr("ttasks.clock.wait", wait)
    events = store.events.follow(timeout=1)
    assert next(events).position == 2
    now[0] += 50  # as long as whoever follows thinks about it
    assert positions(events) == [3]
    assert now[0] == pytest.approx(152, abs=0.2)


def test_a_follower_that_waits_for_ever_ends_when_the_store_is_closed(store: AnyStore) -> None:
    follower = Follower(store.events.follow())
    store.close()
    assert follower.end() == []


def test_a_follower_that_is_slow_still_gets_what_was_recorded_before_the_store_was_closed(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "ledger.db") as store:
        events = store.events(after=0).follow()
        assert next(events).type == "LedgerCreated"
        saved(store, 2)
    assert types(events) == ["RunnerStarted", "TaskCreated", "TaskCreated"]


def test_a_follower_of_a_ledger_in_memory_ends_with_it(store: AnyStore) -> None:
    events = store.events(after=0, limit=5).follow()
    assert next(events).type == "LedgerCreated"
    store.close()
    assert list(events) == []


def test_a_follower_that_nobody_asks_any_more_can_be_given_up(store: AnyStore) -> None:
    events = store.events(after=0).follow()
    next(events)
    events.close()  # type: ignore[attr-defined]
    saved(store)
    assert list(events) == []


def test_a_follower_asks_for_events_only_when_there_are_new_ones(
    store: AnyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(store)
    asked: list[object] = []
    looks = [0]
    matching = Readers.matching
    monkeypatch.setattr(Readers, "matching", lambda self, wanted: asked.append(wanted) or matching(self, wanted))

    def wait(_: threading.Event, __: float) -> bool:
        looks[0] += 1
        if looks[0] == 50:
            saved(store)
        return False

    monkeypatch.setattr("ttasks.clock.wait", wait)
    assert positions(store.events(type="TaskCreated", limit=1).follow()) == [4]
    assert looks[0] >= 50
    assert len(asked) == 1


def test_a_follower_holds_nothing_open_while_it_waits_or_is_slow(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "ledger.db") as store, SQLiteStore(tmp_path / "ledger.db", read_only=True) as looking:
        saved(store, 3)
        slow, waiting = looking.events(after=0).follow(), looking.events.follow(timeout=30)
        iterating = iter(looking.events)
        assert next(slow).position == next(iterating).position == 1
        follower = Follower(waiting)
        saved(store)
        follower.wait_for(1)
        connection = store._writable()._connection
        assert connection is not None
        busy, in_wal, moved = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        assert (busy, in_wal, moved) == (0, 0, 0)
        looking.close()
        follower.end()


@pytest.mark.parametrize("bound", [{"before": 9}, {"until": datetime(2100, 1, 1)}, {"newest_first": True}])
def test_what_is_yet_to_come_has_no_end_to_begin_with(store: AnyStore, bound: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="follow a view without them"):
        store.events(**bound).follow()


@pytest.mark.parametrize(
    ("timeout", "error", "message"),
    [
        ("1", TypeError, "timeout must be a number of seconds or None, got str"),
        (True, TypeError, "timeout must be a number of seconds or None, got bool"),
        (-0.1, ValueError, "timeout must be 0 or more, got -0.1"),
        (float("nan"), ValueError, "timeout must be 0 or more, got nan"),
    ],
)
def test_a_wrong_time_out_is_refused_at_the_call(
    store: AnyStore, timeout: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        store.events.follow(timeout)


# --- history -------------------------------------------------------------------------------------------------------


def test_a_task_s_history_is_its_events_oldest_first(store: AnyStore) -> None:
    task = Task.bash("fine", title="t")
    executor(store).execute(task)
    expected = ["TaskCreated", "TaskStarted", "TaskSucceeded"]
    assert types(store.history(task)) == types(store.history(task.id)) == expected
    assert [event.version for event in store.history(task)] == [1, 2, 3]
    assert store.history(task) == list(store.events(task=task))


def test_a_graph_s_history_is_its_own_events_oldest_first(store: AnyStore) -> None:
    graph = TaskGraph(title="g")
    graph.add(Task.bash("fine"))
    graph.run(executor(store))
    expected = ["GraphCreated", "GraphRunStarted", "GraphRunFinished"]
    assert types(store.history(graph)) == types(store.history(graph.id)) == expected


def test_what_was_deleted_has_its_history_still(store: AnyStore) -> None:
    (task,) = saved(store)
    graph = TaskGraph()
    store.graphs.save(graph)
    del store.tasks[task.id]
    del store.graphs[graph.id]
    assert types(store.history(task)) == ["TaskCreated", "TaskDeleted"]
    assert types(store.history(graph)) == ["GraphCreated", "GraphDeleted"]


@pytest.mark.parametrize(
    "unknown", [Task.bash("x"), TaskGraph(), "no-such-id", ""], ids=["task", "graph", "id", "empty"]
)
def test_what_was_never_recorded_has_no_history(store: AnyStore, unknown: Any) -> None:
    with pytest.raises(KeyError):
        store.history(unknown)


@pytest.mark.parametrize("wrong", [3, None, ["id"]])
def test_only_of_a_task_or_a_graph_there_is_a_history(store: AnyStore, wrong: Any) -> None:
    with pytest.raises(TypeError, match="must be a Task, a TaskGraph or the id of one"):
        store.history(wrong)


def test_an_event_as_text_says_when_where_what_and_with_what(store: AnyStore) -> None:
    task = Task.bash('echo "ä"', title="greet\x1b[31m")
    store.tasks.save(task)
    (event,) = store.history(task)
    at = event.recorded_at.isoformat(timespec="microseconds").replace("+00:00", "Z")
    assert str(event).startswith(f'3 {at} task-{task.id}@1 TaskCreated {{"name":"greet')
    assert '"payload":"echo \\"ä\\""' in str(event)
    assert "\x1b" not in str(event)


def test_the_data_of_an_event_is_what_the_ledger_holds_as_json(store: AnyStore) -> None:
    (task,) = saved(store, timeout=3)
    (event,) = store.history(task)
    assert event.data["title"] == "task 0"
    assert event.data["timeout"] == 3
    assert event.data["created_at"].endswith("Z")
    assert "error" not in event.data
    event.data["title"] = "another"
    assert event.data["title"] == "task 0"


# --- runs ----------------------------------------------------------------------------------------------------------


def run_graph(store: AnyStore, *payloads: str) -> TaskGraph:
    graph = TaskGraph(title="g")
    for payload in payloads:
        graph.add(Task.bash(payload))
    return graph.run(executor(store))


def test_a_store_s_runs_are_those_of_all_graphs_oldest_first(store: AnyStore) -> None:
    first, second = run_graph(store, "fine"), run_graph(store, "fail")
    first.run(executor(store))
    expected = [(first.id, 1, "succeeded"), (second.id, 1, "failed"), (first.id, 2, "succeeded")]
    assert [(run.graph_id, run.run, run.status) for run in store.runs] == expected
    assert [(run.graph_id, run.run, run.status) for run in store.runs(newest_first=True)] == expected[::-1]
    assert [(run.graph_id, run.run) for run in store.runs(newest_first=True, limit=1)] == [(first.id, 2)]
    assert len(store.runs) == 3


@pytest.mark.parametrize("by_id", [False, True])
def test_the_runs_of_a_graph(store: AnyStore, by_id: bool) -> None:
    first, second = run_graph(store, "fine"), run_graph(store, "fine")
    first.run(executor(store))
    assert [run.run for run in store.runs(graph=first.id if by_id else first)] == [1, 2]
    assert [run.run for run in store.runs(graph=first)(newest_first=True)] == [2, 1]
    assert [run.run for run in store.runs(graph=second.id if by_id else second)] == [1]
    assert list(store.runs(graph="no-such-id")) == []
    assert len(store.runs(graph=first)) == 2
    assert len(store.runs(graph=first, limit=1)) == 1
    assert len(store.runs(limit=10**30)) == 3


def test_a_run_says_how_it_went_and_who_ran_it(store: AnyStore) -> None:
    graph = run_graph(store, "fail")
    (run,) = store.runs
    (failed,) = graph
    assert isinstance(run, Run)
    assert isinstance(run.runner, Runner)
    assert (run.graph_id, run.run, run.status, run.max_workers) == (graph.id, 1, RunStatus.FAILED, 4)
    started, finished = store.history(graph)[1:]
    assert (run.position, run.started_at, run.finished_at) == (
        started.position,
        started.recorded_at,
        finished.recorded_at,
    )
    error = run.errors[failed.id]
    assert (error.type, str(error)) == ("builtins.ValueError", "as told")
    registered = next(iter(store.events(type="RunnerStarted")))
    assert run.runner.position == registered.position == started.runner
    for name in ("user", "host", "pid", "cwd", "ttasks_version", "python_version", "platform"):
        assert getattr(run.runner, name) == registered.data[name]
    assert list(run.runner.command) == registered.data["command"]
    assert run.runner.started_at == registered.recorded_at
    assert str(run.runner) == f"{run.runner.user}@{run.runner.host} (process {run.runner.pid})"


def test_a_run_that_is_not_over_has_no_end(store: AnyStore) -> None:
    seen: list[Run] = []
    graph = TaskGraph()
    graph.add(Task.bash("look"))
    looking = TaskExecutor.empty(store)
    looking.register(TaskType.BASH, lambda context: seen.extend(store.runs))
    graph.run(looking)
    (during,) = seen
    assert (during.status, during.finished_at) == (RunStatus.RUNNING, None)


def test_a_run_knows_the_commit_that_its_runner_was_in(store: AnyStore) -> None:
    run_graph(store, "fine")
    (run,) = store.runs
    assert run.runner.git_commit is None
    stream = next(iter(store.events(type="RunnerStarted"))).stream
    store._writable().append(Batch(stream, [RunnerDescribed("/src", "c0ffee", "main", True)], 1))
    (run,) = store.runs
    assert (run.runner.git_root, run.runner.git_commit, run.runner.git_branch, run.runner.git_dirty) == (
        "/src",
        "c0ffee",
        "main",
        True,
    )


def test_the_runs_of_a_deleted_graph_are_there_still(store: AnyStore) -> None:
    graph = run_graph(store, "fine")
    del store.graphs[graph.id]
    assert [run.graph_id for run in store.runs] == [graph.id]


def test_a_run_can_be_kept_and_not_be_changed(store: AnyStore) -> None:
    run_graph(store, "fail")
    (run,) = store.runs
    assert pickle.loads(pickle.dumps(run)) == copy.deepcopy(run) == run
    assert hash(run) == hash(next(iter(store.runs)))
    with pytest.raises(AttributeError):
        run.status = RunStatus.SUCCEEDED  # type: ignore[misc]
    with pytest.raises(AttributeError):
        run.runner.user = "somebody else"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"graph": 3}, TypeError, "graph must be a TaskGraph or the id of one, got int"),
        ({"graph": Task.bash("x")}, TypeError, "graph must be a TaskGraph or the id of one, got Task"),
        ({"limit": -1}, ValueError, "limit must not be negative"),
        ({"limit": "1"}, TypeError, "limit must be an int, got str"),
        ({"newest_first": "yes"}, TypeError, "newest_first must be a bool, got str"),
    ],
)
def test_runs_that_can_t_be_meant_are_refused_at_the_call(
    store: AnyStore, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        store.runs(**arguments)


def test_runs_say_what_they_are(store: AnyStore) -> None:
    assert repr(store.runs) == "RunView()"
    assert repr(store.runs(graph="g", limit=3, newest_first=True)) == "RunView(graph='g', newest_first=True, limit=3)"


# --- as of an earlier moment ---------------------------------------------------------------------------------------


def test_the_past_is_a_store(store: AnyStore) -> None:
    past = store.as_of(1)
    assert isinstance(past, Store)
    assert isinstance(past, PastStore)
    assert past.position == 1
    assert (len(past.tasks), len(past.graphs), len(past.runs), len(past.events)) == (0, 0, 0, 1)
    where = store.path if isinstance(store, SQLiteStore) else ":memory:"
    assert repr(past) == f"PastStore({where}, position 1)"


def test_a_task_was_what_its_events_had_come_to(store: AnyStore) -> None:
    task = Task.bash("fail", title="old")
    store.tasks.save(task)
    created = head(store)
    with contextlib.suppress(ValueError):
        executor(store).execute(task)
    failed = head(store)
    task.title, task.payload = "new", "fine"
    store.tasks.save(task)
    executor(store).execute(task)

    was = store.as_of(created).tasks[task.id]
    assert (was.title, was.status, was.attempts, was.error, was.result) == ("old", TaskStatus.PENDING, 0, None, None)
    was = store.as_of(created + 1).tasks[task.id]
    assert (was.status, was.attempts, was.result) == (TaskStatus.RUNNING, 1, None)
    was = store.as_of(failed).tasks[task.id]
    assert (was.title, was.status, was.attempts, was.error) == ("old", TaskStatus.FAILED, 1, "as told")
    assert was.result is not None
    assert (was.result.error, was.result.termination_reason, was.result.output) == ("as told", "handler", "")
    now = store.as_of(head(store)).tasks[task.id]
    assert (now.title, now.status, now.attempts) == ("new", TaskStatus.SUCCEEDED, 2)
    assert now.result is not None and now.result.output == "fine"


def test_the_past_has_what_was_printed_up_to_then(store: AnyStore) -> None:
    task = Task.bash("echo out; echo err >&2; exit 3")
    with contextlib.suppress(RuntimeError):
        TaskExecutor(store).execute(task)
    ended = head(store)
    task.payload = "echo again"
    TaskExecutor(store).execute(task)

    result = store.as_of(ended).tasks[task.id].result
    assert result is not None
    assert (result.output, result.error, result.returncode) == ("out\n", "err\n", 3)
    result = store.as_of(head(store)).tasks[task.id].result
    assert result is not None
    assert (result.output, result.error, result.returncode) == ("again\n", None, 0)
    printing = next(iter(store.events(task=task, type="TaskOutput"))).position
    assert store.as_of(printing).tasks[task.id].is_running


def test_what_is_deleted_is_there_when_it_was(store: AnyStore) -> None:
    graph = TaskGraph(title="g")
    task = graph.add(Task.bash("true", title="t"))
    store.graphs.save(graph)
    both = head(store)
    del store.tasks[task.id]
    del store.graphs[graph.id]

    past = store.as_of(both)
    assert task in past.tasks
    assert graph in past.graphs
    assert (past.tasks[task.id].title, past.graphs[graph.id].title) == ("t", "g")
    assert list(past.graphs[graph.id]) == [task]
    past = store.as_of(both + 1)
    assert task not in past.tasks
    assert list(past.graphs[graph.id]) == [task]
    with pytest.raises(KeyError):
        past.tasks[task.id]
    with pytest.raises(KeyError):
        store.as_of(both + 2).graphs[graph.id]


def test_what_did_not_exist_yet_is_not_there(store: AnyStore) -> None:
    first, second = saved(store, 2)
    past = store.as_of(3)
    assert list(past.tasks) == [first.id]
    assert second not in past.tasks
    with pytest.raises(KeyError):
        past.tasks[second.id]
    with pytest.raises(KeyError):
        past.history(second)
    assert past.history(first) == store.history(first)


def test_a_graph_was_what_it_was_with_its_tasks_as_they_were(store: AnyStore) -> None:
    graph = TaskGraph(title="old")
    a, b = Task.bash("fine", title="a"), Task.bash("fail", title="b")
    graph.add(a)
    store.graphs.save(graph)
    created = head(store)
    graph.add(b, after=[a], finally_=True)
    graph.title = "new"
    graph.run(executor(store))

    past = store.as_of(created).graphs[graph.id]
    assert (past.title, past.items(), past.run_status) == ("old", [(a, [])], None)
    assert [task.status for task in past] == [TaskStatus.PENDING]
    now = store.as_of(head(store)).graphs[graph.id]
    assert (now.title, now.items(), now.run_status) == ("new", [(a, []), (b, [a])], RunStatus.FAILED)
    assert [task.status for task in now] == [TaskStatus.SUCCEEDED, TaskStatus.FAILED]
    assert str(now.errors[b.id]) == "as told"
    assert now.finally_tasks == [b]


def test_inside_a_commit_only_what_came_before_is_there(store: AnyStore) -> None:
    graph = TaskGraph()
    a, b = graph.add(Task.bash("a")), graph.add(Task.bash("b"))
    store.graphs.save(graph)
    assert len({event.recorded_at for event in list(store.events)[2:]}) == 1
    assert [list(store.as_of(position).tasks) for position in (2, 3, 4, 5)] == [[], [a.id], [a.id, b.id], [a.id, b.id]]
    assert [len(store.as_of(position).graphs) for position in (2, 3, 4, 5)] == [0, 0, 0, 1]


def test_a_time_is_the_highest_position_recorded_by_then(store: AnyStore) -> None:
    saved(store, 3)
    at = [event.recorded_at for event in store.events]
    assert store.as_of(at[3]).position == 4
    assert store.as_of(at[3] - timedelta(microseconds=1)).position == 3
    assert store.as_of(at[2]).position == 3
    assert store.as_of(datetime(2100, 1, 1, tzinfo=UTC)).position == 5


def test_a_clock_that_was_put_back_hides_nothing(store: AnyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(store)
    early = datetime(2001, 1, 1, tzinfo=UTC)
    monkeypatch.setattr("ttasks.clock.now", lambda: early)
    saved(store)
    assert store.as_of(early).position == 4
    assert positions(store.events(until=early)) == [4]


def test_the_past_stays_as_it_was(store: AnyStore) -> None:
    (first,) = saved(store)
    past = store.as_of(datetime.now(UTC))
    before = list(past.tasks)
    first.title = "new"
    store.tasks.save(first)
    saved(store)
    assert list(past.tasks) == before == [first.id]
    assert past.tasks[first.id].title == "task 0"
    assert len(past.events) == past.position == 3
    assert next(iter(past.events(newest_first=True, limit=1))).position == 3


def test_the_past_has_the_runs_that_there_were(store: AnyStore) -> None:
    graph = run_graph(store, "fine")
    before = head(store)
    graph.run(executor(store))
    started = store.history(graph)[-2].position

    assert [(run.run, run.status) for run in store.as_of(before).runs] == [(1, "succeeded")]
    assert [(run.run, run.status, run.finished_at) for run in store.as_of(started).runs(newest_first=True)] == [
        (2, "running", None),
        (1, "succeeded", next(iter(store.runs)).finished_at),
    ]
    assert list(store.as_of(head(store)).runs(graph=graph)) == list(store.runs)
    assert [run.run for run in store.as_of(head(store)).runs(graph=graph, limit=1)] == [1]


def test_who_ran_it_was_known_as_far_as_it_was_known_then(store: AnyStore) -> None:
    run_graph(store, "fine")
    before = head(store)
    stream = next(iter(store.events(type="RunnerStarted"))).stream
    store._writable().append(Batch(stream, [RunnerDescribed("/src", "c0ffee", "main", True)], 1))
    assert [run.runner.git_commit for run in store.as_of(before).runs] == [None]
    assert [run.runner.git_commit for run in store.as_of(head(store)).runs] == ["c0ffee"]


def test_the_past_has_the_filters_of_the_present_and_ends_where_it_ends(store: AnyStore) -> None:
    (task, *_) = saved(store, 4)
    past = store.as_of(5)
    assert positions(past.events) == [1, 2, 3, 4, 5]
    assert positions(past.events(after=3)) == [4, 5]
    assert positions(past.events(before=10**6)) == [1, 2, 3, 4, 5]
    assert positions(past.events(before=4)) == [1, 2, 3]
    assert positions(past.events(type="TaskCreated", newest_first=True)) == [5, 4, 3]
    assert positions(past.events(task=task)) == [3]
    assert len(past.events(after=1)) == 4


def test_following_the_past_ends_where_it_ends(store: AnyStore) -> None:
    saved(store, 3)
    assert positions(store.as_of(4).events(after=2).follow()) == [3, 4]
    assert positions(store.as_of(4).events.follow()) == []


def test_the_past_has_a_past(store: AnyStore) -> None:
    saved(store, 3)
    past = store.as_of(4)
    at = [event.recorded_at for event in store.events]
    assert len(past.as_of(3).tasks) == 1
    assert past.as_of(at[4]).position == 4
    with pytest.raises(ValueError, match="there is no position 5: the log goes from 1 to 4"):
        past.as_of(5)


def test_the_past_of_a_store_that_only_reads(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "ledger.db") as store:
        first, _ = saved(store, 2)
    with SQLiteStore(tmp_path / "ledger.db", read_only=True) as looking:
        assert list(looking.as_of(3).tasks) == [first.id]


def test_snapshots_of_the_past_come_in_order_of_birth(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "ledger.db") as store:
        late, early, middle = born(30), born(10), born(20)
        for task in (late, early, middle):
            store.tasks.save(task)
        assert list(store.as_of(4).tasks) == [early.id, late.id]
        assert [task.id for task in store.as_of(5).tasks.values()] == [early.id, middle.id, late.id]


def test_the_past_of_a_live_store_is_in_its_order_of_insertion() -> None:
    with InMemoryStore() as store:
        late, early, middle = born(30), born(10), born(20)
        for task in (late, early, middle):
            store.tasks.save(task)
        before = head(store)
        del store.tasks[late.id]
        store.tasks.save(late)
        assert list(store.as_of(before).tasks) == [late.id, early.id, middle.id]
        assert list(store.as_of(head(store)).tasks) == list(store.tasks) == [early.id, middle.id, late.id]


def test_a_live_store_s_past_are_snapshots() -> None:
    with InMemoryStore() as store:
        (task,) = saved(store)
        was = store.as_of(3).tasks[task.id]
        task.title = "new"
        assert was is not task
        assert was.title == "task 0"


@pytest.mark.parametrize(
    ("when", "error", "message"),
    [
        (0, ValueError, "there is no position 0: the log goes from 1 to 3"),
        (-1, ValueError, "there is no position -1: the log goes from 1 to 3"),
        (4, ValueError, "there is no position 4: the log goes from 1 to 3"),
        (10**30, ValueError, "the log goes from 1 to 3"),
        (True, TypeError, "when must be a datetime or a position"),
        (1.0, TypeError, "when must be a datetime or a position"),
        ("1", TypeError, "when must be a datetime or a position"),
        (None, TypeError, "when must be a datetime or a position"),
        (datetime(2024, 1, 1).date(), TypeError, "when must be a datetime or a position"),
        (datetime(2001, 1, 1, tzinfo=UTC), ValueError, "nothing was recorded yet at 2001-01-01"),
    ],
)
def test_a_moment_that_the_log_does_not_have_is_refused(
    store: AnyStore, when: Any, error: type[Exception], message: str
) -> None:
    saved(store)
    with pytest.raises(error, match=message):
        store.as_of(when)


def _delete(collection: Any, key: str) -> None:
    del collection[key]


WRITES: dict[str, Callable[[PastStore, Task, TaskGraph], object]] = {
    "tasks.save": lambda past, task, _: past.tasks.save(task),
    "tasks[…] =": lambda past, task, _: past.tasks.update({task.id: task}),
    "del tasks[…]": lambda past, task, _: _delete(past.tasks, task.id),
    "tasks.pop": lambda past, task, _: past.tasks.pop(task.id),
    "tasks.popitem": lambda past, _, __: past.tasks.popitem(),
    "tasks.clear": lambda past, _, __: past.tasks.clear(),
    "tasks.cancel": lambda past, task, _: past.tasks.cancel(task.id),
    "graphs.save": lambda past, _, graph: past.graphs.save(graph),
    "del graphs[…]": lambda past, _, graph: _delete(past.graphs, graph.id),
    "graphs.clear": lambda past, _, __: past.graphs.clear(),
    "execute": lambda past, task, _: executor(past).execute(past.tasks[task.id]),
    "run": lambda past, _, graph: past.graphs[graph.id].run(executor(past)),
}


@pytest.mark.parametrize("name", WRITES)
def test_the_past_can_t_be_changed(store: AnyStore, name: str) -> None:
    (task,) = saved(store)
    graph = TaskGraph()
    graph.add(Task.bash("true"))
    store.graphs.save(graph)
    before = list(store.events)
    past = store.as_of(len(before))
    with pytest.raises(LedgerUnwritableError, match=r"PastStore\(.*\) is the past, which can't be changed; nothing"):
        WRITES[name](past, task, graph)
    assert list(store.events) == before


def test_a_handle_of_the_past_is_stale_in_the_present(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "ledger.db") as store:
        (task,) = saved(store)
        task.title = "new"
        store.tasks.save(task)
        was = store.as_of(3).tasks[task.id]
        was.title = "another"
        with pytest.raises(StreamConflictError):
            store.tasks.save(was)
        is_ = store.as_of(4).tasks[task.id]
        is_.title = "another"
        store.tasks.save(is_)
        assert store.tasks[task.id].title == "another"


def test_what_a_task_printed_does_not_count_as_unseen(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "ledger.db") as store:
        task = Task.bash("echo out; exit 1")
        with contextlib.suppress(RuntimeError):
            TaskExecutor(store).execute(task)
        was = store.as_of(head(store)).tasks[task.id]
        was.title = "seen all of it"
        store.tasks.save(was)
        for loaded in store.as_of(head(store)).tasks.values():
            loaded.title = "again"
            store.tasks.save(loaded)
        assert store.tasks[task.id].title == "again"


def test_only_the_streams_that_are_asked_for_are_folded(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "ledger.db") as store:
        good, bad = saved(store, 2)
        graph = TaskGraph()
        graph.add(bad)
        store.graphs.save(graph)
    newer = (
        "INSERT INTO events (position, stream, version, type, type_version, recorded_at, data, hash) "
        "SELECT max(position) + 1, ?, 2, 'TaskDreamed', 1, max(recorded_at), '{}', zeroblob(32) FROM events"
    )
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as connection:
        connection.execute(newer, (f"task-{bad.id}",))
    with SQLiteStore(tmp_path / "ledger.db", read_only=True) as looking:
        past = looking.as_of(head(looking))
        assert past.tasks[good.id].title == "task 0"
        assert list(past.graphs) == [graph.id]
        assert list(past.runs) == []
        assert types(past.history(bad)) == ["TaskCreated", "TaskDreamed"]
        for question in (
            lambda: past.tasks[bad.id],
            lambda: bad in past.tasks,
            lambda: past.graphs[graph.id],
            lambda: list(past.tasks),
        ):
            with pytest.raises(UnknownEventError, match="TaskDreamed"):
                question()
        assert list(looking.as_of(head(looking) - 1).tasks) == [good.id, bad.id]


def test_closing_the_past_leaves_its_store_open(store: AnyStore) -> None:
    saved(store)
    with store.as_of(3) as past:
        assert len(past.tasks) == 1
    assert len(saved(store)) == 1
    assert len(store.tasks) == 2
