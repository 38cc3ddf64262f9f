"""The library's own stores: collections over one ledger, in a file or in memory."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from ttasks import clock
from ttasks.errors import (
    AlreadyRunningError,
    LedgerError,
    LedgerUnwritableError,
    ReentranceError,
    StreamConflictError,
    TransitionError,
)
from ttasks.events.envelope import RecordedEvent
from ttasks.events.facts import GraphCancelRequested, GraphDeleted, TaskDeleted, TaskFact
from ttasks.events.status import RunStatus
from ttasks.log.environment import EnvironmentChange, environment_change
from ttasks.log.event_log import BUSY_TIMEOUT_S, EventLog
from ttasks.log.files import MEMORY
from ttasks.log.query import EventFilter
from ttasks.log.reading import Readers
from ttasks.log.redaction import Redaction, read_redaction
from ttasks.log.replay import Past
from ttasks.log.secrets import redaction_of
from ttasks.log.transaction import Batch
from ttasks.model.graph import TaskGraph
from ttasks.model.interrupted import Interrupted, Owed
from ttasks.model.task import Task
from ttasks.public import public
from ttasks.reentrance import HANDED_OVER_WAIT_S, hand_over, is_inside, refuse, wait_for_handed_over
from ttasks.state import decide
from ttasks.state.decide import Resolution
from ttasks.state.graph import GraphState
from ttasks.state.naming import named
from ttasks.state.task import TaskState
from ttasks.stores.interrupted import Leftovers
from ttasks.stores.recording import Entry, record
from ttasks.stores.recovery import Recovery
from ttasks.stores.views import EventView, RunView, utc

BUSY_TIMEOUT_MAX_S: Final = 2**31 // 1000
"""SQLite counts milliseconds in 32 bits: 24 days."""


def key_of(key: object, kind: type[Task] | type[TaskGraph]) -> str | None:
    """Return the id that a collection of this kind is asked for; None for what can't be meant."""
    if isinstance(key, str):
        return key
    return key.id if isinstance(key, kind) else None


