"""`TaskExecutor`: runs tasks, and records and publishes what becomes of them."""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Final, Self

from ttasks import clock, errors
from ttasks.errors import LedgerUnwritableError, StreamConflictError, TransitionError, words
from ttasks.events.envelope import RecordedEvent
from ttasks.events.facts import (
    AttemptEnd,
    TaskCancelled,
    TaskFact,
    TaskFailed,
    TaskRetryScheduled,
)
from ttasks.events.status import TaskStatus, TaskType, TerminationReason
from ttasks.handlers.copilot import make_copilot_agent_handler, make_copilot_prompt_handler
from ttasks.handlers.kept import check_output_bytes
from ttasks.handlers.shell import bash_handler, powershell_handler
from ttasks.log.redaction import redacted
from ttasks.log.transaction import CancelUnheardError, Owned
from ttasks.model.event import TaskEvent, TaskEventType
from ttasks.model.graph import TaskGraph
from ttasks.model.result import TaskResult
from ttasks.model.retry import RetryPolicy
from ttasks.model.task import Task
from ttasks.runtime.attempt import ONCE, Attempt, Handler, RunRef, publishing_for
from ttasks.runtime.bus import EventBus
from ttasks.runtime.journal import journal_of
from ttasks.state import decide
from ttasks.stores.recording import Entry

_ENDED: Final = {
    TaskStatus.SUCCEEDED: TaskEventType.SUCCEEDED,
    TaskStatus.FAILED: TaskEventType.FAILED,
    TaskStatus.CANCELLED: TaskEventType.CANCELLED,
    TaskStatus.INTERRUPTED: TaskEventType.INTERRUPTED,
}


