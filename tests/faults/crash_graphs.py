"""Graphs that the crash lab kills: each builder is a function of a module, so that other processes can call it."""

from __future__ import annotations

from ttasks import RetryPolicy, Task, TaskContext, TaskExecutor, TaskGraph, TaskType


def prepare(executor: TaskExecutor) -> None:
    """Let PROMPT tasks be quick ones, in the process: what is killed is the ledger's user, not a shell."""
    executor.register(TaskType.PROMPT, work)


def work(context: TaskContext) -> str:
    if context.payload.startswith("fail"):
        raise RuntimeError("as it was told to")
    if context.payload.startswith("flaky") and context.attempt % 2:
        raise RuntimeError("not yet")
    return (
        f"{context.title}: {' '.join(sorted(task.result.output for task in context.upstream.values() if task.result))}"
    )


def named(title: str, payload: str = "") -> Task:
    return Task.prompt(payload, title=title)


def chain(executor: TaskExecutor) -> TaskGraph:
    prepare(executor)
    graph = TaskGraph(title="chain")
    before: list[Task] = []
    for title in "abcd":
        before = [graph.add(named(title), after=before)]
    return graph


def diamond(executor: TaskExecutor) -> TaskGraph:
    prepare(executor)
    graph = TaskGraph(title="diamond")
    top = graph.add(named("top"))
    sides = [graph.add(named(title), after=[top]) for title in ("left", "right")]
    graph.add(named("bottom"), after=sides)
    return graph


def fan(executor: TaskExecutor) -> TaskGraph:
    prepare(executor)
    graph = TaskGraph(title="fan")
    root = graph.add(named("root"))
    leaves = [graph.add(named(f"leaf {number}"), after=[root]) for number in range(5)]
    graph.add(named("all"), after=leaves)
    return graph


def cleanup(executor: TaskExecutor) -> TaskGraph:
    """A failure, what it blocks, a finally task for it, and one that need not succeed."""
    prepare(executor)
    graph = TaskGraph(title="cleanup")
    build = graph.add(named("build"))
    test = graph.add(named("test", "fail"), after=[build])
    ship = graph.add(named("ship"), after=[test])
    clean = graph.add(named("clean"), after=[ship], finally_=True)
    graph.add(named("tell", "fail"), after=[clean], finally_=True, required=False)
    return graph


def retries(executor: TaskExecutor) -> TaskGraph:
    """A task that succeeds when it is tried again, and a script that takes too long."""
    prepare(executor)
    graph = TaskGraph(title="retries")
    flaky = graph.add(named("flaky", "flaky"), retry_policy=RetryPolicy(max_attempts=4, backoff=0.01))
    slow = graph.add(Task.bash("sleep 60", title="slow", timeout=0.1), after=[flaky])
    graph.add(named("clean"), after=[slow], finally_=True)
    return graph


def shell(executor: TaskExecutor) -> TaskGraph:
    """Real scripts, each with a child of its own in the background."""
    graph = TaskGraph(title="shell")
    first = graph.add(Task.bash("sleep 300 & echo one; sleep 0.02; kill $!", title="first"))
    second = graph.add(Task.bash("sleep 0.05; echo two", title="second"), after=[first])
    graph.add(Task.bash("echo cleaned", title="clean"), after=[second], finally_=True)
    return graph


SHAPES = {
    "chain": (chain, {"a": "succeeded", "b": "succeeded", "c": "succeeded", "d": "succeeded"}),
    "diamond": (diamond, {"top": "succeeded", "left": "succeeded", "right": "succeeded", "bottom": "succeeded"}),
    "fan": (fan, {"root": "succeeded", **{f"leaf {n}": "succeeded" for n in range(5)}, "all": "succeeded"}),
    "cleanup": (
        cleanup,
        {"build": "succeeded", "test": "failed", "ship": "blocked", "clean": "succeeded", "tell": "failed"},
    ),
    "retries": (retries, {"flaky": "succeeded", "slow": "failed", "clean": "succeeded"}),
    "shell": (shell, {"first": "succeeded", "second": "succeeded", "clean": "succeeded"}),
}
"""Each graph, and where its tasks stand at the end, however often the world stopped meanwhile."""
