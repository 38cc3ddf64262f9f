"""Where what happens is recorded: a ledger; or nowhere, with a user's own store told as well as it goes."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import warnings
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final, Protocol

from ttasks.errors import words
from ttasks.events.envelope import RecordedEvent
from ttasks.events.facts import TaskFact
from ttasks.events.status import TaskStatus
from ttasks.log.event_log import EventLog
from ttasks.log.inherited import with_inherited
from ttasks.log.redaction import Redaction, read_redaction
from ttasks.log.secrets import redaction_of
from ttasks.model.callbacks import check_ran, is_signal
from ttasks.model.graph import TaskGraph
from ttasks.model.task import Task
from ttasks.reentrance import section
from ttasks.stores.ledger import LedgerStore
from ttasks.stores.recording import Entry, catch_up


class Journal(Protocol):
    """Who is told what happens."""

    @property
    def log(self) -> EventLog | None:
        """The ledger; None: there is none."""

    def redaction(self, task: Task) -> Redaction | None:
        """Return what is kept out of everything that a task gives out, recorded or published; None: nothing.

        The environment is looked at now, so it is asked for with each attempt.
        """

    def record(self, entries: Sequence[Entry]) -> list[list[RecordedEvent]]:
        """Record the entries, all or none; return the events of each entry's own facts, none without a ledger."""

    def catch_up(self, task: Task) -> list[RecordedEvent]:
        """Let a handle show what was recorded of it that it has not heard of; return those events."""

    def is_cancelled(self, task: Task) -> bool:
        """True when the task was cancelled, by whatever handle."""

    def is_recorded(self, task: Task, started_at: datetime) -> bool:
        """True when the task's latest attempt is the one that began at that time."""

    def keep(self, task: Task) -> BaseException | None:
        """Give a user's own store the task at a lifecycle transition; return what that raised."""

    def keep_graph(self, graph: TaskGraph) -> BaseException | None:
        """Give a user's own store the graph before and after a run; return what that raised."""


class LedgerJournal:
    """Everything goes to the ledger of one of the library's own stores."""

    def __init__(self, store: LedgerStore) -> None:
        self._store = store
        self._log = store._log

    @property
    def log(self) -> EventLog | None:
        """The ledger, also after the store was closed: only recording needs it open."""
        return self._log

    def redaction(self, task: Task) -> Redaction | None:
        """Return what the ledger redacts of a task, and what of the environment."""
        return with_inherited(self._store._redaction(task))

    def record(self, entries: Sequence[Entry]) -> list[list[RecordedEvent]]:
        """Append the entries."""
        return self._store._record(entries)

    def catch_up(self, task: Task) -> list[RecordedEvent]:
        """Read what the handle has not seen."""
        return catch_up(self._store._writable(), task)

    def is_cancelled(self, task: Task) -> bool:
        """Return what the ledger says."""
        state = self._store._readers.task(task.id)
        return state is not None and state.status is TaskStatus.CANCELLED

    def is_recorded(self, task: Task, started_at: datetime) -> bool:
        """Return what the ledger says."""
        attempts = self._store._readers.attempts(task.id)
        return bool(attempts) and attempts[-1].started_at == started_at

    def keep(self, task: Task) -> Exception | None:  # noqa: ARG002
        """Nothing: it is recorded already."""
        return None

    def keep_graph(self, graph: TaskGraph) -> Exception | None:  # noqa: ARG002
        """Nothing: it is recorded already."""
        return None


