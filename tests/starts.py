"""An oracle over the log: whatever a task's start relies on is recorded before the start."""

from __future__ import annotations

import sys
from typing import Any

from ttasks import TaskGraph
from ttasks.events.envelope import RecordedEvent
from ttasks.events.facts import AttemptEnd, TaskBlocked, TaskStarted, TaskSucceeded


def check_starts(store: Any, graph: TaskGraph) -> int:
    """Check every start of every run of the graph, and return how many there were.

    An ordinary task relies on the success of its dependencies. A finally task relies on all that is before it, and
    nothing of that may change in the run after its start.
    """
    parents = {task.id: [parent.id for parent in graph.dependencies(task)] for task in graph}
    finally_tasks = {task.id for task in graph.finally_tasks}
    begins = [event.position for event in store._readers.events(stream=f"graph-{graph.id}", type="GraphRunStarted")]
    changes: dict[str, list[RecordedEvent]] = {
        task_id: [
            event
            for event in store._readers.events(stream=f"task-{task_id}")
            if isinstance(event.fact, TaskStarted | AttemptEnd | TaskBlocked)
        ]
        for task_id in parents
    }
    starts = [event for events in changes.values() for event in events if isinstance(event.fact, TaskStarted)]
    for start in starts:
        task_id = start.stream.removeprefix("task-")
        next_run = next((begin for begin in begins if begin > start.position), sys.maxsize)
        if task_id in finally_tasks:
            late = [
                event
                for above in _ancestors(parents, task_id)
                for event in changes[above]
                if start.position < event.position < next_run
            ]
            assert late == [], f"{start} relies on what was recorded after it"
        else:
            for parent in parents[task_id]:
                known = [event for event in changes[parent] if event.position < start.position]
                assert known, f"{start} relies on {parent}, of which nothing is recorded"
                assert isinstance(known[-1].fact, TaskSucceeded)
    return len(starts)


def _ancestors(parents: dict[str, list[str]], task_id: str) -> set[str]:
    found: set[str] = set()
    left = list(parents[task_id])
    while left:
        one = left.pop()
        if one not in found:
            found.add(one)
            left += parents[one]
    return found
