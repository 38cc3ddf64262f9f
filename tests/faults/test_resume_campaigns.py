"""Resuming at scale: the command killed at any moment and at any append, resumers that race, runners that are busy."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import Command
from processes import until
from ttasks import SQLiteStore, TaskExecutor
from ttasks.log.reading import Readers
from ttasks.log.verify import verify

CAMPAIGN = os.environ.get("TTASKS_CAMPAIGN") == "full"
pytestmark = [pytest.mark.campaign, pytest.mark.timeout(3600 if CAMPAIGN else 300)]


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[list[Command]]:
    """What a test makes by `fresh`; whatever is left of it is ended."""
    made: list[Command] = []
    yield made
    for command in made:
        command.clean_up()


def fresh(commands: list[Command], folder: Path, workflow: str) -> Command:
    """Return a command in a new folder, with a new ledger, that holds this workflow."""
    path = folder / str(len(commands))
    path.mkdir()
    command = Command(path)
    commands.append(command)
    command.write("work.yaml", workflow)
    return command


def shell_graph(count: int, seconds: float) -> str:
    """Return a workflow of real scripts that depend on up to two before them; each says when it begins."""
    choice = random.Random(7)
    tasks = []
    for number in range(count):
        after = choice.sample(range(number), min(number, choice.randint(0, 2)))
        parents = ", ".join(f"t{parent}" for parent in after)
        tasks.append(f"  t{number}: {{bash: 'echo t{number} >> log; sleep {seconds}', after: [{parents}]}}")
    return "\n".join(["title: forty", "tasks:", *tasks, "  last: {bash: 'echo last >> log', finally: true}"])


def has_graph(command: Command) -> bool:
    """True where the ledger had a graph before its process was killed."""
    return command.ledger.exists() and command.sql("SELECT count(*) FROM graphs") != [(0,)]


def succeeded(command: Command) -> set[str]:
    """Return the names of the tasks whose success is recorded."""
    if not has_graph(command):
        return set()
    return {name for name, status in command.statuses().items() if status == "succeeded"}


def check_whole(command: Command, where: str) -> None:
    """Check that the ledger verifies, and that nothing of it runs."""
    with contextlib.closing(Readers.open(command.ledger)) as readers:
        assert verify(readers).problems == [], where
    assert command.left() == [], where


def resume_and_check(command: Command, tasks: set[str], where: str) -> None:
    """Resume once, and check that all is done, and that nothing with a recorded success was done again."""
    before, ran = succeeded(command), Counter(command.log())
    done = command("resume")
    assert done.returncode == 0, (where, done.stdout, done.stderr)
    if not has_graph(command):
        assert done.stdout.startswith("nothing to resume"), where
        assert command.log() == [], where
        return
    ran_again = Counter(command.log()) - ran
    assert {name for name in ran_again if name in before} == set(), where
    assert succeeded(command) == tasks == set(command.log()), where
    assert max(Counter(command.log()).values()) <= 2, where
    check_whole(command, where)


def test_a_run_that_is_killed_at_any_moment_is_complete_after_one_resume(
    commands: list[Command], tmp_path: Path
) -> None:
    workflow, tasks = shell_graph(40, 0.02), {*(f"t{number}" for number in range(40)), "last"}
    whole = fresh(commands, tmp_path, workflow)
    printed = whole("run", "work.yaml").stdout.splitlines()
    choice = random.Random(11)
    in_the_middle = 0
    for number in range(10 if CAMPAIGN else 2):
        command = fresh(commands, tmp_path, workflow)
        run = command.start("run", "work.yaml")
        lines = choice.randint(0, len(printed) - 5)
        for _ in range(lines):
            run.until("")
        run.kill()
        in_the_middle += 0 < len(succeeded(command)) < len(tasks)
        resume_and_check(command, tasks, f"kill {number}, after {lines} lines")
    assert in_the_middle > 0


# The command, in a process that is killed at append number AT: before it, or after it.
COUNTED = """
import itertools, os, signal, sys
from ttasks.log.event_log import EventLog

at, moment, appends, append = int(sys.argv.pop(1)), sys.argv.pop(1), itertools.count(1), EventLog.append

def counted(log, *batches):
    if all(batch.stream.startswith("runner-") for batch in batches):
        return append(log, *batches)
    number = next(appends)
    if number == at and moment == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    appended = append(log, *batches)
    if number == at and moment == "after":
        os.kill(os.getpid(), signal.SIGKILL)
    with open("appends", "w") as file:
        file.write(str(number))
    return appended

EventLog.append = counted
from ttasks.cli.app import command
command()
"""

SMALL = """
title: small
max_workers: 2
tasks:
  t0: {bash: "echo t0 >> log; sleep 300 & echo one; kill $!"}
  t1: {bash: "echo t1 >> log; echo two", after: [t0]}
  t2: {bash: "echo t2 >> log; sleep 0.02", after: [t0]}
  t3: {bash: "echo t3 >> log; echo three", after: [t1, t2]}
  t4: {bash: "echo t4 >> log", after: [t3]}
  last: {bash: "echo last >> log", after: [t4], finally: true}
