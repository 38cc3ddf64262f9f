"""Where what happens is recorded: a ledger; or nowhere, with a user's own store told as well as it goes."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ttasks.events.envelope import RecordedEvent
from ttasks.events.facts import TaskFact
from ttasks.log.event_log import EventLog
from ttasks.log.redaction import Redaction, read_redaction
from ttasks.log.secrets import redaction_of
from ttasks.model.graph import TaskGraph
from ttasks.model.task import Task
from ttasks.stores.ledger import LedgerStore
from ttasks.stores.recording import Entry


class Journal(Protocol):
    """Who is told what happens."""

    @property
    def log(self) -> EventLog | None:
        """The ledger; None: there is none."""

    def redaction(self, task: Task) -> Redaction | None:
        """Return what is kept out of everything that is recorded or published of a task; None: nothing."""

    def record(self, entries: Sequence[Entry]) -> list[list[RecordedEvent]]:
        """Record the entries, all or none; return the events of each entry's own facts, none without a ledger."""

    def keep(self, task: Task) -> Exception | None:
        """Give a user's own store the task at a lifecycle transition; return what that raised."""

    def keep_graph(self, graph: TaskGraph) -> Exception | None:
        """Give a user's own store the graph before and after a run; return what that raised."""


class LedgerJournal:
    """Everything goes to the ledger of one of the library's own stores."""

    def __init__(self, store: LedgerStore) -> None:
        self._store = store

    @property
    def log(self) -> EventLog | None:
        """The ledger."""
        return self._store._writable()

    def redaction(self, task: Task) -> Redaction | None:
        """Return what the ledger redacts of a task."""
        return self._store._redaction(task)

    def record(self, entries: Sequence[Entry]) -> list[list[RecordedEvent]]:
        """Append the entries."""
        return self._store._record(entries)

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
        """Return what $TTASKS_REDACT says, and what is secret of the task's own variables."""
        return redaction_of(self._redaction, task._given.env)

    def record(self, entries: Sequence[Entry]) -> list[list[RecordedEvent]]:
        """Let the handles show the facts, all of them or none."""
        wanted = [
            (entry.handle, [fact for fact in entry.facts if isinstance(fact, TaskFact)])
            for entry in entries
            if isinstance(entry.handle, Task)
        ]
        with contextlib.ExitStack() as held:
            # In one order everywhere, so that nobody waits for a handle while another waits for theirs.
            for task, _ in sorted(wanted, key=lambda item: item[0].id):
                held.enter_context(task._lock)
            for task, facts in wanted:
                task._with(facts)
            for task, facts in wanted:
                task._advance(facts)
        return [[] for _ in entries]

    def keep(self, task: Task) -> Exception | None:
        """Call ``store.tasks.save(task)``."""
        return self._best_effort(lambda: self._store.tasks.save(task))

    def keep_graph(self, graph: TaskGraph) -> Exception | None:
        """Call ``store.graphs.save(graph)``; what it raises is warned of as well."""
        error = self._best_effort(lambda: self._store.graphs.save(graph))
        if error is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("always")  # a warning that must not become an error, not even under -W error
                warnings.warn(f"graph persistence failed for graph '{graph.id}': {error}", RuntimeWarning, stacklevel=4)
        return error

    def _best_effort(self, save: Callable[[], object]) -> Exception | None:
        if self._store is None:
            return None
        try:
            save()
        except Exception as error:  # noqa: BLE001 - best effort is the contract for a store that isn't ours
            return error
        return None


def journal_of(store: Any) -> Journal:
    """Return where an executor with this store records: only the library's own stores are ledgers."""
    return LedgerJournal(store) if isinstance(store, LedgerStore) else LooseJournal(store)
