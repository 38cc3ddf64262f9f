"""What is told of processes: from /proc, and the same where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from processes import until
from ttasks.log import processes

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc here")


@pytest.fixture(params=["with /proc", "without"])
def proc(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param == "without":
        monkeypatch.setattr(processes, "PROC", "/nowhere")
        return False
    if not Path("/proc/self/stat").exists():
        pytest.skip("there is no /proc here")
    return True


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    code = "import os; os.write(1, b'up'); os.read(0, 1)"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env={"NAME": "a=b", "EMPTY": ""},
        start_new_session=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        process.stdout.read(2)
        yield process
        process.stdin.close()


def ended_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        return process.pid


def test_a_process_is_told_with_its_parent_group_and_session(proc: bool, child: subprocess.Popen[bytes]) -> None:
    (found,) = (each for each in processes.every_process() if each.pid == child.pid)
    assert (found.parent, found.group, found.session) == (os.getpid(), child.pid, child.pid)
    assert found.is_alive() and not found.is_over


def test_a_zombie_is_over(proc: bool, child: subprocess.Popen[bytes]) -> None:
    assert child.stdin is not None
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    (found,) = (each for each in processes.every_process() if each.pid == child.pid)
    assert found.is_over and not found.is_alive()


@needs_proc
def test_a_process_whose_main_thread_alone_has_ended_is_not_over() -> None:
    code = (
        "import ctypes, os, threading; threading.Thread(target=os.read, args=(0, 1)).start(); "
        "ctypes.CDLL(None).pthread_exit(None)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        try:
            until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
            (found,) = (each for each in processes.every_process() if each.pid == process.pid)
            assert found.is_alive() and not found.is_over
        finally:
            process.kill()


def test_variables_are_those_that_a_process_was_started_with(proc: bool, child: subprocess.Popen[bytes]) -> None:
    assert processes.variables(child.pid, "NAME", "EMPTY") == ("a=b", "")
    assert processes.variables(child.pid, "AME", "OTHER") == (None, None)
    assert processes.variables(ended_pid(), "NAME", "EMPTY") == (None, None)


@needs_proc
def test_who_holds_a_pipe_is_known_by_what_it_has_open(child: subprocess.Popen[bytes]) -> None:
    assert child.stdout is not None
    assert processes.holders([child.stdout.fileno()]) == [child.pid]
    read, write = os.pipe()
    assert processes.holders([read]) == []  # this process is not meant
    os.close(read)
    os.close(write)


def test_where_descriptors_can_not_be_seen_nobody_is_taken_to_hold_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PROC", "/nowhere")
    assert processes.holders([1]) is None


def test_a_process_has_a_name(proc: bool) -> None:
    assert processes.name_of(os.getpid()) == psutil.Process().name()
    assert processes.name_of(ended_pid()) is None


def test_what_ends_while_it_is_looked_at_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = ended_pid()
    assert processes._read_stat(gone) is None
    assert list(processes._opened(gone)) == []
    assert list(processes._opened(os.getpid(), ["999999"])) == []
    assert processes._read(os.getpid(), "mem") is None  # its first page can't be read
    monkeypatch.setattr(os, "getsid", lambda pid: os.getpgid(gone))
    monkeypatch.setattr(processes, "PROC", "/nowhere")
    assert processes.every_process() == []
    monkeypatch.undo()
    monkeypatch.setattr(processes, "PROC", "/nowhere")
    monkeypatch.setattr(processes, "process_start", lambda pid: None)
    assert processes.every_process() == []