"""


def test_a_command_that_is_killed_at_any_append_is_complete_after_one_resume(
    commands: list[Command], tmp_path: Path
) -> None:
    tasks = {"t0", "t1", "t2", "t3", "t4", "last"}
    whole = fresh(commands, tmp_path, SMALL)
    assert whole.start_process([sys.executable, "-c", COUNTED, "0", "after", "run", "work.yaml"]).end()[0] == 0
    appends = int((whole.folder / "appends").read_text())
    choice = random.Random(13)
    happened = 0
    for number in range(100 if CAMPAIGN else 10):
        at, moment = choice.randint(1, appends), choice.choice(["before", "after"])
        command = fresh(commands, tmp_path, SMALL)
        run = command.start_process([sys.executable, "-c", COUNTED, str(at), moment, "run", "work.yaml"])
        code = run.process.wait(60)
        happened += code == -signal.SIGKILL
        assert code in (0, -signal.SIGKILL), (number, at, moment)
        resume_and_check(command, tasks, f"round {number}: {moment} append {at}")
    assert happened > (90 if CAMPAIGN else 7)


RACE = """
title: race
tasks:
  one: {bash: "echo one >> log; if [ ! -e go ]; then touch started; sleep 100; fi; sleep 0.2"}
  two: {bash: "echo two >> log", after: [one]}
"""


def test_of_two_that_resume_at_once_one_wins_and_no_task_runs_twice(commands: list[Command], tmp_path: Path) -> None:
    told = Counter[str]()
    for number in range(20 if CAMPAIGN else 3):
        command = fresh(commands, tmp_path, RACE)
        run = command.start("run", "work.yaml")
        command.await_file("started")
        run.kill()
        (command.folder / "go").touch()
        resumers = [command.start("resume", *([command.graph_id()] if number % 2 else [])) for _ in range(2)]
        ends = [resumer.end() for resumer in resumers]
        winners = [text for code, text in ends if "OK: 2 succeeded" in text and code == 0]
        others = [(code, text) for code, text in ends if text not in winners]
        assert (len(winners), len(others)) == (1, 1), (number, ends)
        ((code, text),) = others
        is_told = "running already" in text or "somebody else has resumed" in text or "is RUNNING" in text
        assert (code == 1 and is_told) or (code == 0 and "nothing to resume" in text), (number, ends)
        told["refused" if is_told else "nothing left"] += 1
        assert "Traceback" not in text
        assert command.log() == ["one", "one", "two"], number
        check_whole(command, str(number))
    print(dict(told))


WRITER = """
import sys
from ttasks import SQLiteStore, Task, TaskExecutor, TaskGraph, TaskType

def work(context):
    print_to = context.emit_progress
    for percent in range(20):
        print_to(percent)

with SQLiteStore(sys.argv[1]) as store, TaskExecutor(store) as executor:
    executor.register(TaskType.PROMPT, work)
    print("begun", flush=True)
    while True:
        graph = TaskGraph(title="busy")
        for number in range(20):
            graph.add(Task.prompt("work", title=str(number)))
        graph.add(Task.bash("true"))
        graph.run(executor, 4)
"""


def test_a_live_runner_is_never_taken_for_dead(commands: list[Command], tmp_path: Path) -> None:
    command = fresh(commands, tmp_path, "tasks: {}")
    command.ledger.parent.mkdir()
    writers = [command.start_process([sys.executable, "-c", WRITER, str(command.ledger)]) for _ in range(4)]
    for writer in writers:
        writer.until("begun")
    looks = 0
    with SQLiteStore(command.ledger) as store, TaskExecutor(store) as executor:
        until(lambda: len(store.graphs) > 4)
        over_s = time.monotonic() + (20 if CAMPAIGN else 3)
        while time.monotonic() < over_s:
            assert store.interrupted() == []
            assert executor.resume() == []
            assert all(writer.process.poll() is None for writer in writers), [writer.end() for writer in writers]
            looks += 1
        assert looks > 10
    for writer in writers:
        writer.kill()
    check_nothing_was_taken_for_dead(command)


QUICK = """
import sys
from ttasks import SQLiteStore, Task, TaskExecutor, TaskGraph, TaskType
for number in range(int(sys.argv[2])):
    with SQLiteStore(sys.argv[1]) as store, TaskExecutor.empty(store) as executor:
        executor.register(TaskType.BASH, lambda context: None)
        graph = TaskGraph()
        graph.add(Task.bash("work"))
        graph.run(executor)
        executor.execute(Task.bash("alone"))
"""


def test_a_runner_that_ends_while_somebody_looks_is_never_taken_for_dead(
    commands: list[Command], tmp_path: Path
) -> None:
    command = fresh(commands, tmp_path, "tasks: {}")
    with SQLiteStore(command.ledger) as store, TaskExecutor(store) as executor:
        for number in range(40 if CAMPAIGN else 4):
            runners = [
                command.start_process([sys.executable, "-c", QUICK, str(command.ledger), str(1 + number % 3)])
                for _ in range(4)
            ]
            while any(runner.process.poll() is None for runner in runners):
                assert store.interrupted() == []
                assert store.owed() == []
                assert executor.resume() == []
            assert [runner.end() for runner in runners] == [(0, "")] * 4
    check_nothing_was_taken_for_dead(command)


def check_nothing_was_taken_for_dead(command: Command) -> None:
    with contextlib.closing(Readers.open(command.ledger)) as readers:
        assert verify(readers).problems == []
    assert command.sql("SELECT count(*) FROM events WHERE type GLOB '*Interrupted' OR type = 'GraphRunResumed'") == [
        (0,)
    ]
