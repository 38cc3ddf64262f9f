"""The library's own stores: collections over one ledger, in a file or in memory."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ttasks import clock
from ttasks.errors import LedgerUnwritableError, StreamConflictError, TransitionError
from ttasks.events.envelope import RecordedEvent
from ttasks.events.facts import GraphCancelRequested, GraphDeleted, TaskDeleted
from ttasks.events.status import RunStatus
from ttasks.log.event_log import BUSY_TIMEOUT_S, EventLog
from ttasks.log.files import MEMORY
from ttasks.log.reading import Readers
from ttasks.log.redaction import Redaction, read_redaction
from ttasks.log.secrets import redaction_of
from ttasks.log.transaction import Batch
from ttasks.model.graph import TaskGraph
from ttasks.model.task import Task
from ttasks.state.task import TaskState
from ttasks.stores.protocol import GraphCollection, TaskCollection
from ttasks.stores.recording import Entry, record


def _key(key: object, kind: type[Task] | type[TaskGraph]) -> str | None:
    if isinstance(key, str):
        return key
    return key.id if isinstance(key, kind) else None


class LedgerStore:
    """What `SQLiteStore` and `InMemoryStore` have in common: a ledger, and collections of what is in it."""

    tasks: LedgerTasks
    graphs: LedgerGraphs

    def __init__(self, readers: Readers, log: EventLog | None) -> None:
        self._readers = readers
        self._log = log

    def _redaction(self, handle: Task | TaskGraph) -> Redaction | None:
        """Return what is kept out of everything that is recorded or shown of a handle; None: nothing."""
        base = self._log.redaction if self._log is not None else None
        return redaction_of(base, handle._given.env) if isinstance(handle, Task) else base

    def _writable(self) -> EventLog:
        if self._log is None:
            raise LedgerUnwritableError(f"{self!r} is read-only or closed; nothing was written")
        return self._log

    def _load_task(self, state: TaskState) -> Task:
        return Task._load(state, self._ledger, self._readers)

    @property
    def _ledger(self) -> str:
        return self._log.ledger if self._log is not None else self._readers.ledger()

    def _record(self, entries: Sequence[Entry]) -> list[list[RecordedEvent]]:
        """Record what these handles want recorded, in one commit; see `record`."""
        events = record(self._writable(), entries)
        for entry in entries:
            self._hold(entry.handle)
        return events

    def _hold(self, handle: Task | TaskGraph) -> None:
        """Keep a handle that was recorded: a store in a file hands out snapshots instead."""

    def close(self) -> None:
        """Give up the ledger. Handles keep what they show; saving and running need a store that is open."""
        if self._log is not None:
            self._log.close()
            self._log = None
        self._readers.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class LedgerTasks(TaskCollection):
    """A ledger's tasks by id: detached snapshots, in (created_at, id) order."""

    def __init__(self, store: LedgerStore) -> None:
        self._store = store

    def __getitem__(self, key: str | Task) -> Task:
        state = self._find(key)
        if state is None:
            raise KeyError(key)
        return self._store._load_task(state)

    def _find(self, key: object) -> TaskState | None:
        task_id = _key(key, Task)
        state = self._store._readers.task(task_id) if task_id is not None else None
        return state if state is not None and not state.is_deleted else None

    def __setitem__(self, key: str, task: Task) -> None:
        if not isinstance(task, Task):
            raise TypeError(f"task must be a Task, got {type(task).__name__}")
        if key != task.id:
            raise ValueError(f"the key {key!r} is not the task's id {task.id!r}; nothing was saved")
        self.save(task)

    def __delitem__(self, key: str | Task) -> None:
        state = self._find(key)
        if state is None:
            raise KeyError(key)
        log = self._store._writable()
        log.append(Batch(f"task-{state.id}", [TaskDeleted(clock.whoami())], state.version))

    def __contains__(self, key: object) -> bool:
        return self._find(key) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._store._readers.ids("tasks"))

    def __len__(self) -> int:
        return self._store._readers.count("tasks")

    def values(self) -> Any:
        """Return every task, in (created_at, id) order, by one query."""
        return [self._store._load_task(state) for state in self._store._readers.tasks()]

    def items(self) -> Any:
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
        log = self._store._writable()
        record(log, [Entry(task, deleted=log.readers.deleted("tasks", [task.id]).get(task.id))])

    def cancel(self, task_id: str) -> None:
        """Cancel the task, or ask whoever runs it to; nothing for one that is over.

        Raises:
            KeyError: there is no such task.
        """
        log = self._store._writable()
        while True:
            task = self[task_id]
            task.cancel()
            try:
                record(log, [Entry(task)])
            except StreamConflictError:  # it was started, or ended, just now: look again
                continue
            return


