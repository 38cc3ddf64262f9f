"""What a script starts and leaves: ended with its task wherever it went, or waited for, or left alive on purpose."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from commands import TTASKS
from processes import PATIENCE_S, in_thread, until
from ttasks import (
    SQLiteStore,
    Task,
    TaskCancelled,
    TaskContext,
    TaskEvent,
    TaskExecutionError,
    TaskExecutor,
    TaskTimeoutError,
)
from ttasks.events.facts import ProcessReaped
from ttasks.handlers import process as handling
from ttasks.handlers.shell import bash_handler
from ttasks.log import processes
from ttasks.log.survivors import MARK

DAEMON = "echo $BASHPID > pid.new; mv pid.new daemon.pid; exec sleep 1000 < /dev/null > /dev/null 2>&1"
LEAVING = {
    "its session": f"setsid bash -c '{DAEMON}' & sleep 1000",
    "its parent too": f"(setsid bash -c '({DAEMON}) &' &); sleep 1000",
    "and ignores SIGTERM": f"setsid bash -c 'trap \"\" TERM; {DAEMON}' & sleep 1000",
    "its session and environment": f"setsid env -i /bin/bash -c '{DAEMON}' & sleep 1000",
}


@pytest.fixture(autouse=True)
def _outside_git(outside_git: Path) -> None:
    """No description of a git checkout comes between."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    with SQLiteStore(tmp_path / "ledger.db") as store:
        yield store


@pytest.fixture
def daemon() -> Iterator[Any]:
    """What a script has started, once it has said who it is; it is ended with the test."""
    started: list[psutil.Process] = []

    def find() -> psutil.Process:
        until(Path("daemon.pid").exists)
        started.append(psutil.Process(int(Path("daemon.pid").read_text())))
        return started[-1]

    yield find
    for process in started:
        if process.is_running():
            process.kill()


def is_gone() -> bool:
    """True once what a script has started has ended, which had begun."""
    pid = int(Path("daemon.pid").read_text())
    return not psutil.pid_exists(pid) or has_ended(psutil.Process(pid))


def has_ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def reaped(store: SQLiteStore) -> list[ProcessReaped]:
    return [event.fact for event in store.events(type="ProcessReaped") if isinstance(event.fact, ProcessReaped)]


# --- ended with its task ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", LEAVING.values(), ids=LEAVING.keys())
@pytest.mark.parametrize("how", ["time-out", "cancel"])
def test_what_left_the_group_is_ended_with_its_task_and_that_is_recorded(
    script: str, how: str, store: SQLiteStore, daemon: Any
) -> None:
    executor = TaskExecutor(store)
    task = Task.bash(script, timeout=2 if how == "time-out" else None, grace=0.3)
    ending = in_thread(lambda: executor.execute(task))
    process = daemon()
    if how == "cancel":
        executor.cancel(task)
    with pytest.raises((TaskTimeoutError, TaskCancelled)):
        ending.result(PATIENCE_S)
    assert has_ended(process)
    (fact,) = reaped(store)
    assert (fact.attempt, process.pid in fact.pids) == (1, True)
    assert fact.signal == ("SIGKILL" if "trap" in script else "SIGTERM")


@pytest.mark.parametrize("by_hand", [False, True], ids=["executor", "context made by hand"])
def test_what_left_the_group_is_ended_without_a_ledger_too(by_hand: bool) -> None:
    task = Task.bash(LEAVING["its parent too"], timeout=2)
    with pytest.raises(TaskTimeoutError):
        if by_hand:
            bash_handler(TaskContext(task))
        else:
            TaskExecutor().execute(task)
    assert is_gone()


def test_two_tasks_at_once_without_a_ledger_end_only_what_is_theirs(daemon: Any) -> None:
    executor = TaskExecutor()
    one, other = Task.bash(LEAVING["its session"]), Task.bash("exec sleep 1000", timeout=0.3)
    ending = in_thread(lambda: executor.execute(one))
    process = daemon()
    with pytest.raises(TaskTimeoutError):
        executor.execute(other)
    assert not has_ended(process)
    executor.cancel(one)
    with pytest.raises(TaskCancelled):
        ending.result(PATIENCE_S)
    assert has_ended(process)


