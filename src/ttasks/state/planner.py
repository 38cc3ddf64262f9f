"""What to start and what to block next in a run of a graph: counts of what each task still waits for.

The rules are SPEC §2.7. Over a whole run the work is linear in tasks + edges. Nothing here runs anything: whoever
does says what became of each task, and gets back what follows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from graphlib import CycleError, TopologicalSorter
from typing import Final

from ttasks.errors import GraphError
from ttasks.events.facts import Member
from ttasks.events.status import RunStatus, TaskStatus


class _Settled(Enum):
    """How a task that can't change any more in this run counts for those that depend on it."""

    GOOD = "good"
    BAD = "bad"
    WITHDRAWN = "withdrawn"


_INITIALLY: Final[Mapping[TaskStatus, _Settled]] = {
    TaskStatus.SUCCEEDED: _Settled.GOOD,
    TaskStatus.CANCELLED: _Settled.BAD,
}


@dataclass
class Consequences:
    """What follows from something that happened in a run.

    `ready` lists the tasks that may start now, in the graph's order; `blocked` pairs each task that is to be recorded
    as BLOCKED with the dependency to blame. No task in `ready` relies on a block that is not recorded yet: the finally
    tasks that wait for these come from `Planner.recorded`.
    """

    ready: list[str] = field(default_factory=list)
    blocked: list[tuple[str, str]] = field(default_factory=list)


