"""Small random graphs, run again and again while their handlers change their minds, end as a small oracle says."""

from __future__ import annotations

import contextlib
import os
import random
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from starts import check_starts
from ttasks import (
    InMemoryStore,
    RetryPolicy,
    RunStatus,
    SQLiteStore,
    Task,
    TaskCancelled,
    TaskContext,
    TaskEvent,
    TaskExecutor,
    TaskGraph,
    TaskStatus,
    TaskType,
)
from ttasks.log.verify import verify

PENDING, SUCCEEDED, FAILED = TaskStatus.PENDING, TaskStatus.SUCCEEDED, TaskStatus.FAILED
CANCELLED, BLOCKED = TaskStatus.CANCELLED, TaskStatus.BLOCKED
PATIENCE_S = 60
IS_CAMPAIGN = os.environ.get("TTASKS_CAMPAIGN") == "full"
EXAMPLES = 200 if IS_CAMPAIGN else 60


@dataclass(frozen=True)
class Node:
    """A task of a plan; `after` holds indices of earlier ones, in declaration order."""

    after: tuple[int, ...]
    is_finally: bool
    is_required: bool
    max_attempts: int


@dataclass(frozen=True)
class Plan:
    """A graph, the order in which its tasks are added, and what each handler does in each of three runs.

    ``flaky`` fails at the first attempt of a run and succeeds at the next.
    """

    nodes: tuple[Node, ...]
    order: tuple[int, ...]
    moods: tuple[tuple[str, ...], ...]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    count = draw(st.integers(1, 8))
    nodes = []
    for index in range(count):
        earlier = st.lists(st.integers(0, index - 1), unique=True, max_size=4) if index else st.just([])
        is_finally = draw(st.sampled_from([False, False, True]))
        is_required = not (is_finally and draw(st.booleans()))
        nodes.append(Node(tuple(draw(earlier)), is_finally, is_required, draw(st.sampled_from([1, 1, 2]))))
    mood = st.sampled_from(["succeed", "succeed", "fail", "cancel", "flaky"])
    moods = tuple(tuple(draw(mood) for _ in nodes) for _ in range(3))
    return Plan(tuple(nodes), tuple(draw(st.permutations(range(count)))), moods)


def oracle(
    plan: Plan, before: list[TaskStatus], moods: tuple[str, ...]
) -> tuple[list[TaskStatus], dict[int, int], set[int]]:
    """Return what SPEC §2.7 makes of a run: how each task ends, how often each is entered, and which raise at last."""
    ends: list[TaskStatus] = []
    entered: dict[int, int] = {}
    raising: set[int] = set()
    for index, node in enumerate(plan.nodes):
        if before[index] in (SUCCEEDED, CANCELLED):  # they never run again
            ends.append(before[index])
        elif not node.is_finally and any(ends[parent] is not SUCCEEDED for parent in node.after):
            ends.append(BLOCKED if before[index] is PENDING else before[index])
        else:
            mood = moods[index]
            succeeds = mood == "succeed" or (mood == "flaky" and node.max_attempts > 1)
            ends.append(SUCCEEDED if succeeds else CANCELLED if mood == "cancel" else FAILED)
            entered[index] = node.max_attempts if mood in ("fail", "flaky") else 1
            if not succeeds:
                raising.add(index)
    return ends, entered, raising