def test_nothing_is_recorded_where_nothing_had_left_the_group(store: SQLiteStore) -> None:
    with pytest.raises(TaskTimeoutError):
        TaskExecutor(store).execute(Task.bash("sleep 1000 & sleep 1000", timeout=0.3))
    assert reaped(store) == []


def test_what_is_started_again_and_again_outside_of_the_group_is_ended(store: SQLiteStore) -> None:
    # Each passes on to a child of its own before it ends: no single look sees the last of them.
    Path("hare").write_text("echo $$ >> pids\nsleep 0.01\nsetsid bash hare < /dev/null > /dev/null 2>&1 &\n")
    task = Task.bash("trap '' TERM; export HARE=$$; setsid bash hare & sleep 1000", timeout=1, grace=0.2)
    with pytest.raises(TaskTimeoutError):
        TaskExecutor(store).execute(task)
    mark = f"{store._ledger}:"
    left = [each for each in psutil.process_iter(["environ"]) if mark in (each.info["environ"] or {}).get(MARK, "")]
    assert [each for each in left if not has_ended(each)] == []


def test_a_script_that_cleans_up_is_not_disturbed_by_what_it_starts_for_that(store: SQLiteStore) -> None:
    task = Task.bash("trap 'bash -c \"sleep 1; echo cleaned\"; exit' TERM; echo up; sleep 1000 & wait", timeout=0.5)
    with pytest.raises(TaskTimeoutError) as raised:
        TaskExecutor(store).execute(task)
    assert raised.value.completed is not None
    assert raised.value.completed.stdout == "up\ncleaned\n"


@pytest.mark.parametrize("grace", [0, 0.5, 2])
def test_a_task_has_its_own_grace(grace: float) -> None:
    task = Task.bash("trap '' TERM; while :; do sleep 1000; done", timeout=0.2, grace=grace)
    with pytest.raises(TaskTimeoutError):
        TaskExecutor().execute(task)
    assert task.result is not None
    assert grace <= task.result.duration - 0.2 < grace + 4


