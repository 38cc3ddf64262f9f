"""A ledger in memory, with collections of live objects."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator

from ttasks.errors import LedgerError
from ttasks.log.event_log import EventLog
from ttasks.log.reading import Readers
from ttasks.log.redaction import read_redaction
from ttasks.model.graph import GraphProposal, TaskGraph
from ttasks.model.task import Task
from ttasks.public import public
from ttasks.reentrance import hand_over, is_inside, refuse, section
from ttasks.stores.ledger import LedgerGraphs, LedgerStore, LedgerTasks, key_of


class InMemoryStore(LedgerStore):
    """A ledger in memory, whose collections hold the very objects that were saved, in insertion order.

    Args:
        redact: what is kept out of it; see `SQLiteStore`.

    Raises:
        TypeError, RedactionError: `redact` or $TTASKS_REDACT can't be used.

    It is of the process that made it: in a forked one, whatever it is asked raises LedgerError, a RuntimeError.
    """

    tasks: InMemoryTaskCollection
    graphs: InMemoryGraphCollection
    _readers: Readers
    _by_entry = True

    def __init__(self, *, redact: Iterable[str | re.Pattern[str]] = ()) -> None:
        self._process = os.getpid()
        log = EventLog.open(None, redaction=read_redaction(redact, os.environ))
        super().__init__(log.readers, log)
        self.tasks = InMemoryTaskCollection(self)
        self.graphs = InMemoryGraphCollection(self)

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise LedgerError(
                f"this ledger is in the memory of process {self._process}, and this is a forked one: nothing was read "
                "or written. Use a SQLiteStore with a path to share it"
            )

    def _hold(self, handle: Task | TaskGraph) -> None:
        if isinstance(handle, Task):
            self.tasks._hold(handle)
        else:
            self.graphs._hold(handle)

    def _is_stale(self, handle: Task | TaskGraph, stream: str) -> bool:
        return handle._seen.get(self._ledger, 0) < self._reading.version(stream)

    def __repr__(self) -> str:
        return f"InMemoryStore({len(self.tasks._held)} tasks, {len(self.graphs._held)} graphs)"


class InMemoryTaskCollection(LedgerTasks):
    """Live tasks by id, in insertion order."""

    _store: InMemoryStore

    def __init__(self, store: InMemoryStore) -> None:
        super().__init__(store)
        self._held: dict[str, Task] = {}

    @property
    def _live(self) -> dict[str, Task]:
        self._store._check_process()
        self._store._check_open()
        return self._held

    def _hold(self, task: Task) -> None:
        """Hold a task that was recorded, unless it is deleted, or knows less than the one that is held."""
        if task._recorded.is_deleted:
            self._held.pop(task.id, None)
        elif self._held.get(task.id) is not task and not self._store._is_stale(task, f"task-{task.id}"):
            self._held[task.id] = task

    def save(self, task: Task) -> None:
        self._store._check_process()
        super().save(task)
        self._hold(task)

    def __getitem__(self, key: str | Task) -> Task:
        task = self._live.get(key_of(key, Task) or "")
        if task is None:
            raise KeyError(key)
        return task

    def __delitem__(self, key: str | Task) -> None:
        task = self[key]
        refuse("deleting a task")
        with section(), task._recording:
            state = self._delete(key)
            self._held.pop(task.id, None)
            redaction = self._store._redaction(task)
            redact = redaction.text if redaction is not None else None
            task._committed(self._store._ledger, state, (), None, redact)

    def __contains__(self, key: object) -> bool:
        return key_of(key, Task) in self._live

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._live))

    def __len__(self) -> int:
        return len(self._live)

    def values(self) -> list[Task]:  # type: ignore[override]
        """Return every task, in insertion order."""
        return list(self._live.values())

    def cancel(self, task_id: str) -> None:
        task = self[task_id]
        if is_inside():
            hand_over(lambda: self.cancel(task_id))
            return
        task.cancel()
        if task._on_cancel is None:  # else whoever runs it was told
            self._record_cancel(task)

    def __repr__(self) -> str:
        return f"InMemoryTaskCollection({len(self._held)} tasks)"


class InMemoryGraphCollection(LedgerGraphs):
    """Live graphs by id, in insertion order."""

    _store: InMemoryStore

    def __init__(self, store: InMemoryStore) -> None:
        super().__init__(store)
        self._held: dict[str, TaskGraph] = {}

    @property
    def _live(self) -> dict[str, TaskGraph]:
        self._store._check_process()
        self._store._check_open()
        return self._held

    def _hold(self, graph: TaskGraph) -> None:
        """Hold a graph that was recorded, unless it is deleted, or knows less than the one that is held."""
        if graph._state is not None and graph._state.is_deleted:
            self._held.pop(graph.id, None)
        elif self._held.get(graph.id) is not graph and not self._store._is_stale(graph, f"graph-{graph.id}"):
            self._held[graph.id] = graph

    def save(self, graph: TaskGraph) -> None:
        self._store._check_process()
        super().save(graph)
        for task in graph:
            self._store.tasks._hold(task)
        self._hold(graph)

    def __getitem__(self, key: str | TaskGraph) -> TaskGraph:
        graph = self._live.get(key_of(key, TaskGraph) or "")
        if graph is None:
            raise KeyError(key)
        return graph

    def __delitem__(self, key: str | TaskGraph) -> None:
        graph = self[key]
        refuse("deleting a graph")
        with section(), graph._recording:
            state = self._delete(key)
            self._held.pop(graph.id, None)
            graph._committed(self._store._ledger, state, GraphProposal((), 0))

    def __contains__(self, key: object) -> bool:
        return key_of(key, TaskGraph) in self._live

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._live))

    def __len__(self) -> int:
        return len(self._live)

    def values(self) -> list[TaskGraph]:  # type: ignore[override]
        """Return every graph, in insertion order."""
        return list(self._live.values())

    def __repr__(self) -> str:
        return f"InMemoryGraphCollection({len(self._held)} graphs)"


public(InMemoryStore)
