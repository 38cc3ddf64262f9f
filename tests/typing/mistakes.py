"""One mistake a line: mypy finds each, and nothing else."""
# ruff: noqa - its mistakes are there on purpose

from ttasks import RetryPolicy, SQLiteStore, Task, TaskContext, TaskEvent, TaskExecutor, TaskGraph, TaskStatus, TaskType
from ttasks import CopilotAgentSession, make_copilot_agent_handler
from ttasks import TaskRunner  # E: attr-defined


def too_much(context: TaskContext, more: int) -> str:
    return context.payload * more


def hear(event: TaskEvent) -> None:
    event.status = TaskStatus.FAILED  # E: misc
    event.output_chunk.rstrip()  # E: union-attr


def wrong(store: SQLiteStore, executor: TaskExecutor, graph: TaskGraph, task: Task) -> None:
    Task.bash()  # E: call-arg
    Task.bash("true", timeout="1 minute")  # E: arg-type
    Task.bash("true", titel="a title")  # E: call-arg
    Task("a title", "a payload", "bash")  # E: arg-type
    task.status = TaskStatus.FAILED  # E: misc
    task.is_running()  # E: operator
    task.result.output  # E: union-attr
    task.transition_to("failed")  # E: arg-type
    TaskExecutor(42)  # E: arg-type
    executor.register("bash", lambda context: None)  # E: arg-type
    executor.register(TaskType.BASH, too_much)  # E: arg-type
    executor.execute("true")  # E: arg-type
    executor.execute(task, retry_policy=3)  # E: arg-type
    executor.submit(task).output  # E: attr-defined
    executor.events.subscribe("hear")  # E: arg-type
    executor.store = store  # E: misc
    graph.add(task, after=task)  # E: arg-type
    graph.add(task, finally_="yes")  # E: arg-type
    graph[task] = ["build"]  # E: list-item
    graph.ok = True  # E: misc
    graph.run()  # E: call-arg
    RetryPolicy(max_attempts="3")  # E: arg-type
    RetryPolicy(3, 0.5, factr=2.0)  # E: call-arg
    store.tasks.values().title  # E: attr-defined
    store.tasks["id"].titel  # E: attr-defined
    store.tasks.save(graph)  # E: arg-type
    store.graphs.save(task)  # E: arg-type
    store.as_of("yesterday")  # E: arg-type
    [event.positions for event in store.events]  # E: attr-defined
    SQLiteStore(7)  # E: arg-type
    make_copilot_agent_handler("gpt-x")  # E: call-arg
    make_copilot_agent_handler(permissions=3)  # E: arg-type
    make_copilot_agent_handler(permissions=lambda request: None)  # E: arg-type
    CopilotAgentSession(timeout="1 minute")  # E: arg-type
    with CopilotAgentSession() as session:
        session.send_and_wait(3)  # E: arg-type
        session.session_id = "mine"  # E: misc
