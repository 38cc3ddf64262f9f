"""What failing.yaml does, in Python: `python examples/failing.py` exits with 1.

It says each task's end as it happens, and afterwards how the tasks stand, which is what failing.yaml documents.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from ttasks import RetryPolicy, SQLiteStore, Task, TaskEvent, TaskEventType, TaskExecutor, TaskGraph

FLAKY = """
echo . >> "$SCRATCH/tries"
echo "this is try $(wc -l < "$SCRATCH/tries")"
test "$(wc -l < "$SCRATCH/tries")" -ge 3
"""
DEPLOY = """
echo "copying files"
echo "the target does not answer" >&2
exit 3
"""
NOTIFY = """
echo "nobody is there to be told" >&2
exit 1
"""


def failing_graph(scratch: Path) -> TaskGraph:
    """Return the graph; `scratch` is a folder that its first task makes and its last one removes."""
    env = {"SCRATCH": str(scratch)}
    graph = TaskGraph(title="fails on purpose")
    prepare = graph.add(Task.bash('mkdir -v "$SCRATCH"', title="prepare", env=env))
    flaky = graph.add(
        Task.bash(FLAKY, title="flaky", env=env), after=[prepare], retry_policy=RetryPolicy(max_attempts=3, backoff=0.1)
    )
    deploy = graph.add(
        Task.bash(DEPLOY, title="deploy"), after=[flaky], retry_policy=RetryPolicy(max_attempts=2, backoff=0.1)
    )
    announce = graph.add(Task.bash('echo "this never runs"', title="announce"), after=[deploy])
    notify = graph.add(Task.bash(NOTIFY, title="notify"), after=[deploy], finally_=True, required=False)
    graph.add(Task.bash('rm -rv "$SCRATCH"', title="cleanup", env=env), after=[announce, notify], finally_=True)
    return graph


def say(event: TaskEvent) -> None:
    """Print an end; with its `record` it is in the ledger already."""
    if event.type not in (TaskEventType.STARTED, TaskEventType.OUTPUT) and event.record is not None:
        print(f"event {event.record.position}: {event.task.title} {event.type}")


def main() -> int:
    """Run the graph; return the exit code."""
    ledger = os.environ.get("TTASKS_LEDGER") or ".ttasks/ledger.db"
    graph = failing_graph(Path(tempfile.gettempdir()) / f"ttasks-failing-{os.getpid()}")
    with SQLiteStore(ledger) as store, TaskExecutor(store) as executor:
        executor.events.subscribe(say)
        graph.run(executor, max_workers=2)
    for task in graph:
        print(f"{task.title:9} {task.status:10} {task.attempts} x  {(task.error or '').strip()}".rstrip())
    print("OK" if graph.ok else f"NOT OK: {', '.join(task.title for task in graph.required_failed)} failed")
    return 0 if graph.ok else 1


if __name__ == "__main__":
    sys.exit(main())
