"""A dead runner is told from a live one by the operating system alone."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import freezegun
import psutil  # noqa: F401 - not first where sys.platform says something else
import pytest

from ttasks import (
    InMemoryStore,
    LedgerUnwritableError,
    SQLiteStore,
    Task,
    TaskContext,
    TaskExecutor,
    TaskGraph,
    TaskType,
)
from ttasks.errors import DamagedLedgerError
from ttasks.events.facts import TaskStarted
from ttasks.log import runner as host
from ttasks.log.event_log import EventLog
from ttasks.log.files import lock_path, runner_path
from ttasks.log.liveness import _IN_HAND, Liveness, RunnerLock, is_alive, let_go, take_in_hand
from ttasks.log.transaction import Batch, Transaction
from ttasks.state.runner import RunnerState

PATIENCE_S = 30

RUNNER = """
import os, sys, time
from ttasks import *

store = SQLiteStore(sys.argv[1])
store.tasks.save(Task.bash("true"))
if "fork" in sys.argv and os.fork() == 0:
    os.write(1, b"child %d\\n" % os.getpid())
    time.sleep(1000)
os.write(1, b"ready %d\\n" % os.getpid())
time.sleep(1000)
"""


class Runner:
    """A process that has registered with a ledger."""

    def __init__(self, path: Path, *arguments: str) -> None:
        self.path = path
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUNNER, str(path), *arguments], stdout=subprocess.PIPE, text=True
        )
        said = dict(self._say() for _ in range(1 + len(arguments)))
        self.child = int(said["child"]) if "child" in said else None

    def _say(self) -> tuple[str, str]:
        assert self.process.stdout is not None
        word, number = self.process.stdout.readline().split()
        return word, number

    def state(self, path: Path | None = None) -> RunnerState:
        with SQLiteStore(path or self.path, read_only=True) as store:
            (state,) = [
                found
                for event in store.events(type="RunnerStarted")
                if (found := store._readers.runner(event.position)) is not None and found.pid == self.process.pid
            ]
        return state

    def end(self) -> None:
        for pid in filter(None, [self.child]):
            os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def runner(path: Path) -> Iterator[Runner]:
    started = Runner(path)
    yield started
    started.end()


def side_files(path: Path) -> list[str]:
    return sorted(file.name for file in path.parent.glob(f"{path.name}-runner-*"))


# --- who lives -----------------------------------------------------------------------------------------------------


def test_a_runner_lives_until_it_is_killed(runner: Runner) -> None:
    state = runner.state()
    assert is_alive(state, runner.path)
    runner.process.kill()
    runner.process.wait()
    assert not is_alive(state, runner.path)


IN_NAMESPACE = """
import sys
from pathlib import Path
from ttasks import SQLiteStore
from ttasks.log.liveness import is_alive
path = Path(sys.argv[1])
with SQLiteStore(path, read_only=True) as store:
    for event in store.events(type="RunnerStarted"):
        print(is_alive(store._readers.runner(event.position), path))
