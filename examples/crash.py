"""Crash in the middle of a graph, and go on: run this twice (`python examples/crash.py`).

The first time the program kills itself, as a power cut would. The second time it finds what was interrupted in the
ledger, goes on with that, and shows that what had succeeded was not done again.
"""

from __future__ import annotations

import os
import signal
import sys

from ttasks import SQLiteStore, Task, TaskContext, TaskExecutor, TaskGraph, TaskType

LEDGER = os.environ.get("TTASKS_LEDGER", ".ttasks/crash.db")


def work(context: TaskContext) -> str:
    """Do one step; the first attempt at "transform" takes the whole program with it."""
    if context.title == "transform" and context.attempt == 1:
        print("transform: here the lights go out", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    print(f"{context.title}: done in attempt {context.attempt}", flush=True)
    return context.title


def main() -> int:
    """Resume what was interrupted; where nothing was, begin."""
    with SQLiteStore(LEDGER) as store, TaskExecutor(store) as executor:
        executor.register(TaskType.BASH, work)
        for left in store.interrupted():
            print(f"{left.title} was interrupted: {left.why}")
        resumed = [handle for handle in executor.resume() if isinstance(handle, TaskGraph)]
        for graph in resumed:
            for task in graph:
                print(f"{task.title}: {task.status} after {task.attempts} attempts")
        if resumed:
            return 0 if all(graph.ok for graph in resumed) else 1
        graph = TaskGraph(title="etl")
        extract = graph.add(Task.bash("extract", title="extract"))
        transform = graph.add(Task.bash("transform", title="transform"), after=[extract])
        graph.add(Task.bash("clean", title="clean"), after=[transform], finally_=True)
        graph.run(executor)
    return 0


if __name__ == "__main__":
    sys.exit(main())