class Playground:
    """A plan made real: its graph, an executor whose handlers have moods, and what was heard."""

    def __init__(self, plan: Plan, store: Any) -> None:
        self.plan = plan
        self.graph = TaskGraph()
        self.tasks = [Task.bash(str(index), title=str(index)) for index in range(len(plan.nodes))]
        for index in plan.order:
            node = plan.nodes[index]
            self.graph.add(
                self.tasks[index],
                after=[self.tasks[parent] for parent in node.after],
                finally_=node.is_finally,
                required=node.is_required,
                retry_policy=RetryPolicy(node.max_attempts) if node.max_attempts > 1 else None,
            )
        self.moods: tuple[str, ...] = ()
        self.entered: Counter[int] = Counter()
        self.wrong: list[str] = []
        self.ended: list[int] = []
        self.blocked_after: dict[int, set[int]] = {}
        self.executor = TaskExecutor.empty(store)
        self.executor.register(TaskType.BASH, self._handle)
        self.executor.events.subscribe(self._hear)
        self._lock = threading.Lock()

    def _handle(self, context: TaskContext) -> str:
        index = int(context.payload)
        with self._lock:
            self.entered[index] += 1
            time = self.entered[index]
        if {int(parent.title) for parent in context.upstream.values()} != set(self.plan.nodes[index].after):
            self.wrong.append(f"{index} was given {context.upstream}")
        mood = self.moods[index]
        if mood == "cancel":
            raise TaskCancelled("as told")
        if mood == "fail" or (mood == "flaky" and time == 1):
            raise ValueError("as told")
        return context.payload

    def _hear(self, event: TaskEvent) -> None:
        index = int(event.task.title)
        with self._lock:
            if event.type == "blocked":
                self.blocked_after[index] = set(self.ended)
            if event.status.is_bad:
                self.ended.append(index)
            elif index in self.ended:  # a retry: it was not over
                self.ended.remove(index)

    def load(self, graph: TaskGraph) -> None:
        """Go on with another handle of the graph."""
        self.graph = graph
        self.tasks = sorted(graph, key=lambda task: int(task.title))

    def run(self, max_workers: int) -> None:
        self.entered.clear()
        self.ended.clear()
        self.blocked_after.clear()
        within_patience(lambda: self.graph.run(self.executor, max_workers))
        assert self.executor.events.errors == []
        assert self.wrong == []

    @property
    def statuses(self) -> list[TaskStatus]:
        return [task.status for task in self.tasks]


def within_patience(work: Callable[[], Any]) -> Any:
    """Do `work`; fail, instead of waiting for ever, where it does not end."""
    future: Future[Any] = Future()

    def call() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return future.result(PATIENCE_S)


@contextlib.contextmanager
def ledger(kind: str) -> Iterator[Any]:
    match kind:
        case "no ledger":
            yield None
        case "live":
            with InMemoryStore() as store:
                yield store
        case _:
            with tempfile.TemporaryDirectory() as folder, SQLiteStore(Path(folder) / "ledger.db") as store:
                yield store


