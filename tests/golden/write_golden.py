"""Write the golden ledger of today's format: python tests/golden/write_golden.py

It goes to ``schema-<version of the schema>/``: ``ledger.db``, which holds every type of event, and ``expected.json``,
which says what it has to come to. A golden ledger of a released format is never written again: it stands for all the
ledgers that people have. Until the release of its format, run this whenever the facts have changed, and commit both.

What can be recorded by running things is; what nothing records yet is appended as it would be.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import sys
import tempfile
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

from ttasks import RetryPolicy, SQLiteStore, Task, TaskCancelled, TaskContext, TaskExecutor, TaskGraph, TaskType, clock
from ttasks import TaskStatus as Status
from ttasks.events import agent_facts as a
from ttasks.events import facts as f
from ttasks.events.codec import to_json
from ttasks.events.status import OnInterrupted, RunStatus
from ttasks.events.status import TaskType as Type
from ttasks.log import event_log
from ttasks.log.event_log import EventLog
from ttasks.log.migrate import SCHEMA_VERSION
from ttasks.log.projection import TABLES, select
from ttasks.log.reading import Readers
from ttasks.log.transaction import Batch
from ttasks.log.verify import verify
from ttasks.state import task as task_rules
from ttasks.state.task import TaskState

HERE = Path(__file__).parent
AT = datetime(2026, 11, 24, 8, tzinfo=UTC)
ANN = "ann@laptop"
HOSTILE = "NUL \0, a lone surrogate \udce9, \U0001f600, \u2028 and ö"


def runner() -> f.RunnerStarted:
    """Return who is said to have made it: nothing of the machine where it was made is in it."""
    return f.RunnerStarted(
        host="laptop", boot_id="6f1f9d1e-3c1c-4d7e-9d53-0a1b2c3d4e5f", pid=4242, process_start="ticks:12345",
        user="ann", cwd="/home/ann/project", command=("ttasks", "run", "nightly.yaml"), ttasks_version="0.1.0",
        python_version="3.11.9", platform="linux",
    )  # fmt: skip


@contextlib.contextmanager
def as_ann() -> Any:
    """Do everything as somebody else, somewhere else."""
    git = f.RunnerDescribed("/home/ann/project", "0123456789abcdef0123456789abcdef01234567", "main", True)
    with (
        mock.patch.object(event_log, "describe_runner", runner),
        mock.patch.object(event_log.EventLog, "moved_to", lambda _: None),
        mock.patch.object(event_log, "git_root", lambda: Path("/home/ann/project")),
        mock.patch.object(event_log, "describe_git", lambda _: git),
        mock.patch.object(clock, "whoami", lambda: ANN),
        mock.patch.dict(os.environ, {"TTASKS_REDACT": ""}),
    ):
        yield


# --- what is run ----------------------------------------------------------------------------------------------------


def run_tasks(store: SQLiteStore, executor: TaskExecutor) -> None:
    """Succeed, fail, retry, time out, cancel, revise, delete, bring back, set by hand."""

    def answer(context: TaskContext) -> str:
        context.emit_progress(50, "thinking")
        context.emit_progress(message=HOSTILE)
        return f"forty-two, {HOSTILE}"

    def give_up(context: TaskContext) -> None:
        store.tasks.cancel(context.id)
        context.raise_if_cancelled()

    executor.register(TaskType.PROMPT, answer)
    executor.register(TaskType.AGENT, give_up)
    env = {"REGION": "north", "TOKEN": "s3cret-value"}
    run(
        executor,
        Task.bash(
            'echo "out $TOKEN"; echo err >&2', title="prints", description="to both", env=env, cwd="/", grace=0.5
        ),
    )
    policy = RetryPolicy(3, 0.001, factor=2, max_backoff=0.002, jitter=0.5, retry_on=(RuntimeError, OSError))
    run(executor, Task.bash("exit 3", title="fails", timeout=30, on_interrupted="ask"), policy)
    run(executor, Task.bash("printf 'x%.0s' $(seq 6000) >&2; exit 1", title="says much"))
    run(executor, Task.bash("echo so far; sleep 60", title="is too slow", timeout=0.3, wait_for_output=False))
    run(executor, Task.prompt("what?", title=HOSTILE, on_interrupted="fail"))
    run(executor, Task.agent("give up", title="\ufffd begins with that"))

    revised = Task("draft", "true", TaskType.BASH, error="not yet")
    store.tasks.save(revised)
    revised.title, revised.timeout, revised.error = "final", 2.5, None
    store.tasks.save(revised)
    executor.cancel(revised)

    deleted = Task.bash("true", title="deleted")
    store.tasks.save(deleted)
    del store.tasks[deleted.id]
    back = Task.bash("echo it was there", title="came back")
    run(executor, back)
    del store.tasks[back.id]
    store.tasks.save(back)

    by_hand = Task.bash("true", title="by hand")
    by_hand.transition_to(Status.RUNNING)
    by_hand.transition_to(Status.INTERRUPTED, "the power went")
    store.tasks.save(by_hand)
    blocked = Task.bash("true", title="blocked by hand")
    blocked.transition_to(Status.BLOCKED, "no reason given")
    store.tasks.save(blocked)


def run_graphs(store: SQLiteStore, executor: TaskExecutor) -> None:
    """Run one that fails, revise it, run it again, carry on with another, and delete that."""
    graph = TaskGraph(title="nightly")
    fetch = Task.bash("echo fetched", title="fetch")
    broken = Task.bash("test -e never || exit 4", title="broken")
    late = Task.bash("true", title="late")
    graph.add(fetch)
    graph.add(broken, after=[fetch], retry_policy=RetryPolicy(2))
    graph.add(late, after=[broken, fetch])
    graph.add(Task.bash("echo cleaned", title="clean"), after=[late], finally_=True, required=False)
    graph.run(executor, max_workers=2)
    graph.title = "nightly, revised"
    graph.add(Task.bash("echo more", title="more"), after=[fetch])
    graph.run(executor)
    again = graph.retry()
    store.graphs.save(again)
    del store.graphs[again.id]


def run(executor: TaskExecutor, task: Task, policy: RetryPolicy | None = None) -> None:
    with contextlib.suppress(RuntimeError, TimeoutError, TaskCancelled):
        executor.execute(task, retry_policy=policy)


# --- what is appended -----------------------------------------------------------------------------------------------


def created(name: str, **more: Any) -> f.TaskCreated:
    return f.TaskCreated(name, name, Type.BASH, f"echo {name}", "", AT, OnInterrupted.RERUN, **more)


def append_what_nothing_records_yet(log: EventLog) -> None:
    """Interrupt, end what is left, resolve; interrupt a run, resume it, cancel and finish it."""
    start = f.TaskStarted(1, "ttasks.handlers.shell.run_bash", "echo lost", AT, 0, graph="lost-graph", run=1)
    source = f.Source("/home/ann/project/nightly.yaml", "00" * 32)
    members = (f.Member("lost"), f.Member("next", ("lost",), True, False, f.RetrySpec(2, 0.5)))
    errors = {"lost": {"type": "ttasks.TaskTimeoutError", "text": HOSTILE}}
    log.append(
        Batch("task-lost", [created("lost", derived_from="lost-before", error=HOSTILE), start], 0),
        Batch("graph-lost-graph", [
            f.GraphCreated("lost", AT, members, source, 3, "graph-before"),
            f.GraphRunStarted(1, 3, ("lost", "next"), ((1, 0),), (1,), (1,)),
        ], 0),
    )  # fmt: skip
    log.append(
        Batch("task-next", [created("next", redacted=("payload",)), f.TaskBlocked("lost")], 0),
        Batch("task-lost", [
            f.ProcessSpawned(1, 4243, "ticks:12346"),
            f.TaskInterrupted(1, AT, AT, 1.5, HOSTILE, None, "builtins.SystemExit", None, "interrupted"),
            f.ProcessReaped(1, (4243, 4244), "SIGKILL", "they outlived their runner"),
        ], None),
        Batch("graph-lost-graph", [f.GraphRunInterrupted(1, "SIGTERM", errors, 1.25)], None),
    )  # fmt: skip
    log.append(
        Batch("graph-lost-graph", [
            f.GraphRunResumed(1, ANN, finally_only=True),
            f.GraphCancelRequested(ANN, "Ctrl-C"),
            f.GraphRunFinished(1, RunStatus.CANCELLED, errors, 0.5),
        ], None),
        Batch("task-lost", [f.TaskResolved("succeeded", ANN, "I saw it end"), f.TaskSucceeded()], None),
    )  # fmt: skip


def append_what_agents_do(log: EventLog) -> None:
    """Two attempts of an agent: one that is interrupted in a call, and one that ends; and what has no place."""
    start = f.TaskStarted(1, "ttasks.CopilotAgentSession.handler", "tidy up", AT, 0)
    arguments = {"command": f"ls '{HOSTILE}'", "deep": [{"n": 1.5, "none": None}, [], {}], "\0": True}
    log.append(
        Batch("task-agent", [
            f.TaskCreated("agent", "agent", Type.AGENT, "tidy up", "", AT, OnInterrupted.RERUN),
            start,
            a.AgentSessionOpened(
                1, AT, "session-1", False, "1.0.102", "1.0.25", "gpt-5.5", "high", "/home/ann/project",
                "https://models.example", "user: ann", ("allow shell(ls)", "deny all"), ("bash", "view"), ("url",),
            ),
            a.AgentPrompted(1, AT, "tidy up"),
            a.ModelCalled(1, AT, "gpt-5.5", 1000, 50, 800, 0, 20, 1.25, 1.0, 3.5e9, "user", "tool_calls", "api-1"),
            a.AgentAnswered(1, AT, f"I'll look: {HOSTILE}", False, "gpt-5.5"),
            a.PermissionRequested(1, AT, "request-1", "shell", "ls", "to look", "call-1"),
            a.PermissionDecided(1, AT, "request-1", "approved", "allow shell(ls)"),
            a.ToolCallStarted(1, AT, "call-1", "bash", arguments),
            a.ToolCallEnded(1, AT, "call-1", "failed", 2, "ls: no such file", "x" * 5000 + HOSTILE),
            a.ToolCallStarted(1, AT, "call-2", "task", {"agent": "explore"}),
            a.ToolCallStarted(1, AT, "call-3", "search", "everything", "files", "call-2", "explore"),
            a.PermissionRequested(1, AT, "request-2", "mcp", "search", None, "call-3", "explore"),
        ], 0),
    )  # fmt: skip
    edits = (a.FileEdit("/home/ann/project/a", "create"), a.FileEdit(HOSTILE, "edit"))
    log.append(
        Batch("task-agent", [
            f.TaskInterrupted(1, AT, AT, 9.5, "its runner died", None, None, None, "interrupted", "agent_crashed"),
            f.TaskStarted(2, "ttasks.CopilotAgentSession.handler", "tidy up", AT, 0),
            a.AgentSessionOpened(2, AT, "session-1", True, model="gpt-5.5"),
            a.AgentPrompted(2, AT, "go on"),
            a.ToolCallStarted(2, AT, "call-4", "edit"),
            a.ToolCallStarted(2, AT, "call-4", "edit", {"again": "with the same id"}),
            a.ToolCallEnded(2, AT, "call-4", "succeeded", files=edits),
            a.ToolCallEnded(2, AT, "call-never-begun", "aborted"),
            a.PermissionRequested(2, AT, "request-1", "write", "/etc/passwd"),
            a.PermissionDecided(2, AT, "request-1", "denied", "ask_ann", "not that one"),
            a.PermissionDecided(2, AT, "request-never-made", "approved", "ask_ann"),
            a.ModelCalled(2, AT, "gpt-5.5"),
            a.AgentErred(2, AT, "rate_limit", "too many requests", True, 429),
            a.AgentAborted(2, AT, "timeout"),
            a.AgentTurnEnded(2, AT, 3, 2000, 100, 900, 5, 1.0, 7.25e9, 1, 12, 3),
            f.TaskFailed(2, AT, AT, 60.0, "too slow", None, "ttasks.TaskTimeoutError", None, "timeout", "timeout"),
            a.ModelCalled(2, AT, "of an attempt that is over"),
        ], None),
    )  # fmt: skip


# --- the two files --------------------------------------------------------------------------------------------------


def expected(path: Path) -> dict[str, Any]:
    """Return what a ledger comes to: its head, its events by place and type, its rows, and tasks folded whole."""
    with closing(Readers.open(path)) as readers:
        events = list(readers.events())
        rows = {
            table: [
                dict(zip(columns, row, strict=True))
                for row in readers.ask(lambda connection, table=table: connection.execute(select(table)).fetchall())
            ]
            for table, columns in TABLES.items()
        }
        tasks = [row["id"] for row in rows["tasks"]]
        printed = {f"{row['task_id']}/{row['attempt']}": readers.printed(row["task_id"], row["attempt"])
                   for row in rows["attempts"]}  # fmt: skip
        return {
            "head": events[-1].hash.hex(),
            "events": [f"{event.position} {event.stream}@{event.version} {event.type}" for event in events],
            "rows": rows,
            "tasks": {task_id: folded(readers, task_id) for task_id in tasks},
            "output": {attempt: output for attempt, output in printed.items() if any(output.values())},
        }


def folded(readers: Readers, task_id: str) -> Any:
    """Return a task folded from its events, as JSON values: its error texts are whole."""
    state: TaskState | None = None
    for event in readers.events(stream=f"task-{task_id}"):
        state = task_rules.apply(state, event.fact, task_id=task_id, version=event.version)
    assert state is not None
    result = vars(state.result) if state.result is not None else None
    return json.loads(to_json({**vars(state), "result": result}))


def write(folder: Path) -> None:
    """Write the ledger and what is expected of it into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work, as_ann():
        made = Path(work) / "ledger.db"
        with contextlib.chdir(work), SQLiteStore(made) as store, TaskExecutor(store) as executor:
            run_tasks(store, executor)
            run_graphs(store, executor)
            append_what_nothing_records_yet(store._writable())
            append_what_agents_do(store._writable())
        golden = folder / "ledger.db"
        golden.unlink(missing_ok=True)
        with closing(sqlite3.connect(made)) as connection:
            connection.execute("VACUUM INTO ?", (str(golden),))
        with closing(Readers.open(golden)) as readers:
            assert verify(readers).problems == []
        text = json.dumps(expected(golden), indent=1)
        with closing(sqlite3.connect(golden)) as connection:  # as text, in which no hash spells a short name by chance
            check_that_nothing_is_of_here("\n".join([*connection.iterdump(), text]), work)
        (folder / "expected.json").write_text(text + "\n", "ascii")


def check_that_nothing_is_of_here(content: str, work: str) -> None:
    strangers = {os.uname().nodename, work, str(HERE), os.path.realpath(sys.executable), "s3cret-value"}
    assert [word for word in strangers if word in content] == []


if __name__ == "__main__":
    write(HERE / f"schema-{SCHEMA_VERSION}")
