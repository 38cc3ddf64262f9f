"""Who appends: this process, on this host, with what."""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path

from ttasks import clock
from ttasks.events.facts import RunnerStarted
from ttasks.state.runner import RunnerState
from ttasks.version import __version__


@cache
def boot_id() -> str:
    """Return what names this boot of this machine: after a reboot it is another."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        import psutil

        return f"booted:{psutil.boot_time():.0f}"


def process_start(pid: int) -> str | None:
    """Return what the operating system calls the start of process `pid`, None where there is no such process.

    On Linux it counts clock ticks since boot, which no change of the clock moves. It is compared only for equality.
    """
    return _look_up(pid)[0]


def is_process(pid: int, start: str | None) -> bool:
    """True while the process runs that has this pid and started then; not for another with its pid, nor its zombie."""
    found, is_zombie = _look_up(pid)
    return found is not None and found == start and not is_zombie


def _look_up(pid: int) -> tuple[str | None, bool]:
    """Return the start of a process (None: there is no such process), and whether it has ended already."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except FileNotFoundError:
        return (None, False) if sys.platform == "linux" else _look_up_elsewhere(pid)
    except ProcessLookupError:
        return None, False
    # The name in parentheses may hold anything; field 3, the state, is the first after it, field 22 the 20th (proc(5)).
    fields = stat.rpartition(b")")[2].split()
    return "ticks:" + fields[19].decode("ascii"), is_over_by(fields[0], fields[17])


def is_over_by(state: bytes, threads: bytes) -> bool:
    """True for a zombie by fields 3 and 20 of its stat; not for one whose main thread alone has ended."""
    return state in (b"Z", b"X") and threads in (b"0", b"1")


def _look_up_elsewhere(pid: int) -> tuple[str | None, bool]:
    import psutil

    try:
        process = psutil.Process(pid)
        return f"epoch:{process.create_time():.6f}", process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return None, False


def is_this_process(runner: RunnerState) -> bool:
    """True when `runner` is the process that asks."""
    born = runner.boot_id, runner.process_start
    return runner.pid == os.getpid() and born == (boot_id(), process_start(runner.pid))


def working_directory() -> str:
    """Return the folder that this process is in, ``(deleted)`` where there is none any more."""
    try:
        return os.getcwd()  # noqa: PTH109 - asked for at every start
    except FileNotFoundError:
        return "(deleted)"


def describe_runner() -> RunnerStarted:
    """Return the facts about this process."""
    return RunnerStarted(
        host=os.uname().nodename,
        boot_id=boot_id(),
        pid=os.getpid(),
        process_start=process_start(os.getpid()) or "unknown",
        user=clock.user_name(),
        cwd=working_directory(),
        command=tuple(sys.orig_argv),
        ttasks_version=__version__,
        python_version=".".join(map(str, sys.version_info[:3])),
        platform=sys.platform,
    )