class LedgerStore:
    """What `SQLiteStore` and `InMemoryStore` have in common: a ledger, and collections of what is in it."""

    tasks: LedgerTasks
    graphs: LedgerGraphs

    _by_entry = False
    """Whether its collections are in the order in which their members came, not in (created_at, id) order."""

    def __init__(self, readers: Readers | Past, log: EventLog | None, past_of: LedgerStore | None = None) -> None:
        self._reading = readers
        self._log = log
        self._past_of = past_of
        self._closed = threading.Event()
        self._is_read_only = log is None

    @property
    def _readers(self) -> Readers | Past:
        """What answers questions. LedgerError: the store was closed; what it handed out before reads on without it."""
        self._check_open()
        return self._reading

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise LedgerError(f"{self!r} is closed: nothing can be read from it any more. Open the ledger again")
        if self._past_of is not None:
            self._past_of._check_open()

    @property
    def events(self) -> EventView:
        """Everything that was recorded: iterate over it, call it for some of it, follow it."""
        return EventView(self._readers, self._closed, EventFilter(), self._check_open)

    @property
    def runs(self) -> RunView:
        """The runs of graphs, oldest first: iterate over them, call it for some of them."""
        return RunView(self._readers, self._check_open)

    def history(self, task_or_graph: Task | TaskGraph | str) -> list[RecordedEvent]:
        """Return what was recorded of a task or graph (or of the one with this id), oldest first.

        What was deleted still has its history. A graph's is its own: each of its tasks has one as well.

        Raises:
            KeyError: nothing was ever recorded of it.
        """
        if not isinstance(task_or_graph, Task | TaskGraph | str):
            got = type(task_or_graph).__name__
            raise TypeError(f"task_or_graph must be a Task, a TaskGraph or the id of one, got {got}")
        id_ = task_or_graph if isinstance(task_or_graph, str) else task_or_graph.id
        kinds = ("graph", "task") if isinstance(task_or_graph, TaskGraph) else ("task", "graph")
        for kind in kinds:
            found = list(self._readers.events(stream=f"{kind}-{id_}"))
            if found:
                return found
        raise KeyError(task_or_graph)

    def as_of(self, when: datetime | int) -> PastStore:
        """Return what this store was at an earlier moment: a store of its own, which can only be looked at.

        Args:
            when: a position, also one in the middle of a commit; or a time, which means the highest position that
                is recorded at or before it. A naive datetime is local time.

        Raises:
            TypeError: it is neither.
            ValueError: the log has no such position (yet), or had not begun then.
        """
        position = self._position(when)
        readers = self._readers
        past = readers.at(position) if isinstance(readers, Past) else Past(readers, position, by_entry=self._by_entry)
        return PastStore(past, self)

    def interrupted(self) -> list[Interrupted]:
        """Return what was interrupted and can go on, or waits for a person; nothing is written by asking.

        Runs of graphs come first, then tasks that ran by themselves, each in (created_at, id) order. Besides what is
        recorded as interrupted it lists what nobody runs any more, as far as the operating system knows: in the past
        (``as_of``) only the former.
        """
        return Leftovers(self._readers).interrupted()

    def owed(self) -> list[Owed]:
        """Return the finally tasks that are owed: of runs that nobody runs any more, and not ended or cancelled.

        They come in the order of their graphs, and in each graph's own; nothing is written by asking.
        """
        return Leftovers(self._readers).owed()

    def environment_change(self, graph: TaskGraph | str) -> EnvironmentChange | None:
        """Return how this process's environment differs from the one in which a graph's latest run was begun.

        Args:
            graph: the graph, or its id.

        Returns:
            What differs, by name; it is false where nothing does. None: it can't be compared. The note of it beside
            the ledger is removed when the run has succeeded, is not copied with the ledger, and a ledger in memory has
            none.

        Raises:
            TypeError: `graph` is neither.
        """
        path, graph_id = self._readers.path, key_of(graph, TaskGraph)
        if graph_id is None:
            raise TypeError(f"graph must be a TaskGraph or the id of one, got {type(graph).__name__}")
        if path is None or self._readers.graph(graph_id) is None:
            return None
        return environment_change(path, graph_id, self._log.redaction if self._log is not None else None)

    def _position(self, when: object) -> int:
        if isinstance(when, datetime):
            position = self._readers.position_at(utc(when))
            if position is None:
                first = next(iter(self.events)).recorded_at
                raise ValueError(f"nothing was recorded yet at {when}: the ledger begins at {first}")
            return position
        if isinstance(when, bool) or not isinstance(when, int):
            raise TypeError(f"when must be a datetime or a position (an int), got {type(when).__name__}")
        head = self._readers.head_position()
        if not 1 <= when <= head:
            raise ValueError(f"there is no position {when}: the log goes from 1 to {head}")
        return when

    def _redaction(self, handle: Task | TaskGraph) -> Redaction | None:
        """Return what is kept out of everything that is recorded or shown of a handle; None: nothing."""
        base = self._log.redaction if self._log is not None else None
        return redaction_of(base, handle._given.secrets) if isinstance(handle, Task) else base

    def _writable(self) -> EventLog:
        if self._log is None:
            what = "closed" if self._closed.is_set() or not self._is_read_only else "read-only"
            raise LedgerUnwritableError(f"{self!r} is {what}; nothing was written")
        return self._log

    def _load_task(self, state: TaskState) -> Task:
        return Task._load(state, self._ledger, self._reading)

    @property
    def _ledger(self) -> str:
        return self._log.ledger if self._log is not None else self._reading.ledger()

    def _record(self, entries: Sequence[Entry]) -> list[list[RecordedEvent]]:
        """Record what these handles want recorded, in one commit; see `record`."""
        events = record(self._writable(), entries)
        for entry in entries:
            self._hold(entry.handle)
        return events

    def _hold(self, handle: Task | TaskGraph) -> None:
        """Keep a handle that was recorded: a store in a file hands out snapshots instead."""

    def close(self) -> None:
        """Give up the ledger. Handles and results keep what they show; all else needs a store that is open."""
        if self._log is not None and not is_inside():
            wait_for_handed_over(HANDED_OVER_WAIT_S)  # they still need it
        log, self._log = self._log, None  # forgotten first: however its closing ends, it is closed once
        try:
            if log is not None:
                log.close()
        except ReentranceError:
            self._log = log
            raise
        finally:
            if self._log is None:
                self._closed.set()
            if log is None:  # else they are the log's, which other stores may use
                self._reading.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class LedgerTasks(MutableMapping[str, Task]):
    """A ledger's tasks by id: detached snapshots, in (created_at, id) order."""

    def __init__(self, store: LedgerStore) -> None:
        self._store = store

    def __getitem__(self, key: str | Task) -> Task:
        state = self._find(key)
        if state is None:
            raise KeyError(key)
        return self._store._load_task(state)

    def _find(self, key: object) -> TaskState | None:
        task_id, readers = key_of(key, Task), self._store._readers
        state = readers.task(task_id) if task_id is not None else None
        return state if state is not None and not state.is_deleted else None

    def __setitem__(self, key: str, task: Task) -> None:
        if not isinstance(task, Task):
            raise TypeError(f"task must be a Task, got {type(task).__name__}")
        if key != task.id:
            raise ValueError(f"the key {key!r} is not the task's id {task.id!r}; nothing was saved")
        self.save(task)

    def __delitem__(self, key: str | Task) -> None:
        refuse("deleting a task")
        self._delete(key)

    def _delete(self, key: object) -> TaskState:
        """Record that it is deleted; return what it then is. KeyError: there is none, nothing was written."""
        deleted = TaskDeleted(clock.whoami())
        while True:
            state = self._find(key)
            if state is None:
                raise KeyError(key)
            log = self._store._writable()
            with contextlib.suppress(StreamConflictError):  # it was written to since: is it still there?
                after: TaskState = log.append(Batch(f"task-{state.id}", [deleted], state.version))[0].state
                return after

    def __contains__(self, key: object) -> bool:
        return self._find(key) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._store._readers.ids("tasks"))

    def __len__(self) -> int:
        return self._store._readers.count("tasks")

    # Lists, here and in the other collections: a ValuesView would ask the ledger for each by itself.
    def values(self) -> list[Task]:  # type: ignore[override]
        """Return every task, in (created_at, id) order, by one query."""
        return [self._store._load_task(state) for state in self._store._readers.tasks()]

    def items(self) -> list[tuple[str, Task]]:  # type: ignore[override]
        """Return each id with its task, in (created_at, id) order, by one query."""
        return [(task.id, task) for task in self.values()]

    def save(self, task: Task) -> None:
        """Record what is pending of `task`: nothing is appended when nothing is, and it is not deleted.

        Raises:
            TypeError: it is no Task.
            StreamConflictError: somebody recorded something of it that this handle has not seen. Nothing was written.
            LedgerUnwritableError: the disk refused. Nothing was written; what was pending still is.
        """
        if not isinstance(task, Task):
            raise TypeError(f"task must be a Task, got {type(task).__name__}")
        refuse("saving a task")
        log = self._store._writable()
        record(log, [Entry(task, deleted=log.readers.deleted("tasks", [task.id]).get(task.id))])

    def cancel(self, task_id: str) -> None:
        """Cancel the task, or ask whoever runs it to; nothing for one that is over.

        A signal handler may call it: where its thread is recording just then, another one does it after that.
        Where its runner is gone, what is left of the attempt is ended, and that it was interrupted is recorded too.

        Raises:
            KeyError: there is no such task.
            SurvivorError: something of the attempt can't be ended. Nothing was written.
        """
        if is_inside():
            hand_over(lambda: self.cancel(task_id))
            return
        while True:
            task = self[task_id]
            task.cancel()
            # Where it was started, or ended, just now: look again.
            with contextlib.suppress(StreamConflictError):
                self._record_cancel(task)
                return

    def _record_cancel(self, task: Task) -> None:
        log = self._store._writable()
        facts: Sequence[TaskFact] = ()
        if task._view.is_owned:
            recovery = Recovery(log.readers)
            with contextlib.suppress(AlreadyRunningError):  # then it is for its runner to end it
                facts = recovery.end([recovery.find(task)])[task.id]
        record(log, [Entry(task, facts)])

    def resolve(self, task_id: str, answer: Resolution, *, note: str | None = None) -> None:
        """Decide what an interrupted task counts as; who did, and why, is recorded.

        Args:
            task_id: a task that is INTERRUPTED, or RUNNING by a runner that is gone.
            answer: ``"succeeded"``, ``"failed"``, or ``"rerun"``: it may be started again.
            note: why, in words.

        Raises:
            KeyError: there is no such task.
            TypeError, ValueError: a wrong argument; the task runs, or was not interrupted. Nothing was written.
            SurvivorError: something of the attempt can't be ended. Nothing was written.
        """
        if answer not in ("succeeded", "failed", "rerun"):
            raise ValueError(f"answer must be 'succeeded', 'failed' or 'rerun', got {answer!r}")
        if note is not None and not isinstance(note, str):
            raise TypeError(f"note must be a str, got {type(note).__name__}")
        refuse("resolving a task")
        log = self._store._writable()
        while True:
            task = self[task_id]
            resolved = decide.resolve(task._view, answer, clock.whoami(), note)
            recovery = Recovery(log.readers)
            facts = recovery.end([recovery.find(task).only_interrupted()])[task.id]
            with contextlib.suppress(StreamConflictError):  # somebody wrote to it just now: look again
                record(log, [Entry(task, [*facts, *resolved])])
                return