@pytest.fixture(autouse=True)
def _eager_switches(outside_git: Path) -> Iterator[None]:
    """Let threads take turns far more often than they would: races show."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def check_blame(ground: Playground, before: list[TaskStatus], in_order: bool) -> None:
    """Check who is blamed for each task that this run blocked; `in_order`: what was heard came in the order it was."""
    index_of = {task.id: index for index, task in enumerate(ground.tasks)}
    for child, task in enumerate(ground.tasks):
        if task.status is not BLOCKED:
            assert task.blocked_by is None
            continue
        assert task.blocked_by is not None
        culprit = index_of[task.blocked_by]
        after = ground.plan.nodes[child].after
        assert culprit in after
        if before[child] is not PENDING:
            continue
        assert ground.tasks[culprit].status.is_bad
        if in_order:
            were_bad = ground.blocked_after[child] | {index for index, was in enumerate(before) if was is CANCELLED}
            silent = {index for index, was in enumerate(before) if was in (FAILED, BLOCKED)}
            assert not [parent for parent in after[: after.index(culprit)] if parent in were_bad - silent]


def check_three_runs(plan: Plan, kind: str, max_workers: int, *, reload: bool = False) -> None:
    with ledger(kind) as store:
        ground = Playground(plan, store)
        for moods in plan.moods:
            before = ground.statuses
            ends, entered, raising = oracle(plan, before, moods)
            ground.moods = moods
            ground.run(max_workers)
            assert ground.statuses == ends
            assert dict(ground.entered) == entered
            assert set(ground.graph.errors) == {ground.tasks[index].id for index in raising}
            check_blame(ground, before, in_order=max_workers == 1)
            ok = all(end is SUCCEEDED for end, node in zip(ends, plan.nodes, strict=True) if node.is_required)
            assert ground.graph.ok is ok
            if store is not None:
                assert ground.graph.run_status is (RunStatus.SUCCEEDED if ok else RunStatus.FAILED)
            if reload:
                ground.load(store.graphs[ground.graph.id])
                assert ground.statuses == ends
                assert ground.graph.ok is ok
        if store is not None:
            assert verify(store._readers).problems == []
            assert len(store._readers.runs(ground.graph.id)) == 3
            check_starts(store, ground.graph)


@pytest.mark.campaign
@pytest.mark.parametrize("max_workers", [1, 4, 16])
@pytest.mark.parametrize("kind", ["no ledger", "live"])
def test_three_runs_end_as_the_oracle_says(kind: str, max_workers: int) -> None:
    @settings(max_examples=EXAMPLES, deadline=None)
    @given(plans())
    def check(plan: Plan) -> None:
        check_three_runs(plan, kind, max_workers)

    check()


@pytest.mark.campaign
def test_three_runs_of_what_was_loaded_from_a_file_end_as_the_oracle_says() -> None:
    @settings(max_examples=EXAMPLES // 3, deadline=None)
    @given(plans(), st.sampled_from([1, 4, 16]))
    def check(plan: Plan, max_workers: int) -> None:
        check_three_runs(plan, "file", max_workers, reload=True)

    check()


@pytest.mark.campaign
@pytest.mark.parametrize("kind", ["no ledger", "live"])
def test_whoever_cancels_what_and_when_a_run_ends_whole(kind: str) -> None:
    @settings(max_examples=EXAMPLES, deadline=None)
    @given(plans(), st.lists(st.integers(0, 7), min_size=1, max_size=8), st.integers(0, 2**32))
    def check(plan: Plan, victims: list[int], seed: int) -> None:
        chance = random.Random(seed)
        with ledger(kind) as store:
            ground = Playground(plan, store)
            ground.moods = plan.moods[0]
            failures: list[BaseException] = []
            begun = threading.Event()
            ground.executor.events.subscribe(lambda event: begun.set())

            def cancel() -> None:
                try:
                    assert begun.wait(PATIENCE_S)
                    for victim in victims:
                        for _ in range(chance.randrange(300)):  # some way into the run
                            pass
                        ground.executor.cancel(ground.tasks[victim % len(ground.tasks)])
                except BaseException as failure:
                    failures.append(failure)

            canceller = threading.Thread(target=cancel)
            canceller.start()
            ground.run(4)
            canceller.join()
            assert failures == []
            check_whole(ground, {victim % len(ground.tasks) for victim in victims})
            if store is not None:
                assert verify(store._readers).problems == []

    check()


def check_whole(ground: Playground, victims: set[int]) -> None:
    """Check what holds of a run however cancels fell: all is settled, and nothing ran that must not."""
    index_of = {task.id: index for index, task in enumerate(ground.tasks)}
    for index, (task, node) in enumerate(zip(ground.tasks, ground.plan.nodes, strict=True)):
        assert task.is_terminal
        assert ground.entered[index] <= node.max_attempts
        parents = [ground.tasks[parent] for parent in node.after]
        if task.status is BLOCKED:
            assert not node.is_finally
            assert task.blocked_by is not None
            assert index_of[task.blocked_by] in node.after
        elif ground.entered[index] and not node.is_finally:
            assert all(parent.is_succeeded for parent in parents)
        elif node.is_finally and index not in victims:
            assert ground.entered[index]
        if task.status is CANCELLED:
            assert index in victims or ground.moods[index] == "cancel"
            assert task.result is not None and task.result.status is CANCELLED
        error = ground.graph.errors.get(task.id)
        assert error is None or isinstance(error, ValueError | TaskCancelled)
        assert not (isinstance(error, ValueError) and str(error) != "as told")
