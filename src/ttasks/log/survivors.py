"""The processes of an attempt, wherever they went: found by what they carry, and ended.

An attempt that is over by time-out, cancel or stop is ended by its runner, one whose runner died by whoever resumes it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ttasks.clock import monotonic_s
from ttasks.errors import SurvivorError
from ttasks.log.processes import Process, every_process, variables
from ttasks.state.task import GRACE_S

MARK: Final = "TTASKS_ATTEMPT"
"""The variable by which an attempt's processes are known: ``<ledger id>:<position of its TaskStarted>``.

Where the runner is part of an attempt itself, that one's mark comes first: ``<outer mark>/<inner mark>``.
"""
RUNNER: Final = "TTASKS_RUNNER"
"""The variable that has the id of the attempt's runner, nested in the same way: copies of a ledger have the same id,
and the same positions."""
LEDGER: Final = "TTASKS_ATTEMPT_LEDGER"
"""The variable that has the absolute path of the attempt's ledger; empty where there is no file."""
NESTED: Final = "/"
"""What stands between the marks of an attempt and of one that was started inside it; no id has one."""
AT_ONCE_S: Final = 1.0
"""How long before SIGKILL a runner inside the attempt gets the second SIGTERM, which means: at once."""
KILL_WAIT_S: Final = 2.0
LISTS_MAX: Final = 20
PAUSE_S: Final = 0.005
PAUSE_MAX_S: Final = 0.05


def mark(ledger: str, position: int | None) -> str:
    """Return what the processes of the attempt that started at `position` carry."""
    return f"{ledger}:{position}"


def innermost(marks: str) -> str:
    """Return the mark of the attempt itself, without those that it runs inside of."""
    return marks.rpartition(NESTED)[2]


def marking(own: str, runner: str = "", ledger: Path | None = None) -> dict[str, str]:
    """Return the variables that mark an attempt's processes, inside the attempt that this process is part of."""
    outer = os.environ.get(MARK)
    if outer:
        own, runner = f"{outer}{NESTED}{own}", f"{os.environ.get(RUNNER, '')}{NESTED}{runner}"
    return {MARK: own, RUNNER: runner, LEDGER: str(ledger) if ledger is not None else ""}


@dataclass(frozen=True)
class Leader:
    """The process that an attempt spawned, which led a group and session of its own."""

    pid: int
    start: str | None


@dataclass(frozen=True)
class Dead:
    """An attempt whose processes are to end: its runner by id, and how many seconds it has after SIGTERM.

    `leader` is None where no process of it is known.
    """

    runner: str
    leader: Leader | None = None
    grace_s: float = GRACE_S


@dataclass
class Ended:
    """The processes of one attempt that were ended, and the strongest signal that took.

    `strays` are those of them that had left the group of the leader.
    """

    pids: set[int] = field(default_factory=set)
    signal: str = "SIGTERM"
    strays: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Found:
    """A process of an attempt. One of an attempt inside it, which another runner sees to, `is_nested`."""

    process: Process
    is_nested: bool = False


def end_survivors(attempts: Mapping[str, Dead], *, is_hurried: Callable[[], bool] = lambda: False) -> dict[str, Ended]:
    """End every process that is left of these attempts: SIGTERM, the attempt's grace, SIGKILL.

    Args:
        attempts: by the mark of each.
        is_hurried: asked again and again; once it is true, SIGKILL comes at once.

    Returns:
        By the attempt's mark, what was ended; attempts of which nothing was left are not in it.

    Raises:
        SurvivorError: something is left all the same: a process of another user, or one that can't die.

    A process counts as the attempt's when it carries its mark, or is in the group or session of its leader, or was
    started by a process that counts. One that did none of these was not started by it, as far as anybody can tell.
    This process and its parents are none of them: a task may have run the very command that resumes it.

    What those who got SIGTERM start to clean up is left alone until they have ended. So is what runs inside the
    attempt under a runner of its own, which ends it: with a second SIGTERM a second before SIGKILL, at once.
    """
    return _End(attempts, is_hurried).run() if attempts else {}


@dataclass
class _Told:
    """What the processes of one attempt were sent by now."""

    terminated: set[Process] = field(default_factory=set)
    since_s: float | None = None
    is_at_once: bool = False
    killed: set[Process] = field(default_factory=set)
    gives_up_s: float | None = None


