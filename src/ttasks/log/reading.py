"""Reading: connections of its own for readers, and the questions that are asked of a ledger."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from ttasks.errors import (
    DamagedLedgerError,
    LedgerError,
    LedgerUnwritableError,
    NotALedgerError,
    UnknownTypeError,
)
from ttasks.events.codec import FACT_TYPES, decode, from_iso
from ttasks.events.envelope import RecordedEvent
from ttasks.events.facts import LedgerCreated, TaskImported, TaskOutput, TaskSucceeded
from ttasks.events.status import TaskStatus
from ttasks.log import files, migrate
from ttasks.log.files import Fingerprint
from ttasks.log.place import check_place
from ttasks.log.projection import load_graph, select
from ttasks.log.query import ENVELOPE, POSITION_MAX, EventFilter
from ttasks.state import rows
from ttasks.state.agent import ModelCallState, PermissionState, ToolCallState
from ttasks.state.graph import GraphState, RunState
from ttasks.state.reconcile import WAITING
from ttasks.state.runner import RunnerState
from ttasks.state.task import REPORTS, AttemptState, TaskState
from ttasks.state.task import apply as apply_task

PAGE_EVENTS: Final = 1000
"""How many events are read at a time: a reader that stays longer in one transaction keeps the WAL from shrinking."""
PAGE_CHARACTERS: Final = 512 * 1024
"""How much data is read at a time, but for an event that has more: those of output hold some 64 KiB each."""
DATA: Final = ENVELOPE.split(", ").index("data")
LINE_CHARACTERS_MAX: Final = 4_000
"""How much is shown of one of the last lines: one without an end may be as long as everything that was printed."""
PARAMETERS_MAX: Final = 500
"""How many values a query is given at a time: older builds of SQLite take no more than 999."""
READ_AGAIN_MAX: Final = 20
"""How often a question is put to a file that is read without locks, and that somebody writes to each time."""
OF_GRAPH: Final = "WHERE id IN (SELECT task_id FROM graph_tasks WHERE graph_id = ?)"
CHANGING_NOTHING: Final = tuple(fact_type.__name__ for fact_type in REPORTS)

UNREADABLE: Final = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""What comes of reading a state or a fact from what ttasks would not have written."""

Answer = TypeVar("Answer")
Stored = TypeVar("Stored")
State = TypeVar("State")


STANDS: Final = f"CASE WHEN tasks.status = 'failed' AND retry_due_at IS NOT NULL THEN '{WAITING}' ELSE tasks.status END"
"""Where a row of `tasks` says that a task stands, as people are told it."""


class _WrittenMeanwhileError(LedgerUnwritableError):
    """What was read without locks may be half of before and half of after: it has to be read again."""


def in_one_view(question: Callable[[sqlite3.Connection], Answer]) -> Callable[[sqlite3.Connection], Answer]:
    """Return `question`, asked inside one transaction: all that it reads is as it was at one moment."""

    def asked(connection: sqlite3.Connection) -> Answer:
        connection.execute("BEGIN")
        try:
            return question(connection)
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    return asked


def _task_states(found: Iterable[rows.Row]) -> list[TaskState]:
    return [rows.task_state(row) for row in found]


def event_of(row: tuple[Any, ...]) -> RecordedEvent:
    """Return the event whose stored envelope this is.

    Raises:
        DamagedLedgerError: its data is not what its type holds.
    """
    position, stream, version, type_, type_version, recorded_at, runner, cause, data, hash_ = row
    try:
        fact = decode(type_, type_version, data)
        return RecordedEvent(position, stream, version, from_iso(recorded_at), runner, cause, fact, hash_)
    except UNREADABLE as error:
        raise DamagedLedgerError(f"event {position} ({type_}) can't be read: {error!r}") from error


def _line_end(line: str) -> str:
    return line if len(line) <= LINE_CHARACTERS_MAX else "…" + line[-LINE_CHARACTERS_MAX:]


def lacks(path: Path | None, what: str) -> DamagedLedgerError:
    """Return what to raise where a row is missing that another row speaks of."""
    return DamagedLedgerError(
        f"{path or files.MEMORY} lacks {what}; `ttasks verify` says which rows are missing, and `ttasks rebuild` makes "
        "all rows again"
    )


_ASKED: Final = {
    "task": "SELECT cancel_requested_by FROM tasks WHERE id = ?",
    "graph": "SELECT cancel_requested_by FROM graphs WHERE id = ?",
}


