"""One run of a graph: threads that take what the planner says is ready, run it, and tell the planner."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from ttasks import clock
from ttasks.errors import AlreadyRunningError, LedgerError, LedgerUnwritableError, TtasksError
from ttasks.events.envelope import RecordedEvent
from ttasks.events.facts import (
    GraphCancelRequested,
    GraphFact,
    GraphRunFinished,
    GraphRunInterrupted,
    GraphRunStarted,
    Member,
)
from ttasks.events.status import RunStatus
from ttasks.model.graph import TaskGraph
from ttasks.model.retry import qualified_name
from ttasks.model.task import Task
from ttasks.runtime.attempt import Attempt, RunRef
from ttasks.runtime.executor import TaskExecutor
from ttasks.state.planner import Consequences, Planner
from ttasks.stores.recording import Entry

STOP_WAIT_S: Final = 10.0
"""How long a second Ctrl-C waits for what runs: a process group has 5 s between SIGTERM and SIGKILL."""


class GraphRun:
    """One run. All its state is guarded by `_changed`; recording and running happen outside of it."""

    def __init__(self, executor: TaskExecutor, graph: TaskGraph, max_workers: int) -> None:
        if isinstance(max_workers, bool) or not isinstance(max_workers, int):
            raise TypeError(f"max_workers must be an int, got {type(max_workers).__name__}")
        if max_workers < 1:
            raise ValueError(f"max_workers must be greater than 0, got {max_workers}")
        graph._check()
        for task in graph:
            if task.is_running or task._view.is_owned:
                raise AlreadyRunningError(
                    f"task '{task.title}' ({task.id}) is RUNNING: the graph can't be run. Nothing was written"
                )
        if graph.run_status is RunStatus.RUNNING:
            raise AlreadyRunningError(f"graph '{graph.title}' ({graph.id}) is running already. Nothing was written")
        self._executor = executor
        self._graph = graph
        self._max_workers = max_workers
        self._tasks: dict[str, Task] = {task.id: task for task in graph}
        self._members: dict[str, Member] = dict(graph._members)
        self._planner = Planner(self._members, {task_id: task.status for task_id, task in self._tasks.items()})
        # Where `execute` is overridden, every task goes through it; only else may an end and a start share a commit.
        self._is_direct = type(executor).execute is TaskExecutor.execute
        self._changed = threading.Condition()
        self._over = threading.Event()
        self._ready: deque[str] = deque()
        self._running: set[str] = set()
        self._attempts: dict[str, Attempt] = {}
        self._is_cancelled = False
        self._is_stopped = False
        self._lost: LedgerUnwritableError | None = None
        self._broken: BaseException | None = None
        self._run: RunRef | None = None
        self._position: int | None = None

    # --- the run as a whole ------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run until nothing can change any more; see `TaskGraph.run`."""
        self._begin()
        interruption: KeyboardInterrupt | None = None
        workers = self._hire()
        while True:
            try:
                if interruption is not None and not self._is_cancelled:
                    self._cancel("Ctrl-C")
                self._wait()
                break
            except KeyboardInterrupt as pressed:
                if interruption is not None:
                    self._stop()
                    self._close_as_interrupted("a second Ctrl-C")
                    raise
                interruption = pressed
            except BaseException as ending:
                self._stop()
                self._close_as_interrupted(f"ended by {ending!r}")
                raise
        for worker in workers:
            worker.join()
        self._finish()
        if interruption is not None:
            raise interruption

    def _begin(self) -> None:
        graph, ids = self._graph, list(self._members)
        place = {task_id: index for index, task_id in enumerate(ids)}
        log = self._executor._journal.log
        number = len(log.readers.runs(graph.id)) + 1 if log is not None else 1
        started = GraphRunStarted(
            run=number,
            max_workers=self._max_workers,
            tasks=tuple(ids),
            edges=tuple(
                (place[member.task], place[parent]) for member in self._members.values() for parent in member.after
            ),
            finally_tasks=tuple(place[member.task] for member in self._members.values() if member.is_finally),
            optional_tasks=tuple(place[member.task] for member in self._members.values() if not member.is_required),
        )
        self._executor._keep_graph(graph)
        events = self._record(*(Entry(task) for task in graph), Entry(graph, [started]))
        if events[-1]:
            self._run = RunRef(graph.id, number)
            self._position = events[-1][-1].position
        graph._errors = {}
        consequences = self._planner.begin()
        self._block(consequences)
        self._ready.extend(consequences.ready)

    def _record(self, *entries: Entry) -> list[list[RecordedEvent]]:
        return self._executor._journal.record(entries)

    def _hire(self) -> list[threading.Thread]:
        wanted = min(self._max_workers, len(self._members))
        workers = [
            threading.Thread(target=self._work, name=f"ttasks-run-{index}", daemon=True) for index in range(wanted)
        ]
        for worker in workers:
            worker.start()
        with self._changed:
            self._wake()  # there may be nothing to do at all
        return workers

    def _wait(self) -> None:
        self._over.wait()

    def _wake(self) -> None:
        """Wake as many workers as there is work for; all of them, and `run`, at the end. The lock is held."""
        is_ending = self._lost is not None or self._broken is not None or self._is_stopped
        if is_ending or (self._planner.is_finished and not self._running):
            self._changed.notify_all()
            if not self._running:
                self._over.set()
        elif self._ready:
            self._changed.notify(len(self._ready))

    def _finish(self) -> None:
        if self._broken is not None:
            raise self._broken
        if self._lost is not None:
            if self._run is not None:
                why = f"the ledger was lost: {self._lost}"
                self._graph._advance(GraphRunInterrupted(self._run.run, why, self._recorded_errors()))
            raise self._lost
        outcome = RunStatus.SUCCEEDED if self._graph.ok else RunStatus.FAILED
        if self._is_cancelled:
            outcome = RunStatus.CANCELLED
        self._close(lambda run: GraphRunFinished(run, outcome, self._recorded_errors()))
        self._executor._keep_graph(self._graph)

    def _close(self, fact: Callable[[int], GraphFact]) -> None:
        if self._run is not None:
            self._record(Entry(self._graph, [fact(self._run.run)], cause=self._position))

    def _recorded_errors(self) -> dict[str, dict[str, str]]:
        return {
            task_id: {"type": qualified_name(type(error)), "text": str(error)}
            for task_id, error in self._graph._errors.items()
        }

    # --- cancelling --------------------------------------------------------------------------------------------------

    def _cancel(self, why: str) -> None:
        """Cancel the run: what runs is cancelled but for finally tasks, nothing else starts but those."""
        try:
            if self._run is not None:
                self._record(Entry(self._graph, [GraphCancelRequested(clock.whoami(), why)], cause=self._position))
        except LedgerUnwritableError as lost:
            self._lose(lost)
        with self._changed:
            self._is_cancelled = True
            consequences = self._planner.withdraw()
            self._ready = deque(task for task in self._ready if self._members[task].is_finally)
            self._ready.extend(consequences.ready)
            running = [task for task in self._running if not self._members[task].is_finally]
            self._wake()
        for task_id in running:
            self._executor.cancel(self._tasks[task_id])

    def _stop(self) -> None:
        """Stop at once: what runs is recorded as INTERRUPTED, finally tasks stay owed (SPEC §2.7)."""
        with self._changed:
            self._is_stopped = True
            attempts = list(self._attempts.values())
            self._wake()
        for attempt in attempts:
            attempt.stop()
        with self._changed:
            self._changed.wait_for(lambda: not self._running, STOP_WAIT_S)
            stuck = [attempt for attempt in self._attempts.values() if not attempt.is_settled]
        for attempt in stuck:  # its handler does not end; what it does later changes nothing any more
            attempt.abandon()
            self._executor._settle(attempt)

    def _close_as_interrupted(self, why: str) -> None:
        self._close(lambda run: GraphRunInterrupted(run, why, self._recorded_errors()))

    # --- the workers -------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            attempt: Attempt | None = None
            while True:
                if attempt is None:
                    task_id = self._next()
                    if task_id is None:
                        return
                    if not self._is_direct:
                        self._execute(task_id)
                        continue
                    attempt = self._start(task_id)
                else:
                    attempt = self._perform(attempt)
        except BaseException as error:  # noqa: BLE001 - a bug of ours must end the run, not leave it waiting
            with self._changed:
                self._broken = error
                self._running.clear()
                self._wake()

    def _next(self) -> str | None:
        """Wait for a task to start and return it; None when there will be none."""
        with self._changed:
            while True:
                if self._lost is not None or self._broken is not None or self._is_stopped:
                    self._wake()
                    return None
                if self._ready:
                    return self._take(self._ready.popleft())
                if self._planner.is_finished and not self._running:
                    self._wake()
                    return None
                self._changed.wait()

    def _take(self, task_id: str) -> str:
        self._planner.start(task_id)
        self._running.add(task_id)
        return task_id

    def _upstream(self, task_id: str) -> dict[str, Task]:
        return {parent: self._tasks[parent] for parent in self._members[task_id].after}

    def _attempt(self, task_id: str) -> Attempt:
        policy = self._graph._policies.get(task_id)
        attempt = self._executor._attempt(self._tasks[task_id], self._upstream(task_id), policy, self._run)
        with self._changed:
            self._attempts[task_id] = attempt
        return attempt

    def _start(self, task_id: str) -> Attempt | None:
        """Start a task that was taken; None where it could not be, which is settled here."""
        try:
            attempt = self._attempt(task_id)
            self._executor._start(attempt, self._position)
        except LedgerUnwritableError as lost:
            self._lose(lost, task_id)
            return None
        except Exception as error:  # noqa: BLE001 - it is in the graph's errors
            self._settle(task_id, None if self._tasks[task_id].is_cancelled else error)
            return None
        return attempt

    def _perform(self, attempt: Attempt) -> Attempt | None:
        """Run a started attempt to its end; return the one that was started in the same commit, if any."""
        task_id = attempt.task.id
        follow: Attempt | None = None
        has_followed = False
        try:
            attempt = self._executor._finish(attempt)
            follow = self._follow(task_id, succeeds=attempt.error is None)
            has_followed = self._executor._settle(attempt, follow=follow)
        except LedgerUnwritableError as lost:
            self._lose(lost, task_id, *([follow.task.id] if follow is not None else []))
            return None
        except Exception as error:  # noqa: BLE001 - somebody else recorded its end; it is in the graph's errors
            self._give_back(follow)
            self._settle(task_id, error)
            return None
        if not has_followed:
            self._give_back(follow)
        self._settle(task_id, attempt.error)
        return follow if has_followed else None

    def _follow(self, task_id: str, *, succeeds: bool) -> Attempt | None:
        """Take a task whose start can share the commit of this one's end, and return an attempt at it."""
        with self._changed:
            if self._lost is not None or self._broken is not None or self._is_stopped or self._is_cancelled:
                return None
            if self._ready:
                follow_id: str | None = self._ready[0]
            else:
                follow_id = self._planner.next_after(task_id) if succeeds else None
            if follow_id is None or not self._executor.is_registered(self._tasks[follow_id].type):
                return None
            if self._ready:
                self._ready.popleft()
            else:
                self._planner.promise(follow_id)
            self._take(follow_id)
        try:
            return self._attempt(follow_id)
        except ValueError:  # it may not start; the thread that takes it next finds out why
            self._return(follow_id)
            return None

    def _give_back(self, follow: Attempt | None) -> None:
        if follow is not None:
            self._return(follow.task.id)

    def _return(self, task_id: str) -> None:
        with self._changed:
            self._attempts.pop(task_id, None)
            self._running.discard(task_id)
            self._ready.extendleft(self._planner.take_back(task_id).ready)
            self._wake()

    def _execute(self, task_id: str) -> None:
        """Run a taken task through the executor's own `execute`."""
        task, policy = self._tasks[task_id], self._graph._policies.get(task_id)
        error: BaseException | None = None
        try:
            if policy is None:
                self._executor.execute(task, self._upstream(task_id))
            else:
                self._executor.execute(task, self._upstream(task_id), retry_policy=policy)
        except LedgerUnwritableError as lost:
            self._lose(lost, task_id)
            return
        except BaseException as raised:  # noqa: BLE001 - it is in the graph's errors
            error = raised
        self._settle(task_id, error)

    def _settle(self, task_id: str, error: BaseException | None) -> None:
        """A task is through in this run: block what can't run any more, and let start what now can."""
        with self._changed:
            self._attempts.pop(task_id, None)
            if error is not None:
                self._graph._errors[task_id] = error
            consequences = self._planner.settle(task_id, succeeded=self._tasks[task_id].is_succeeded)
            if self._is_stopped:  # whoever resumes the run decides what follows from this
                consequences = Consequences()
        self._block(consequences)
        with self._changed:
            self._ready.extend(consequences.ready)
            self._running.discard(task_id)
            self._wake()

    def _block(self, consequences: Consequences) -> None:
        blocked = [(self._tasks[child], parent) for child, parent in consequences.blocked]
        try:
            self._executor._block(blocked, self._position)
        except LedgerUnwritableError as lost:
            self._lose(lost)
        except LedgerError:
            for task, parent in blocked:  # one of them has changed: the others are blocked all the same
                try:
                    self._executor._block([(task, parent)], self._position)
                except LedgerUnwritableError as lost:
                    self._lose(lost)
                except TtasksError as refusal:
                    with self._changed:
                        self._graph._errors[task.id] = refusal

    def _lose(self, lost: LedgerUnwritableError, *task_ids: str) -> None:
        """The ledger is lost: nothing more is started."""
        with self._changed:
            self._lost = self._lost or lost
            for task_id in task_ids:
                self._attempts.pop(task_id, None)
                self._running.discard(task_id)
            self._wake()
