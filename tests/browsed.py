"""A ledger of real runs to look at: ok, failed, running, interrupted, retried, 300 tasks at once, and hostile texts."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agents import fixed, repeating, reports
from processes import PATIENCE_S, processes_of, until
from ttasks import (
    RetryPolicy,
    SQLiteStore,
    Task,
    TaskContext,
    TaskExecutionError,
    TaskExecutor,
    TaskGraph,
    TaskType,
)
from ttasks.log.checkout import git_root

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{7*7}}&amp;\x1b[31mred\x1b[0m\u202eevil"
"""What would be run, or drawn, if it were taken for more than text."""

_PRINTS_HOSTILE = (
    "printf '%s\\n' '<script>alert(3)</script>' $'\\e]8;;javascript:alert(4)\\aclick\\e]8;;\\a'"
    " $'\\e[2Jgone' $'\\xff\\xfe'"
)
_PRINTS_COLOURS = (
    "for c in 1 2 3 4 5 6; do printf '\\033[3%dmcolour %d\\033[0m\\n' $c $c; done; printf '10%%\\r50%%\\r100%%\\n'"
)
_INTERRUPTED = """
import os, sys, threading
from ttasks import *
store = SQLiteStore(sys.argv[1])
graph = TaskGraph(title="import of the night")
fetch = Task.bash("echo fetched", title="fetch")
load = Task.bash("echo half; while kill -0 $PPID; do sleep 0.02; done", title="load")
graph.add(fetch); graph.add(load, after=[fetch]); graph.add(Task.bash("echo report", title="report"), after=[load])
graph.add(Task.bash("echo unlocked", title="unlock"), after=[load], finally_=True)
executor = TaskExecutor(store)
executor.events.subscribe(lambda event: print(event.type, flush=True))
graph.run(executor)
"""
_LIVE = """
import sys
from ttasks import *
store = SQLiteStore(sys.argv[1])
graph = TaskGraph(title="live: waits to be told")
begin = Task.bash("echo begun", title="begin")
wait = Task.bash(f"while [ ! -e '{sys.argv[2]}' ]; do sleep 0.05; done; echo told", title="wait")
graph.add(begin); graph.add(wait, after=[begin]); graph.add(Task.bash("echo done", title="finish"), after=[wait])
graph.run(TaskExecutor(store))
"""


@dataclass(frozen=True)
class Browsed:
    """The ledger at `path`, and the ids of what is in it."""

    path: Path
    ok: str
    failed: str
    retried: str
    interrupted: str
    wide: str
    hostile: str
    solo: str
    hostile_task: str
    colours: str
    agent: str
    hostile_agent: str


def make_browsed_ledger(path: Path, *, wide: int = 300) -> Browsed:
    """Make the ledger by running things for real, and killing a runner."""
    with SQLiteStore(path) as store, TaskExecutor(store) as executor:
        ok = TaskGraph(title="build and publish")
        fetch, lint = Task.bash("echo fetched 3 files", title="fetch"), Task.bash("echo clean", title="lint")
        build = Task.bash("for i in 1 2 3; do echo step $i; sleep 0.02; done", title="build")
        test = Task.bash("echo '12 passed'; echo a warning >&2; sleep 0.05", title="test")
        publish = Task.bash("printf '\\033[1;32mpublished\\033[0m\\n'", title="publish")
        ok.add(fetch)
        ok.add(lint, after=[fetch])
        ok.add(build, after=[fetch])
        ok.add(test, after=[build])
        ok.add(publish, after=[lint, test])
        ok.add(Task.bash("echo tidy", title="clean up"), after=[publish], finally_=True)
        ok.run(executor)
        ok.run(executor)

        failed = TaskGraph(title="nightly")
        dump = Task.bash("sleep 0.03; echo dumped", title="dump")
        copy = Task.bash("echo 'no space left on device' >&2; exit 28", title="copy")
        failed.add(dump)
        failed.add(copy, after=[dump], retry_policy=RetryPolicy(max_attempts=3, backoff=0.05))
        failed.add(Task.bash("echo checked", title="check"), after=[copy])
        failed.add(Task.bash("echo unmounted", title="unmount"), after=[copy], finally_=True)
        failed.add(Task.bash("exit 1", title="tell somebody"), after=[dump], finally_=True, required=False)
        failed.run(executor)
        failed.retry().run(executor)

        retried = TaskGraph(title="flaky")
        again = "[ -e again ] && echo now it works || { touch again; echo not yet >&2; exit 1; }"
        flaky = Task.bash(again, title="try", cwd=str(path.parent))
        retried.add(flaky, retry_policy=RetryPolicy(max_attempts=2, backoff=0.05))
        retried.run(executor)

        many = TaskGraph(title=f"{wide} tasks")
        first = Task.bash("true", title="split")
        many.add(first)
        parts = [Task.bash("true" if n % 50 else "exit 2", title=f"part {n}") for n in range(1, wide - 1)]
        for part in parts:
            many.add(part, after=[first])
        many.add(Task.bash("true", title="join"), after=parts)
        with TaskExecutor.empty(store) as quick:  # without a process for each of so many
            quick.register(TaskType.BASH, _succeed_or_fail)
            many.run(quick, max_workers=4)

        hostile = TaskGraph(title=HOSTILE)
        hostile.add(Task.bash(f"# {HOSTILE}\n{_PRINTS_HOSTILE}; exit 3", title=HOSTILE))
        hostile.run(executor)

        solo = Task.bash("echo by itself", title="by itself")
        executor.execute(solo)
        colours = Task.bash(f"{_PRINTS_COLOURS}; exit 7", title="colours")
        with contextlib.suppress(TaskExecutionError):
            executor.execute(colours)
        agents = _run_agents(executor)
        (hostile_task,) = hostile
        if git_root() is not None:
            until(lambda: any(store.events(type="RunnerDescribed")))
        ids = Browsed(
            path, ok.id, failed.id, retried.id, "", many.id, hostile.id, solo.id, hostile_task.id, colours.id, *agents
        )
    return Browsed(**{**ids.__dict__, "interrupted": _interrupt(path)})


def _run_agents(executor: TaskExecutor) -> tuple[str, str]:
    """Run a graph with an agent's task, and one with hostile texts by itself, without an agent; return their ids."""
    executor.register(TaskType.AGENT, reports(fixed, "The discount was taken off twice. It is fixed."))
    graph = TaskGraph(title="mend what broke")
    broken = Task.bash("echo 1 failed >&2", title="test")
    agent = Task.agent("The test of the price with a discount fails. Find out why, fix it, and commit.", title="mend")
    graph.add(broken)
    graph.add(agent, after=[broken])
    graph.run(executor)
    executor.register(TaskType.PROMPT, reports(repeating(HOSTILE), HOSTILE))
    hostile = Task.prompt(HOSTILE, title=HOSTILE)
    executor.execute(hostile)
    return agent.id, hostile.id


def _succeed_or_fail(context: TaskContext) -> None:
    if context.payload != "true":
        raise RuntimeError(context.payload)


def _interrupt(path: Path) -> str:
    """Run a graph in a process that is killed when its second task prints; return the graph's id."""
    process = subprocess.Popen(
        [sys.executable, "-c", _INTERRUPTED, str(path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    outputs = 0
    for line in process.stdout:
        outputs += line.strip() == "output"
        if outputs == 2:
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    # What was last recorded goes into the file itself, so that a copy of the file is a copy of all.
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (ledger,) = connection.execute("SELECT data ->> 'ledger' FROM events WHERE position = 1").fetchone()
    until(lambda: not processes_of(ledger))  # its task ends when it sees that its parent has gone
    with SQLiteStore(path, read_only=True) as store:
        (left,) = store.interrupted()
        return left.id


@contextlib.contextmanager
def a_live_run(path: Path, told: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a graph whose second task waits until the file `told` is there."""
    process = subprocess.Popen([sys.executable, "-c", _LIVE, str(path), str(told)], start_new_session=True)
    try:
        yield process
    finally:
        told.touch()
        try:
            process.wait(PATIENCE_S)
        finally:
            process.kill()
            process.wait()
