"""Small graphs, run three times over while their handlers change their minds, end as an independent oracle says."""

from __future__ import annotations

import os
import threading
from collections import Counter
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from ttasks import SQLiteStore, Task, TaskCancelled, TaskContext, TaskExecutor, TaskGraph, TaskType
from ttasks.log.verify import verify

EXAMPLES = 200 if os.environ.get("TTASKS_CAMPAIGN") == "full" else 40
RUNS = 3


@dataclass(frozen=True)
class Node:
    """A task: what it depends on (indices of others), and what its handler does in each run."""

    after: tuple[int, ...]
    is_finally: bool
    is_required: bool
    does: tuple[str, ...]


@st.composite
def graphs(draw: st.DrawFn) -> list[Node]:
    size = draw(st.integers(1, 8))
    nodes = []
    for index in range(size):
        after = tuple(draw(st.lists(st.integers(0, index - 1), max_size=3, unique=True))) if index else ()
        is_finally = draw(st.booleans())
        is_required = draw(st.booleans()) or not is_finally
        does = tuple(draw(st.lists(st.sampled_from(["ok", "ok", "fail", "cancel"]), min_size=RUNS, max_size=RUNS)))
        nodes.append(Node(after, is_finally, is_required, does))
    return nodes


def expect(nodes: list[Node], before: list[str], run: int) -> tuple[list[str], set[int]]:
    """Return the statuses after one run, and which tasks ran, by SPEC §2.7: parents come before their children here."""
    after, ran = list(before), set()
    for index, node in enumerate(nodes):
        if before[index] in ("succeeded", "cancelled"):
            continue
        if node.is_finally or all(after[parent] == "succeeded" for parent in node.after):
            ran.add(index)
            after[index] = {"ok": "succeeded", "fail": "failed", "cancel": "cancelled"}[node.does[run]]
        elif before[index] == "pending":
            after[index] = "blocked"
    return after, ran


@settings(max_examples=EXAMPLES, deadline=None)
@given(nodes=graphs(), workers=st.sampled_from([1, 4, 16]), with_ledger=st.booleans(), overridden=st.booleans())
def test_every_run_ends_as_the_oracle_says(
    nodes: list[Node], workers: int, with_ledger: bool, overridden: bool
) -> None:
    graph, tasks = TaskGraph(), [Task.bash(str(index)) for index in range(len(nodes))]
    for node, task in zip(nodes, tasks, strict=True):
        parents = [tasks[parent] for parent in node.after]
        graph.add(task, after=parents, finally_=node.is_finally, required=node.is_required)
    run, ran, lock = 0, Counter[int](), threading.Lock()

    def handler(context: TaskContext) -> None:
        index = int(context.payload)
        with lock:
            ran[index] += 1
        if nodes[index].does[run] == "fail":
            raise OSError("as drawn")
        if nodes[index].does[run] == "cancel":
            raise TaskCancelled("as drawn")

    class Overriding(TaskExecutor):
        def execute(self, *args, **options):
            return super().execute(*args, **options)

    store = SQLiteStore(":memory:") if with_ledger else None
    executor = (Overriding if overridden else TaskExecutor).empty(store)
    executor.register(TaskType.BASH, handler)
    statuses = ["pending"] * len(nodes)
    for run in range(RUNS):
        ran.clear()
        graph.run(executor, max_workers=workers)
        before = statuses
        statuses, expected = expect(nodes, before, run)
        assert [str(task.status) for task in tasks] == statuses
        assert ran == Counter(expected)
        assert graph.ok == all(statuses[i] == "succeeded" for i, node in enumerate(nodes) if node.is_required)
        for index, node in enumerate(nodes):
            if statuses[index] == "blocked" and before[index] == "pending":
                bad = [tasks[parent].id for parent in node.after if statuses[parent] not in ("succeeded", "pending")]
                assert tasks[index].blocked_by in bad
    if store is not None:
        assert verify(store._readers).problems == []
        store.close()