class LedgerGraphs(GraphCollection):
    """A ledger's graphs by id: detached snapshots with their tasks, in (created_at, id) order."""

    def __init__(self, store: LedgerStore) -> None:
        self._store = store

    def __getitem__(self, key: str | TaskGraph) -> TaskGraph:
        graph_id = _key(key, TaskGraph)
        readers = self._store._readers
        state = readers.graph(graph_id) if graph_id is not None else None
        if state is None or state.is_deleted:
            raise KeyError(key)
        tasks = {task.id: self._store._load_task(task) for task in readers.tasks_of_graph(state.id).values()}
        return TaskGraph._load(state, tasks, self._store._ledger)

    def __setitem__(self, key: str, graph: TaskGraph) -> None:
        if not isinstance(graph, TaskGraph):
            raise TypeError(f"graph must be a TaskGraph, got {type(graph).__name__}")
        if key != graph.id:
            raise ValueError(f"the key {key!r} is not the graph's id {graph.id!r}; nothing was saved")
        self.save(graph)

    def __delitem__(self, key: str | TaskGraph) -> None:
        graph_id = _key(key, TaskGraph)
        state = self._store._readers.graph(graph_id) if graph_id is not None else None
        if state is None or state.is_deleted:
            raise KeyError(key)
        log = self._store._writable()
        log.append(Batch(f"graph-{state.id}", [GraphDeleted(clock.whoami())], state.version))

    def __contains__(self, key: object) -> bool:
        graph_id = _key(key, TaskGraph)
        state = self._store._readers.graph(graph_id) if graph_id is not None else None
        return state is not None and not state.is_deleted

    def __iter__(self) -> Iterator[str]:
        return iter(self._store._readers.ids("graphs"))

    def __len__(self) -> int:
        return self._store._readers.count("graphs")

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
        graph._check()
        log = self._store._writable()
        tasks = list(graph)
        deleted = log.readers.deleted("tasks", [task.id for task in tasks])
        deleted |= log.readers.deleted("graphs", [graph.id])
        entries = [Entry(task, deleted=deleted.get(task.id)) for task in tasks]
        record(log, [*entries, Entry(graph, deleted=deleted.get(graph.id))])

    def cancel(self, graph_id: str) -> None:
        """Ask whoever runs the graph to cancel that run: what runs is cancelled, finally tasks still run.

        Raises:
            KeyError: there is no such graph.
            TransitionError: it is not running. Nothing was written.
        """
        state = self._store._readers.graph(graph_id)
        if state is None or state.is_deleted:
            raise KeyError(graph_id)
        if state.run_status not in (RunStatus.RUNNING, RunStatus.INTERRUPTED):
            raise TransitionError(f"graph '{state.title}' ({graph_id}) is not running: there is nothing to cancel")
        request = GraphCancelRequested(clock.whoami(), "on request")
        self._store._writable().append(Batch(f"graph-{graph_id}", [request], None))


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

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        read_only: bool = False,
        busy_timeout: float = BUSY_TIMEOUT_S,
        durability: str = "full",
        redact: Iterable[str | re.Pattern[str]] = (),
    ) -> None:
        self.path = os.fspath(path)
        redaction = read_redaction(redact, os.environ)
        if read_only:
            super().__init__(Readers.open(Path(self.path)), None)
        else:
            file = None if self.path == MEMORY else Path(self.path)
            log = EventLog.open(file, busy_timeout=busy_timeout, durability=durability, redaction=redaction)
            super().__init__(log.readers, log)
        self.tasks = LedgerTasks(self)
        self.graphs = LedgerGraphs(self)

    def __repr__(self) -> str:
        return f"SQLiteStore({self.path})"