class LedgerGraphs(MutableMapping[str, TaskGraph]):
    """A ledger's graphs by id: detached snapshots with their tasks, in (created_at, id) order."""

    def __init__(self, store: LedgerStore) -> None:
        self._store = store

    def __getitem__(self, key: str | TaskGraph) -> TaskGraph:
        graph = self._load(key)
        if graph is None:
            raise KeyError(key)
        return graph

    def _load(self, key: object) -> TaskGraph | None:
        graph_id, readers = key_of(key, TaskGraph), self._store._readers
        found = readers.graph_with_tasks(graph_id) if graph_id is not None else None
        if found is None or found[0].is_deleted:
            return None
        state, tasks = found
        handles = {task_id: self._store._load_task(task) for task_id, task in tasks.items()}
        return TaskGraph._load(state, handles, self._store._ledger)

    def _find(self, key: object) -> GraphState | None:
        graph_id, readers = key_of(key, TaskGraph), self._store._readers
        state = readers.graph(graph_id) if graph_id is not None else None
        return state if state is not None and not state.is_deleted else None

    def __setitem__(self, key: str, graph: TaskGraph) -> None:
        if not isinstance(graph, TaskGraph):
            raise TypeError(f"graph must be a TaskGraph, got {type(graph).__name__}")
        if key != graph.id:
            raise ValueError(f"the key {key!r} is not the graph's id {graph.id!r}; nothing was saved")
        self.save(graph)

    def __delitem__(self, key: str | TaskGraph) -> None:
        refuse("deleting a graph")
        self._delete(key)

    def _delete(self, key: object) -> GraphState:
        """Record that it is deleted; return what it then is. KeyError: there is none, nothing was written."""
        deleted = GraphDeleted(clock.whoami())
        while True:
            state = self._find(key)
            if state is None:
                raise KeyError(key)
            log = self._store._writable()
            with contextlib.suppress(StreamConflictError):  # it was written to since: is it still there?
                after: GraphState = log.append(Batch(f"graph-{state.id}", [deleted], state.version))[0].state
                return after

    def __contains__(self, key: object) -> bool:
        return self._find(key) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._store._readers.ids("graphs"))

    def __len__(self) -> int:
        return self._store._readers.count("graphs")

    def values(self) -> list[TaskGraph]:  # type: ignore[override]
        """Return every graph with its tasks, in (created_at, id) order."""
        found = map(self._load, self)
        return [graph for graph in found if graph is not None]  # one that is None was deleted a moment ago

    def items(self) -> list[tuple[str, TaskGraph]]:  # type: ignore[override]
        """Return each id with its graph, in (created_at, id) order."""
        return [(graph.id, graph) for graph in self.values()]

    def save(self, graph: TaskGraph) -> None:
        """Record what is pending of `graph` and its tasks, in one commit; those that were deleted come back.

        Raises:
            TypeError: it is no TaskGraph.
            GraphError: it depends on a task that is not in it, or has a cycle. Nothing was written.
            StreamConflictError: somebody recorded something that these handles have not seen. Nothing was written.
            LedgerUnwritableError: the disk refused. Nothing was written; what was pending still is.
        """
        if not isinstance(graph, TaskGraph):
            raise TypeError(f"graph must be a TaskGraph, got {type(graph).__name__}")
        refuse("saving a graph")
        graph._check()
        log = self._store._writable()
        tasks = list(graph)
        deleted = log.readers.deleted("tasks", [task.id for task in tasks])
        deleted |= log.readers.deleted("graphs", [graph.id])
        entries = [Entry(task, deleted=deleted.get(task.id)) for task in tasks]
        record(log, [*entries, Entry(graph, deleted=deleted.get(graph.id))])

    def cancel(self, graph_id: str) -> None:
        """Ask whoever runs the graph to cancel that run: what runs is cancelled, finally tasks still run.

        A signal handler may call it: where its thread is recording just then, another one does it after that.

        Raises:
            KeyError: there is no such graph.
            TransitionError: it is not running. Nothing was written.
        """
        if is_inside():
            hand_over(lambda: self.cancel(graph_id))
            return
        state = self._store._readers.graph(graph_id)
        if state is None or state.is_deleted:
            raise KeyError(graph_id)
        if state.run_status not in (RunStatus.RUNNING, RunStatus.INTERRUPTED):
            raise TransitionError(f"{named('graph', state.title, graph_id)} is not running: there is nothing to cancel")
        request = GraphCancelRequested(clock.whoami(), "on request")
        self._store._writable().append(Batch(f"graph-{graph_id}", [request], None))