"""


def test_a_runner_of_another_pid_namespace_lives_while_its_lock_is_held(path: Path) -> None:
    namespace = ["unshare", "--pid", "--fork", "--mount-proc"]
    if shutil.which("unshare") is None or subprocess.run([*namespace, "true"], capture_output=True).returncode:
        pytest.skip("no PID namespace can be made here")
    runner = Runner(path)
    asking = [*namespace, sys.executable, "-c", IN_NAMESPACE, str(path)]
    try:
        assert subprocess.run(asking, capture_output=True, text=True, timeout=PATIENCE_S).stdout == "True\n"
    finally:
        runner.end()
    assert subprocess.run(asking, capture_output=True, text=True, timeout=PATIENCE_S).stdout == "False\n"


def test_a_zombie_is_dead_though_its_parent_has_not_noticed(runner: Runner) -> None:
    state = runner.state()
    runner.process.kill()
    os.waitid(os.P_PID, runner.process.pid, os.WEXITED | os.WNOWAIT)
    assert host.process_start(state.pid) == state.process_start, "it is a zombie, and has its pid still"
    assert not is_alive(state, runner.path)


def test_a_runner_that_does_nothing_for_long_lives(runner: Runner) -> None:
    state = runner.state()
    os.kill(runner.process.pid, signal.SIGSTOP)  # as on a machine that sleeps
    try:
        assert is_alive(state, runner.path)
    finally:
        os.kill(runner.process.pid, signal.SIGCONT)


@pytest.mark.parametrize("moment", ["1999-01-01", "2099-01-01"])
def test_a_clock_that_jumps_kills_nobody_and_raises_nobody(runner: Runner, moment: str) -> None:
    state = runner.state()
    with freezegun.freeze_time(moment):
        assert is_alive(state, runner.path)
        runner.process.kill()
        runner.process.wait()
        assert not is_alive(state, runner.path)


def test_a_runner_lives_whose_lock_file_was_tidied_away(runner: Runner) -> None:
    state = runner.state()
    runner_path(runner.path, state.id).unlink()
    assert is_alive(state, runner.path)
    runner.process.kill()
    runner.process.wait()
    assert not is_alive(state, runner.path)


def test_a_runner_lives_whose_process_can_not_be_seen_from_here(runner: Runner, monkeypatch: Any) -> None:
    state = runner.state()  # as from another container on this machine: other pids, the same files
    monkeypatch.setattr(host, "is_process", lambda pid, start: False)
    assert is_alive(state, runner.path)


def test_the_lock_of_a_copied_ledger_says_nothing_but_the_process_does(runner: Runner, tmp_path: Path) -> None:
    copy = tmp_path / "copy" / "ledger.db"
    copy.parent.mkdir()
    with SQLiteStore(runner.path) as store:
        store._log._connection.execute(f"VACUUM INTO '{copy}'")  # type: ignore[union-attr]
    state = runner.state(copy)
    assert is_alive(state, copy), "what it runs goes on, whichever copy one looks at"
    runner.process.kill()
    runner.process.wait()
    assert not is_alive(state, copy)


# --- host facts that can't be had here: named fakes -----------------------------------------------------------------


def of_this_process(path: Path) -> RunnerState:
    with SQLiteStore(path) as store:
        store.tasks.save(Task.bash("true"))
        (event,) = store.events(type="RunnerStarted")
        state = store._readers.runner(event.position)
    assert state is not None
    return state


def test_a_process_that_got_the_pid_of_a_dead_runner_is_not_it(path: Path) -> None:
    state = of_this_process(path)
    assert is_alive(state, path)
    assert not is_alive(replace(state, process_start="ticks:1"), path)


def test_after_a_reboot_nobody_lives_that_lived_before(path: Path) -> None:
    state = of_this_process(path)
    assert not is_alive(replace(state, boot_id="of-another-boot"), path)


def test_without_proc_a_process_is_known_by_the_time_of_its_start(path: Path, monkeypatch: Any) -> None:
    def refuse(file: Path) -> bytes:
        raise FileNotFoundError(file)

    with monkeypatch.context() as patch:  # as on macOS
        patch.setattr(Path, "read_bytes", refuse)
        patch.setattr(sys, "platform", "darwin")
        start = host.process_start(os.getpid())
        assert start is not None
        assert start.startswith("epoch:")
        assert host.is_process(os.getpid(), start)
        assert not host.is_process(os.getpid(), "epoch:1.0")


# --- forks ---------------------------------------------------------------------------------------------------------


def test_a_forked_child_that_lives_on_keeps_no_dead_runner_alive(path: Path) -> None:
    runner = Runner(path, "fork")
    try:
        state = runner.state()
        assert is_alive(state, path)
        runner.process.kill()
        runner.process.wait()
        assert runner.child is not None
        assert host.process_start(runner.child) is not None, "the child lives"
        assert not is_alive(state, path)
    finally:
        runner.end()


def test_a_script_that_lives_on_keeps_no_dead_runner_alive(path: Path) -> None:
    script = f"""
