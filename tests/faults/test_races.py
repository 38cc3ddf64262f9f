"""Two processes that want the same: they can't both have it. And many that come at once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from processes import alive
from ttasks import SQLiteStore, Task
from ttasks.log import liveness
from ttasks.log.reading import Readers
from ttasks.log.verify import verify
from ttasks.state.runner import RunnerState

CAMPAIGN = os.environ.get("TTASKS_CAMPAIGN") == "full"
PATIENCE_S = 100


@pytest.fixture(autouse=True)
def _outside_git(outside_git: Path) -> None:
    """No description of a git checkout comes between."""


RACER = """
import json, sys
from ttasks import SQLiteStore, StreamConflictError, TaskExecutor, TaskType

who, entered, outcomes = sys.argv[2], [], []
with SQLiteStore(sys.argv[1]) as store:
    executor = TaskExecutor.empty(store)
    executor.register(TaskType.BASH, lambda context: entered.append(context.id))
    handles = [store.tasks[id] for id in json.loads(sys.argv[3])]
    print("ready", flush=True)
    sys.stdin.readline()
    for number, handle in enumerate(handles):
        try:
            if number % 2:
                handle.title = who
                store.tasks.save(handle)
            else:
                executor.execute(handle)
            outcomes.append("won")
        except (StreamConflictError, ValueError) as refusal:
            outcomes.append(type(refusal).__name__)
print(json.dumps([entered, outcomes]), flush=True)
"""


@pytest.mark.campaign
def test_of_two_processes_one_runs_or_changes_a_task_and_the_other_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with SQLiteStore(path) as store:
        ids = []
        for _ in range(100 if CAMPAIGN else 40):
            task = Task.bash("work")
            store.tasks.save(task)
            ids.append(task.id)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(path), who, json.dumps(ids)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for who in ("ann", "bob")
    ]  # fmt: skip
    for racer in racers:
        assert racer.stdout is not None and racer.stdout.readline() == "ready\n"
    for racer in racers:  # only now, so that they start together
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    (ann_entered, ann), (bob_entered, bob) = [json.loads(racer.communicate(timeout=PATIENCE_S)[0]) for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]

    assert sorted(ann_entered + bob_entered) == sorted(ids[::2])
    assert {frozenset(pair) for pair in zip(ann, bob, strict=True)} <= {
        frozenset({"won", "StreamConflictError"}),
        frozenset({"won", "AlreadyRunningError"}),
    }
    with SQLiteStore(path, read_only=True) as store:
        assert verify(store._readers).problems == []
        for number, (id_, by_ann) in enumerate(zip(ids, ann, strict=True)):
            if number % 2:
                assert store.tasks[id_].title == ("ann" if by_ann == "won" else "bob")
            else:
                assert store.tasks[id_].is_succeeded


OPENER = """
import sys
from ttasks import SQLiteStore, Task
print("ready", flush=True)
sys.stdin.readline()
with SQLiteStore(sys.argv[1]) as store:
    store.tasks.save(Task.bash("work", title=sys.argv[2]))
"""


@pytest.mark.campaign
def test_many_processes_that_open_a_new_path_at_once_share_one_ledger(tmp_path: Path) -> None:
    path, count = tmp_path / "new" / "ledger.db", 48 if CAMPAIGN else 8
    openers = [
        subprocess.Popen(
            [sys.executable, "-c", OPENER, str(path), str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for number in range(count)
    ]
    for opener in openers:
        assert opener.stdout is not None and opener.stdout.readline() == b"ready\n"
    for opener in openers:
        assert opener.stdin is not None
        opener.stdin.write(b"go\n")
        opener.stdin.flush()
    for opener in openers:
        opener.communicate(timeout=PATIENCE_S)
    assert [opener.returncode for opener in openers] == [0] * count
    with SQLiteStore(path, read_only=True) as store:
        assert verify(store._readers).problems == []
        assert sorted(int(task.title) for task in store.tasks.values()) == list(range(count))
    assert {file.name for file in path.parent.iterdir()} <= {
        "ledger.db",
        "ledger.db-lock",
        "ledger.db-wal",
        "ledger.db-shm",
    }


STRESSED = """
import random, signal, sys
from ttasks import RetryPolicy, SQLiteStore, Task, TaskExecutor, TaskGraph, TaskType

