"""A runner inside a task of another runner: whatever ends the outer task leaves nothing of the inner one."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from commands import TTASKS, Command
from processes import PATIENCE_S, in_thread, until
from ttasks import SQLiteStore, Task, TaskCancelled, TaskExecutor, TaskStatus
from ttasks.events.facts import ProcessReaped
from ttasks.events.status import RunStatus
from ttasks.log.survivors import LEDGER, MARK, RUNNER, innermost, marking
from ttasks.runtime.nesting import is_cancelled_outside

INNER = """
tasks:
  work: {bash: "%s echo $$ > pid.new; mv pid.new work.pid; while :; do sleep 0.1; done", on_interrupted: ask}
  clean: {bash: "echo cleaned >> log", after: [work], finally: true}
"""
PROGRAM = """
import sys
from ttasks import SQLiteStore, Task, TaskExecutor
with SQLiteStore(sys.argv[1]) as store:
    TaskExecutor(store).execute(Task.bash("echo $$ > pid.new; mv pid.new work.pid; while :; do sleep 0.1; done"))
"""


@pytest.fixture
def ttasks(outside_git: Path) -> Command:
    return Command(outside_git)


def write(ttasks: Command, *, inner_ledger: str, grace: float = 5, timeout: float | None = None, deaf: bool) -> str:
    """Write an outer workflow whose task runs an inner one; the inner script may ignore SIGTERM. Return that task's."""
    ttasks.write("inner.yaml", INNER % ("trap '' TERM;" if deaf else ""))
    script = shlex.join([*TTASKS, "run", "inner.yaml", "--ledger", inner_ledger])
    outer = {"bash": script, "grace": grace, "on_interrupted": "ask"} | ({"timeout": timeout} if timeout else {})
    ttasks.write("outer.yaml", json.dumps({"tasks": {"outer": outer}}))
    return script


def work_of(ttasks: Command) -> psutil.Process:
    return psutil.Process(int(ttasks.await_file("work.pid").read_text()))


def has_ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def inner_run(ttasks: Command, ledger: str) -> RunStatus | None:
    with SQLiteStore(ttasks.folder / ledger, read_only=True) as store:
        (graph,) = (graph for graph in store.graphs.values() if graph.title == "inner")
        return graph.run_status


def stop(executor: TaskExecutor, task: Task) -> None:
    executor._live[task.id].stop()


def end_outer(
    ttasks: Command, script: str, grace: float, end: Callable[[TaskExecutor, Task], None] = stop
) -> psutil.Process:
    """Run a script as a task, end that once the inner work runs, by default with no cancel; return the inner work."""
    with SQLiteStore(ttasks.folder / "outer.db") as store, TaskExecutor(store) as executor:
        task = Task.bash(script, cwd=str(ttasks.folder), grace=grace, env={"TTASKS_LEDGER": ""})
        ending = in_thread(lambda: executor.execute(task))
        work = work_of(ttasks)
        end(executor, task)
        with pytest.raises(TaskCancelled):
            ending.result(PATIENCE_S)
    return work


@pytest.mark.parametrize("inner_ledger", ["inner.db", "outer.db"], ids=["its own ledger", "the same ledger"])
@pytest.mark.parametrize("grace", [0, 0.5, 2], ids=lambda grace: f"grace {grace}")
@pytest.mark.parametrize("deaf", [False, True], ids=["obeys", "ignores SIGTERM"])
def test_the_end_of_the_outer_task_leaves_nothing_of_the_inner_runner(
    ttasks: Command, inner_ledger: str, grace: float, deaf: bool
) -> None:
    script = write(ttasks, inner_ledger=inner_ledger, deaf=deaf)
    assert has_ended(end_outer(ttasks, script, grace))
    assert ttasks.log() == []


