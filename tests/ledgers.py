"""A ledger with some of everything, and what somebody who can write its file can do to it."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from strategies import AT, created, ended, started
from ttasks import RetryPolicy, SQLiteStore, Task, TaskCancelled, TaskContext, TaskExecutor, TaskGraph, TaskType, clock
from ttasks.events import agent_facts as a
from ttasks.events.facts import Fact, TaskInterrupted
from ttasks.log.chain import GENESIS, event_hash
from ttasks.log.projection import TABLES
from ttasks.log.query import ENVELOPE
from ttasks.log.transaction import Batch

GUARDS = ("events_are_never_changed", "events_are_never_removed", "events_are_only_appended")
"""The triggers that refuse to change, remove or put in events."""

_LAX = {
    " STRICT, WITHOUT ROWID": " WITHOUT ROWID",
    " STRICT": "",
    " NOT NULL": "",
    " CHECK (json_valid(data))": "",
    " CHECK (length(hash) = 32)": "",
}


def make_ledger(path: Path) -> None:
    """Make a ledger by running things for real: tasks, retries, output, progress, cancels, a graph, deletions."""
    with contextlib.chdir(path.parent), SQLiteStore(path) as store, TaskExecutor(store) as executor:
        store._writable().append(Batch(f"task-{clock.new_id()}", _facts_of_an_agent(), 0))
        executor.register(TaskType.PROMPT, _answer)
        executor.register(TaskType.AGENT, lambda context: store.tasks.cancel(context.id))
        _run(
            executor, Task.bash("echo out; echo err >&2", title="prints", env={"GREETING": "hello", "TOKEN": "s3cret"})
        )
        _run(executor, Task.bash("exit 3", title="fails"), RetryPolicy(max_attempts=2, backoff=0.001))
        _run(executor, Task.prompt("what?", title="answers", description="a handler of its own", cwd="/", timeout=30))

        _run(executor, Task.agent("give up", title="cancelled"))

        revised = Task.bash("true", title="draft")
        store.tasks.save(revised)
        revised.title, revised.error = "final", "not yet"
        store.tasks.save(revised)
        store.tasks.cancel(revised.id)
        deleted = Task.bash("true", title="deleted")
        store.tasks.save(deleted)
        del store.tasks[deleted.id]
        store.tasks.save(deleted)

        graph = TaskGraph(title="nightly")
        fetch = Task.bash("echo fetched", title="fetch")
        broken = Task.bash("echo no >&2; exit 4", title="broken")
        late = Task.bash("true", title="late")
        graph.add(fetch)
        graph.add(broken, after=[fetch], retry_policy=RetryPolicy(max_attempts=2))
        graph.add(late, after=[broken, fetch])
        graph.add(Task.bash("echo cleaned", title="clean"), after=[late], finally_=True, required=False)
        graph.run(executor, max_workers=2)
        graph.run(executor)


def _facts_of_an_agent() -> list[Fact]:
    """Return an attempt with every fact of an agent; it was interrupted in a call and before a decision."""
    return [
        created("tidies up", type=TaskType.AGENT),
        started(),
        a.AgentSessionOpened(1, AT, "session-1", False, model="gpt", permissions=("allow shell(ls)", "deny all")),
        a.AgentPrompted(1, AT, "tidy up"),
        a.ModelCalled(1, AT, "gpt", 1000, 50, duration=1.5, multiplier=1.0, nano_aiu=3.5e9, call="api-1"),
        a.AgentAnswered(1, AT, "I'll look", False),
        a.PermissionRequested(1, AT, "request-1", "shell", "ls", "to look", "call-1"),
        a.PermissionDecided(1, AT, "request-1", "approved", "allow shell(ls)"),
        a.ToolCallStarted(1, AT, "call-1", "bash", {"command": "ls", "deep": [1, {"a": None}]}),
        a.ToolCallEnded(1, AT, "call-1", "failed", 2, "no", "x" * 5000, (a.FileEdit("/a", "edit"),)),
        a.AgentErred(1, AT, "rate_limit", "too many requests", True, 429),
        a.ToolCallStarted(1, AT, "call-2", "edit"),
        a.PermissionRequested(1, AT, "request-2", "write", "/a", None, "call-2"),
        a.AgentAborted(1, AT, "crashed"),
        a.AgentTurnEnded(1, AT, 1, 1000, 50, premium_requests=1.0, nano_aiu=3.5e9),
        ended(TaskInterrupted, error="its runner died", reason="interrupted", error_code="agent_crashed"),
    ]


def _run(executor: TaskExecutor, task: Task, policy: RetryPolicy | None = None) -> None:
    with contextlib.suppress(RuntimeError, TaskCancelled):
        executor.execute(task, retry_policy=policy)


def _answer(context: TaskContext) -> str:
    context.emit_progress(50, "thinking")
    return "forty-two"


@contextlib.contextmanager
def tampering(path: Path, *, keep_guards: bool = False) -> Iterator[sqlite3.Connection]:
    """Open a ledger as somebody who goes around its guards: the triggers are dropped, and put back afterwards."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        guards = connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
        if not keep_guards:
            for name, _ in guards:
                connection.execute(f"DROP TRIGGER {name}")
        yield connection
        if not keep_guards:
            for _, sql in guards:
                connection.execute(sql)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


