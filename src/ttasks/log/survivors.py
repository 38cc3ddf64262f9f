"""What is left of an attempt whose runner died: its processes are found by what they carry, and ended."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ttasks.clock import monotonic_s
from ttasks.errors import SurvivorError
from ttasks.log.runner import is_process

if TYPE_CHECKING:
    import psutil

MARK: Final = "TTASKS_ATTEMPT"
"""The variable by which an attempt's processes are known: ``<ledger id>:<position of its TaskStarted>``."""
TERM_WAIT_S: Final = 5.0
"""How long a process has between SIGTERM and SIGKILL."""
KILL_WAIT_S: Final = 2.0
PAUSE_S: Final = 0.02


def mark(ledger: str, position: int | None) -> str:
    """Return what the processes of the attempt that started at `position` carry."""
    return f"{ledger}:{position}"


@dataclass(frozen=True)
class Leader:
    """The process that an attempt spawned, which led a group and session of its own."""

    pid: int
    start: str | None


@dataclass
class Ended:
    """The processes of one attempt that were ended, and the strongest signal that took."""

    pids: set[int] = field(default_factory=set)
    signal: str = "SIGTERM"


def end_survivors(leaders: Mapping[str, Leader | None]) -> dict[str, Ended]:
    """End every process that is left of these attempts: SIGTERM, a moment, SIGKILL.

    Args:
        leaders: by the attempt's mark, the process that it spawned (None: not known).

    Returns:
        By the attempt's mark, what was ended; attempts of which nothing was left are not in it.

    Raises:
        SurvivorError: something is left all the same: a process of another user, or one that can't die.

    A process counts as the attempt's when it carries its mark, or is in the group or session of its leader. One that
    did neither was not started by it, as far as anybody can tell. This process and its parents are none of them: a
    task may have run the very command that resumes it.
    """
    ended: dict[str, Ended] = {}
    for signal, wait_s in (("SIGTERM", TERM_WAIT_S), ("SIGKILL", KILL_WAIT_S)):
        deadline, signalled = monotonic_s() + wait_s, set[int]()
        while True:
            left = list(_survivors(leaders))
            if not left:
                return ended
            for name, process in left:
                found = ended.setdefault(name, Ended())
                found.pids.add(process.pid)
                found.signal = signal
                if process.pid not in signalled:
                    signalled.add(process.pid)
                    _send(process, signal)
            if monotonic_s() > deadline:
                break
            time.sleep(PAUSE_S)  # they are not our children: there is nothing to wait for but their absence
    raise SurvivorError(sorted(process.pid for _, process in left))


def _send(process: psutil.Process, signal: str) -> None:
    import psutil

    # What may not be signalled is left at the end, and said then.
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        process.terminate() if signal == "SIGTERM" else process.kill()


def _survivors(leaders: Mapping[str, Leader | None]) -> Iterator[tuple[str, psutil.Process]]:
    """Yield each process that is left, with the mark of its attempt."""
    import psutil

    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    processes = [
        process
        for process in psutil.process_iter(["pid", "status", "environ"])
        if process.pid not in own and process.info["status"] != psutil.STATUS_ZOMBIE
    ]
    marked = {process.pid: name for process in processes if (name := _mark(process)) in leaders}
    groups = {
        leader.pid: name
        for name, leader in leaders.items()
        if leader is not None and is_process(leader.pid, leader.start)
    }
    # The leader may be gone, but as long as a process that carries the mark is in its group, the group is still its.
    for pid, name in marked.items():
        leader = leaders[name]
        if leader is not None and leader.pid in _groups_of(pid):
            groups[leader.pid] = name
    for process in processes:
        by_group = (groups[group] for group in _groups_of(process.pid) if group in groups)
        of = marked.get(process.pid) or next(by_group, None)
        if of is not None:
            yield of, process


def _mark(process: psutil.Process) -> str:
    environment = process.info["environ"]  # None: it is another user's
    return str(environment.get(MARK, "")) if environment else ""


def _groups_of(pid: int) -> tuple[int, ...]:
    try:
        return os.getpgid(pid), os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return ()