class Planner:
    """The plan of one run.

    Args:
        members: the graph, each task's dependencies included, without cycles (see `check`).
        statuses: where each task stands before the run; none is RUNNING.
        held: tasks that stay as they are in this run, though they might run in another, and block what depends on
            them: INTERRUPTED ones that wait for a person, and, of a run that is resumed, what FAILED or was BLOCKED
            in it.
    """

    def __init__(
        self, members: Mapping[str, Member], statuses: Mapping[str, TaskStatus], held: Collection[str] = ()
    ) -> None:
        self._members = members
        self._before = statuses
        self._place = {task: place for place, task in enumerate(members)}
        self._waits_for = {task: len(member.after) for task, member in members.items()}
        self._stirs_before = dict(self._waits_for)  # how many dependencies something may still happen in, or before
        self._children: dict[str, list[str]] = {}
        for task, member in members.items():
            for dependency in member.after:
                self._children.setdefault(dependency, []).append(task)
        self._settled = {task: _INITIALLY[status] for task, status in statuses.items() if status in _INITIALLY}
        self._settled.update(dict.fromkeys(held, _Settled.BAD))
        self._announced: set[str] = set()
        self._started: set[str] = set()
        self._promised: set[str] = set()
        self._unrecorded: set[str] = set()  # blocked, but the ledger does not say so yet
        self._is_withdrawn = False
        self._is_cut_short = False

    @property
    def is_finished(self) -> bool:
        """True when nothing in this run can change any more."""
        return len(self._settled) == len(self._members)

    def begin(self, *, is_withdrawn: bool = False) -> Consequences:
        """Return what may start and what is blocked at the start of the run.

        Args:
            is_withdrawn: the run is resumed after it was cancelled: only finally tasks may start.
        """
        if is_withdrawn:
            cancelled = (
                self._before[task] is TaskStatus.CANCELLED and not self._members[task].is_finally
                for task in self._members
            )
            self._is_cut_short = not self.is_finished or any(cancelled)
            self._give_up()
        consequences = self._spread(list(self._settled))
        roots = [task for task, member in self._members.items() if not member.after and not self._is_known(task)]
        self._announced.update(roots)
        consequences.ready = sorted({*consequences.ready, *roots}, key=self._place.__getitem__)
        return consequences

    def start(self, task: str) -> None:
        """Take note that `task` runs: a cancel of the run no longer withdraws it."""
        self._started.add(task)

    def settle(self, task: str, *, succeeded: bool) -> Consequences:
        """Take note that `task` is through in this run, and return what follows."""
        self._settled[task] = _Settled.GOOD if succeeded else _Settled.BAD
        return self._spread([task])

    def recorded(self, blocked: Iterable[tuple[str, str]]) -> list[str]:
        """Take note that these blocks are recorded; return the finally tasks that waited for nothing else."""
        quiet: deque[str] = deque()
        for task, _ in blocked:
            self._unrecorded.discard(task)
            if self._stirs_before[task] == 0:
                quiet.append(task)
        return sorted(self._quieten(quiet), key=self._place.__getitem__)

    def withdraw(self, ended: Collection[str] = ()) -> Consequences:
        """Give up what has not started, but for finally tasks, and return what follows: the run was cancelled.

        Args:
            ended: tasks that have come to an end, though `settle` was not told yet.
        """
        self._is_cut_short = any(task not in self._settled and task not in ended for task in self._members)
        return self._spread(self._give_up())

    def outcome(self, statuses: Mapping[str, TaskStatus], errors: Collection[str]) -> RunStatus:
        """Return how the run ends: the one rule that decides who wins where a cancel meets the end of a run.

        A run whose required tasks have all succeeded has SUCCEEDED. Any other run is CANCELLED where it was withdrawn
        while something was left to do. A cancel that comes later changes nothing.

        Args:
            statuses: where each task stands now that all is over.
            errors: the tasks that something was raised for.
        """
        required = (task for task, member in self._members.items() if member.is_required)
        if all(statuses[task] is TaskStatus.SUCCEEDED and task not in errors for task in required):
            return RunStatus.SUCCEEDED
        return RunStatus.CANCELLED if self._is_cut_short else RunStatus.FAILED

    def _give_up(self) -> list[str]:
        given_up = [
            task
            for task, member in self._members.items()
            if task not in self._settled and task not in self._started and not member.is_finally
        ]
        self._settled.update(dict.fromkeys(given_up, _Settled.WITHDRAWN))
        self._is_withdrawn = True
        return given_up

    def next_after(self, task: str) -> str | None:
        """Return a task that may start as soon as `task` has succeeded, when nothing else has to happen before."""
        for child in self._children.get(task, ()):
            if self._members[child].is_finally:
                is_last = self._stirs_before[child] == 1 and self._stirs_before[task] == 0
            else:
                is_last = self._waits_for[child] == 1
            if is_last and not self._is_known(child):
                return child
        return None

    def promise(self, task: str) -> None:
        """Let `task`, which `next_after` named, start together with the success that it waits for."""
        self._announced.add(task)
        self._promised.add(task)

    def take_back(self, task: str) -> Consequences:
        """Take note that `task` was not started after all, and return what follows: it may be ready still."""
        self._started.discard(task)
        was_promised = task in self._promised
        self._promised.discard(task)
        if was_promised:
            self._announced.discard(task)
        if self._is_withdrawn and not self._members[task].is_finally:
            self._settled[task] = _Settled.WITHDRAWN
            return self._spread([task])
        return Consequences() if was_promised else Consequences(ready=[task])

    def _is_known(self, task: str) -> bool:
        return task in self._settled or task in self._announced

    def _spread(self, settled: Iterable[str]) -> Consequences:
        consequences = Consequences()
        blocked: list[Member] = []
        queue = deque(settled)
        quiet: deque[str] = deque()
        while queue:
            task = queue.popleft()
            if self._stirs_before[task] == 0:
                quiet.append(task)
            outcome = self._settled[task]
            for child in self._children.get(task, ()):
                self._waits_for[child] -= 1
                member = self._members[child]
                if member.is_finally or self._is_known(child):
                    continue
                if outcome is _Settled.GOOD:
                    if self._waits_for[child] == 0:
                        self._announced.add(child)
                        consequences.ready.append(child)
                    continue
                self._settled[child] = outcome
                queue.append(child)
                if outcome is _Settled.BAD and self._before[child] is TaskStatus.PENDING:
                    blocked.append(member)
                    self._unrecorded.add(child)
        consequences.ready += self._quieten(quiet)
        consequences.ready.sort(key=self._place.__getitem__)
        consequences.blocked = [(member.task, self._to_blame(member)) for member in blocked]
        return consequences

    def _quieten(self, quiet: deque[str]) -> list[str]:
        """Take note that nothing more happens in these, nor before them; return the finally tasks that are ready.

        One that is blocked or withdrawn can't change, but what it waited for may still run, or be being ended; and a
        block counts only once it is recorded.
        """
        ready = []
        while quiet:
            for child in self._children.get(quiet.popleft(), ()):
                self._stirs_before[child] -= 1
                if self._stirs_before[child] > 0:
                    continue
                if child in self._unrecorded:
                    continue
                if child in self._settled:
                    quiet.append(child)
                elif self._members[child].is_finally and child not in self._announced:
                    self._announced.add(child)
                    ready.append(child)
        return ready

    def _to_blame(self, member: Member) -> str:
        return next(task for task in member.after if self._settled.get(task) is _Settled.BAD)


def check(members: Mapping[str, Member], titles: Mapping[str, str]) -> None:
    """Refuse a graph that no run could finish.

    Raises:
        GraphError: a task depends on one that is not in the graph, or there is a cycle; it names the tasks.
    """
    for task, member in members.items():
        for dependency in member.after:
            if dependency not in members:
                missing = titles.get(dependency, dependency)
                raise GraphError(
                    f"task '{titles[task]}' depends on unregistered task '{missing}' ({dependency}): "
                    "add it to the graph too. Nothing was run or written"
                )
    try:
        TopologicalSorter({task: member.after for task, member in members.items()}).prepare()
    except CycleError as error:
        cycle: list[str] = error.args[1]
        path = " -> ".join(titles[task] for task in reversed(cycle))
        raise GraphError(f"the graph has a cycle: {path}. Nothing was run or written") from None