@contextlib.contextmanager
def lawless(path: Path) -> Iterator[sqlite3.Connection]:
    """As `tampering`, and no table minds what is put into it: the schema is rewritten, and put back afterwards."""
    with tampering(path) as connection:
        schema = connection.execute("SELECT sql, name FROM sqlite_schema WHERE type = 'table'").fetchall()
    lax = []
    for sql, name in schema:
        for rule, instead in _LAX.items():
            sql = sql.replace(rule, instead)
        lax.append((sql, name))
    _write_schema(path, lax)
    with tampering(path) as connection:
        yield connection
    _write_schema(path, schema)


def _write_schema(path: Path, tables: list[tuple[str, str]]) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.executemany("UPDATE sqlite_schema SET sql = ? WHERE type = 'table' AND name = ?", tables)
        (version,) = connection.execute("PRAGMA schema_version").fetchone()
        connection.execute(f"PRAGMA schema_version = {version + 1}")


def rehash(connection: sqlite3.Connection, after: int = 0, *, only: int | None = None) -> None:
    """Write the hashes of the events after a position anew, or only one: what stands there then fits again."""
    row = connection.execute("SELECT hash FROM events WHERE position <= ? ORDER BY position DESC", (after,)).fetchone()
    before = row[0] if row is not None else GENESIS
    events = connection.execute(f"SELECT {ENVELOPE} FROM events WHERE position > ? ORDER BY position", (after,))
    for *columns, stored in events.fetchall():
        if only in (None, columns[0]):
            stored = event_hash(before, tuple(columns))
            connection.execute("UPDATE events SET hash = ? WHERE position = ?", (stored, columns[0]))
        before = stored


def forge(connection: sqlite3.Connection, stream: str, type_: str, data: str, type_version: int = 1) -> int:
    """Append an event as only a whole program would: in its place in log, stream and chain. Return its position."""
    position, before = connection.execute("SELECT position, hash FROM events ORDER BY position DESC LIMIT 1").fetchone()
    (version,) = connection.execute("SELECT count(*) FROM events WHERE stream = ?", (stream,)).fetchone()
    at, runner = connection.execute("SELECT recorded_at, runner FROM events ORDER BY position DESC LIMIT 1").fetchone()
    columns = (position + 1, stream, version + 1, type_, type_version, at, runner, None, data)
    connection.execute(
        f"INSERT INTO events ({ENVELOPE}) VALUES ({', '.join('?' * 10)})", (*columns, event_hash(before, columns))
    )
    return int(position) + 1


def as_stored(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return every row of every table, whatever the schema: column to value."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name").fetchall()
        connection.row_factory = sqlite3.Row
        return {name: [dict(row) for row in connection.execute(f"SELECT * FROM {name}")] for (name,) in tables}


def contents(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Return every event and every row."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return {
            "events": connection.execute(f"SELECT {ENVELOPE} FROM events ORDER BY position").fetchall(),
            **{
                table: sorted(connection.execute(f"SELECT {', '.join(columns)} FROM {table}"), key=repr)
                for table, columns in TABLES.items()
            },
        }
