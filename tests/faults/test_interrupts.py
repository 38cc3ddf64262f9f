"""Ctrl-C at any line: of a subscriber, of a commit, of whoever executes. What was begun is ended, and recorded."""

from __future__ import annotations

import gc
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from ttasks import (
    InMemoryStore,
    RetryPolicy,
    SQLiteStore,
    Task,
    TaskEvent,
    TaskExecutor,
    TaskGraph,
    TaskStatus,
    TaskType,
    reentrance,
)
from ttasks.log.verify import verify

CAMPAIGN = os.environ.get("TTASKS_CAMPAIGN") == "full"


@pytest.fixture(autouse=True)
def _outside_git(outside_git: Path) -> None:
    """No description of a git checkout comes between."""


@pytest.fixture(params=["no store", "live"])
def executor(request: pytest.FixtureRequest) -> Iterator[TaskExecutor]:
    with InMemoryStore() as store:
        made = TaskExecutor.empty(store if request.param == "live" else None)
        made.register(TaskType.BASH, lambda context: "done")
        yield made


def press_at(executor: TaskExecutor, kind: str) -> list[str]:
    """Let a subscriber raise what Ctrl-C raises; return what the next one hears."""
    heard: list[str] = []

    def press(event: TaskEvent) -> None:
        if event.type == kind:
            raise KeyboardInterrupt

    executor.events.subscribe(press)
    executor.events.subscribe(lambda event: heard.append(str(event.type)))
    return heard


def test_ctrl_c_in_a_subscriber_that_hears_of_the_start_cancels_the_task(executor: TaskExecutor) -> None:
    heard = press_at(executor, "started")
    task = Task.bash("work")
    with pytest.raises(KeyboardInterrupt):
        executor.execute(task)
    assert task.status is TaskStatus.CANCELLED
    assert heard == ["started", "cancelled"]


def test_ctrl_c_in_a_subscriber_that_hears_of_the_end_changes_nothing_of_it(executor: TaskExecutor) -> None:
    heard = press_at(executor, "succeeded")
    task = Task.bash("work")
    with pytest.raises(KeyboardInterrupt):
        executor.execute(task)
    assert task.status is TaskStatus.SUCCEEDED
    assert heard == ["started", "succeeded"]
    assert executor.events.errors == []


def test_ctrl_c_in_a_subscriber_that_hears_of_a_failure_ends_the_wait_for_the_retry(executor: TaskExecutor) -> None:
    def fail(context: object) -> None:
        raise ValueError("boom")

    executor.register(TaskType.BASH, fail)
    heard = press_at(executor, "failed")
    task = Task.bash("work")
    with pytest.raises(KeyboardInterrupt):
        executor.execute(task, retry_policy=RetryPolicy(3, 3600))
    assert task.status is TaskStatus.CANCELLED
    assert heard == ["started", "failed", "cancelled"]


@pytest.mark.parametrize("kind", ["started", "succeeded", "blocked"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_a_subscriber_raises_on_another_thread_is_kept_like_any_error(
    kind: str, error: type[BaseException]
) -> None:
    with InMemoryStore() as store:
        executor = TaskExecutor.empty(store)
        executor.register(TaskType.BASH, lambda context: "done")

        def leave(event: TaskEvent) -> None:
            if event.type == kind:
                raise error

        executor.events.subscribe(leave)
        graph = TaskGraph()
        gone = graph.add(Task.bash("gone"))
        gone.cancel()
        graph.add(Task.bash("child"), after=[gone])
        graph.add(Task.bash("work"))
        graph.run(executor)
        assert [task.status for task in graph] == ["cancelled", "blocked", "succeeded"]
        assert [type(kept) for kept in executor.events.errors] == [error]
        assert verify(store._readers).problems == []


PRESSED = """
import os, random, signal, sys, threading, time
from ttasks import *

signal.signal(signal.SIGINT, signal.default_int_handler)
store = SQLiteStore(sys.argv[1])
executor = TaskExecutor.empty(store)
executor.register(TaskType.BASH, lambda context: None)
chance = random.Random(int(sys.argv[2]))
presses = int(sys.argv[3])
over = threading.Event()

def press():
    for _ in range(presses):
        time.sleep(chance.random() * 0.003)
        os.kill(os.getpid(), signal.SIGINT)
    over.set()

tasks = []
presser = threading.Thread(target=press)
while not presser.ident:
    try:
        presser.start()
    except KeyboardInterrupt:
        pass

def work():
    tasks.append(Task.bash("work"))
    executor.execute(tasks[-1])

def until_over(work):
    while not over.is_set():
        try:
            work()
        except KeyboardInterrupt:
            pass

until_over(lambda: until_over(lambda: until_over(work)))  # a press may also come inside of an `except`
signal.signal(signal.SIGINT, signal.SIG_IGN)
presser.join()
left = [task for task in tasks if task.is_running or task.is_interrupted]
print(len(store.tasks), "tasks,", len(left), "left running", flush=True)
"""


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(4 if CAMPAIGN else 2))
def test_however_often_ctrl_c_comes_no_task_is_left_running(tmp_path: Path, seed: int) -> None:
    presses = 1000 if CAMPAIGN else 100
    ran = subprocess.run(
        [sys.executable, "-c", PRESSED, str(tmp_path / "ledger.db"), str(seed), str(presses)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "0 left running" in ran.stdout, ran.stdout
    with SQLiteStore(tmp_path / "ledger.db", read_only=True) as store:
        assert verify(store._readers).problems == []
        running: list[Any] = [task for task in store.tasks.values() if task.is_running]
        assert running == []


def test_ctrl_c_at_any_line_of_reading_a_ledger_in_memory_leaves_nothing_held() -> None:
    store = InMemoryStore()
    store.tasks.save(Task.bash("true"))
    raised: list[KeyboardInterrupt] = []  # their tracebacks keep the frames that they came through

    def interrupt_after(lines: int) -> None:
        left = iter(range(lines))

        def trace(frame: FrameType, *_: object) -> object:
            # Not where garbage is collected: what is raised there reaches nobody.
            is_reading = Path(frame.f_code.co_filename).name in ("event_log.py", "reading.py", "contextlib.py")
            if is_reading and frame.f_code.co_name != "__del__" and next(left, None) is None:
                raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        gc.disable()
        sys.settrace(trace)  # type: ignore[arg-type]
        try:
            list(store.events)
        finally:
            sys.settrace(before)
            gc.enable()

    for lines in itertools.count():
        try:
            interrupt_after(lines)
        except KeyboardInterrupt as interruption:
            raised.append(interruption)
        else:
            break
        assert not reentrance.is_inside()
    assert len(raised) > 30
    assert list(store.events)
