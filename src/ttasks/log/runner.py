"""Who appends: this process, on this host, with what."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Final

from ttasks import clock
from ttasks.events.facts import RunnerDescribed, RunnerStarted
from ttasks.state.runner import RunnerState
from ttasks.version import __version__

_GIT_TIMEOUT_S: Final = 20


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
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except FileNotFoundError:
        if sys.platform == "linux":
            return None
        return _process_start_elsewhere(pid)
    except ProcessLookupError:
        return None
    # The name in parentheses may hold anything; field 22 is the 20th after it (proc(5)).
    return "ticks:" + stat.rpartition(b")")[2].split()[19].decode("ascii")


def _process_start_elsewhere(pid: int) -> str | None:
    import psutil

    try:
        return f"epoch:{psutil.Process(pid).create_time():.6f}"
    except psutil.NoSuchProcess:
        return None


def is_alive(runner: RunnerState) -> bool | None:
    """True when the process of `runner` lives; None where this host can't know, because it ran on another."""
    if runner.host != os.uname().nodename:
        return None
    return runner.boot_id == boot_id() and process_start(runner.pid) == runner.process_start


def _working_directory() -> str:
    try:
        return str(Path.cwd())
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
        cwd=_working_directory(),
        command=tuple(sys.orig_argv),
        ttasks_version=__version__,
        python_version=".".join(map(str, sys.version_info[:3])),
        platform=sys.platform,
    )


def git_root() -> Path | None:
    """Return the folder of the git checkout that the working directory is in, without asking git."""
    try:
        here = Path.cwd()
    except FileNotFoundError:
        return None
    return next((folder for folder in (here, *here.parents) if (folder / ".git").exists()), None)


def describe_git(root: Path) -> RunnerDescribed:
    """Return the commit, branch and state of the checkout at `root`; what git can't say is None."""
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    branch = _git(root, "symbolic-ref", "--short", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=normal")
    return RunnerDescribed(
        git_root=str(root),
        git_commit=commit or None,
        git_branch=branch or None,
        git_dirty=None if changes is None else changes != "",
    )


def _git(root: Path, *arguments: str) -> str | None:
    # No file-system monitor, because a repository's configuration could make it any program.
    command = ["git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-C", str(root), *arguments]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_GIT_TIMEOUT_S,
            check=False,
            text=True,
            errors="replace",
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
