"""Whether what the log says runs still does: the operating system's word, and no clock's, timer's or writer's.

A runner is dead when its lock is free *and* no live process has its boot, pid and start (SPEC §6). The lock is a file
beside the ledger that the kernel lets go of however its process ends; the second half keeps a runner alive whose lock
file was lost, with a folder that was tidied or on a file system without locks.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Final

from ttasks import clock
from ttasks.errors import LedgerUnwritableError
from ttasks.events.envelope import RecordedEvent
from ttasks.events.facts import TaskImported
from ttasks.events.status import RunStatus
from ttasks.log import place
from ttasks.log import runner as host
from ttasks.log.files import runner_path
from ttasks.log.query import EventFilter
from ttasks.log.reading import Readers
from ttasks.log.replay import Past
from ttasks.state.runner import RunnerState
from ttasks.state.task import TaskState

CHILD_WAIT_S: Final = 0.5
"""How long a lock may be held after its runner's process is gone, before somebody else is taken to hold it."""
LOOK_AGAIN_S: Final = 0.005

_IN_HAND: Final[Counter[tuple[str | None, str]]] = Counter()
_IN_HAND_LOCK = threading.RLock()


class RunnerLock:
    """Says that this process lives, for as long as it does."""

    def __init__(self, ledger: Path, runner_id: str) -> None:
        """Take the lock of runner `runner_id`, and clear away those of runners that are gone.

        Whoever calls holds the writer's lock: nobody else makes or clears away lock files meanwhile.

        Raises:
            OSError: the file can't be made or locked here.
        """
        self._path = runner_path(ledger, runner_id)
        for lock in _locks(ledger):
            if not _is_held(lock):
                lock.unlink(missing_ok=True)
        self._descriptor: int | None = place.open_beside(self._path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.leave()
            raise

    def release(self) -> None:
        """Let go of it, and leave nothing behind."""
        self._path.unlink(missing_ok=True)
        self.leave()

    def leave(self) -> None:
        """Close this process's copy of it: a forked child must not keep its dead parent's lock held."""
        descriptor, self._descriptor = self._descriptor, None  # forgotten first: Ctrl-C may come right after the close
        if descriptor is not None:
            os.close(descriptor)


def _locks(ledger: Path) -> list[Path]:
    """Return the lock files of a ledger's runners, in the order of their names."""
    like = runner_path(ledger, "")
    return sorted(
        Path(entry.path)
        for entry in os.scandir(like.parent)
        if entry.name.startswith(like.name) and entry.is_file(follow_symlinks=False)
    )


def living_runners(ledger: Path) -> list[str]:
    """Return the ids of the runners of a ledger whose processes hold their locks, in order."""
    like = runner_path(ledger, "").name
    return [lock.name.removeprefix(like) for lock in _locks(ledger) if _is_held_for_long(lock)]


def _is_held_for_long(lock: Path) -> bool:
    """True while a process holds the lock file, and is no child that was being started when its runner was killed.

    Such a child holds the lock until it becomes its program.
    """
    deadline_s = clock.monotonic_s() + CHILD_WAIT_S
    while _is_held(lock):
        if clock.monotonic_s() >= deadline_s:
            return True
        time.sleep(LOOK_AGAIN_S)
    return False


def _is_held(lock: Path) -> bool:
    """True while a process holds the lock file; False where there is none."""
    try:
        descriptor = place.open_beside(lock, os.O_RDONLY)
    except (LedgerUnwritableError, OSError):  # there is none, or what has its name is none
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two who look don't take each other for it
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def is_alive(runner: RunnerState, ledger: Path | None) -> bool:
    """True unless the operating system says that the process of `runner` is gone.

    Args:
        runner: who is asked for.
        ledger: the file beside which its lock is; None for a ledger in memory.
    """
    is_here = runner.boot_id == host.boot_id()
    is_process = is_here and host.is_process(runner.pid, runner.process_start)
    if is_process or ledger is None:
        return is_process
    lock = runner_path(ledger, runner.id)
    return _is_held_for_long(lock) if is_here else _is_held(lock)


def take_in_hand(ledger: str | None, stream: str) -> None:
    """Say that this process runs what `stream` is about: from before that is recorded, until `let_go`.

    `ledger` is where it is recorded; None: nowhere.
    """
    with _IN_HAND_LOCK:
        _IN_HAND[ledger, stream] += 1


def let_go(ledger: str | None, stream: str) -> None:
    """Say once that this process does not run it any more."""
    with _IN_HAND_LOCK:
        _IN_HAND[ledger, stream] -= 1
        if _IN_HAND[ledger, stream] <= 0:
            del _IN_HAND[ledger, stream]


class Liveness:
    """Answers for one ledger, and for one moment: each runner is looked for once."""

    def __init__(self, readers: Readers | Past) -> None:
        self._readers = readers
        self._ledger = readers.ledger()
        self._runners: dict[int, RunnerState | None] = {}
        self._is_alive: dict[int, bool] = {}

    def runner(self, position: int) -> RunnerState | None:
        """Return the runner that registered at a position."""
        if position not in self._runners:
            self._runners[position] = self._readers.runner(position)
        return self._runners[position]

    def runs(self, stream: str, runner: int) -> bool:
        """True while the runner that registered at position `runner` runs what `stream` is about."""
        return self._runs(self._ledger, stream, runner)

    def _runs(self, ledger: str | None, stream: str, runner: int) -> bool:
        """True while a runner of this ledger runs what is recorded in `ledger` (None: nowhere).

        Of its own attempts and runs a process knows better than its pid says: what it does not run is dead.
        """
        if isinstance(self._readers, Past):
            return True  # as far as the log says; what lived then can't be asked any more
        if runner not in self._is_alive:
            state = self.runner(runner)
            self._is_alive[runner] = state is not None and is_alive(state, self._readers.path)
        if not self._is_alive[runner]:
            return False
        state = self.runner(runner)
        assert state is not None
        return not host.is_this_process(state) or (ledger, stream) in _IN_HAND

    def owner(self, task: TaskState) -> int | None:
        """Return the position of the runner that runs a task, or waits for its retry.

        None: it is RUNNING by hand, or its runner records elsewhere, and all that is here is a snapshot.
        """
        if task.running_attempt is not None:
            attempt = next(iter(self._readers.attempts(task.id)[-1:]), None)
            return attempt.runner if attempt is not None and attempt.attempt == task.running_attempt else None
        scheduled = self._latest(task, "TaskRetryScheduled") if task.retry_due_at is not None else None
        return scheduled.runner if scheduled is not None else None

    def is_run(self, task: TaskState) -> bool:
        """True while somebody runs the task, or waits for its retry."""
        owner, stream = self.owner(task), f"task-{task.id}"
        if owner is not None:
            return self.runs(stream, owner)
        imported = self._latest(task, "TaskImported") if task.running_attempt is not None else None
        if imported is None or not isinstance(imported.fact, TaskImported) or imported.runner is None:
            return False
        # Whoever saved the snapshot is taken for who runs it: the ledger that the attempt is in can't be asked here.
        return self._runs(imported.fact.ledger, stream, imported.runner)

    def _latest(self, task: TaskState, type_: str) -> RecordedEvent | None:
        latest = EventFilter(f"task-{task.id}", types=(type_,), newest_first=True, limit=1)
        return next(self._readers.matching(latest), None)

    def is_graph_run(self, graph_id: str) -> bool:
        """True while somebody runs the graph's latest run."""
        runs = self._readers.runs(graph_id, newest_first=True, limit=1)
        return bool(runs) and runs[0].status is RunStatus.RUNNING and self.runs(f"graph-{graph_id}", runs[0].runner)


def _after_fork_in_child() -> None:
    global _IN_HAND_LOCK
    _IN_HAND_LOCK = threading.RLock()
    _IN_HAND.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