signal.signal(signal.SIGINT, signal.default_int_handler)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until there is somebody to hear of it
seed, workers = int(sys.argv[2]), int(sys.argv[3])
chance = random.Random(seed)
graph, tasks = TaskGraph(title=f"stress {seed}"), []
for number in range(12):
    script = chance.choice(["true", "true", "exit 3", "sleep 0.05", "sleep 60 & sleep 60"])
    is_finally = chance.random() < 0.2
    tasks.append(graph.add(
        Task.bash("true" if is_finally else script, title=str(number)),
        after=chance.sample(tasks, min(len(tasks), chance.randrange(3))),
        finally_=is_finally,
        retry_policy=RetryPolicy(2, 0.01) if chance.random() < 0.3 else None,
    ))
with SQLiteStore(sys.argv[1]) as store:
    executor = TaskExecutor(store)
    executor.events.subscribe(lambda event: print(event.type + "\\n", end="", flush=True))
    print("ready", flush=True)
    while signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            if graph.run_status is None:
                graph.run(executor, workers)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        except KeyboardInterrupt:
            continue
    print("over", *[str(task.status) for task in graph], flush=True)
"""


def stressed(path: Path, seed: int, workers: int, press_at: int) -> list[str]:
    """Run a graph in a process that gets a Ctrl-C when it has printed so many lines; return all that it printed."""
    command = [sys.executable, "-c", STRESSED, str(path), str(seed), str(workers)]
    lines: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as ran:
        assert ran.stdout is not None and ran.stdout.readline() == "ready\n"
        # Where nothing is heard for a while, a script sleeps: then at the latest somebody presses Ctrl-C.
        timer = threading.Timer(1.0, ran.send_signal, [signal.SIGINT])
        timer.start()
        for line in ran.stdout:
            lines.append(line)
            if len(lines) == press_at:
                ran.send_signal(signal.SIGINT)
        timer.cancel()
        timer.join()
        assert ran.wait(PATIENCE_S) == 0, lines
    return lines


@pytest.mark.campaign
@pytest.mark.parametrize("workers", [1, 4, 16])
def test_graphs_that_are_cancelled_at_random_moments_are_settled_and_leave_no_process(
    tmp_path: Path, workers: int
) -> None:
    path, chance = tmp_path / "ledger.db", random.Random(workers)
    for seed in range(80 if CAMPAIGN else 4):
        lines = stressed(path, seed, workers, press_at=chance.randrange(12))
        assert lines[-1].startswith("over")
        assert "running" not in lines[-1]
    with closing(Readers.open(path)) as readers:
        assert verify(readers).problems == []
        assert {str(run.status) for run in readers.runs()} <= {"succeeded", "failed", "cancelled", "interrupted"}
        for event in readers.events(type="ProcessSpawned"):
            assert alive(event.fact.pid) == []  # type: ignore[union-attr]


ENDS_ON_REQUEST = """
import sys
from ttasks import SQLiteStore, Task, TaskExecutor, TaskGraph, TaskType
with SQLiteStore(sys.argv[1]) as store, TaskExecutor.empty(store) as executor:
    def work(context):
        print("begun", flush=True)
        sys.stdin.readline()
    executor.register(TaskType.BASH, work)
    task = Task.bash("work")
    WAY
"""


@pytest.mark.parametrize("way", ["executor.execute(task)", "graph = TaskGraph(); graph.add(task); graph.run(executor)"])
def test_what_ends_between_being_read_and_its_runner_being_looked_for_was_not_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    ledger = tmp_path / "ledger.db"
    runner = subprocess.Popen(
        [sys.executable, "-c", ENDS_ON_REQUEST.replace("WAY", way), str(ledger)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert runner.stdout is not None and runner.stdout.readline() == b"begun\n"
    ask = liveness.is_alive

    def ends_and_is_looked_for(state: RunnerState, path: Path | None) -> bool:
        runner.communicate(b"\n", timeout=60)
        return ask(state, path)

    monkeypatch.setattr(liveness, "is_alive", ends_and_is_looked_for)
    with SQLiteStore(ledger, read_only=True) as store:
        assert store.interrupted() == []
    assert runner.returncode == 0
