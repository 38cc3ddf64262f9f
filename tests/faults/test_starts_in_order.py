"""What a task's start relies on is recorded before it, also where two threads settle it: one is held in the ledger."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from starts import check_starts
from ttasks import InMemoryStore, SQLiteStore, Task, TaskContext, TaskExecutor, TaskGraph, TaskResult, TaskType
from ttasks.events.envelope import RecordedEvent
from ttasks.events.facts import TaskBlocked
from ttasks.stores.recording import Entry

PATIENCE_S = 20
IS_CAMPAIGN = os.environ.get("TTASKS_CAMPAIGN") == "full"


class Overridden(TaskExecutor):
    """An executor with an `execute` of its own, so that no end shares a commit with a start."""

    def execute(self, task: Task, *args: Any, **kwargs: Any) -> TaskResult:
        return super().execute(task, *args, **kwargs)


@pytest.fixture
def store(tmp_path: Path, outside_git: Path) -> Iterator[SQLiteStore]:
    with SQLiteStore(tmp_path / "ledger.db") as ledger:
        yield ledger


class HeldBlock:
    """Holds the thread that records the block of a task, until it is told to go on."""

    def __init__(self, executor: TaskExecutor, task: Task) -> None:
        self.is_recording, self.goes_on = threading.Event(), threading.Event()
        self._task = task
        self._record = executor._journal.record
        executor._journal.record = self  # type: ignore[method-assign, assignment]

    def __call__(self, entries: Sequence[Entry]) -> list[list[RecordedEvent]]:
        facts = [fact for entry in entries if entry.handle is self._task for fact in entry.facts]
        if any(isinstance(fact, TaskBlocked) for fact in facts):
            self.is_recording.set()
            assert self.goes_on.wait(PATIENCE_S)
        return self._record(entries)


@pytest.mark.parametrize("last", ["fails", "succeeds"])
@pytest.mark.parametrize("kind", [TaskExecutor, Overridden])
def test_a_finally_task_starts_after_the_block_that_another_thread_records(
    store: SQLiteStore, kind: type[TaskExecutor], last: str
) -> None:
    """`a` fails and blocks `d`. While that is recorded `b` ends, which is all else that `clean` waits for.

    `other` is what the thread of `b` finds to do where `clean` has to wait; whichever starts lets the block go on.
    """
    graph = TaskGraph()
    a, b, d, clean, other = (Task.bash(name, title=name) for name in ("a", "b", "d", "clean", "other"))
    graph.add(a)
    graph.add(b)
    graph.add(d, after=[a] if last == "succeeds" else [a, b])
    graph.add(clean, after=[d, b] if last == "succeeds" else [d], finally_=True)
    graph.add(other, after=[b], finally_=True)
    with kind.empty(store) as executor:
        held, has_begun = HeldBlock(executor, d), threading.Event()

        def handle(context: TaskContext) -> None:
            if context.title == "a":  # else one thread may take both
                assert has_begun.wait(PATIENCE_S)
            if context.title == "b":
                has_begun.set()
                assert held.is_recording.wait(PATIENCE_S)
            if context.title in ("clean", "other"):
                held.goes_on.set()
            if context.title == "a" or (context.title == "b" and last == "fails"):
                raise ValueError("as told")

        executor.register(TaskType.BASH, handle)
        graph.run(executor, 2)

    assert d.is_blocked
    assert clean.is_succeeded
    assert other.is_succeeded
    assert check_starts(store, graph) == 4


@pytest.mark.parametrize("kind", [TaskExecutor, Overridden])
def test_a_finally_task_waits_for_what_runs_again_before_a_task_that_had_succeeded(
    store: SQLiteStore, kind: type[TaskExecutor]
) -> None:
    """In the second run `old` waits for `slow`, which is new, but counts as done; so `next` runs beside `slow`."""
    graph = TaskGraph()
    old, slow, after_old, clean = (Task.bash(name, title=name) for name in ("old", "slow", "next", "clean"))
    is_heard = threading.Event()
    graph.add(old)
    with kind.empty(store) as executor:

        def handle(context: TaskContext) -> None:
            if context.title == "slow":
                assert is_heard.wait(PATIENCE_S)

        executor.register(TaskType.BASH, handle)
        graph.run(executor)
        graph.add(slow)
        graph.add(old, after=[slow])
        graph.add(after_old, after=[old])
        graph.add(clean, after=[after_old], finally_=True)
        executor.events.subscribe(
            lambda event: is_heard.set() if (event.task, event.type) == (after_old, "succeeded") else None
        )
        graph.run(executor, 2)

    assert clean.is_succeeded
    (end,) = store.events(stream=f"task-{slow.id}", type="TaskSucceeded")
    (start,) = store.events(stream=f"task-{clean.id}", type="TaskStarted")
    assert end.position < start.position


class SlowBlocks:
    """Records blocks a random moment late, so that other threads get ahead of the thread that records them."""

    def __init__(self, executor: TaskExecutor, chance: random.Random) -> None:
        self._chance = chance
        self._record = executor._journal.record
        executor._journal.record = self  # type: ignore[method-assign, assignment]

    def __call__(self, entries: Sequence[Entry]) -> list[list[RecordedEvent]]:
        if any(isinstance(fact, TaskBlocked) for entry in entries for fact in entry.facts):
            time.sleep(self._chance.random() * 2e-3)
        return self._record(entries)


@pytest.mark.campaign
@pytest.mark.parametrize("max_workers", [4, 16])
@pytest.mark.parametrize("kind", [TaskExecutor, Overridden])
def test_every_start_in_random_graphs_comes_after_what_it_relies_on(
    outside_git: Path, kind: type[TaskExecutor], max_workers: int
) -> None:
    for seed in range(200 if IS_CAMPAIGN else 15):
        chance = random.Random(seed)
        graph = TaskGraph()
        roots = [Task.bash(chance.choice(["ok", "fail"])) for _ in range(8)]
        joins = [Task.bash(chance.choice(["ok", "ok", "fail"])) for _ in range(8)]
        ends = [Task.bash("ok") for _ in range(4)]
        for root in roots:
            graph.add(root)
        for index, join in enumerate(joins):
            graph.add(join, after=chance.sample([*roots, *joins[:index]], 2), finally_=chance.random() < 0.1)
        for end in ends:
            graph.add(end, after=chance.sample(joins, 2), finally_=True)
        with InMemoryStore() as store, kind.empty(store) as executor:
            SlowBlocks(executor, chance)
            executor.register(TaskType.BASH, _succeed_or_fail)
            graph.run(executor, max_workers)
            graph.run(executor, max_workers)
            assert check_starts(store, graph) >= len(roots) + len(ends)


def _succeed_or_fail(context: TaskContext) -> None:
    if context.payload == "fail":
        raise ValueError("as told")
