"""Streams folded into rows: one fold per kind of stream, used alike by appending, verifying and rebuilding."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Protocol, Self

from ttasks.errors import DamagedLedgerError, UnknownEventError
from ttasks.events.agent_facts import AgentFact
from ttasks.events.envelope import OpaqueEvent, RecordedEvent
from ttasks.events.facts import GraphCreated, GraphRevised, LedgerCreated
from ttasks.state import graph as graph_rules
from ttasks.state import rows
from ttasks.state import runner as runner_rules
from ttasks.state import task as task_rules
from ttasks.state.agent import AgentState, Conversation, ModelCallState, PermissionState, ToolCallState
from ttasks.state.graph import GraphState, RunState
from ttasks.state.runner import RunnerState
from ttasks.state.task import AttemptState, TaskState

LEDGER_STREAM: Final = "ledger"


class _Copied:
    def copy(self) -> Self:
        # copy.copy does the same, five times as slowly, and this is done for every append.
        fold = object.__new__(type(self))
        fold.__dict__.update(self.__dict__)
        return fold


class StreamFold(Protocol):
    """What the events of one stream come to so far. `version` counts them."""

    version: int

    @property
    def state(self) -> Any:
        """The aggregate's state; None before its first event."""

    def copy(self) -> Self:
        """Return a fold that goes on from here and leaves this one as it is."""

    def apply(self, event: RecordedEvent) -> None:
        """Add one event."""

    def write(self, connection: sqlite3.Connection) -> None:
        """Put the rows that changed since the last write into their tables."""


TABLES: Final = {
    "tasks": rows.TASKS,
    "attempts": rows.ATTEMPTS,
    "graphs": rows.GRAPHS,
    "graph_tasks": rows.GRAPH_TASKS,
    "graph_dependencies": rows.GRAPH_DEPENDENCIES,
    "runs": rows.RUNS,
    "runners": rows.RUNNERS,
    "tool_calls": rows.TOOL_CALLS,
    "permissions": rows.PERMISSIONS,
    "model_calls": rows.MODEL_CALLS,
}
"""Every table that is folded from the log, with its columns in the order of its rows."""

_KEYS: Final = {
    "tasks": ("id",),
    "attempts": ("task_id", "attempt"),
    "graphs": ("id",),
    "graph_tasks": ("graph_id", "place"),
    "graph_dependencies": ("graph_id", "task_id", "place"),
    "runs": ("graph_id", "run"),
    "runners": ("position",),
    "tool_calls": ("position",),
    "permissions": ("position",),
    "model_calls": ("position",),
}


def key_columns(table: str) -> tuple[str, ...]:
    """Return the columns of the primary key of `table`."""
    return _KEYS[table]


_PUT: Final = {
    table: f"INSERT OR REPLACE INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"  # noqa: S608
    for table, columns in TABLES.items()
}
_SELECT: Final = {table: f"SELECT {', '.join(columns)} FROM {table}" for table, columns in TABLES.items()}  # noqa: S608


def select(table: str, where: str = "") -> str:
    """Return the query for rows of `table`, columns in the order that the states read them in."""
    return f"{_SELECT[table]} {where}"


def put(table: str) -> str:
    """Return the statement that puts a row into `table`, in the place of one with the same key."""
    return _PUT[table]


class TaskFold(_Copied):
    """A task's stream: its row in `tasks`, that of its latest attempt, and those of what an agent did in it.

    `conversation` is None where no fact of an agent was met yet.
    """

    def __init__(
        self,
        task_id: str,
        state: TaskState | None = None,
        attempt: AttemptState | None = None,
        conversation: Conversation | None = None,
    ) -> None:
        self.task_id = task_id
        self.state = state
        self.attempt = attempt
        self.conversation = conversation
        self.version = state.version if state is not None else 0
        self._written_attempt = attempt
        self._unwritten: tuple[AttemptState, ...] = ()

    @classmethod
    def load(cls, connection: sqlite3.Connection, task_id: str) -> TaskFold:
        """Return the fold as its rows have it."""
        row = connection.execute(select("tasks", "WHERE id = ?"), (task_id,)).fetchone()
        if row is None:
            return cls(task_id)
        latest = select("attempts", "WHERE task_id = ? ORDER BY attempt DESC LIMIT 1")
        attempt = connection.execute(latest, (task_id,)).fetchone()
        state = rows.task_state(row)
        conversation = None
        if state.running_attempt is not None:
            conversation = load_conversation(connection, task_id, state.running_attempt)
        return cls(task_id, state, rows.attempt_state(attempt) if attempt is not None else None, conversation)

    def copy(self) -> Self:
        fold = super().copy()
        if self.conversation is not None:
            fold.conversation = self.conversation.copy()
        return fold

    def apply(self, event: RecordedEvent) -> None:
        state = self.state = task_rules.apply(self.state, event.fact, task_id=self.task_id, version=event.version)
        before = self.attempt
        self.attempt = task_rules.apply_attempt(
            before, event.fact, task_id=self.task_id, position=event.position, runner=event.runner or 0
        )
        if before is not None and self.attempt is not None and before.attempt != self.attempt.attempt:
            self._unwritten = (*self._unwritten, before)
        if self.conversation is None and isinstance(event.fact, AgentFact):
            self.conversation = Conversation(self.task_id)
        if self.conversation is not None:
            self.conversation.apply(event.fact, running=state.running_attempt, position=event.position)
        self.version = event.version

    def write(self, connection: sqlite3.Connection) -> None:
        if self.state is not None:
            connection.execute(_PUT["tasks"], rows.task_row(self.state))
        for attempt in self._unwritten:
            connection.execute(_PUT["attempts"], rows.attempt_row(attempt))
        self._unwritten = ()
        if self.attempt is not None and self.attempt is not self._written_attempt:
            connection.execute(_PUT["attempts"], rows.attempt_row(self.attempt))
            self._written_attempt = self.attempt
        if self.conversation is not None:
            for state in self.conversation.take():
                table, row = agent_row(state)
                connection.execute(_PUT[table], row)