def _check_busy_timeout(seconds: object) -> None:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"busy_timeout must be a number, got {type(seconds).__name__}")
    if not 0 <= seconds <= BUSY_TIMEOUT_MAX_S:
        raise ValueError(f"busy_timeout must be from 0 to {BUSY_TIMEOUT_MAX_S} seconds, got {seconds!r}")


class SQLiteStore(LedgerStore):
    """The ledger in one SQLite file.

    Args:
        path: the file; it and its folders are made where they are missing. ``":memory:"`` is a ledger of its own.
        read_only: only look: nothing is locked, migrated or made.
        busy_timeout: seconds to wait for other writers.
        durability: ``"full"``: what was reported survives power loss; ``"normal"`` may lose the last moment then.
        redact: what is kept out of the ledger, and out of results and events, besides what $TTASKS_REDACT says: names
            of environment variables whose values are secret (``GITHUB_TOKEN``, ``AWS_*``), and patterns: a text that
            begins with ``re:``, or a compiled one. The values are read now.

    Raises:
        TypeError, RedactionError: `redact` or $TTASKS_REDACT can't be used. Nothing was opened.
        NotALedgerError: the file is something else, or a ledger of a newer ttasks. It was left untouched.
        LedgerUnwritableError: the file can't be made, locked or written.

    What it hands out are snapshots: two handles of one task don't see each other's changes, and whoever saves second
    gets a StreamConflictError. Threads and processes may share one file.
    """

    _readers: Readers

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        read_only: bool = False,
        busy_timeout: float = BUSY_TIMEOUT_S,
        durability: str = "full",
        redact: Iterable[str | re.Pattern[str]] = (),
    ) -> None:
        self._path = os.fspath(path)
        _check_busy_timeout(busy_timeout)
        redaction = read_redaction(redact, os.environ)
        if read_only and self.path == MEMORY:
            raise ValueError("a ledger in memory is new, so there is nothing in it to be read: leave out read_only")
        if read_only:
            super().__init__(Readers.open(Path(self.path)), None)
        else:
            file = None if self.path == MEMORY else Path(self.path)
            log = EventLog.open(file, busy_timeout=busy_timeout, durability=durability, redaction=redaction)
            super().__init__(log.readers, log)
        self.tasks = LedgerTasks(self)
        self.graphs = LedgerGraphs(self)

    @property
    def path(self) -> str:
        """The file, as it was given; ``":memory:"`` for a ledger in memory."""
        return self._path

    def __repr__(self) -> str:
        return f"SQLiteStore({self.path})"


class PastStore(LedgerStore):
    """What a store was when `position` was the last one in its log: get it with ``store.as_of(…)``.

    It can only be looked at: whatever would write raises LedgerUnwritableError. Each answer is folded from the events
    of the streams that it is about, so asking for one task costs what that task's history costs, and asking for all of
    them what the log costs. It uses the connections of its store, which has to be open, and needs no closing.
    """

    def __init__(self, past: Past, store: LedgerStore) -> None:
        super().__init__(past, None, store)
        self._position_then = past.head_position()
        self.tasks = LedgerTasks(self)
        self.graphs = LedgerGraphs(self)

    @property
    def position(self) -> int:
        """The last position that was in the log then."""
        return self._position_then

    def _writable(self) -> EventLog:
        raise LedgerUnwritableError(f"{self!r} is the past, which can't be changed; nothing was written")

    def __repr__(self) -> str:
        return f"PastStore({self._reading.path or MEMORY}, position {self.position})"


public(SQLiteStore, PastStore)