class _End:
    """Ends attempts. Looking at all processes costs milliseconds, so between looks only known ones are watched."""

    def __init__(self, attempts: Mapping[str, Dead], is_hurried: Callable[[], bool]) -> None:
        self._attempts = attempts
        self._is_hurried = is_hurried
        self._told: defaultdict[str, _Told] = defaultdict(_Told)
        self._ended: defaultdict[str, Ended] = defaultdict(Ended)
        by_pid = {process.pid: process for process in every_process()}
        own = _ancestors(os.getpid(), by_pid)
        self._own_groups = {os.getpgid(0), *(by_pid[pid].group for pid in own & by_pid.keys())}

    def run(self) -> dict[str, Ended]:
        was_empty = False
        while True:
            left = find(self._attempts)
            if not left:
                if was_empty:  # one look is not enough: a process may have been started behind its back
                    return dict(self._ended)
                time.sleep(PAUSE_S)
            for name, found in left.items():
                self._signal(name, found)
            was_empty = not left
            if left and all(self._has_given_up(name) for name in left):
                raise SurvivorError(sorted(each.process.pid for found in left.values() for each in found))
            self._wait(left)

    def _has_given_up(self, name: str) -> bool:
        gives_up_s = self._told[name].gives_up_s
        return gives_up_s is not None and monotonic_s() > gives_up_s

    def _signal(self, name: str, found: list[Found]) -> None:
        told, grace_s = self._told[name], self._attempts[name].grace_s
        processes = {each.process for each in found}
        elapsed_s = monotonic_s() - told.since_s if told.since_s is not None else -1.0
        if elapsed_s >= grace_s or self._is_hurried():
            told.gives_up_s = told.gives_up_s or monotonic_s() + KILL_WAIT_S
            self._send(name, processes - told.killed, signal.SIGKILL)
            told.killed |= processes
        elif told.terminated.isdisjoint(processes):
            direct = {each.process for each in found if not each.is_nested} or processes
            self._send(name, direct, signal.SIGTERM)
            told.terminated |= direct
            told.since_s = told.since_s or monotonic_s()
        elif elapsed_s >= _at_once_after_s(grace_s) and not told.is_at_once:
            told.is_at_once = True
            parents = {each.process.parent for each in found if each.is_nested}
            runners = {each for each in told.terminated & processes if each.pid in parents}
            self._send(name, runners, signal.SIGTERM, to_group=False)  # not to what cleans up in their group

    def _send(self, name: str, processes: set[Process], number: signal.Signals, *, to_group: bool = True) -> None:
        leader = self._attempts[name].leader
        group = leader.pid if leader is not None else None
        in_group = {process for process in processes if process.group == group}
        if in_group and to_group and group not in self._own_groups and name not in _inside():
            # All at once: a shell whose command was ended before it would go on with the next one.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(next(iter(in_group)).group, number)
        else:
            in_group = set()
        for process in sorted(processes - in_group, key=lambda process: process.pid):
            _send(process, number)
        if processes:
            ended = self._ended[name]
            ended.pids.update(process.pid for process in processes)
            ended.strays.update(process.pid for process in processes if process.group != group)
            ended.signal = number.name

    def _wait(self, left: Mapping[str, list[Found]]) -> None:
        """Wait until there is something to look for: all that was told to end of an attempt has, or its time is up."""
        watched = [
            [each.process for each in found if each.process in self._told[name].terminated | self._told[name].killed]
            for name, found in left.items()
        ]
        moment_s = min((self._next_moment_s(name) for name in left), default=0.0)
        was_hurried, pause = self._is_hurried(), 0.001
        while all(any(process.is_alive() for process in processes) for processes in watched):
            if monotonic_s() >= moment_s or self._is_hurried() is not was_hurried:
                return
            time.sleep(pause)  # they are not all our children: there is nothing to wait for but their absence
            pause = min(pause * 2, PAUSE_MAX_S)

    def _next_moment_s(self, name: str) -> float:
        told, grace_s = self._told[name], self._attempts[name].grace_s
        if told.gives_up_s is not None or told.since_s is None:
            return told.gives_up_s or 0.0
        return told.since_s + (grace_s if told.is_at_once else _at_once_after_s(grace_s))


def _at_once_after_s(grace_s: float) -> float:
    # Where that is no second, a little after the first: two signals that come together are one.
    return max(grace_s - AT_ONCE_S, min(0.1, grace_s / 2))


def _send(process: Process, number: signal.Signals) -> None:
    # What may not be signalled is left at the end, and said then.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if process.is_alive():
            os.kill(process.pid, number)