def load_conversation(connection: sqlite3.Connection, task_id: str, attempt: int) -> Conversation | None:
    """Return what an agent has open in a running attempt, as its rows have it; None where that is nothing."""
    of_attempt = "WHERE task_id = ? AND attempt = ?"
    calls = connection.execute(select("tool_calls", f"{of_attempt} AND status = 'running'"), (task_id, attempt))
    requests = connection.execute(select("permissions", f"{of_attempt} AND decision IS NULL"), (task_id, attempt))
    found = [*map(rows.tool_call_state, calls)], [*map(rows.permission_state, requests)]
    return Conversation(task_id, attempt, *found) if any(found) else None


_ROWS_OF_AGENTS: Final[Mapping[type[AgentState], tuple[str, Callable[[Any], rows.Row]]]] = {
    ToolCallState: ("tool_calls", rows.tool_call_row),
    PermissionState: ("permissions", rows.permission_row),
    ModelCallState: ("model_calls", rows.model_call_row),
}


def agent_row(state: AgentState) -> tuple[str, rows.Row]:
    """Return the table and the row of what an agent did."""
    table, row = _ROWS_OF_AGENTS[type(state)]
    return table, row(state)


class GraphFold(_Copied):
    """A graph's stream: its row in `graphs`, those of its members, and that of its latest run."""

    def __init__(self, graph_id: str, state: GraphState | None = None, run: RunState | None = None) -> None:
        self.graph_id = graph_id
        self.state = state
        self.run = run
        self.version = state.version if state is not None else 0
        self._members_changed = False
        self._written_run = run
        self._unwritten: tuple[RunState, ...] = ()

    @classmethod
    def load(cls, connection: sqlite3.Connection, graph_id: str) -> GraphFold:
        """Return the fold as its rows have it."""
        state = load_graph(connection, graph_id)
        if state is None:
            return cls(graph_id)
        latest = select("runs", "WHERE graph_id = ? ORDER BY run DESC LIMIT 1")
        run = connection.execute(latest, (graph_id,)).fetchone()
        return cls(graph_id, state, rows.run_state(run) if run is not None else None)

    def apply(self, event: RecordedEvent) -> None:
        self.state = graph_rules.apply(self.state, event.fact, graph_id=self.graph_id, version=event.version)
        before = self.run
        self.run = graph_rules.apply_run(
            before,
            event.fact,
            graph_id=self.graph_id,
            position=event.position,
            runner=event.runner or 0,
            recorded_at=event.recorded_at,
        )
        if before is not None and self.run is not None and before.run != self.run.run:
            self._unwritten = (*self._unwritten, before)
        self._members_changed |= isinstance(event.fact, GraphCreated | GraphRevised)
        self.version = event.version

    def write(self, connection: sqlite3.Connection) -> None:
        if self.state is None:
            return
        connection.execute(_PUT["graphs"], rows.graph_row(self.state))
        for run in self._unwritten:
            connection.execute(_PUT["runs"], rows.run_row(run))
        self._unwritten = ()
        if self.run is not None and self.run is not self._written_run:
            connection.execute(_PUT["runs"], rows.run_row(self.run))
            self._written_run = self.run
        if self._members_changed:
            for table in ("graph_tasks", "graph_dependencies"):
                connection.execute(f"DELETE FROM {table} WHERE graph_id = ?", (self.graph_id,))  # noqa: S608
            connection.executemany(_PUT["graph_tasks"], rows.member_rows(self.state))
            connection.executemany(_PUT["graph_dependencies"], rows.dependency_rows(self.state))
            self._members_changed = False