from ttasks import *
store = SQLiteStore({str(path)!r})
TaskExecutor(store).execute(Task.bash("echo $$ > {path.parent}/pid; sleep 1000"))
"""
    process = subprocess.Popen([sys.executable, "-c", script])
    pid = path.parent / "pid"
    while not (pid.exists() and pid.read_text()):
        assert process.poll() is None
    process.kill()
    process.wait()
    with SQLiteStore(path) as store:
        (work,) = store.interrupted()
        os.kill(int(pid.read_text()), 0)  # it lives
        store.tasks.cancel(work.id)
        (reaped,) = store.events(type="ProcessReaped")
        assert int(pid.read_text()) in reaped.fact.pids  # type: ignore[union-attr]
        assert [event.type for event in store.history(work.id)][-2:] == ["TaskInterrupted", "TaskCancelled"]


def test_a_child_that_is_just_being_started_keeps_its_dead_runner_alive_for_a_moment_only(
    path: Path, runner: Runner
) -> None:
    state = runner.state()
    runner.process.kill()
    runner.process.wait()
    held = os.open(runner_path(path, state.id), os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)  # as a copy of the runner's descriptor does, until exec closes it
    threading.Timer(0.1, os.close, (held,)).start()
    assert not is_alive(state, path)


def test_a_lock_that_stays_held_is_somebodys_who_lives(path: Path, runner: Runner) -> None:
    state = runner.state()
    runner.process.kill()
    runner.process.wait()
    with runner_path(path, state.id).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert is_alive(state, path)
        assert is_alive(replace(state, boot_id="of another machine"), path)


# --- the lock files ------------------------------------------------------------------------------------------------


def test_a_runner_that_closes_its_store_leaves_no_file_behind(path: Path) -> None:
    with SQLiteStore(path) as store:
        assert side_files(path) == []  # it has not recorded anything
        store.tasks.save(Task.bash("true"))
        assert len(side_files(path)) == 1
    assert side_files(path) == []


def test_a_program_that_ends_without_closing_its_store_leaves_no_file_behind(path: Path) -> None:
    script = f"from ttasks import *; store = SQLiteStore({str(path)!r}); store.tasks.save(Task.bash('true'))"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert side_files(path) == []


def test_what_a_killed_runner_left_is_cleared_away_by_the_next_one(path: Path, runner: Runner) -> None:
    left = side_files(path)
    assert len(left) == 1
    with SQLiteStore(path) as store:
        store.tasks.save(Task.bash("true"))
        assert len(side_files(path)) == 2, "the other lives"
    runner.process.kill()
    runner.process.wait()
    with SQLiteStore(path) as store:
        store.tasks.save(Task.bash("true"))
        assert left[0] not in side_files(path)


def test_a_lock_file_is_its_owners_alone(path: Path) -> None:
    with SQLiteStore(path) as store:
        store.tasks.save(Task.bash("true"))
        (name,) = side_files(path)
        assert (path.parent / name).stat().st_mode & 0o777 == 0o600


def test_a_lock_that_is_held_already_is_refused(path: Path) -> None:
    with runner_path(path, "r").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            RunnerLock(path, "r")


@pytest.mark.parametrize("closes", [RunnerLock.release, RunnerLock.leave])
def test_a_lock_that_ctrl_c_left_half_let_go_is_not_closed_twice(path: Path, monkeypatch: Any, closes: Any) -> None:
    lock = RunnerLock(path, "r")
    close = os.close

    def close_and_be_interrupted(descriptor: int) -> None:
        close(descriptor)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "close", close_and_be_interrupted)
        closes(lock)
    with (path.parent / "another").open("w") as another:  # is likely to get the number that became free
        lock.release()
        assert os.fstat(another.fileno())


def test_a_reader_who_came_by_a_link_finds_the_locks(path: Path, runner: Runner, monkeypatch: Any) -> None:
    link = path.parent / "elsewhere" / "link.db"
    link.parent.mkdir()
    link.symlink_to(path)
    monkeypatch.setattr(host, "is_process", lambda pid, start: False)
    assert is_alive(runner.state(), link)


def test_whether_a_runner_lives_is_known_while_somebody_holds_the_writers_lock(path: Path, runner: Runner) -> None:
    with SQLiteStore(path, read_only=True) as store, lock_path(path).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert store.interrupted() == []
        assert is_alive(runner.state(), path)


# --- what a process knows of its own -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_a_process_knows_what_it_runs_and_what_it_does_not(kind: str, path: Path) -> None:
    with SQLiteStore(path) if kind == "file" else InMemoryStore() as store:
        executor = TaskExecutor.empty(store)
        seen: list[bool] = []

        def look(context: TaskContext) -> None:
            seen.append(Liveness(store._readers).is_run(task._recorded))
            seen.append(store.interrupted() == [])

        executor.register(TaskType.BASH, look)
        task = Task.bash("work")
        executor.execute(task)
        assert seen == [True, True]


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_what_a_process_has_lost_track_of_is_dead(kind: str, path: Path) -> None:
    with SQLiteStore(path) if kind == "file" else InMemoryStore() as store:
        task = Task.bash("true")
        store.tasks.save(task)
        begun = TaskStarted(1, "somewhere.handler", "true", datetime.now(UTC), 0)
        assert store._log is not None
        store._log.append(Batch(f"task-{task.id}", [begun], 1))  # and nobody runs it
        assert [work.id for work in store.interrupted()] == [task.id]
        take_in_hand(store._ledger, f"task-{task.id}")
        assert store.interrupted() == []
        let_go(store._ledger, f"task-{task.id}")
        assert [work.id for work in store.interrupted()] == [task.id]


def test_what_ended_in_a_ledger_that_broke_meanwhile_is_not_in_hand_any_more(path: Path, monkeypatch: Any) -> None:
    def breaks(_: TaskContext) -> None:
        monkeypatch.setattr(EventLog, "append", refuse)

    def refuse(*_: object) -> None:
        raise DamagedLedgerError("event 7 can't be read")

    with SQLiteStore(path) as store, TaskExecutor.empty(store) as executor:
        executor.register(TaskType.BASH, breaks)
        graph = TaskGraph()
        task = graph.add(Task.bash("x"))
        graph.add(Task.bash("y"), after=[task])
        with pytest.raises(DamagedLedgerError):
            executor.execute(Task.bash("alone"))
        monkeypatch.undo()
        with contextlib.suppress(DamagedLedgerError):
            graph.run(executor)
        monkeypatch.undo()
        assert sorted(work.kind for work in store.interrupted()) == ["graph", "task"]
        assert not executor._live


def test_what_two_took_in_hand_is_in_hand_until_both_let_go(path: Path) -> None:
    with SQLiteStore(path) as store:
        task = Task.bash("true")
        store.tasks.save(task)
        stream = f"task-{task.id}"
        for _ in range(2):
            take_in_hand(store._ledger, stream)
        let_go(store._ledger, stream)
        assert Liveness(store._readers).runs(stream, 2)
        let_go(store._ledger, stream)
        assert not Liveness(store._readers).runs(stream, 2)


def test_a_forked_child_runs_nothing_that_its_parent_runs(path: Path) -> None:
    with SQLiteStore(path) as store:
        task = Task.bash("true")
        store.tasks.save(task)
        take_in_hand(store._ledger, f"task-{task.id}")
        child = os.fork()
        if child == 0:
            os._exit(len(_IN_HAND))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        let_go(store._ledger, f"task-{task.id}")


def test_a_runner_that_never_registered_runs_nothing(path: Path) -> None:
    with SQLiteStore(path) as store:
        store.tasks.save(Task.bash("true"))
        assert not Liveness(store._readers).runs("task-t", 99)


def test_a_registration_that_failed_is_begun_anew_with_a_lock_of_its_own(path: Path, monkeypatch: Any) -> None:
    with SQLiteStore(path) as store:
        with monkeypatch.context() as patch:
            patch.setattr(Transaction, "commit", refuse)
            with pytest.raises(LedgerUnwritableError, match="disk I/O error"):
                store.tasks.save(Task.bash("true"))
        store.tasks.save(Task.bash("true"))
        (event,) = store.events(type="RunnerStarted")
        assert side_files(path) == [f"ledger.db-{event.stream}"]
        assert not Liveness(store._readers).runs("task-t", event.position)


def refuse(*_: object) -> None:
    raise sqlite3.OperationalError("disk I/O error")