def test_an_inner_runner_ends_what_ignores_sigterm_in_the_last_second_of_the_outer_grace(ttasks: Command) -> None:
    script = write(ttasks, inner_ledger="inner.db", deaf=True)
    assert has_ended(end_outer(ttasks, script, 4))
    assert inner_run(ttasks, "inner.db") is RunStatus.INTERRUPTED  # the inner runner lived to record it


def test_a_time_out_of_the_outer_task_leaves_nothing_of_the_inner_runner(ttasks: Command) -> None:
    write(ttasks, inner_ledger="inner.db", grace=0.5, timeout=12, deaf=True)
    outer = ttasks.start("run", "outer.yaml", "--ledger", "outer.db")
    work = work_of(ttasks)
    code, said = outer.end()
    assert code == 1 and "timed out" in said
    assert has_ended(work)


@pytest.mark.parametrize("how", ["cancel", "Ctrl-C"])
@pytest.mark.parametrize("inner_ledger", ["inner.db", "outer.db"], ids=["its own ledger", "the same ledger"])
def test_a_cancel_of_the_outer_run_lets_the_inner_one_clean_up(ttasks: Command, how: str, inner_ledger: str) -> None:
    write(ttasks, inner_ledger=inner_ledger, grace=30, deaf=False)
    outer = ttasks.start("run", "outer.yaml", "--ledger", "outer.db")
    work = work_of(ttasks)
    if how == "cancel":
        with SQLiteStore(ttasks.folder / "outer.db") as store:
            (graph,) = (graph for graph in store.graphs.values() if graph.title == "outer")
            store.graphs.cancel(graph.id)
        outer.end()
    else:
        outer.end(signal.SIGINT)
    assert has_ended(work)
    assert ttasks.log() == ["cleaned"]
    assert inner_run(ttasks, inner_ledger) is RunStatus.CANCELLED


def test_a_cancel_of_the_outer_run_cancels_a_task_that_a_resume_inside_runs_by_itself(ttasks: Command) -> None:
    program = ttasks.start_process([sys.executable, "-c", PROGRAM, "inner.db"])
    work_of(ttasks)
    program.kill()
    (ttasks.folder / "work.pid").unlink()
    script = shlex.join([*TTASKS, "resume", "--ledger", "inner.db"])
    ttasks.write("outer.yaml", json.dumps({"tasks": {"outer": {"bash": script, "grace": 30}}}))
    outer = ttasks.start("run", "outer.yaml", "--ledger", "outer.db")
    work = work_of(ttasks)
    with SQLiteStore(ttasks.folder / "outer.db") as store:
        (graph,) = store.graphs.values()
        store.graphs.cancel(graph.id)
    outer.end()
    assert has_ended(work)
    with SQLiteStore(ttasks.folder / "inner.db", read_only=True) as store:
        (task,) = store.tasks.values()
        assert task.status is TaskStatus.CANCELLED


@pytest.mark.parametrize(
    "cancel",
    [TaskExecutor.cancel, lambda _, task: task.cancel(), lambda _, task: task.transition_to(TaskStatus.CANCELLED)],
    ids=["executor.cancel", "task.cancel", "transition_to"],
)
def test_a_cancel_of_the_outer_task_by_its_own_process_lets_the_inner_run_clean_up(
    ttasks: Command, cancel: Callable[[TaskExecutor, Task], None]
) -> None:
    script = write(ttasks, inner_ledger="inner.db", deaf=False)
    assert has_ended(end_outer(ttasks, script, 30, cancel))
    assert ttasks.log() == ["cleaned"]
    assert inner_run(ttasks, "inner.db") is RunStatus.CANCELLED


