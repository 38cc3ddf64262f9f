"""Reading: connections of its own for readers, and the questions that are asked of a ledger."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, TypeVar

from ttasks.errors import DamagedLedgerError, LedgerError, LedgerUnwritableError, NotALedgerError
from ttasks.events.codec import decode, from_iso
from ttasks.events.envelope import RecordedEvent
from ttasks.events.facts import LedgerCreated, TaskOutput, TaskSucceeded
from ttasks.events.status import TaskStatus
from ttasks.log import files
from ttasks.log.migrate import SCHEMA_VERSION
from ttasks.log.projection import load_graph, select
from ttasks.state import rows
from ttasks.state.graph import GraphState, RunState
from ttasks.state.runner import RunnerState
from ttasks.state.task import AttemptState, TaskState
from ttasks.state.task import apply as apply_task

PAGE_EVENTS: Final = 1000
"""How many events are read at a time: a reader that stays longer in one transaction keeps the WAL from shrinking."""
PARAMETERS_MAX: Final = 500
"""How many values a query is given at a time: older builds of SQLite take no more than 999."""

Stored = TypeVar("Stored")
State = TypeVar("State")

ENVELOPE: Final = "position, stream, version, type, type_version, recorded_at, runner, cause, data, hash"


def event_of(row: tuple[Any, ...]) -> RecordedEvent:
    """Return the event whose stored envelope this is.

    Raises:
        DamagedLedgerError: its data is not what its type holds.
    """
    position, stream, version, type_, type_version, recorded_at, runner, cause, data, hash_ = row
    try:
        fact = decode(type_, type_version, data)
        return RecordedEvent(position, stream, version, from_iso(recorded_at), runner, cause, fact, hash_)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DamagedLedgerError(f"event {position} ({type_}) can't be read: {error!r}") from error


class Readers:
    """What can be asked of one ledger. Threads may share it; each question uses a connection that it has to itself."""

    def __init__(
        self, path: Path | None, in_memory: Callable[[], AbstractContextManager[sqlite3.Connection]] | None = None
    ) -> None:
        self.path = path
        self._in_memory = in_memory
        self._mutex = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._forks = 0
        _READERS.add(self)

    @classmethod
    def open(cls, path: Path) -> Readers:
        """Return the reading side of the ledger at `path`, which is neither locked, migrated nor made.

        Raises:
            NotALedgerError: there is no ledger, or one of another version.
        """
        version = files.schema_version(path)
        if version is None:
            raise NotALedgerError(f"there is no ledger at {path} (no schema_version): nothing was run into it yet")
        if version < SCHEMA_VERSION:
            raise NotALedgerError(
                f"{path} has schema_version {version}, this ttasks reads {SCHEMA_VERSION}: "
                "open it for writing once (any `ttasks run` with it does) to migrate it"
            )
        return cls(path)

    @contextlib.contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection that only reads."""
        if self._in_memory is not None and self.path is None:
            with self._in_memory() as shared:
                yield shared
            return
        assert self.path is not None
        with self._mutex:
            forks, connection = self._forks, self._idle.pop() if self._idle else None
        try:
            if connection is None:
                connection = files.open_reader(self.path)
            yield connection
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, files.SQLITE_ERRORS) and not isinstance(error, sqlite3.ProgrammingError):
                raise self._unreadable(error) from error
            raise
        with self._mutex:
            if self._forks == forks:
                self._idle.append(connection)

    def _unreadable(self, error: BaseException) -> LedgerError:
        if files.is_damage(error):
            return DamagedLedgerError(f"the ledger {self.path} is damaged: {error}; `ttasks verify` says more")
        return LedgerUnwritableError(f"the ledger {self.path} can't be read: {error}")

    def close(self) -> None:
        """Close the connections that nobody uses; asking again opens new ones."""
        with self._mutex:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _after_fork(self) -> None:
        """In a forked child: give up the parent's connections, but for those that were in use (see `files`)."""
        self._mutex = threading.Lock()
        self._forks += 1
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _all(self, query: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        with self.connection() as connection:
            return connection.execute(query, parameters).fetchall()

    def _one(self, query: str, parameters: tuple[Any, ...] = ()) -> tuple[Any, ...] | None:
        with self.connection() as connection:
            row: tuple[Any, ...] | None = connection.execute(query, parameters).fetchone()
            return row

    def _read(self, read: Callable[[Stored], State], stored: Stored) -> State:
        try:
            return read(stored)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise DamagedLedgerError(
                f"a row of {self.path} can't be read ({error!r}); `ttasks verify` says which, "
                "and `ttasks rebuild` makes all rows again"
            ) from error

    # --- events ------------------------------------------------------------------------------------------------------

    def events(
        self, *, stream: str | None = None, type: str | None = None, after: int = 0, limit: int | None = None
    ) -> Iterator[RecordedEvent]:
        """Yield events in position order, from a stream or of a type where given, `after` a position.

        They are read a page at a time, so that a slow consumer never holds a transaction open.
        """
        where = "position > ?" + (" AND stream = ?" if stream else "") + (" AND type = ?" if type else "")
        filters = tuple(value for value in (stream, type) if value)
        left = limit
        while left is None or left > 0:
            page = PAGE_EVENTS if left is None else min(PAGE_EVENTS, left)
            query = f"SELECT {ENVELOPE} FROM events WHERE {where} ORDER BY position LIMIT {page}"  # noqa: S608
            found = self._all(query, (after, *filters))
            yield from map(event_of, found)
            if len(found) < page:
                return
            after = found[-1][0]
            left = None if left is None else left - len(found)

    def ledger(self) -> str:
        """Return the ledger's id."""
        first = next(self.events(limit=1), None)
        if first is None or not isinstance(first.fact, LedgerCreated):
            raise DamagedLedgerError(f"event 1 of {self.path} is not a LedgerCreated; `ttasks verify` says more")
        return first.fact.ledger

    def head(self) -> tuple[int, bytes]:
        """Return the position and hash of the last event."""
        row = self._one("SELECT position, hash FROM events ORDER BY position DESC LIMIT 1")
        if row is None:
            raise DamagedLedgerError(f"the ledger {self.path} has no events at all, not even its first")
        return row[0], row[1]

    def version(self, stream: str) -> int:
        """Return how many events a stream has."""
        row = self._one("SELECT coalesce(max(version), 0) FROM events WHERE stream = ?", (stream,))
        return int(row[0]) if row is not None else 0

    # --- tasks -------------------------------------------------------------------------------------------------------

    def task(self, task_id: str) -> TaskState | None:
        """Return a task as its row has it, deleted ones too; None where there is none."""
        row = self._one(select("tasks", "WHERE id = ?"), (task_id,))
        return self._read(rows.task_state, row) if row is not None else None

    def tasks(self) -> list[TaskState]:
        """Return the tasks that are not deleted, in (created_at, id) order."""
        found = self._all(select("tasks", "WHERE is_deleted = 0 ORDER BY created_at, id"))
        return [self._read(rows.task_state, row) for row in found]

    def tasks_of_graph(self, graph_id: str) -> dict[str, TaskState]:
        """Return a graph's tasks by id, deleted ones too."""
        of_graph = "WHERE id IN (SELECT task_id FROM graph_tasks WHERE graph_id = ?)"
        found = self._all(select("tasks", of_graph), (graph_id,))
        return {row[0]: self._read(rows.task_state, row) for row in found}

    def ids(self, table: str) -> list[str]:
        """Return the ids in ``tasks`` or ``graphs`` that are not deleted, in (created_at, id) order."""
        query = f"SELECT id FROM {table} WHERE is_deleted = 0 ORDER BY created_at, id"  # noqa: S608
        return [row[0] for row in self._all(query)]

    def count(self, table: str) -> int:
        """Return how many of ``tasks`` or ``graphs`` are not deleted."""
        row = self._one(f"SELECT count(*) FROM {table} WHERE is_deleted = 0")  # noqa: S608
        return int(row[0]) if row is not None else 0

    def deleted(self, table: str, ids: Sequence[str]) -> dict[str, int]:
        """Return the versions of those in ``tasks`` or ``graphs`` with these ids that are deleted, by id."""
        found: list[tuple[str, int]] = []
        with self.connection() as connection:
            for start in range(0, len(ids), PARAMETERS_MAX):
                some = ids[start : start + PARAMETERS_MAX]
                marks = ", ".join("?" * len(some))
                query = f"SELECT id, version FROM {table} WHERE is_deleted = 1 AND id IN ({marks})"  # noqa: S608
                found += connection.execute(query, tuple(some))
        return dict(found)

    def attempts(self, task_id: str) -> list[AttemptState]:
        """Return a task's attempts, oldest first."""
        found = self._all(select("attempts", "WHERE task_id = ? ORDER BY attempt"), (task_id,))
        return [self._read(rows.attempt_state, row) for row in found]

    def printed(self, task_id: str, attempt: int) -> dict[str, str]:
        """Return what an attempt printed, whole: ``stdout`` and ``stderr``."""
        parts: dict[str, list[str]] = {"stdout": [], "stderr": []}
        for event in self.events(stream=f"task-{task_id}", type=TaskOutput.__name__):
            if isinstance(event.fact, TaskOutput) and event.fact.attempt == attempt:
                for stream, _, text in event.fact.chunks:
                    parts[stream].append(text)
        return {stream: "".join(texts) for stream, texts in parts.items()}

    def last_lines(self, task_id: str, attempt: int, count: int) -> list[tuple[str, str]]:
        """Return the last lines that an attempt printed, in order of arrival: (``stdout`` or ``stderr``, line)."""
        lines: deque[tuple[str, str]] = deque(maxlen=count)
        rest = {"stdout": "", "stderr": ""}
        for event in self.events(stream=f"task-{task_id}", type=TaskOutput.__name__):
            if isinstance(event.fact, TaskOutput) and event.fact.attempt == attempt:
                for stream, _, text in event.fact.chunks:
                    *whole, rest[stream] = (rest[stream] + text).split("\n")
                    lines.extend((stream, line) for line in whole)
        lines.extend((stream, line) for stream, line in rest.items() if line)
        return list(lines)

    def returned(self, task_id: str, attempt: int) -> str | None:
        """Return the text that an attempt's handler returned; None where it returned none."""
        for event in self.events(stream=f"task-{task_id}", type=TaskSucceeded.__name__):
            if isinstance(event.fact, TaskSucceeded) and event.fact.attempt == attempt:
                return event.fact.output
        return None

    def whole_task(self, task_id: str) -> TaskState | None:
        """Return a task folded from its events: its error texts are whole, where they weren't printed."""
        state: TaskState | None = None
        for event in self.events(stream=f"task-{task_id}"):
            state = apply_task(state, event.fact, task_id=task_id, version=event.version)
        return state

    # --- graphs, runs, runners ---------------------------------------------------------------------------------------

    def graph(self, graph_id: str) -> GraphState | None:
        """Return a graph as its rows have it, a deleted one too; None where there is none."""
        with self.connection() as connection:
            return self._read(lambda id_: load_graph(connection, id_), graph_id)

    def graphs(self) -> list[tuple[GraphState, dict[TaskStatus, int]]]:
        """Return the graphs that are not deleted, without members, with how many tasks stand where; newest first."""
        with self.connection() as connection:
            found = connection.execute(select("graphs", "WHERE is_deleted = 0 ORDER BY created_at DESC, id DESC"))
            states = [self._read(lambda row: rows.graph_state(row, (), ()), row) for row in found.fetchall()]
            counted = connection.execute(
                "SELECT graph_id, status, count(*) FROM graph_tasks JOIN tasks ON tasks.id = task_id GROUP BY 1, 2"
            ).fetchall()
        counts: dict[str, dict[TaskStatus, int]] = {}
        for graph_id, status, count in counted:
            counts.setdefault(graph_id, {})[self._read(TaskStatus, status)] = count
        return [(state, counts.get(state.id, {})) for state in states]

    def ids_like(self, table: str, part: str) -> list[str]:
        """Return the ids in ``tasks`` or ``graphs`` that begin or end with `part`."""
        found = self._all(f"SELECT id FROM {table}")  # noqa: S608
        return [row[0] for row in found if row[0].startswith(part) or row[0].endswith(part)]

    def runs(self, graph_id: str | None = None) -> list[RunState]:
        """Return the runs of a graph, or all, oldest first."""
        if graph_id is None:
            found = self._all(select("runs", "ORDER BY position"))
        else:
            found = self._all(select("runs", "WHERE graph_id = ? ORDER BY run"), (graph_id,))
        return [self._read(rows.run_state, row) for row in found]

    def runner(self, position: int) -> RunnerState | None:
        """Return the runner registered at a position."""
        row = self._one(select("runners", "WHERE position = ?"), (position,))
        return self._read(rows.runner_state, row) if row is not None else None


_READERS: weakref.WeakSet[Readers] = weakref.WeakSet()
_HELD = threading.local()


def _before_fork() -> None:
    _HELD.readers = list(_READERS)
    for readers in _HELD.readers:
        readers._mutex.acquire()


def _after_fork_in_parent() -> None:
    for readers in _HELD.readers:
        readers._mutex.release()


def _after_fork_in_child() -> None:
    for readers in _HELD.readers:
        readers._after_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