class InMemoryStore(LedgerStore):
    """A ledger in memory, whose collections hold the very objects that were saved, in insertion order.

    Args:
        redact: what is kept out of it; see `SQLiteStore`.

    Raises:
        TypeError, RedactionError: `redact` or $TTASKS_REDACT can't be used.
    """

    tasks: InMemoryTaskCollection
    graphs: InMemoryGraphCollection

    def __init__(self, *, redact: Iterable[str | re.Pattern[str]] = ()) -> None:
        log = EventLog.open(None, redaction=read_redaction(redact, os.environ))
        super().__init__(log.readers, log)
        self.tasks = InMemoryTaskCollection(self)
        self.graphs = InMemoryGraphCollection(self)

    def _hold(self, handle: Task | TaskGraph) -> None:
        if isinstance(handle, Task):
            self.tasks._hold(handle)
        else:
            self.graphs._hold(handle)

    def __repr__(self) -> str:
        return f"InMemoryStore({len(self.tasks)} tasks, {len(self.graphs)} graphs)"


class InMemoryTaskCollection(LedgerTasks):
    """Live tasks by id, in insertion order."""

    def __init__(self, store: LedgerStore) -> None:
        super().__init__(store)
        self._live: dict[str, Task] = {}

    def _hold(self, task: Task) -> None:
        self._live[task.id] = task

    def save(self, task: Task) -> None:
        super().save(task)
        self._hold(task)

    def __getitem__(self, key: str | Task) -> Task:
        task_id = _key(key, Task)
        if task_id is None or task_id not in self._live:
            raise KeyError(key)
        return self._live[task_id]

    def __delitem__(self, key: str | Task) -> None:
        super().__delitem__(key)
        del self._live[_key(key, Task) or ""]

    def __contains__(self, key: object) -> bool:
        return _key(key, Task) in self._live

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._live))

    def __len__(self) -> int:
        return len(self._live)

    def values(self) -> Any:
        """Return every task, in insertion order."""
        return list(self._live.values())

    def cancel(self, task_id: str) -> None:
        task = self[task_id]
        task.cancel()
        if not task._view.is_owned:
            self.save(task)

    def __repr__(self) -> str:
        return f"InMemoryTaskCollection({len(self)} tasks)"


class InMemoryGraphCollection(LedgerGraphs):
    """Live graphs by id, in insertion order."""

    def __init__(self, store: LedgerStore) -> None:
        super().__init__(store)
        self._live: dict[str, TaskGraph] = {}

    def _hold(self, graph: TaskGraph) -> None:
        self._live[graph.id] = graph

    def save(self, graph: TaskGraph) -> None:
        super().save(graph)
        self._hold(graph)
        if isinstance(self._store.tasks, InMemoryTaskCollection):
            for task in graph:
                self._store.tasks._hold(task)

    def __getitem__(self, key: str | TaskGraph) -> TaskGraph:
        graph_id = _key(key, TaskGraph)
        if graph_id is None or graph_id not in self._live:
            raise KeyError(key)
        return self._live[graph_id]

    def __delitem__(self, key: str | TaskGraph) -> None:
        super().__delitem__(key)
        del self._live[_key(key, TaskGraph) or ""]

    def __contains__(self, key: object) -> bool:
        return _key(key, TaskGraph) in self._live

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._live))

    def __len__(self) -> int:
        return len(self._live)

    def __repr__(self) -> str:
        return f"InMemoryGraphCollection({len(self)} graphs)"


for _public in (SQLiteStore, InMemoryStore):
    _public.__module__ = "ttasks"