def test_a_termination_of_the_outer_command_interrupts_both_runs(ttasks: Command) -> None:
    write(ttasks, inner_ledger="inner.db", grace=30, deaf=False)
    outer = ttasks.start("run", "outer.yaml", "--ledger", "outer.db")
    work = work_of(ttasks)
    code, _ = outer.end(signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    assert has_ended(work)
    assert inner_run(ttasks, "inner.db") is RunStatus.INTERRUPTED
    assert ttasks.log() == []


def test_a_second_termination_ends_what_ignores_the_first_at_once(ttasks: Command) -> None:
    write(ttasks, inner_ledger="inner.db", grace=1000, deaf=True)
    outer = ttasks.start("run", "outer.yaml", "--ledger", "outer.db")
    work = work_of(ttasks)
    outer.process.send_signal(signal.SIGTERM)
    inner_runner = work.parent()
    assert inner_runner is not None
    outer.end(signal.SIGTERM)
    assert has_ended(work)
    assert has_ended(inner_runner)


@pytest.mark.parametrize("grace", [0.3, 3])
def test_a_program_with_an_executor_that_a_sigterm_ends_leaves_no_script(ttasks: Command, grace: float) -> None:
    program = ttasks.write("program.py", PROGRAM)
    assert has_ended(end_outer(ttasks, shlex.join([sys.executable, str(program), "inner.db"]), grace))


def test_when_both_runners_were_killed_a_resume_of_the_outer_one_ends_what_the_inner_one_left(ttasks: Command) -> None:
    write(ttasks, inner_ledger="inner.db", grace=0.5, deaf=True)
    outer = ttasks.start("run", "outer.yaml", "--ledger", "outer.db")
    work = work_of(ttasks)
    inner_runner = work.parent()
    assert inner_runner is not None
    outer.kill()
    inner_runner.kill()
    until(lambda: has_ended(inner_runner))
    assert not has_ended(work)
    ttasks("resume", "--ledger", "outer.db")
    assert has_ended(work)
    with SQLiteStore(ttasks.folder / "outer.db", read_only=True) as store:
        reaped = [event.fact for event in store.events(type="ProcessReaped")]
        assert [work.pid in fact.pids for fact in reaped if isinstance(fact, ProcessReaped)] == [True]
        assert [task.status for task in store.tasks.values()] == [TaskStatus.INTERRUPTED]


def test_a_resume_of_the_inner_run_covers_only_its_own_part(ttasks: Command) -> None:
    write(ttasks, inner_ledger="inner.db", grace=0.5, deaf=True)
    outer = ttasks.start("run", "outer.yaml", "--ledger", "outer.db")
    work = work_of(ttasks)
    inner_runner = work.parent()
    assert inner_runner is not None
    shell = inner_runner.parent()
    assert shell is not None
    shell.suspend()  # so that the outer task lives on without its inner runner
    inner_runner.kill()
    until(lambda: has_ended(inner_runner))
    ttasks("resume", "--ledger", "inner.db")
    assert has_ended(work)
    assert not has_ended(shell)
    shell.resume()
    outer.end()


def test_marks_nest_by_what_this_process_carries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MARK, raising=False)
    monkeypatch.setenv(RUNNER, "not of any attempt")
    assert marking("a:1", "r", Path("/l")) == {MARK: "a:1", RUNNER: "r", LEDGER: "/l"}
    monkeypatch.setenv(MARK, "a:1")
    monkeypatch.setenv(RUNNER, "r")
    assert marking("b:2", "s") == {MARK: "a:1/b:2", RUNNER: "r/s", LEDGER: ""}
    assert innermost("a:1/b:2") == "b:2"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {MARK: "copilot:x", LEDGER: "/nowhere"},
        {MARK: "a:1", LEDGER: "/nowhere/ledger.db"},
        {MARK: "another:1", LEDGER: "ledger.db"},
        {MARK: "this:1", LEDGER: "ledger.db"},
        {MARK: "this:99", LEDGER: "ledger.db"},
    ],
)
def test_an_environment_that_names_no_attempt_of_a_ledger_says_nothing_of_a_cancel(
    outside_git: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    with SQLiteStore("ledger.db") as store:
        ledger = store._ledger
    for name in (MARK, LEDGER):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value.replace("this", ledger))
    assert not is_cancelled_outside()