def find(attempts: Mapping[str, Dead]) -> dict[str, list[Found]]:
    """Return each process that is left of these attempts, by the mark of its attempt."""
    everything, marks = _look()
    by_pid = {process.pid: process for process in everything}
    children: defaultdict[int, list[int]] = defaultdict(list)
    for process in everything:
        children[process.parent].append(process.pid)
    own = _ancestors(os.getpid(), by_pid)
    if not attempts.keys().isdisjoint(_inside()):  # what was started from here inside of one of them goes on
        own |= _descendants([os.getpid()], children)
    there = [process for process in everything if process.pid not in own and not process.is_over]
    may_be = {process.pid for process in there}
    carried = {pid: of for pid, marked in marks.items() if pid in may_be and (of := _carried(*marked, attempts))}
    groups = dict(_groups(attempts, there, by_pid, marks, carried))
    found: dict[int, tuple[str, bool]] = {}
    for process in there:
        by_group = groups.get(process.group) or groups.get(process.session)
        of_group = (by_group, False) if by_group is not None else None
        of_it = carried.get(process.pid) or of_group
        if of_it is not None:
            found[process.pid] = of_it
    for pid, of_it in list(found.items()):
        for child in _descendants([pid], children) & may_be:
            found.setdefault(child, of_it)  # it carries nothing, and has left the session
    left: defaultdict[str, list[Found]] = defaultdict(list)
    for pid, (name, is_nested) in found.items():
        left[name].append(Found(by_pid[pid], is_nested))
    return left


def _look() -> tuple[list[Process], dict[int, tuple[str | None, str | None]]]:
    """Return all processes, and what is marked of them.

    A process may start another and end between being listed and being read. So what is new is looked at again, until
    nothing is, for as long as a machine that starts many may keep that up.
    """
    everything: list[Process] = []
    marks: dict[int, tuple[str | None, str | None]] = {}
    known: set[int] = set()
    for _ in range(LISTS_MAX):
        new = every_process(known)
        if not new:
            break
        for process in new:
            known.add(process.pid)
            marked = (None, None) if process.is_over else variables(process.pid, MARK, RUNNER)
            if marked[0]:
                marks[process.pid] = marked
        everything += new
    return everything, marks


def _inside() -> list[str]:
    """Return the marks of the attempts that this process is part of."""
    return (os.environ.get(MARK) or "").split(NESTED)


def _descendants(pids: Iterable[int], children: Mapping[int, list[int]]) -> set[int]:
    found: set[int] = set()
    to_see = list(pids)
    while to_see:
        new = [child for child in children.get(to_see.pop(), ()) if child not in found]
        found.update(new)
        to_see += new
    return found


def _ancestors(pid: int, by_pid: Mapping[int, Process]) -> set[int]:
    found: set[int] = set()
    while pid in by_pid and pid not in found:
        found.add(pid)
        pid = by_pid[pid].parent
    return found | {os.getpid()}


def _carried(marks: str | None, runners: str | None, attempts: Mapping[str, Dead]) -> tuple[str, bool] | None:
    """Return of which of these attempts a process is by its marks, the innermost; and whether inside a further one."""
    path = (marks or "").split(NESTED)
    of = (runners or "").split(NESTED) if runners is not None else []
    for index in range(len(path) - 1, -1, -1):
        attempt = attempts.get(path[index])
        if attempt is not None and (len(of) != len(path) or of[index] == attempt.runner):
            return path[index], index < len(path) - 1
    return None


def _groups(
    attempts: Mapping[str, Dead],
    there: Iterable[Process],
    by_pid: Mapping[int, Process],
    marks: Mapping[int, tuple[str | None, str | None]],
    carried: Mapping[int, tuple[str, bool]],
) -> Iterator[tuple[int, str]]:
    """Yield each group that is still that of an attempt's leader, which may be gone, with the attempt's mark."""
    for name, attempt in attempts.items():
        leader = attempt.leader
        if leader is None:
            continue
        process = by_pid.get(leader.pid)
        members = [each for each in there if leader.pid in (each.group, each.session)]
        is_there = process is not None and process.start == leader.start
        if is_there or any(each.pid in carried and carried[each.pid][0] == name for each in members):
            yield leader.pid, name
        elif process is None and all(_may_be_led(each, leader) and each.pid not in marks for each in members):
            # The kernel gives nobody a pid that still names a group or session. So this is the leader's own, unless
            # all of it had ended before, and another that got its pid led a session as well and is gone too.
            yield leader.pid, name


def _may_be_led(process: Process, leader: Leader) -> bool:
    """True for a process that can be of the leader's session: it was started in it, and not before it."""
    kind, _, start = (leader.start or "").partition(":")
    own_kind, _, own_start = process.start.partition(":")
    return process.session == leader.pid and kind == own_kind and float(own_start) >= float(start)