class TaskExecutor:
    """Runs tasks, with the four built-in handlers.

    Args:
        store: where everything is recorded. One of the library's own stores is a ledger: nothing runs that it can't
            record. Any other object with `tasks` and `graphs` gets `save` calls, as well as that goes. None: nowhere.
        max_output_bytes: how much of each of a script's two streams is kept in memory, and so in its result, its
            errors, and each line that is published: the beginning and the end, with a notice in between. A ledger has
            all of it all the same. None: everything.

    Raises:
        TypeError: `max_output_bytes must be an int`.
        ValueError: `max_output_bytes must be at least 1`.

    Leaving a ``with`` waits for what was submitted.
    """

    def __init__(self, store: Any = None, *, max_output_bytes: int | None = None) -> None:
        check_output_bytes(max_output_bytes)
        self._output_bytes_max = max_output_bytes
        self._store = store
        self._journal = journal_of(store)
        self._handlers: dict[TaskType, Handler] = {}
        self._events = EventBus()
        self._lock = threading.Lock()
        self._live: dict[str, Attempt] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._submitted: set[Future[TaskResult]] = set()
        self._workers: set[int] = set()
        self._waiting_workers: set[int] = set()
        self._drained = threading.Event()
        self._is_shutdown = False
        self._persistence_errors: list[tuple[str, Exception]] = []
        self._graph_persistence_errors: list[tuple[str, Exception]] = []
        self.register(TaskType.BASH, bash_handler)
        self.register(TaskType.POWERSHELL, powershell_handler)
        self.register(TaskType.PROMPT, make_copilot_prompt_handler())
        self.register(TaskType.AGENT, make_copilot_agent_handler())

    @classmethod
    def empty(cls, store: Any = None, *, max_output_bytes: int | None = None) -> Self:
        """Return an executor, of a subclass one of that, without handlers."""
        executor = cls(store) if max_output_bytes is None else cls(store, max_output_bytes=max_output_bytes)
        executor._handlers.clear()
        return executor

    # --- what it has -------------------------------------------------------------------------------------------------

    @property
    def store(self) -> Any:
        """The store it was given, or None."""
        return self._store

    @property
    def events(self) -> EventBus:
        """Where to hear what happens."""
        return self._events

    @property
    def persistence_errors(self) -> list[tuple[str, Exception]]:
        """What a user's own store raised when it was given a task, with the task's id: a new list each time."""
        with self._lock:
            return list(self._persistence_errors)

    @property
    def graph_persistence_errors(self) -> list[tuple[str, Exception]]:
        """What a user's own store raised when it was given a graph, with the graph's id: a new list each time."""
        with self._lock:
            return list(self._graph_persistence_errors)

    @property
    def is_shutdown(self) -> bool:
        """True once `shutdown` was called."""
        return self._is_shutdown

    def register(self, task_type: TaskType, handler: Handler) -> None:
        """Let `handler` run tasks of this type, in place of the one before.

        Raises:
            TypeError: `task_type must be a TaskType`, or `handler must be callable`.
        """
        if not isinstance(task_type, TaskType):
            raise TypeError(f"task_type must be a TaskType, got {task_type!r}")
        if not callable(handler):
            raise TypeError(f"handler must be callable, got {type(handler).__name__}")
        self._handlers[task_type] = handler

    def is_registered(self, task_type: TaskType) -> bool:
        """True when tasks of this type have a handler."""
        return task_type in self._handlers

    def is_running(self, task_id: str) -> bool:
        """True while the task has a live subprocess here."""
        attempt = self._live.get(task_id)
        return attempt is not None and attempt.has_process

    # --- one task ----------------------------------------------------------------------------------------------------

    def execute(
        self,
        task: Task,
        upstream: Mapping[str, Task] | None = None,
        *,
        retry_policy: RetryPolicy | None = None,
    ) -> TaskResult:
        """Run `task`, again as `retry_policy` says, and return how it ended.

        Args:
            task: PENDING, FAILED, BLOCKED or INTERRUPTED.
            upstream: its direct dependencies by id, for the handler.
            retry_policy: how often it is tried; None: once.

        Raises:
            TypeError, ValueError: a wrong argument, a task that may not run, a type without a handler.
            WithheldError: it was loaded, and the ledger withholds what it needs (a ValueError too). Nothing ran.
            StreamConflictError: somebody recorded something of the task that this handle has not seen. Nothing ran.
            LedgerUnwritableError: the start could not be recorded, and nothing ran; or, where it has a `result`, the
                end could not, and the handle keeps it as pending.
            TaskCancelled: the task was cancelled. Whatever else the handler raised: the task failed.
        """
        attempt = self._attempt(task, upstream or {}, retry_policy)
        try:
            self._start(attempt)
            attempt = self._finish(attempt)
            self._settle(attempt)
        except Exception:
            raise
        except BaseException as interruption:
            self._end_interrupted(attempt, interruption)
            raise
        ending = attempt.ending
        assert ending is not None
        if ending.error is not None:
            raise ending.error
        return ending.result

    def _attempt(
        self,
        task: Task,
        upstream: Mapping[str, Task],
        policy: RetryPolicy | None,
        run: RunRef | None = None,
    ) -> Attempt:
        """Return an attempt at `task` that has not started.

        A task without a handler becomes FAILED instead, and the ValueError for that is raised.
        """
        if not isinstance(task, Task):
            raise TypeError(f"task must be a Task, got {type(task).__name__}")
        if policy is not None and not isinstance(policy, RetryPolicy):
            raise TypeError(f"retry_policy must be a RetryPolicy, got {policy!r}")
        decide.check_may_start(task._view)
        task._check_whole()
        handler = self._handlers.get(task.type, _no_handler)
        attempt = Attempt(
            task,
            upstream,
            handler,
            journal=self._journal,
            bus=self._events,
            policy=policy or ONCE,
            output_bytes_max=self._output_bytes_max,
            run=run,
        )
        if handler is _no_handler:
            self._fail_unhandled(attempt)
        return attempt

    def _fail_unhandled(self, attempt: Attempt) -> None:
        task, before = attempt.task, attempt.task.status
        error = ValueError(f"No handler registered for task type '{task.type}'")
        now = clock.now()
        failed = TaskFailed(
            attempt=attempt.number,
            started_at=attempt.started_at,
            finished_at=now,
            duration=0.0,
            error=str(error),
            exception="builtins.ValueError",
            reason=TerminationReason.HANDLER.value,
        )
        (events,) = self._journal.record([Entry(task, [attempt.start_fact(), failed])])
        self._publish(task, TaskEventType.FAILED, before, failed, _last(events))
        raise error

    def _start(self, attempt: Attempt, cause: int | None = None) -> None:
        """Record that the attempt starts, and tell subscribers; only after that may its handler be entered."""
        owned = Owned(attempt.number - 1) if attempt.retry else None
        attempt.execution.latest = attempt
        try:
            (events,) = self._journal.record([Entry(attempt.task, [attempt.start_fact()], owned, cause)])
        except TransitionError as refusal:
            decide.check_may_start(attempt.task._view)  # another thread may have started this very handle just now
            raise refusal
        self._started(attempt, _last(events))

    def _started(self, attempt: Attempt, event: RecordedEvent | None) -> None:
        task = attempt.task
        attempt.started(event.position if event is not None else None)
        self._live[task.id] = attempt
        task._on_cancel = attempt.ask_cancel
        log = self._journal.log
        if log is not None:
            log.watch(f"task-{task.id}", attempt.ask_cancel)
        if task._view.cancel_requested_by is not None:
            attempt.ask_cancel()
        self._publish(task, TaskEventType.STARTED, attempt.status_before, None, event)

    def _finish(self, attempt: Attempt) -> Attempt:
        """Run the attempt and those that retry it; return the last one, whose end is not recorded yet."""
        attempt.perform()
        while (delay_s := self._retry_delay_s(attempt)) is not None:
            scheduled = TaskRetryScheduled(attempt.number, attempt.retry + 1, delay_s, clock.later(delay_s))
            self._settle(attempt, scheduled)
            if not isinstance(attempt.fact, TaskFailed):
                break
            if not attempt.wait_for_retry(delay_s):
                if attempt.is_cancelled:
                    attempt.end_waiting()
                else:  # stopped: a retry that nobody waits for any more stays FAILED
                    self._let_go(attempt)
                break
            following = attempt.next()
            try:
                self._start(following)
            except CancelUnheardError:
                attempt.end_waiting()
                break
            except BaseException as error:
                self._let_go(attempt)
                if isinstance(error, LedgerUnwritableError):
                    error.result = attempt.result
                raise
            attempt = following
            attempt.perform()
        return attempt

    def _retry_delay_s(self, attempt: Attempt) -> float | None:
        """Return how long to wait before the attempt is tried again; None: it isn't."""
        policy, error = attempt.policy, attempt.error
        if not isinstance(attempt.fact, TaskFailed) or attempt.retry + 1 >= policy.max_attempts:
            return None
        if not isinstance(error, Exception):
            return None
        try:
            if not policy.allows(error):
                return None
        except Exception as broken:  # noqa: BLE001 - the attempt failed all the same; whoever executes hears of both
            attempt.raise_instead(broken)
            return None
        return policy.delay_s(attempt.retry + 1, random.random())  # noqa: S311 - it only spreads retries

    def _end_interrupted(self, attempt: Attempt, interruption: BaseException) -> None:
        """Record how an execution ends that Ctrl-C cut short somewhere in this class, or in a subscriber."""
        while True:
            try:
                latest = attempt.execution.latest
                if latest is None:
                    return  # it had not begun
                events = self._journal.catch_up(latest.task)
                state = latest.task._view
                has_begun = latest.has_started or self._journal.is_recorded(latest.task, latest.started_at)
                if state.running_attempt == latest.number and has_begun:
                    latest.ending = latest.ending or latest.cancelled(interruption)
                elif latest.has_started and state.is_owned:
                    latest.end_waiting(interruption)
                else:
                    if latest.has_started and not latest.is_settled and latest.ending is not None:
                        self._ended(latest, TaskStatus.RUNNING, events, is_waiting=False)
                    return
                self._settle(latest)
            except Exception:
                raise
            except BaseException:  # noqa: BLE001, S112 - another Ctrl-C: what was begun is ended all the same
                continue
            return

    def _settle(self, attempt: Attempt, *more: TaskFact, follow: Attempt | None = None) -> bool:
        """Record how the attempt ended, and tell subscribers; return whether `follow` started in the same commit.

        Args:
            attempt: it has an ending; one that was settled before is left alone.
            more: facts that follow the end.
            follow: an attempt at another task, to be started with it. Where that one's start is refused, the end is
                recorded alone.

        Raises:
            LedgerUnwritableError: the ledger is lost. The handle shows the end, as pending; `result` has the result.
        """
        if attempt.is_settled:
            return False
        facts = attempt.unwritten()
        before = attempt.task.status
        has_started_follow = follow is not None
        try:
            try:
                events = self._record_end(attempt, facts, more, follow)
            except LedgerUnwritableError:
                raise
            except (StreamConflictError, TransitionError) as refusal:
                if isinstance(refusal, CancelUnheardError):
                    attempt.cancel_ending()
                elif follow is None:  # somebody else has recorded how it ended
                    self._journal.catch_up(attempt.task)
                    self._let_go(attempt)
                    raise
                has_started_follow = False
                events = self._record_end(attempt, facts, (), None)
        except LedgerUnwritableError as lost:
            self._lose(attempt, facts, before, lost)
            raise
        attempt.settled()
        self._ended(attempt, before, events[0], is_waiting=bool(more) and isinstance(attempt.fact, TaskFailed))
        if follow is not None and has_started_follow:
            self._started(follow, _last(events[1]))
        return has_started_follow

    def _record_end(
        self, attempt: Attempt, facts: Sequence[TaskFact], more: Sequence[TaskFact], follow: Attempt | None
    ) -> list[list[RecordedEvent]]:
        owned = Owned(attempt.number, knows_cancel=attempt.is_cancelled)
        end = Entry(attempt.task, [*facts, attempt.fact, *more], owned, attempt.position)
        entries = [end]
        if follow is None:
            return self._journal.record(entries)
        return self._journal.record([*entries, Entry(follow.task, [follow.start_fact()], cause=end)])

    def _ended(
        self, attempt: Attempt, before: TaskStatus, events: Sequence[RecordedEvent], *, is_waiting: bool
    ) -> None:
        if is_waiting:  # for its retry: whoever cancels it must still reach this attempt
            attempt.task._ended(attempt.result)
        else:
            self._let_go(attempt)
        record = next((event for event in events if isinstance(event.fact, AttemptEnd)), None)
        kind = _ENDED[attempt.result.status]
        self._publish(attempt.task, kind, before, attempt.fact, record)

    def _lose(
        self, attempt: Attempt, facts: Sequence[TaskFact], before: TaskStatus, lost: LedgerUnwritableError
    ) -> None:
        """The work ended as it ended, but the ledger can't be told: the handle shows it, and keeps it as pending."""
        attempt.settled()
        attempt.task._advance([*facts, attempt.fact])
        self._let_go(attempt)
        lost.result = attempt.result
        self._publish(attempt.task, TaskEventType.PERSISTENCE_FAILED, before, None, None, error=str(lost))

    def _let_go(self, attempt: Attempt) -> None:
        task = attempt.task
        task._ended(attempt.result)
        if self._live.get(task.id) is not attempt:
            return
        task._on_cancel = None
        del self._live[task.id]
        log = self._journal.log
        if log is not None:
            log.unwatch(f"task-{task.id}")

    def _publish(
        self,
        task: Task,
        kind: TaskEventType,
        before: TaskStatus,
        fact: AttemptEnd | None,
        record: RecordedEvent | None,
        error: str | None = None,
    ) -> None:
        if fact is not None and not isinstance(fact, TaskFailed | TaskCancelled):
            text = None
        elif fact is not None and task.result is not None:
            text = task.result.error
        else:
            text = error if error is None else redacted(error, self._journal.redaction(task))
        if self._events.has_subscribers:
            at = record.recorded_at if record is not None else clock.now()
            self._events.emit(TaskEvent(kind, task.id, task, at, before, task.status, error=text, record=record))
        if kind is not TaskEventType.PERSISTENCE_FAILED:
            self._keep(task)

    def _keep(self, task: Task) -> None:
        failure = self._journal.keep(task)
        if failure is not None:
            with self._lock:
                self._persistence_errors.append((task.id, failure))
            status = task.status
            self._publish(task, TaskEventType.PERSISTENCE_FAILED, status, None, None, error=words(failure))

    def _keep_graph(self, graph: TaskGraph) -> None:
        failure = self._journal.keep_graph(graph)
        if failure is not None:
            with self._lock:
                self._graph_persistence_errors.append((graph.id, failure))

    # --- cancelling and blocking -------------------------------------------------------------------------------------

    def cancel(self, task: Task) -> None:
        """Cancel `task`; nothing after SUCCEEDED, and repeating it is harmless.

        One that runs here has its process group ended, and its own `execute` publishes CANCELLED. One that has not
        started gets a CANCELLED result and one CANCELLED event.

        Raises:
            TypeError: `task must be a Task`.
            LedgerUnwritableError: it could not be recorded; the task is as it was.
        """
        if not isinstance(task, Task):
            raise TypeError(f"task must be a Task, got {type(task).__name__}")
        while not self._cancel_live(task):
            before = task.status
            if before.is_sink:
                return
            if task._request_cancel():  # it is owned by another handle, or another process: that one is asked
                self._journal.record([Entry(task)])
                return
            try:
                self._cancel_unstarted(task, before)
            except TransitionError:
                if task.status is before:
                    raise
                continue  # it was started, or ended, just now
            return

    def _cancel_live(self, task: Task) -> bool:
        attempt = self._live.get(task.id)
        if attempt is None or not attempt.task._request_cancel():
            return False
        attempt.ask_cancel()
        return True

    def _cancel_unstarted(self, task: Task, before: TaskStatus) -> None:
        now = clock.now()
        text = f"Task '{task.id}' was cancelled"
        reason = TerminationReason.CANCELLED.value
        # No attempt, so that the task's own error stays; but a result.
        fact = TaskCancelled(
            started_at=now, finished_at=now, duration=0.0, error=text, reason=reason, by=clock.whoami()
        )
        (events,) = self._journal.record([Entry(task, [fact])])
        self._publish(task, TaskEventType.CANCELLED, before, fact, _last(events))

    def mark_blocked(self, task: Task, parent_id: str) -> None:
        """Record that `task` can't run because `parent_id`, a direct dependency, is bad, and publish BLOCKED.

        Raises:
            TransitionError: the task is not PENDING. Nothing was written.
            LedgerUnwritableError: it could not be recorded; the task is as it was.
            TypeError: `task must be a Task`, `parent_id must be a str`.
        """
        if not isinstance(task, Task):
            raise TypeError(f"task must be a Task, got {type(task).__name__}")
        if not isinstance(parent_id, str):
            raise TypeError(f"parent_id must be a str, got {type(parent_id).__name__}")
        self._block([(task, parent_id)])

    def _block(self, blocked: Sequence[tuple[Task, str]], cause: int | None = None) -> None:
        entries = [Entry(task, decide.block(task._view, parent), cause=cause) for task, parent in blocked]
        before = [task.status for task, _ in blocked]
        recorded = self._journal.record(entries) if entries else []
        for (task, _), status, events in zip(blocked, before, recorded, strict=True):
            self._publish(task, TaskEventType.BLOCKED, status, None, _last(events))

    # --- many tasks --------------------------------------------------------------------------------------------------

    def submit(
        self,
        task: Task,
        upstream: Mapping[str, Task] | None = None,
        *,
        retry_policy: RetryPolicy | None = None,
    ) -> Future[TaskResult]:
        """Queue `task` for a pool of threads and return its future; see `execute`.

        Cancelling the future of queued work cancels the task.

        Raises:
            TypeError: a wrong argument.
            RuntimeError: `executor is shut down`.
        """
        if not isinstance(task, Task):
            raise TypeError(f"task must be a Task, got {type(task).__name__}")
        if retry_policy is not None and not isinstance(retry_policy, RetryPolicy):
            raise TypeError(f"retry_policy must be a RetryPolicy, got {retry_policy!r}")
        decide.check_may_start(task._view)
        task._check_whole()
        with self._lock:
            if self._is_shutdown:
                raise RuntimeError("executor is shut down")
            if self._pool is None:
                self._pool = ThreadPoolExecutor(thread_name_prefix="ttasks")
            future = self._pool.submit(self._execute_queued, task, dict(upstream or {}), retry_policy)
            self._submitted.add(future)
        future.add_done_callback(lambda done: self._done(done, task))
        return future

    def _done(self, future: Future[TaskResult], task: Task) -> None:
        try:
            if future.cancelled():
                self.cancel(task)
        finally:
            with self._lock:
                self._submitted.discard(future)
                self._look_whether_drained()

    def _look_whether_drained(self) -> None:
        """Let those go that wait in `shutdown` once only workers are left that wait there too. The lock is held."""
        if self._is_shutdown and self._pool is not None:
            waiting = len(self._waiting_workers)
            if len(self._submitted) <= waiting or waiting >= self._pool._max_workers:
                self._drained.set()

    def _execute_queued(self, task: Task, upstream: Mapping[str, Task], retry_policy: RetryPolicy | None) -> TaskResult:
        worker = threading.get_ident()
        self._workers.add(worker)
        try:
            if task.is_cancelled:
                raise errors.TaskCancelled(f"Task '{task.id}' was cancelled")
            if retry_policy is None:
                return self.execute(task, upstream)
            return self.execute(task, upstream, retry_policy=retry_policy)
        except StreamConflictError as conflict:
            if not self._journal.is_cancelled(task):
                raise
            self._journal.catch_up(task)
            raise errors.TaskCancelled(f"Task '{task.id}' was cancelled") from conflict
        finally:
            self._workers.discard(worker)

    def run_graph(self, graph: TaskGraph, max_workers: int = 4) -> TaskGraph:
        """Run a graph; see `TaskGraph.run`."""
        from ttasks.runtime.graph_run import GraphRun

        GraphRun(self, graph, max_workers).run()
        return graph

    def shutdown(self) -> None:
        """Refuse what is submitted from now on, and wait for what was; repeating it is harmless."""
        worker = publishing_for() or threading.get_ident()
        with self._lock:
            self._is_shutdown = True
            pool = self._pool
            if pool is None:
                return
            if worker in self._workers:  # its own work can't be waited for
                self._waiting_workers.add(worker)
            self._look_whether_drained()
        pool.shutdown(wait=False)
        clock.wait(self._drained)
        if worker not in self._workers and threading.current_thread() not in pool._threads:
            pool.shutdown(wait=True)  # the threads of a drained pool end at once

    def close(self) -> None:
        """The same as `shutdown`."""
        self.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown()


def _no_handler(_: object) -> None:
    """Stand in the log for the handler that a task has not got."""


def _last(events: Sequence[RecordedEvent]) -> RecordedEvent | None:
    return events[-1] if events else None


TaskExecutor.__module__ = "ttasks"