def test_a_normal_end_looks_at_no_other_process(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ttasks.log.survivors.every_process", lambda but: pytest.fail("it looked"))
    assert TaskExecutor(store).execute(Task.bash("sleep 1000 > /dev/null 2>&1 & echo $!")).output
    with pytest.raises(TaskExecutionError):
        TaskExecutor(store).execute(Task.bash("exit 3"))


INTERRUPTED = """
import signal, sys, threading, time, os
from ttasks import Task, TaskExecutor
signal.signal(signal.SIGINT, signal.default_int_handler)
task = Task.bash("trap '' TERM; echo $$; while :; do sleep 0.1; done", grace=1000)
executor = TaskExecutor()
def hear(event):
    if event.type == "output":
        print(event.output_chunk, flush=True)
executor.events.subscribe(hear)
try:
    executor.execute(task)
except KeyboardInterrupt:
    print(task.status, flush=True)
"""


def test_a_second_ctrl_c_ends_at_once_what_the_first_one_gave_a_grace() -> None:
    with subprocess.Popen([sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        script = psutil.Process(int(program.stdout.readline()))
        program.send_signal(signal.SIGINT)
        while not has_ended(script):
            program.send_signal(signal.SIGINT)
            threading.Event().wait(0.2)
        program.communicate(timeout=PATIENCE_S)
    assert has_ended(script)


GIVEN_UP = """
import signal, sys, threading
from ttasks import Task, TaskExecutor
from ttasks.handlers.process import ChildProcess
signal.signal(signal.SIGINT, signal.default_int_handler)
end = ChildProcess.end
def interrupted(self):
    ChildProcess.end = end
    raise KeyboardInterrupt  # right before it would have begun
ChildProcess.end = interrupted
task = Task.bash("trap '' TERM; echo $$; while :; do sleep 0.1; done", grace=1000)
executor = TaskExecutor()
def hear(event):
    if event.type == "output":
        print(event.output_chunk, end="", flush=True)
executor.events.subscribe(hear)
try:
    executor.execute(task)
except KeyboardInterrupt:
    print("given up", flush=True)
    if sys.argv[1] == "goes on":
        sys.stdin.readline()
"""


@pytest.mark.parametrize("then", ["goes on", "leaves"])
def test_a_script_that_ctrl_c_let_nobody_end_is_ended_all_the_same(then: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", GIVEN_UP, then], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        script = psutil.Process(int(program.stdout.readline()))
        program.send_signal(signal.SIGINT)
        assert program.stdout.readline() == "given up\n"
        script.wait(PATIENCE_S)
        program.communicate("\n", timeout=PATIENCE_S)
    assert has_ended(script)


# --- waited for, and said --------------------------------------------------------------------------------------------


def waits(script: str, monkeypatch: pytest.MonkeyPatch, **fields: Any) -> tuple[list[str], Task]:
    """Run a script until it is said what it waits for, cancel it then, and return what was said."""
    monkeypatch.setattr(handling, "WAITING_S", 0.1)
    executor, said = TaskExecutor(), list[str]()
    task = Task.bash(script, **fields)

    def hear(event: TaskEvent) -> None:
        if event.type == "progress":
            said.append(event.progress_message or "")
            executor.cancel(task)

    executor.events.subscribe(hear)
    with pytest.raises(TaskCancelled):
        executor.execute(task)
    return said, task


def test_it_is_said_which_process_holds_the_output_of_a_script_that_has_exited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said, task = waits("setsid sleep 1000 & echo $!", monkeypatch)
    assert task.result is not None
    pid = int(task.result.output)
    assert said == [f"waiting: the script has exited, but process {pid} (sleep) still holds its output"]
    assert not psutil.pid_exists(pid) or has_ended(psutil.Process(pid))


def test_of_many_processes_that_hold_the_output_some_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    said, _ = waits("for i in 1 2 3 4 5; do sleep 1000 & done", monkeypatch)
    assert said[0].startswith("waiting: the script has exited, but processes ")
    assert said[0].endswith(" (sleep) and 2 more still hold its output")


@pytest.mark.parametrize("can_see", ["marks", "nothing"])
def test_where_descriptors_can_not_be_seen_it_is_said_all_the_same(
    monkeypatch: pytest.MonkeyPatch, can_see: str
) -> None:
    monkeypatch.setattr(handling, "holders", lambda pipes: None if can_see == "marks" else [])
    said, task = waits("sleep 1000 & echo $!", monkeypatch)
    assert task.result is not None
    who = f"process {int(task.result.output)} (sleep)" if can_see == "marks" else "something that it started"
    assert said == [f"waiting: the script has exited, but {who} still holds its output"]


# --- left alive on purpose -------------------------------------------------------------------------------------------

SERVER = "echo $$ > pid.new; mv pid.new daemon.pid; while [ ! -e stop ]; do seq 5000; sleep 0.01; done; touch done"


def test_a_task_that_does_not_wait_for_output_succeeds_and_what_it_started_lives_on(
    store: SQLiteStore, daemon: Any
) -> None:
    task = Task.bash(f"bash -c '{SERVER}' & echo up", wait_for_output=False)
    result = TaskExecutor(store).execute(task)
    assert "up\n" in result.output
    process = daemon()
    assert not has_ended(process)
    assert MARK in process.environ()
    Path("stop").touch()  # it prints more than a pipe holds until then, and is not ended by that
    until(Path("done").exists)
    assert store.tasks[task.id].result.output == result.output
    assert reaped(store) == []


def test_threads_do_not_grow_with_what_lives_on(store: SQLiteStore) -> None:
    executor = TaskExecutor(store)
    for number in range(8):
        executor.execute(Task.bash(f"(while [ ! -e stop ]; do sleep 0.02; done; touch done{number}) &",
                                   wait_for_output=False))  # fmt: skip
    assert len([each for each in threading.enumerate() if each.name == "ttasks-unread"]) == 1
    Path("stop").touch()
    until(lambda: all(Path(f"done{number}").exists() for number in range(8)))
    until(lambda: not [each for each in threading.enumerate() if each.name == "ttasks-unread"])


def test_what_a_failed_task_started_is_ended_though_it_does_not_wait_for_output() -> None:
    script = f"bash -c '{SERVER}' & while [ ! -e daemon.pid ]; do sleep 0.01; done; exit 3"
    with pytest.raises(TaskExecutionError) as raised:
        TaskExecutor().execute(Task.bash(script, wait_for_output=False))
    assert raised.value.completed is not None
    assert raised.value.completed.returncode == 3
    assert is_gone()


@pytest.mark.parametrize("clean", ["", "env -i /bin/"], ids=["marked", "without an environment"])
def test_what_a_failed_task_left_in_its_group_is_ended_and_not_recorded_as_outside(
    store: SQLiteStore, clean: str
) -> None:
    script = f"{clean}bash -c '{SERVER}' & while [ ! -e daemon.pid ]; do sleep 0.01; done; exit 3"
    with pytest.raises(TaskExecutionError):
        TaskExecutor(store).execute(Task.bash(script, wait_for_output=False))
    assert is_gone()
    assert reaped(store) == []


def test_a_time_out_ends_what_a_task_started_that_does_not_wait_for_output() -> None:
    with pytest.raises(TaskTimeoutError):
        TaskExecutor().execute(Task.bash(f"setsid bash -c '{DAEMON}' & sleep 1000", timeout=2, wait_for_output=False))
    assert is_gone()


def test_a_forked_child_holds_no_pipe_of_what_lives_on(daemon: Any) -> None:
    TaskExecutor().execute(Task.bash(f"bash -c '{SERVER}' & true", wait_for_output=False))
    process = daemon()
    pipes = {os.readlink(f"/proc/{process.pid}/fd/1")}
    child = os.fork()
    if child == 0:
        held = {os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if int(name) > 2
                and os.path.lexists(f"/proc/self/fd/{name}")}  # fmt: skip
        os._exit(0 if pipes.isdisjoint(held) else 1)
    assert os.waitpid(child, 0)[1] == 0
    Path("stop").touch()
    until(Path("done").exists)


LEAVER = """
import sys
from ttasks import Task, TaskExecutor
TaskExecutor().execute(Task.bash(sys.argv[1], wait_for_output=False))
"""


def test_a_program_ends_though_what_it_left_alive_lives_on(daemon: Any) -> None:
    script = f"setsid bash -c '{DAEMON.replace('> /dev/null 2>&1', '')}' & true"
    subprocess.run([sys.executable, "-c", LEAVER, script], timeout=PATIENCE_S, check=True)
    assert not has_ended(daemon())


# --- looking without /proc -------------------------------------------------------------------------------------------


def test_without_proc_what_left_the_group_is_found_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PROC", "/nowhere")
    with pytest.raises(TaskTimeoutError):
        TaskExecutor().execute(Task.bash(LEAVING["its session"], timeout=2))
    assert is_gone()


# --- exit codes that the system does not keep ------------------------------------------------------------------------


def test_a_script_whose_exit_code_is_lost_has_not_succeeded() -> None:
    code = (
        "import signal; from ttasks import *; signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
        "try: TaskExecutor().execute(task := Task.bash('exit 3'))\n"
        "except TaskExecutionError: print(task.status, task.error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.startswith("failed it has ended, but its exit code is lost"), done.stderr


def test_the_command_knows_exit_codes_though_its_caller_ignores_sigchld(outside_git: Path) -> None:
    (outside_git / "work.yaml").write_text("tasks:\n  one: {bash: exit 3}\n", "utf-8")
    program = [sys.executable, "-c", "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN);"
               "os.execv(sys.argv[1], sys.argv[1:])"]  # fmt: skip
    done = subprocess.run([*program, *TTASKS, "run", "work.yaml"], capture_output=True, text=True, cwd=outside_git)
    assert done.returncode == 1 and "exited with code 3" in done.stdout, done.stderr