class LooseJournal:
    """Nothing is recorded: the handles show what happens, and a user's own store, if any, gets `save` calls."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._redaction = read_redaction((), os.environ)

    @property
    def log(self) -> EventLog | None:
        """None."""
        return None

    def redaction(self, task: Task) -> Redaction | None:
        """Return what $TTASKS_REDACT says, and what is secret of the task's own variables and of the environment."""
        return with_inherited(redaction_of(self._redaction, task._given.secrets))

    def record(self, entries: Sequence[Entry]) -> list[list[RecordedEvent]]:
        """Let the handles show the facts, all of them or none."""
        wanted = [
            (entry.handle, [fact for fact in entry.facts if isinstance(fact, TaskFact)], entry.keeper)
            for entry in entries
            if isinstance(entry.handle, Task)
        ]
        with section(), contextlib.ExitStack() as held:
            # In one order everywhere, so that nobody waits for a handle while another waits for theirs.
            for task, *_ in sorted(wanted, key=lambda item: item[0].id):
                held.enter_context(task._recording)
                held.enter_context(task._lock)
            for task, facts, _ in wanted:
                task._with(facts)
            for task, facts, keeper in wanted:
                if keeper is not None:
                    task._keep_for(keeper)
                if facts:
                    task._leave_ledger()
                    task._advance(facts)
        return [[] for _ in entries]

    def catch_up(self, task: Task) -> list[RecordedEvent]:  # noqa: ARG002
        """Nothing: the handle is all there is."""
        return []

    def is_cancelled(self, task: Task) -> bool:
        """Return what the handle says."""
        return task.is_cancelled

    def is_recorded(self, task: Task, started_at: datetime) -> bool:  # noqa: ARG002
        """True: nobody else can have started this very handle meanwhile."""
        return True

    def keep(self, task: Task) -> BaseException | None:
        """Call ``store.tasks.save(task)``."""
        return self._best_effort(lambda: self._store.tasks.save(task))

    def keep_graph(self, graph: TaskGraph) -> BaseException | None:
        """Call ``store.graphs.save(graph)``; what it raises is warned of as well."""
        error = self._best_effort(lambda: self._store.graphs.save(graph))
        if error is not None:
            text = f"graph persistence failed for graph '{graph.id}': {words(error)}"
            # Shown whatever the filters say: it must not be lost, and not become an error, not even under -W error.
            warnings.showwarning(RuntimeWarning(text), RuntimeWarning, __file__, 1)
        return error

    def _best_effort(self, save: Callable[[], object]) -> BaseException | None:
        if self._store is None:
            return None
        try:
            check_ran(save(), "save")
        except BaseException as error:  # best effort is the contract for a store that isn't ours
            if is_signal(error):
                raise
            return error
        return None


_NO_STORE: Final = (
    str, bytes, os.PathLike, sqlite3.Connection, type, EventLog, Task, TaskGraph, int, float, list, tuple, set, dict,
)  # fmt: skip
"""What is given by mistake: with it an executor would run without a ledger, and nothing would say so."""


def _check_store(store: object) -> None:
    """Refuse what is surely no store; anything else that a user gives is called, and not looked at."""
    if not issubclass(type(store), _NO_STORE):  # not isinstance: a mock with a spec passes for anything
        return
    if all(callable(getattr(getattr(store, name, None), "save", None)) for name in ("tasks", "graphs")):
        return  # a MagicMock passes for a path
    call = "TaskExecutor(SQLiteStore('ledger.db'))"
    if isinstance(store, str | os.PathLike):
        call = f"TaskExecutor(SQLiteStore({os.fspath(store)!r}))"
    elif isinstance(store, type):
        given = "'ledger.db'" if store.__name__ == "SQLiteStore" else ""
        call = f"TaskExecutor({store.__name__}({given}))"
    got = f"the class {store.__name__}" if isinstance(store, type) else type(store).__name__
    raise TypeError(f"store must be a store, got {got}: nothing would be recorded. Give one: {call}")


def journal_of(store: Any) -> Journal:
    """Return where an executor with this store records: only the library's own stores are ledgers.

    Raises:
        TypeError: it is surely no store.
    """
    _check_store(store)
    is_ledger = issubclass(type(store), LedgerStore)  # a mock with a spec is an instance, as far as it says
    return LedgerJournal(store) if is_ledger else LooseJournal(store)
