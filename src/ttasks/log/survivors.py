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
RUNNER: Final = "TTASKS_RUNNER"
"""The variable that has the id of the attempt's runner: copies of a ledger have the same id, and the same positions."""
TERM_WAIT_S: Final = 7.0
"""How long a process has between SIGTERM and SIGKILL: one that is a runner itself gives its own scripts 5 s."""
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


@dataclass(frozen=True)
class Dead:
    """An attempt whose runner, by its id, is gone; `leader` is None where no process of it is known."""

    runner: str
    leader: Leader | None = None


@dataclass
class Ended:
    """The processes of one attempt that were ended, and the strongest signal that took."""

    pids: set[int] = field(default_factory=set)
    signal: str = "SIGTERM"


def end_survivors(attempts: Mapping[str, Dead]) -> dict[str, Ended]:
    """End every process that is left of these attempts: SIGTERM, a moment, SIGKILL.

    Args:
        attempts: by the mark of each.

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
            left = list(_survivors(attempts))
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


def _survivors(attempts: Mapping[str, Dead]) -> Iterator[tuple[str, psutil.Process]]:
    """Yield each process that is left, with the mark of its attempt."""
    import psutil

    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    processes = [
        process
        for process in psutil.process_iter(["pid", "status", "environ"])
        if process.pid not in own and process.info["status"] != psutil.STATUS_ZOMBIE
    ]
    marked = {process.pid: name for process in processes if (name := _mark(process, attempts)) is not None}
    leaders = {name: dead.leader for name, dead in attempts.items() if dead.leader is not None}
    groups = {leader.pid: name for name, leader in leaders.items() if is_process(leader.pid, leader.start)}
    # The leader may be gone, but as long as a process that carries the mark is in its group, the group is still its.
    for pid, name in marked.items():
        leader = leaders.get(name)
        if leader is not None and leader.pid in _groups_of(pid):
            groups[leader.pid] = name
    for process in processes:
        by_group = (groups[group] for group in _groups_of(process.pid) if group in groups)
        of = marked.get(process.pid) or next(by_group, None)
        if of is not None:
            yield of, process


def _mark(process: psutil.Process, attempts: Mapping[str, Dead]) -> str | None:
    """Return which of these attempts a process carries the mark of; None: of none."""
    environment = process.info["environ"] or {}  # None: it is another user's
    name = environment.get(MARK)
    dead = attempts.get(name) if name is not None else None
    return name if dead is not None and environment.get(RUNNER, dead.runner) == dead.runner else None


def _groups_of(pid: int) -> tuple[int, ...]:
    try:
        return os.getpgid(pid), os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return ()