def load_graph(connection: sqlite3.Connection, graph_id: str) -> GraphState | None:
    """Return the graph as its rows have it; None where there is none."""
    row = connection.execute(select("graphs", "WHERE id = ?"), (graph_id,)).fetchone()
    if row is None:
        return None
    members = connection.execute(select("graph_tasks", "WHERE graph_id = ? ORDER BY place"), (graph_id,)).fetchall()
    dependencies = connection.execute(
        select("graph_dependencies", "WHERE graph_id = ? ORDER BY task_id, place"), (graph_id,)
    ).fetchall()
    return rows.graph_state(row, members, dependencies)


class RunnerFold(_Copied):
    """A runner's stream: its row in `runners`."""

    def __init__(self, runner_id: str, state: RunnerState | None = None, version: int = 0) -> None:
        self.runner_id = runner_id
        self.state = state
        self.version = version

    @classmethod
    def load(cls, connection: sqlite3.Connection, runner_id: str) -> RunnerFold:
        """Return the fold as its row has it, its version counted in the log."""
        row = connection.execute(select("runners", "WHERE id = ?"), (runner_id,)).fetchone()
        (version,) = connection.execute(
            "SELECT coalesce(max(version), 0) FROM events WHERE stream = ?", (f"runner-{runner_id}",)
        ).fetchone()
        return cls(runner_id, rows.runner_state(row) if row is not None else None, version)

    def apply(self, event: RecordedEvent) -> None:
        self.state = runner_rules.apply(
            self.state,
            event.fact,
            runner_id=self.runner_id,
            position=event.position,
            recorded_at=event.recorded_at,
        )
        self.version = event.version

    def write(self, connection: sqlite3.Connection) -> None:
        if self.state is not None:
            connection.execute(_PUT["runners"], rows.runner_row(self.state))


class LedgerFold(_Copied):
    """The ledger's own stream: its id and key, in no table but `events`."""

    def __init__(self, state: LedgerCreated | None = None, version: int = 0) -> None:
        self.state = state
        self.version = version

    def apply(self, event: RecordedEvent) -> None:
        if isinstance(event.fact, OpaqueEvent):
            _pass_over(event, event.fact)
        elif isinstance(event.fact, LedgerCreated) and self.state is None and event.position == 1:
            self.state = event.fact
        else:
            raise DamagedLedgerError(f"{event.type} at {event.position} can't follow in the ledger's own stream")
        self.version = event.version

    def write(self, connection: sqlite3.Connection) -> None:
        """Nothing: this stream has no row."""


class ForeignFold(_Copied):
    """A stream of a kind that this ttasks does not know: only events that may be passed over can be in it."""

    state: None = None

    def __init__(self, stream: str) -> None:
        self.stream = stream
        self.version = 0

    def apply(self, event: RecordedEvent) -> None:
        if not isinstance(event.fact, OpaqueEvent):
            raise DamagedLedgerError(f"there is no kind of stream like '{self.stream}'")
        _pass_over(event, event.fact)
        self.version = event.version

    def write(self, connection: sqlite3.Connection) -> None:
        """Nothing: this stream has no row."""


def _pass_over(event: RecordedEvent, fact: OpaqueEvent) -> None:
    if not fact.is_ignorable:
        raise UnknownEventError(
            fact.type, fact.type_version, event.stream, version=event.version, position=event.position
        )


def new_fold(stream: str) -> StreamFold:
    """Return the fold of a stream before its first event.

    Streams are named ``task-…``, ``graph-…``, ``runner-…`` or ``ledger``; any other is a `ForeignFold`.
    """
    kind, _, name = stream.partition("-")
    if kind == "task":
        return TaskFold(name)
    if kind == "graph":
        return GraphFold(name)
    if kind == "runner":
        return RunnerFold(name)
    if stream == LEDGER_STREAM:
        return LedgerFold()
    return ForeignFold(stream)


def load_fold(connection: sqlite3.Connection, stream: str) -> StreamFold:
    """Return the fold of a stream as its rows have it."""
    kind, _, name = stream.partition("-")
    if kind == "task":
        return TaskFold.load(connection, name)
    if kind == "graph":
        return GraphFold.load(connection, name)
    if kind == "runner":
        return RunnerFold.load(connection, name)
    return new_fold(stream)


def all_rows(folds: Iterator[StreamFold]) -> Iterator[tuple[str, rows.Row]]:
    """Yield (table, row) for what the latest states of these folds say; earlier attempts and runs are not in it."""
    for fold in folds:
        match fold:
            case TaskFold(state=TaskState() as task):
                yield "tasks", rows.task_row(task)
            case GraphFold(state=GraphState() as graph):
                yield "graphs", rows.graph_row(graph)
                for row in rows.member_rows(graph):
                    yield "graph_tasks", row
                for row in rows.dependency_rows(graph):
                    yield "graph_dependencies", row
            case RunnerFold(state=RunnerState() as runner):
                yield "runners", rows.runner_row(runner)