class LogReader(ABC):
    """What can be asked of a log alone: each answer comes from its events."""

    path: Path | None

    @abstractmethod
    def matching(self, wanted: EventFilter) -> Iterator[RecordedEvent]:
        """Yield the events that are wanted. They are read a page at a time: a slow consumer holds nothing open."""

    @abstractmethod
    def count_matching(self, wanted: EventFilter) -> int:
        """Return how many events are wanted and there."""

    @abstractmethod
    def head_position(self) -> int:
        """Return the position of the last event."""

    @abstractmethod
    def runs(
        self, graph_id: str | None = None, *, newest_first: bool = False, limit: int | None = None
    ) -> list[RunState]:
        """Return the runs of a graph, or all, oldest first unless told otherwise, at most `limit`."""

    def latest_run(self, graph_id: str) -> RunState:
        """Return the latest run of a graph that was run.

        Raises:
            DamagedLedgerError: there is none.
        """
        for run in self.runs(graph_id, newest_first=True, limit=1):
            return run
        raise lacks(self.path, f"the runs of graph {graph_id}")

    def position_at(self, moment: datetime) -> int | None:
        """Return the highest position that was recorded at `moment` or before; None: the log is younger."""
        latest = EventFilter(until=moment, newest_first=True, limit=1)
        return next((event.position for event in self.matching(latest)), None)

    def events(
        self, *, stream: str | None = None, type: str | None = None, after: int = 0, limit: int | None = None
    ) -> Iterator[RecordedEvent]:
        """Yield events in position order, from a stream or of a type where given, `after` a position."""
        types = (type,) if type is not None else ()
        return self.matching(EventFilter(stream=stream, types=types, after=after, limit=limit))

    def check_type(self, type_: str) -> None:
        """Refuse what no type of event is called, neither in this ttasks nor, by a newer one, in this ledger.

        Raises:
            UnknownTypeError: it is none.
        """
        known = {each.__name__ for each in FACT_TYPES}
        if type_ in known or self.has_type(type_):
            return
        from difflib import get_close_matches  # only a mistake needs it

        like = get_close_matches(type_, known, 1, 0.5) or [name for name in known if name.lower() == type_.lower()]
        raise UnknownTypeError(type_, like[0] if like else None)

    def has_type(self, type_: str) -> bool:
        """True when an event of this type is in the ledger."""
        return next(self.events(type=type_, limit=1), None) is not None

    def ledger(self) -> str:
        """Return the ledger's id."""
        first = next(self.events(limit=1), None)
        if first is None or not isinstance(first.fact, LedgerCreated):
            raise DamagedLedgerError("event 1 is not a LedgerCreated; `ttasks verify` says more")
        return first.fact.ledger

    def version(self, stream: str) -> int:
        """Return how many events a stream has."""
        return self.count_matching(EventFilter(stream=stream))

    def printed(self, task_id: str, attempt: int) -> dict[str, str]:
        """Return what an attempt printed, whole: ``stdout`` and ``stderr``."""
        return {stream: self.printed_to(task_id, attempt, stream) for stream in ("stdout", "stderr")}

    def printed_to(self, task_id: str, attempt: int, stream: str) -> str:
        """Return what an attempt printed to ``stdout`` or ``stderr``, whole."""
        return "".join(text for to, text in self.chunks(task_id, attempt) if to == stream)

    def last_lines(self, task_id: str, attempt: int, count: int) -> list[tuple[str, str]]:
        """Return the last lines that an attempt printed, in order of arrival: (``stdout`` or ``stderr``, line).

        Of a line that is longer than `LINE_CHARACTERS_MAX` only the end is returned, after a ``…``.
        """
        lines: deque[tuple[str, str]] = deque(maxlen=count)
        begun = {"stdout": "", "stderr": ""}
        for stream, text in self.chunks(task_id, attempt):
            first, *more = text.split("\n")
            begun[stream] = _line_end(begun[stream] + first)
            if more:
                *whole, rest = more
                lines.append((stream, begun[stream]))
                lines.extend((stream, _line_end(line)) for line in whole[-count:])
                begun[stream] = _line_end(rest)
        lines.extend((stream, line) for stream, line in begun.items() if line)
        return list(lines)

    def chunks(self, task_id: str, attempt: int) -> Iterator[tuple[str, str]]:
        """Yield what an attempt printed, as it was read: (``stdout`` or ``stderr``, text), in order of arrival."""
        stream = f"task-{task_id}"
        for event in self.events(stream=stream, type=TaskOutput.__name__, after=self.restated_at(task_id, attempt)):
            if isinstance(event.fact, TaskOutput) and event.fact.attempt == attempt:
                for printed_to, _, text in event.fact.chunks:
                    yield printed_to, text

    def returned(self, task_id: str, attempt: int) -> str | None:
        """Return the text that an attempt's handler returned; None where it returned none."""
        stream = f"task-{task_id}"
        after = self.restated_at(task_id, attempt)
        for event in self.events(stream=stream, type=TaskSucceeded.__name__, after=after):
            if isinstance(event.fact, TaskSucceeded) and event.fact.attempt == attempt:
                return event.fact.output
        return None

    def restated_at(self, task_id: str, attempt: int) -> int:
        """Return the position of the import that has this attempt's result, 0 for none: its output follows anew."""
        position = 0
        for event in self.events(stream=f"task-{task_id}", type=TaskImported.__name__):
            result = event.fact.state.get("result") if isinstance(event.fact, TaskImported) else None
            if result is not None and result.get("attempt") == attempt:
                position = event.position
        return position

    def whole_task(self, task_id: str, version: int) -> TaskState | None:
        """Return a task folded from its events up to `version`: error texts are whole, where they weren't printed."""
        state: TaskState | None = None
        for event in self.matching(EventFilter(stream=f"task-{task_id}", without=CHANGING_NOTHING)):
            if event.version > version:
                break
            state = apply_task(state, event.fact, task_id=task_id, version=event.version)
        return state


