"""The crash lab: a graph is run in a process that is killed at a moment of your choice, and resumed."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from ttasks.errors import LedgerUnwritableError
from ttasks.log.event_log import EventLog
from ttasks.log.transaction import Appended, Batch
from ttasks.model.graph import TaskGraph
from ttasks.model.task import Task
from ttasks.runtime.executor import TaskExecutor
from ttasks.stores.ledger import SQLiteStore

Build = Callable[[TaskExecutor], TaskGraph]
"""Registers handlers with the executor, where it needs some of its own, and returns a graph that was not run yet."""

PATIENCE_S: Final = 120
"""How long a process may take that was not killed."""


class Moment(StrEnum):
    """When the world stops, seen from one append to the ledger."""

    BEFORE = "before"
    """The process is killed, and nothing of the append was written."""

    AFTER = "after"
    """The process is killed, and the append is written for good."""

    UNSEEN = "unseen"
    """The append is written for good, but whoever made it gets a LedgerUnwritableError: nobody is killed."""


class CrashLab:
    """Kills runs of one graph.

    Args:
        folder: where the ledgers go, each in a folder of its own.
        build: what makes the graph. It is called in other processes, so it has to be a function of a module that they
            can import: pickle says what it minds.
        max_workers: how many tasks run at the same time. With one the appends come in the same order each time.

    Iterating gives a `Crash` for each append of a run and each `Moment`, in order.
    """

    def __init__(self, folder: Path, build: Build, *, max_workers: int = 1) -> None:
        self._folder = folder
        self._build = build
        self._max_workers = max_workers
        self._numbers = itertools.count(1)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__, "ttasks.runtime.resume"])

    def appends(self) -> int:
        """Return how many appends a whole run makes: it is run, to its end."""
        ledger = self._new_ledger()
        self._run(ledger, 0, Moment.AFTER)
        return int((ledger.parent / "appends").read_text())

    def __iter__(self) -> Iterator[Crash]:
        for at in range(1, self.appends() + 1):
            for moment in Moment:
                yield self.crash(at, moment)

    def crash(self, at: int, moment: Moment) -> Crash:
        """Run the graph into a new ledger, and stop the world at append number `at`, from 1.

        A run that makes fewer appends ends as it ends: `Crash.happened` is False then.
        """
        return self._crash(self._new_ledger(), at, moment)

    def _new_ledger(self) -> Path:
        folder = self._folder / str(next(self._numbers))
        folder.mkdir(parents=True)
        return folder / "ledger.db"

    def _crash(self, ledger: Path, at: int, moment: Moment) -> Crash:
        (ledger.parent / "appends").unlink(missing_ok=True)
        happened = self._run(ledger, at, moment)
        return Crash(self, ledger, at, moment, happened)

    def _run(self, ledger: Path, at: int, moment: Moment) -> bool:
        """Run or resume the graph in a process of its own; return whether the world stopped."""
        process = self._context.Process(target=_run_and_stop, args=(self._build, ledger, self._max_workers, at, moment))
        process.start()
        process.join(PATIENCE_S)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutError(f"append {at} ({moment}): the run did not end within {PATIENCE_S} seconds")
        if process.exitcode not in (0, -signal.SIGKILL):
            raise RuntimeError(f"append {at} ({moment}): the run ended with exit code {process.exitcode}")
        return process.exitcode != 0 or int((ledger.parent / "appends").read_text()) >= at > 0


@dataclass(frozen=True)
class Crash:
    """A run that was stopped at append number `at`.

    `ledger` is its file; `happened` is False where the run was over before.
    """

    _lab: CrashLab
    ledger: Path
    at: int
    moment: Moment
    happened: bool

    def tasks(self) -> dict[str, Task]:
        """Return the tasks as the ledger has them now, by name; none where the world stopped before they were saved."""
        with SQLiteStore(self.ledger, read_only=True) as store:
            return {task.name: task for task in store.tasks.values()}

    def crash_again(self, at: int, moment: Moment) -> Crash:
        """Go on in another process, and stop the world at append number `at` of what that makes."""
        return self._lab._crash(self.ledger, at, moment)

    def carry_on(self) -> TaskGraph:
        """Go on in this process, to the end, and return the graph.

        Where the world stopped before the graph was recorded there is nothing to resume, and it is run.
        """
        with SQLiteStore(self.ledger) as store, TaskExecutor(store) as executor:
            return _go_on(executor, store, self._lab._build, self._lab._max_workers)


def _go_on(executor: TaskExecutor, store: SQLiteStore, build: Build, max_workers: int) -> TaskGraph:
    fresh = build(executor)  # it registers the handlers too
    if not store.graphs:
        return fresh.run(executor, max_workers)
    (graph,) = store.graphs.values()
    executor.resume(graph)
    return graph


def _run_and_stop(build: Build, ledger: Path, max_workers: int, at: int, moment: Moment) -> None:
    """Run or resume the graph in this process, which the lab made for it."""
    appends = itertools.count(1)
    last = 0
    append = EventLog.append

    def counted(log: EventLog, *batches: Batch) -> list[Appended]:
        nonlocal last
        if all(batch.stream.startswith("runner-") for batch in batches):
            return append(log, *batches)  # what is found out about the runner comes at any moment
        number = last = next(appends)
        if number == at and moment is Moment.BEFORE:
            os.kill(os.getpid(), signal.SIGKILL)
        appended = append(log, *batches)
        if number == at and moment is Moment.AFTER:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == at and moment is Moment.UNSEEN:
            raise LedgerUnwritableError("crash lab: this was written, and whoever wrote it does not know")
        return appended

    setattr(EventLog, "append", counted)  # noqa: B010 - it is assigned to a class, in a process of the lab's own
    with SQLiteStore(ledger) as store, TaskExecutor(store) as executor:
        try:
            _go_on(executor, store, build, max_workers)
        except LedgerUnwritableError:
            if moment is not Moment.UNSEEN:
                raise
    (ledger.parent / "appends").write_text(str(last))
