"""What a user of ttasks writes, with every type as it is promised: mypy --strict has nothing to say about it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar, assert_type

from ttasks import (
    CopilotAgentSession,
    CopilotError,
    EventBus,
    InMemoryStore,
    PastStore,
    PermissionRequest,
    RecordedEvent,
    RetryPolicy,
    Run,
    SQLiteStore,
    Store,
    StreamConflictError,
    Task,
    TaskContext,
    TaskEvent,
    TaskEventType,
    TaskExecutionError,
    TaskExecutor,
    TaskGraph,
    TaskResult,
    TaskStatus,
    TaskType,
    make_copilot_agent_handler,
    make_copilot_prompt_handler,
)


def count_words(context: TaskContext) -> str:
    context.raise_if_cancelled()
    context.emit_progress(50, "halfway")
    assert_type(context.upstream, Mapping[str, Task])
    assert_type(context.attempt, int)
    assert_type(context.cwd, str | None)
    return f"{len(context.payload.split())} words"


def compile_it(context: TaskContext) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["cc", context.payload], capture_output=True, text=True, check=False)


def hear(event: TaskEvent) -> None:
    assert_type(event.type, TaskEventType)
    assert_type(event.record, RecordedEvent | None)
    if event.type is TaskEventType.OUTPUT and event.output_chunk is not None:
        print(event.output_chunk.rstrip())


def tasks() -> list[Task]:
    task = Task.bash("make", title="build", timeout=60, cwd="/src", env={"CC": "cc"})
    assert_type(task, Task)
    assert_type(task.status, TaskStatus)
    assert_type(task.result, TaskResult | None)
    assert_type(task.created_at, datetime)
    assert_type(task.is_done, bool)
    task.title = "build all"
    task.timeout = None
    task.transition_to(TaskStatus.FAILED, "by hand")
    return [task, Task("a title", "a payload", TaskType.AGENT), Task.prompt("hello"), Task.powershell("ls")]


def graphs(executor: TaskExecutor) -> bool:
    graph = TaskGraph(title="nightly")
    fetch = graph.add(Task.bash("true"), retry_policy=RetryPolicy(3, 0.5, factor=2, retry_on=TaskExecutionError))
    graph[Task.bash("true")] = [fetch]
    graph.add(Task.bash("true"), after=[fetch], finally_=True, required=False)
    assert_type(graph[fetch], list[Task])
    assert_type(graph.run(executor, max_workers=2), TaskGraph)
    assert_type(graph.errors, dict[str, BaseException])
    assert_type([task.id for task in graph], list[str])
    assert_type(graph.retry([fetch]), TaskGraph)
    return graph.ok


def execute(executor: TaskExecutor) -> str:
    executor.register(TaskType.AGENT, count_words)
    executor.register(TaskType.BASH, compile_it)
    executor.register(TaskType.PROMPT, lambda context: context.payload)
    assert_type(executor.events, EventBus)
    unsubscribe = executor.events.subscribe(hear)
    policy = RetryPolicy(max_attempts=2, retry_on=lambda error: isinstance(error, OSError))
    try:
        result = executor.execute(Task.agent("a few words"), {}, retry_policy=policy)
    except TaskExecutionError as error:
        assert_type(error.completed, subprocess.CompletedProcess[str] | None)
        raise
    finally:
        unsubscribe()
    assert_type(result, TaskResult)
    assert_type(result.returncode, int | None)
    assert_type(result.duration, float)
    assert_type(result.raw, Any)
    assert_type(executor.submit(Task.bash("true")), Future[TaskResult])
    assert_type(executor.store, Store | None)
    return result.output


def stores(store: SQLiteStore | InMemoryStore, graph: TaskGraph) -> None:
    for task in store.tasks.values():
        assert_type(task, Task)
    for task_id, task in store.tasks.items():
        assert_type(task_id, str)
        assert_type(task, Task)
    assert_type(store.tasks.get("id"), Task | None)
    assert_type([each.title for each in store.graphs.values()], list[str])
    assert_type(store.graphs["id"], TaskGraph)
    try:
        store.graphs.save(graph)
    except StreamConflictError as error:
        assert_type(error.version, int)
    store.tasks.cancel("id")
    for event in store.events:
        assert_type(event, RecordedEvent)
        assert_type(event.position, int)
    assert_type(store.history(graph), list[RecordedEvent])
    for run in store.runs:
        assert_type(run, Run)
    assert_type(store.as_of(1), PastStore)
    assert_type(store.as_of(datetime.now().astimezone()).tasks["id"], Task)


Thing = TypeVar("Thing", Task, TaskGraph)


class Shelf(dict[str, Thing]):
    """A collection of a user's own."""

    def save(self, thing: Thing) -> None:
        self[thing.id] = thing

    def cancel(self, task_id: str) -> None:
        del self[task_id]


class Shelves:
    """A store of a user's own."""

    def __init__(self) -> None:
        self.tasks: Shelf[Task] = Shelf()
        self.graphs: Shelf[TaskGraph] = Shelf()


def any_store(store: Store) -> list[str]:
    store.tasks.save(Task.bash("true"))
    return [task.title for task in store.tasks.values()]


def decide(request: PermissionRequest) -> bool | str:
    assert_type(request.paths, tuple[str, ...])
    assert_type(request.intention, str | None)
    return request.kind == "read" or f"not {request.subject}"


def agents(executor: TaskExecutor) -> None:
    executor.register(TaskType.PROMPT, make_copilot_prompt_handler(model="gpt-x", timeout=None, cli_path="copilot"))
    executor.register(TaskType.AGENT, make_copilot_agent_handler(permissions=decide, working_directory=Path("src")))
    make_copilot_agent_handler(permissions="read_only", env={"A": "b"}, provider={"base_url": "http://127.0.0.1/v1"})
    with CopilotAgentSession(permissions=["read", "deny shell(rm *)"], streaming=False) as session:
        assert_type(session, CopilotAgentSession)
        assert_type(session.send_and_wait("Hello", timeout=2.5), str)
        assert_type(session.on(print), Callable[[], None])
        assert_type(session.event_errors, list[Exception])
        executor.register(TaskType.AGENT, session.handler())
    try:
        executor.execute(Task.agent("Look"))
    except CopilotError as error:
        assert_type(error.code, str | None)


async def talk() -> None:
    async with CopilotAgentSession(on_event=print) as session:
        assert_type(await session.send_and_wait("Hello"), str)
        assert_type(session.session_id, str)


def use_them_all() -> None:
    with SQLiteStore("ledger.db", redact=["PASSWORD"]) as store, TaskExecutor(store) as executor:
        assert_type(store, SQLiteStore)
        execute(executor)
        agents(executor)
        graphs(TaskExecutor.empty(InMemoryStore()))
        any_store(store)
        any_store(InMemoryStore())
    any_store(Shelves())
    TaskExecutor(Shelves(), max_output_bytes=10)