class AskInMemory(Protocol):
    """Puts a question to the connection of a ledger in memory, which readers share with its writer."""

    def __call__(self, question: Callable[[sqlite3.Connection], Answer], /) -> Answer:
        """Return what the question finds out."""


class Readers(LogReader):
    """What can be asked of one ledger. Threads may share it; each question uses a connection that it has to itself.

    `schema_version` is what it had when it was last looked at: a ledger of an older ttasks is read as it is.
    """

    def __init__(self, path: Path | None, in_memory: AskInMemory | None = None) -> None:
        self.path = path
        self._in_memory = in_memory
        self._mutex = threading.RLock()
        self._idle: list[tuple[files.Reader, Fingerprint | None]] = []
        self._forks = 0
        self._is_closed = False
        self.schema_version = migrate.SCHEMA_VERSION
        _READERS.add(self)

    @classmethod
    def open(cls, path: Path) -> Readers:
        """Return the reading side of the ledger at `path`, which is neither locked, migrated nor made.

        Raises:
            NotALedgerError: there is no ledger, or one of a newer version.
            LedgerUnwritableError: it can't be read, or its file has other names (see `place`).
        """
        version = files.schema_version(path)
        if version is None:
            raise NotALedgerError(f"there is no ledger at {path} (no schema_version): nothing was run into it yet")
        # What SQLite has beside a file is beside the file that a link leads to. And a later change of the working
        # directory must not lead to another file.
        real = Path(os.path.realpath(path))
        check_place(real, for_writing=False)
        readers = cls(real)
        readers.ask(lambda _: None)  # the header may be behind: what is in the WAL decides
        return readers

    # --- connections -------------------------------------------------------------------------------------------------

    def ask(self, question: Callable[[sqlite3.Connection], Answer]) -> Answer:
        """Return what `question` finds out with a connection that only reads. It may be put several times.

        Raises:
            DamagedLedgerError: SQLite says that the file is damaged.
            LedgerUnwritableError: the file can't be read.
        """
        if self._in_memory is not None and self.path is None:
            return self._in_memory(question)
        for _ in range(READ_AGAIN_MAX):
            try:
                with self._lent() as connection:
                    return question(connection)
            except _WrittenMeanwhileError as error:
                latest = error
        raise latest

    @contextlib.contextmanager
    def _lent(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection to the file that only reads.

        Raises:
            LedgerUnwritableError: the file can't be read; or (also after the fact, where it is read without locks)
                somebody wrote to it meanwhile. `ask` then asks again.
        """
        forks, connection, before = self._take()
        connection.steps.begin()
        try:
            yield connection
        except BaseException as error:
            connection.close()
            if isinstance(error, sqlite3.OperationalError) and connection.steps.are_spent:
                error = sqlite3.DatabaseError("reading it goes on for ever, so it was given up")
            if isinstance(error, files.SQLITE_ERRORS) and not isinstance(error, sqlite3.ProgrammingError):
                raise self._refusal(error, before) from error
            raise
        if self._was_written_since(before):
            connection.close()
            raise self._written_meanwhile()
        with self._mutex:
            if self._forks == forks and not self._is_closed:
                self._idle.append((connection, before))
                return
        if self._forks == forks:
            connection.close()

    def _take(self) -> tuple[int, files.Reader, Fingerprint | None]:
        assert self.path is not None
        while True:
            with self._mutex:
                forks, idle = self._forks, None
                with contextlib.suppress(IndexError):  # a signal handler may come in here, and take the last one
                    idle = self._idle.pop()
            if idle is None:
                found = Fingerprint.of(self.path)
                try:
                    connection, before = files.open_reader(self.path)
                except files.SQLITE_ERRORS as error:
                    raise self._refusal(error, found) from error
                self.schema_version = connection.version
                return forks, connection, before
            connection, before = idle
            if not self._was_written_since(before) and not self._was_migrated_since(connection):
                return forks, connection, before
            connection.close()

    def _was_written_since(self, before: Fingerprint | None) -> bool:
        return before is not None and self.path is not None and Fingerprint.of(self.path) != before

    def _was_migrated_since(self, connection: files.Reader) -> bool:
        """True where a connection to an older ledger has stand-ins for what is there by now."""
        return connection.version < migrate.SCHEMA_VERSION and files.read_version(connection) != connection.version

    def _written_meanwhile(self) -> _WrittenMeanwhileError:
        return _WrittenMeanwhileError(f"the ledger {self.path} was written to while it was read; read it again")

    def _refusal(self, error: BaseException, before: Fingerprint | None) -> LedgerError:
        if self._was_written_since(before):
            return self._written_meanwhile()
        what = f"the ledger {self.path} can't be read: {error}"
        if files.is_damage(error):
            return DamagedLedgerError(f"{what}. It is damaged: `ttasks verify` says more")
        return LedgerUnwritableError(what)

    def close(self) -> None:
        """Close the connections that nobody uses; asking again opens one for that question."""
        self._is_closed = True
        with self._mutex:
            idle, self._idle = self._idle, []
        for connection, _ in idle:
            connection.close()

    def __del__(self) -> None:
        for connection, _ in self._idle:
            connection.close()

    def _after_fork(self) -> None:
        """In a forked child: give up the parent's connections, but for those that were in use (see `files`)."""
        self._mutex = threading.RLock()
        self._forks += 1
        idle, self._idle = self._idle, []
        for connection, _ in idle:
            connection.close()

    def _all(self, query: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return self.ask(lambda connection: connection.execute(query, parameters).fetchall())

    def _one(self, query: str, parameters: Sequence[Any] = ()) -> tuple[Any, ...] | None:
        found = self._all(query, parameters)
        return found[0] if found else None

    def _read(self, read: Callable[[Stored], State], stored: Stored) -> State:
        try:
            return read(stored)
        except UNREADABLE as error:
            raise DamagedLedgerError(
                f"a row of {self.path} can't be read ({error!r}); `ttasks verify` says which, "
                "and `ttasks rebuild` makes all rows again"
            ) from error

    # --- events ------------------------------------------------------------------------------------------------------

    def matching(self, wanted: EventFilter) -> Iterator[RecordedEvent]:
        left, last = wanted.limit, None
        while left is None or left > 0:
            size = PAGE_EVENTS if left is None else min(PAGE_EVENTS, left)
            found, is_over = self._page(*wanted.page(size, last))
            yield from map(event_of, found)
            if is_over and len(found) < size:
                return
            last = found[-1]
            left = None if left is None else left - len(found)

    def _page(self, query: str, parameters: Sequence[Any]) -> tuple[list[tuple[Any, ...]], bool]:
        """Return the rows that a query of events finds, and whether they are all: large ones make a shorter page."""

        def question(connection: sqlite3.Connection) -> tuple[list[tuple[Any, ...]], bool]:
            found, room = [], PAGE_CHARACTERS
            with contextlib.closing(connection.execute(query, parameters)) as cursor:
                for row in cursor:
                    found.append(row)
                    room -= len(str(row[DATA]))  # of a damaged event it may be anything
                    if room <= 0:
                        return found, False
            return found, True

        return self.ask(question)

    def count_matching(self, wanted: EventFilter) -> int:
        (count,) = self._all(*wanted.count())[0]
        return int(count)

    def head(self) -> tuple[int, bytes]:
        """Return the position and hash of the last event."""
        row = self._one("SELECT position, hash FROM events ORDER BY position DESC LIMIT 1")
        if row is None:
            raise DamagedLedgerError(f"the ledger {self.path} has no events at all, not even its first")
        return row[0], row[1]

    def is_asked_to_cancel(self, stream: str) -> bool:
        """True when the row of this task's or graph's stream names somebody who wants it cancelled."""
        kind, _, name = stream.partition("-")
        row = self._one(_ASKED[kind], (name,))
        return row is not None and row[0] is not None

    def head_position(self) -> int:
        return self.head()[0]

    # --- tasks -------------------------------------------------------------------------------------------------------

    def task(self, task_id: str) -> TaskState | None:
        """Return a task as its row has it, deleted ones too; None where there is none."""
        row = self._one(select("tasks", "WHERE id = ?"), (task_id,))
        return self._read(rows.task_state, row) if row is not None else None

    def tasks(self, *, latest: int | None = None) -> list[TaskState]:
        """Return the tasks that are not deleted, in (created_at, id) order; or so many of the latest, in reverse."""
        order = "created_at, id" if latest is None else "created_at DESC, id DESC"
        most = POSITION_MAX if latest is None else min(latest, POSITION_MAX)
        found = self._all(select("tasks", f"WHERE is_deleted = 0 ORDER BY {order} LIMIT ?"), (most,))
        return self._read(_task_states, found)

    def tasks_of_graph(self, graph_id: str) -> dict[str, TaskState]:
        """Return a graph's tasks by id, deleted ones too."""
        found = self._all(select("tasks", OF_GRAPH), (graph_id,))
        return {state.id: state for state in self._read(_task_states, found)}

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
        found: list[tuple[Any, ...]] = []
        for start in range(0, len(ids), PARAMETERS_MAX):
            some = ids[start : start + PARAMETERS_MAX]
            marks = ", ".join("?" * len(some))
            query = f"SELECT id, version FROM {table} WHERE is_deleted = 1 AND id IN ({marks})"  # noqa: S608
            found += self._all(query, some)
        return dict(found)

    def attempts(self, task_id: str) -> list[AttemptState]:
        """Return a task's attempts, oldest first."""
        found = self._all(select("attempts", "WHERE task_id = ? ORDER BY attempt"), (task_id,))
        return [self._read(rows.attempt_state, row) for row in found]

    def tool_calls(self, task_id: str, attempt: int | None = None) -> list[ToolCallState]:
        """Return the tool calls of a task, or of one attempt, oldest first."""
        return [self._read(rows.tool_call_state, row) for row in self._of_agents("tool_calls", task_id, attempt)]

    def permissions(self, task_id: str, attempt: int | None = None) -> list[PermissionState]:
        """Return what was asked permission for in a task, or in one attempt, oldest first."""
        return [self._read(rows.permission_state, row) for row in self._of_agents("permissions", task_id, attempt)]

    def model_calls(self, task_id: str, attempt: int | None = None) -> list[ModelCallState]:
        """Return the calls of models in a task, or in one attempt, oldest first."""
        return [self._read(rows.model_call_state, row) for row in self._of_agents("model_calls", task_id, attempt)]

    def _of_agents(self, table: str, task_id: str, attempt: int | None) -> list[rows.Row]:
        is_of_attempt, values = ("", (task_id,)) if attempt is None else (" AND attempt = ?", (task_id, attempt))
        return self._all(select(table, f"WHERE task_id = ?{is_of_attempt} ORDER BY position"), values)

    def claimed_tasks(self) -> list[TaskState]:
        """Return the tasks that are not deleted and are RUNNING, INTERRUPTED, or wait for a retry, oldest first."""
        claimed = "is_deleted = 0 AND (status IN ('running', 'interrupted') OR retry_due_at IS NOT NULL)"
        found = self._all(select("tasks", f"WHERE {claimed} ORDER BY created_at, id"))
        return [self._read(rows.task_state, row) for row in found]

    def unsuccessful_attempts(self, graph_id: str, run: int) -> list[AttemptState]:
        """Return the attempts of a run that did not succeed, each task's oldest first."""
        query = select("attempts", "WHERE graph_id = ? AND run = ? AND status <> 'succeeded' ORDER BY task_id, attempt")
        return [self._read(rows.attempt_state, row) for row in self._all(query, (graph_id, run))]

    # --- graphs, runs, runners ---------------------------------------------------------------------------------------

    def graph(self, graph_id: str) -> GraphState | None:
        """Return a graph as its rows have it, a deleted one too; None where there is none."""
        return self.ask(in_one_view(lambda connection: self._graph(connection, graph_id)))

    def _graph(self, connection: sqlite3.Connection, graph_id: str) -> GraphState | None:
        return self._read(lambda id_: load_graph(connection, id_), graph_id)

    def graph_with_tasks(self, graph_id: str) -> tuple[GraphState, dict[str, TaskState]] | None:
        """Return a graph and its tasks by id, deleted ones too, as they were at one moment; None: there is none.

        Raises:
            DamagedLedgerError: a row is missing of a task in it.
        """

        def question(connection: sqlite3.Connection) -> tuple[GraphState, dict[str, TaskState]] | None:
            graph = self._graph(connection, graph_id)
            if graph is None:
                return None
            found = connection.execute(select("tasks", OF_GRAPH), (graph_id,))
            tasks = {state.id: state for state in self._read(_task_states, found)}
            named = {id_ for member in graph.members.values() for id_ in (member.task, *member.after)}
            if missing := sorted(named - (tasks.keys() & graph.members.keys())):
                raise lacks(self.path, f"tasks of graph {graph_id} ({missing[0]}{', …' if len(missing) > 1 else ''})")
            return graph, tasks

        return self.ask(in_one_view(question))

    def graphs(self) -> list[tuple[GraphState, dict[str, int]]]:
        """Return the graphs that are not deleted, without members, with how many tasks stand where; newest first.

        Tasks that wait for a retry are counted as `WAITING`, not as failed.
        """
        latest = select("graphs", "WHERE is_deleted = 0 ORDER BY created_at DESC, id DESC")
        count = f"SELECT graph_id, {STANDS}, count(*) FROM graph_tasks JOIN tasks ON tasks.id = task_id GROUP BY 1, 2"  # noqa: S608

        def question(connection: sqlite3.Connection) -> tuple[list[Any], list[Any]]:
            return connection.execute(latest).fetchall(), connection.execute(count).fetchall()

        found, counted = self.ask(in_one_view(question))
        states = [self._read(lambda row: rows.graph_state(row, (), ()), row) for row in found]
        counts: dict[str, dict[str, int]] = {}
        for graph_id, status, count in counted:
            stands = status if status == WAITING else self._read(TaskStatus, status)
            counts.setdefault(graph_id, {})[stands] = count
        return [(state, counts.get(state.id, {})) for state in states]

    def open_graphs(self) -> list[str]:
        """Return the ids of graphs, not deleted, whose latest run is RUNNING or INTERRUPTED, oldest first."""
        is_open = "is_deleted = 0 AND status IN ('running', 'interrupted')"
        query = f"SELECT id FROM graphs WHERE {is_open} ORDER BY created_at, id"  # noqa: S608
        return [row[0] for row in self._all(query)]

    def graph_of_file(self, path: str) -> str | None:
        """Return the id of the latest graph, not deleted, that was made from the workflow file at `path`."""
        query = (
            "SELECT id FROM graphs WHERE source_path = ? AND is_deleted = 0 ORDER BY created_at DESC, id DESC LIMIT 1"
        )
        row = self._one(query, (rows.text(path),))
        return row[0] if row is not None else None

    def graphs_with_finally_left(self) -> list[str]:
        """Return the ids of graphs, not deleted, that were run and have an INTERRUPTED finally task, oldest first."""
        query = (
            "SELECT DISTINCT graphs.id FROM graph_tasks JOIN tasks ON tasks.id = task_id JOIN graphs ON graphs.id ="
            " graph_id WHERE is_finally = 1 AND tasks.status = 'interrupted' AND graphs.is_deleted = 0 AND runs > 0"
            " ORDER BY graphs.created_at, graphs.id"
        )
        return [row[0] for row in self._all(query)]

    def ids_like(self, table: str, part: str) -> list[str]:
        """Return the ids in ``tasks`` or ``graphs`` that begin or end with `part`."""
        found = self._all(f"SELECT id FROM {table}")  # noqa: S608
        return [row[0] for row in found if row[0].startswith(part) or row[0].endswith(part)]

    def runs(
        self, graph_id: str | None = None, *, newest_first: bool = False, limit: int | None = None
    ) -> list[RunState]:
        """Return the runs of a graph, or all, oldest first unless told otherwise, at most `limit`."""
        where, order = ("graph_id = ?", "run") if graph_id is not None else ("? IS NULL", "position")
        order += " DESC" if newest_first else ""
        query = select("runs", f"WHERE {where} ORDER BY {order} LIMIT ?")
        most = POSITION_MAX if limit is None else min(limit, POSITION_MAX)
        found = self._all(query, (graph_id, most))
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
